//! What the monitor remembers of a guest, besides its page tables: one value, at [`crate::layout::STATE`] behind the configuration.

use crate::event::Events;
use crate::mmu::Mmu;
use crate::shared_info::VcpuInfo;

/// Vectors.
pub const VECTORS: usize = 256;

/// How the guest's kernel takes an exception (Xen public headers, `arch-x86/xen.h`: `trap_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapHandler {
    /// Where it begins; 0 for none.
    pub address: u64,
    /// Bits 0 and 1: the least privileged ring that may raise it by INT n. Bit 2: events are masked.
    pub flags: u8,
}

impl TrapHandler {
    /// Whether events are masked on the way in.
    #[must_use]
    pub const fn masks_events(self) -> bool {
        self.flags & 4 != 0
    }

    /// The least privileged ring that may raise it by INT n.
    #[must_use]
    pub const fn ring(self) -> u8 {
        self.flags & 3
    }
}

/// How the guest's kernel takes anything else (`callback.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callback {
    /// Where it begins; 0 for none.
    pub address: u64,
    /// Events are masked on the way in.
    pub masks_events: bool,
}

/// The guest's callbacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Callbacks {
    /// Events.
    pub event: Callback,
    /// A return to the guest failed.
    pub failsafe: Callback,
    /// SYSCALL from 64-bit programs.
    pub syscall: Callback,
    /// SYSCALL from 32-bit programs.
    pub syscall32: Callback,
}

/// A descriptor table that the guest handed over: the frames that it lies in, so that updates are noticed.
#[derive(Clone, Copy, Debug)]
pub struct TableFrames {
    /// Frame numbers, of which `count` are used.
    pub frames: [u64; 16],
    /// See `frames`.
    pub count: usize,
    /// Offset of the table in its first frame, in bytes.
    pub offset: u64,
    /// Descriptors.
    pub entries: u64,
}

impl TableFrames {
    /// No table.
    pub const NONE: Self = Self { frames: [0; 16], count: 0, offset: 0, entries: 0 };

    /// Index of the descriptor at this guest-physical address, if it is one of the table's.
    #[must_use]
    pub fn index_of(&self, address: u64) -> Option<u64> {
        let page = self.frames.get(..self.count)?.iter().position(|frame| *frame == address >> 12)? as u64;
        let index = (page << 12 | address & 0xfff).checked_sub(self.offset)? / 8;
        (index < self.entries).then_some(index)
    }
}

/// How much a guest's run state says (`vcpu.h`: `vcpu_runstate_info`).
#[derive(Clone, Copy, Debug, Default)]
pub struct RunState {
    /// Guest-virtual address of the record; 0 for none.
    pub address: u64,
    /// Nanoseconds that it waited for events.
    pub blocked: u64,
    /// When it began to wait, or to run.
    pub since: u64,
}

/// The state.
#[derive(Debug)]
pub struct State {
    /// The guest's page tables.
    pub mmu: Mmu,
    /// Where the guest's kernel has its stack when a program is interrupted.
    pub kernel_stack: u64,
    /// Its exception handlers.
    pub traps: [TrapHandler; VECTORS],
    /// Its other handlers.
    pub callbacks: Callbacks,
    /// Its `vcpu_info`.
    pub vcpu_info: VcpuInfo,
    /// Its event channels.
    pub events: Events,
    /// Its global descriptor table.
    pub gdt: TableFrames,
    /// Its local descriptor table.
    pub ldt: TableFrames,
    /// Its run state.
    pub run_state: RunState,
    /// What the hypercall of the moment may still do before the guest, and with it the host's interrupts, gets a turn: see
    /// [`crate::hypercall::BUDGET`].
    pub budget: u64,
    /// Guest-physical address of a store to a page table that the host emulates.
    pub store_by_host: Option<u64>,
    /// Whether the guest halts since it asked to (`SCHEDOP_block`).
    pub halted: bool,
}

impl State {
    /// Of a guest that has not begun, whose `vcpu_info` is in its `shared_info`.
    #[must_use]
    pub fn new(vcpu_info: VcpuInfo) -> Self {
        Self {
            mmu: Mmu::new(),
            kernel_stack: 0,
            traps: [TrapHandler::default(); VECTORS],
            callbacks: Callbacks::default(),
            vcpu_info,
            events: Events::default(),
            gdt: TableFrames::NONE,
            ldt: TableFrames::NONE,
            run_state: RunState::default(),
            budget: 0,
            store_by_host: None,
            halted: false,
        }
    }
}
