//! The guest's registers as core and the engines share them.

use core::mem::offset_of;
use core::mem::size_of;

use bitflags::bitflags;
pub use covisor_abi::Segment;
pub use covisor_abi::Table;
use static_assertions::const_assert_eq;
pub use x86::bits64::rflags::RFlags;
pub use x86::controlregs::Cr0;
pub use x86::controlregs::Cr4;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

bitflags! {
    /// `IA32_EFER` (APM vol. 2, 3.1.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        /// SYSCALL and SYSRET work.
        const SCE = 1 << 0;
        /// Long mode enabled.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute page protection.
        const NXE = 1 << 11;
        /// SVM enabled.
        const SVME = 1 << 12;
        /// Long mode segment limits.
        const LMSLE = 1 << 13;
        /// Fast FXSAVE and FXRSTOR.
        const FFXSR = 1 << 14;
        /// Translation cache extension.
        const TCE = 1 << 15;
    }
}

/// The general registers, in the order of the instruction encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Gprs {
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// RSP.
    pub rsp: u64,
    /// RBP.
    pub rbp: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
}
const_assert_eq!(size_of::<Gprs>(), 128);
const_assert_eq!(offset_of!(Gprs, rdi), 7 * 8);
const_assert_eq!(offset_of!(Gprs, r15), 15 * 8);

impl Gprs {
    /// The registers by their number in the instruction encoding.
    #[must_use]
    pub fn as_array(&self) -> &[u64; 16] {
        zerocopy::transmute_ref!(self)
    }

    /// A copy of the registers by their number.
    #[must_use]
    pub fn to_array(&self) -> [u64; 16] {
        *self.as_array()
    }

    /// Register `number` of the instruction encoding; only its low four bits count.
    #[must_use]
    pub fn get_mut(&mut self, number: usize) -> &mut u64 {
        let registers: &mut [u64; 16] = zerocopy::transmute_mut!(self);
        &mut registers[number & 15]
    }

    /// The value of register `number`.
    #[must_use]
    pub fn get(&self, number: usize) -> u64 {
        self.as_array()[number & 15]
    }

    /// Sets all registers, by their number.
    pub fn set_array(&mut self, values: &[u64; 16]) {
        *self = zerocopy::transmute!(*values);
    }

    /// EDX:EAX as one value, as RDMSR, WRMSR and XSETBV use them.
    #[must_use]
    pub const fn edx_eax(&self) -> u64 {
        self.rdx << 32 | self.rax & 0xffff_ffff
    }

    /// Sets EDX:EAX, clearing the upper halves, as RDMSR does.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.rax = value & 0xffff_ffff;
        self.rdx = value >> 32;
    }
}

/// A segment register, numbered as in the instruction encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SegmentName {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
    /// The LDT's segment.
    Ldtr = 6,
    /// The task's segment.
    Tr = 7,
}

impl SegmentName {
    /// ES, CS, SS, DS, FS, GS.
    pub const USER: [Self; 6] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs];
}

/// Bits of [`Segment::attributes`].
pub mod attributes {
    /// Long mode code segment.
    pub const LONG: u16 = 1 << 9;
    /// Default operand size is 32 bits (code), stack pointer is ESP (stack).
    pub const DEFAULT_BIG: u16 = 1 << 10;
    /// Present.
    pub const PRESENT: u16 = 1 << 7;
    /// Code, else data.
    pub const CODE: u16 = 1 << 3;
    /// Data below the stack's top: offsets above the limit are valid.
    pub const EXPAND_DOWN: u16 = 1 << 2;
    /// Code can be read, data can be written.
    pub const READABLE_WRITABLE: u16 = 1 << 1;
    /// Lowest bit of the descriptor privilege level.
    pub const DPL_SHIFT: u16 = 5;
    /// The bits that a segment can have.
    pub const ALL: u16 = 0x0fff;
}

/// The size of code that the guest executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual 8086 mode, 16-bit segments.
    Bits16,
    /// 32-bit segments, also compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// In bits, as the decoder wants it.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Whether `address` has bits 63 to 47 all alike (APM vol. 2, 5.3.1; guests have 4-level paging).
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    let upper = address >> 47;
    upper == 0 || upper == 0x1_ffff
}
