//! What the way between the worlds needs of the host, one for each CPU. The transition root maps it at its address in the host, so
//! it is there before, while and after the page tables change. The stack that is used meanwhile ends where it begins.

use core::mem::offset_of;
use core::mem::size_of;

use static_assertions::const_assert;
use static_assertions::const_assert_eq;

/// Limit and base of a descriptor table, as LGDT, SGDT and their kin take it from [`TablePointer::OPERAND`] on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TablePointer {
    padding: [u16; 3],
    /// Offset of the last byte.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

impl TablePointer {
    /// Offset of the instructions' operand.
    pub const OPERAND: usize = offset_of!(Self, limit);

    /// A table with this limit and base.
    #[must_use]
    pub const fn new(limit: u16, base: u64) -> Self {
        Self { padding: [0; 3], limit, base }
    }
}
const_assert_eq!(offset_of!(TablePointer, base), TablePointer::OPERAND + size_of::<u16>());

/// [`Crossing::pending`], [`crate::area::Area::pending_host`]: an NMI came.
pub const PENDING_NMI: u64 = 1 << 0;
/// As above: a machine check came.
pub const PENDING_MACHINE_CHECK: u64 = 1 << 1;

/// The block.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Crossing {
    /// The GDT of the crossing: the host's descriptors, and the monitor's ring 0 in its last page, as the monitor's own has it.
    pub gdt: TablePointer,
    /// The IDT of the crossing: it notes NMIs and machine checks in `pending`.
    pub idt: TablePointer,
    /// [`PENDING_NMI`], [`PENDING_MACHINE_CHECK`].
    pub pending: u64,
    /// Where the H-IDT's handlers for NMI and machine check keep two registers each.
    pub kept: [[u64; 2]; 2],
    /// CR3 of the transition root.
    pub transition_cr3: u64,
    /// CR4 of the monitor's world.
    pub monitor_cr4: u64,
    /// Where the monitor takes over.
    pub landing: u64,
    /// Not 0: the CPU's buffers are to be overwritten before the guest runs (Intel, "Microarchitectural data sampling").
    pub clear_buffers: u64,
    /// The host's stack pointer; there lies the return address.
    pub host_rsp: u64,
    /// The host's registers.
    pub host_cr0: u64,
    /// As above.
    pub host_cr3: u64,
    /// As above.
    pub host_cr4: u64,
    /// As above.
    pub host_gs_base: u64,
    /// As above.
    pub host_gdt: TablePointer,
    /// As above.
    pub host_idt: TablePointer,
    /// The host's selectors.
    pub host_cs: u64,
    /// As above.
    pub host_ss: u64,
    /// As above.
    pub host_tr: u64,
    /// Address of the descriptor that `host_tr` selects in `gdt`.
    pub host_tss_descriptor: u64,
}
const_assert!(size_of::<Crossing>().is_multiple_of(16));
