//! Where everything lies in the monitor's part of the address space: L4 slots 256 to 271, which 64-bit Xen PV kernels leave to the
//! hypervisor (Xen public headers, `arch-x86/xen-x86_64.h`, `HYPERVISOR_VIRT_START` and `_END`).
//!
//! ```text
//! slot 256       M2P      frame numbers by frame number; the guest reads it
//! slot 257       ENTRY    what a trap needs; in the roots of the guest's kernel and of its user mode, and in the transition root
//!                IMAGE    the monitor's other code and constants      ┐
//!                STATE    its state, its stack                        │ in the root of the guest's kernel only
//!                FRAMES   what it knows of each guest frame           │
//!                SHADOWS  what it knows of each shadow table          │
//!                POOL     the shadow tables                           │
//! slots 258-265  RAM      the guest's memory                          ┘
//! ```

use static_assertions::const_assert;

/// Page size, in bytes.
pub const PAGE: u64 = 4096;
/// First of the L4 slots that are the monitor's.
pub const FIRST_SLOT: usize = 256;
/// Number of the slots that are the monitor's.
pub const SLOTS: usize = 16;
/// Bytes of an L4 slot.
pub const SLOT_SIZE: u64 = 1 << 39;
/// First address that is the monitor's.
pub const FIRST: u64 = 0xffff_8000_0000_0000;
/// First address behind those that are the monitor's.
pub const END: u64 = FIRST + SLOTS as u64 * SLOT_SIZE;

/// The machine-to-physical table: a `u64` for each frame.
pub const M2P: u64 = FIRST;

/// First address of what a trap needs, the image's entry code first.
pub const ENTRY: u64 = FIRST + SLOT_SIZE;
/// Index of [`ENTRY`]'s L4 slot.
pub const ENTRY_SLOT: usize = FIRST_SLOT + 1;
/// Largest size of the entry code.
pub const ENTRY_TEXT_SIZE: u64 = 0x1_0000;
/// The stub of vector n is at `STUBS + n * STUB_SIZE`.
pub const STUBS: u64 = ENTRY + 0x1000;
/// Bytes of a stub.
pub const STUB_SIZE: u64 = 16;
/// [`crate::area::Area`], one page.
pub const AREA: u64 = ENTRY + 0x10_0000;
/// Stacks of the interrupt stack table, a page each: for NMI, #MC, #DB and #DF, IST 1 to 4.
pub const IST_STACKS: u64 = ENTRY + 0x11_0000;
/// Number of [`IST_STACKS`].
pub const IST_STACK_COUNT: u64 = 4;
/// The task state segment, one page.
pub const TSS: u64 = ENTRY + 0x12_0000;
/// The interrupt descriptor table, one page.
pub const IDT: u64 = ENTRY + 0x13_0000;
/// The global descriptor table: 14 pages for the guest's descriptors, of which it uses the first, and one of the monitor's own.
pub const GDT: u64 = ENTRY + 0x14_0000;
/// Pages of [`GDT`].
pub const GDT_PAGES: u64 = 15;
/// The guest's local descriptor table.
pub const LDT: u64 = ENTRY + 0x16_0000;
/// Pages of [`LDT`].
pub const LDT_PAGES: u64 = 16;

/// The image behind the entry code: code, then constants.
pub const IMAGE: u64 = ENTRY + (1 << 30);
/// [`crate::config::Config`], then the monitor's own state behind it.
pub const STATE: u64 = ENTRY + (2 << 30);
/// Pages of [`STATE`], with the configuration.
pub const STATE_PAGES: u64 = 16;
/// The guest's `shared_info` page.
pub const SHARED_INFO: u64 = STATE + 0x10_0000;
/// L5 pages of the kernel's and of the user mode's root, where the host has 5-level paging.
pub const TOP_TABLES: u64 = STATE + 0x11_0000;
/// Lowest address of the monitor's stack; below it nothing is mapped.
pub const STACK: u64 = STATE + 0x20_0000;
/// Pages of the stack.
pub const STACK_PAGES: u64 = 8;
/// Where the stack begins.
pub const STACK_TOP: u64 = STACK + STACK_PAGES * PAGE;
/// [`crate::frame::Frame`] of each guest frame.
pub const FRAMES: u64 = ENTRY + 0x10_0000_0000;
/// [`crate::frame::Shadow`] of each shadow table.
pub const SHADOWS: u64 = ENTRY + 0x18_0000_0000;
/// The shadow tables, a page each.
pub const POOL: u64 = ENTRY + 0x20_0000_0000;
/// The guest's memory: its guest-physical address added.
pub const RAM: u64 = FIRST + 2 * SLOT_SIZE;
/// First guest-physical address behind what [`RAM`] has room for.
pub const RAM_END: u64 = 8 * SLOT_SIZE;

const_assert!(GDT + GDT_PAGES * PAGE <= LDT);
const_assert!(RAM + RAM_END <= END);

/// A number as an index.
#[expect(clippy::cast_possible_truncation, reason = "both have 64 bits")]
#[must_use]
pub const fn place(number: u64) -> usize {
    const_assert!(size_of::<usize>() == size_of::<u64>());
    number as usize
}

/// Whether an address is the monitor's.
#[must_use]
pub const fn is_monitors(address: u64) -> bool {
    address >= FIRST && address < END
}

/// Segment selectors that every 64-bit Xen PV guest has without asking (`arch-x86/xen-x86_64.h`), and the monitor's own, all in the last
/// page of [`GDT`].
pub mod selector {
    /// Flat 32-bit code of ring 3.
    pub const RING3_CODE32: u16 = 0xe023;
    /// Flat data of ring 3.
    pub const RING3_DATA: u16 = 0xe02b;
    /// Flat 64-bit code of ring 3.
    pub const RING3_CODE64: u16 = 0xe033;
    /// The monitor's code.
    pub const RING0_CODE: u16 = 0xe008;
    /// The monitor's data.
    pub const RING0_DATA: u16 = 0xe010;
    /// The monitor's task state segment, two descriptors long.
    pub const TSS: u16 = 0xe040;
    /// The guest's local descriptor table, two descriptors long.
    pub const LDT: u16 = 0xe050;
    /// First selector of the page that has them.
    pub const OWN_PAGE: u16 = 0xe000;
    /// Bits of a selector that tell its privilege level.
    pub const RPL: u16 = 3;
}
