//! A vCPU's registers, for its start and for looking at it.

use core::mem::offset_of;
use core::mem::size_of;

use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Base, linear.
    pub base: u64,
    /// Limit, in bytes, already scaled by the granularity.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Bits 0-7: bits 40-47 of the descriptor (type, S, DPL, P); bits 8-11: its bits 52-55 (AVL, L, D/B, G).
    /// The other bits are 0. The same as an SVM `attrib` field (APM vol. 2, 15.5.1).
    pub attributes: u16,
}
const_assert_eq!(size_of::<Segment>(), 16);

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Table {
    /// Base, linear.
    pub base: u64,
    /// Limit, in bytes, at most 0xffff.
    pub limit: u64,
}
const_assert_eq!(size_of::<Table>(), 16);

/// Structure of [`crate::Call::VcpuSet`] and [`crate::Call::VcpuGet`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuState {
    /// In: the vCPU.
    pub vcpu: u32,
    /// Must be 0.
    pub reserved: u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of the instruction encoding.
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the order of the instruction encoding.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, without `SVME`.
    pub efer: u64,
    /// XCR0; ignored by set.
    pub xcr0: u64,
}
const_assert_eq!(size_of::<VcpuState>(), 8 + 16 * 8 + 16 + 8 * 16 + 2 * 16 + 6 * 8);
const_assert_eq!(offset_of!(VcpuState, segments), 152);
