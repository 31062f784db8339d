//! What core asks of the operating system that the driver runs in: about twenty primitives, and nothing else.
//!
//! **Guest context.** Between an engine's entry and its return the CPU still holds guest values (segment bases, SYSCALL
//! MSRs, extended state; SVM: GIF is 0). None of these functions may be called there, because the host's per-CPU data and
//! locks are out of reach. They are for thread context with interrupts on, if not stated.

use core::fmt::Debug;
use core::ptr::NonNull;

use crate::instructions::read_cr4;
use crate::instructions::write_cr4;

/// Zeroed pages, contiguous in host-physical memory and mapped in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Host-physical address of the first page.
    pub phys: u64,
    /// Kernel address of the first page, valid in every context until the block is freed.
    pub virt: NonNull<u8>,
    /// The block has 2^order pages of 4 KiB.
    pub order: u32,
}

// SAFETY: a block is an address and owns nothing by itself; who uses it keeps to one owner at a time.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// Order of a 2 MiB block.
pub const ORDER_2M: u32 = 9;

/// CR4.VMXE.
const CR4_VMXE: u64 = 1 << 13;

/// A wait was ended by a signal, a cancel or the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// The host has no memory left to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host has not enough free memory")]
pub struct OutOfMemory;

/// What a timer calls when it expires: a function and its argument. Runs in the host's interrupt context (Linux: hard
/// interrupt, NT: DPC), so it only sets flags and wakes.
#[derive(Clone, Copy, Debug)]
pub struct TimerCallback {
    /// The function.
    pub function: fn(*const ()),
    /// Its argument, valid until the timer is dropped.
    pub argument: *const (),
}

/// What does not change as long as the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Number of CPUs that there can ever be; their numbers are below it.
    pub cpu_limit: usize,
    /// Rate of the time stamp counter in kHz; it counts at the same rate on all CPUs.
    pub tsc_khz: u32,
}

/// Which CPUs [`Host::on_cpus`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// All that are on.
    Each,
    /// The one with this number, if it is on.
    One(usize),
}

/// What a CPU is to do: a function, which gets that CPU's number and an argument.
pub type CpuFunction = fn(usize, *const ());

/// What a stay in a guest is like for the host's CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Interrupts of the host's that come in the guest are taken off the CPU, and raised again by
    /// [`Engine::hand_over`](crate::engine::Engine::hand_over). Else they stay pending.
    pub takes_interrupts: bool,
    /// Leaving the guest cuts the limit of the CPU's task register to 0x67, the least that the CPU knows: a VM exit of VT-x does
    /// (SDM vol. 3, 28.5.2).
    pub cuts_task_segment: bool,
}

/// The operating system.
pub trait Host: Sized + Send + Sync + 'static {
    /// An event of the loader's that the driver signals: eventfd, KEVENT. Dropping it gives the reference back.
    type Event: Send + Sync;
    /// Where one vCPU's thread sleeps until it is woken.
    type Waker: Send + Sync;
    /// One-shot timer.
    type Timer: Send + Sync;
    /// Guest RAM as a process sees it. Dropping it ends that, whichever process the caller is in.
    type Mapping: Send + Sync;

    /// The loader sees guest RAM also where it gets its host memory later than [`Host::map_to_loader`], which gets no blocks then:
    /// the host asks [`Handle::with_ram_page`](crate::device::Handle::with_ram_page) for each page when it is needed.
    const RAM_ON_DEMAND: bool;

    /// Zeroed pages, 2^`order` of them in a row. `None` where the host has no such block; callers that can do with
    /// smaller ones ask again for those.
    fn alloc_block(order: u32) -> Option<Block>;

    /// Gives a block back.
    ///
    /// # Safety
    /// The block comes from [`Host::alloc_block`], was not freed yet, and nothing uses it any more.
    unsafe fn free_block(block: Block);

    /// Host-physical address of a byte of the driver's own: its code, its constants, its heap, a block's. As page tables have it,
    /// and it stays so while that memory is the driver's; the byte behind a page's end may be anywhere. `None` where the host
    /// has no memory of the driver's.
    fn physical_address(pointer: *const u8) -> Option<u64>;

    /// Makes guest RAM, the blocks in their order from `gpa`, reachable for the calling process; returns
    /// [`covisor_abi::MemoryAdd::map`], and what keeps it so.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the host could not map it.
    fn map_to_loader(gpa: u64, blocks: &[Block]) -> Result<(u64, Self::Mapping), OutOfMemory>;

    /// Bytes that the host could give now; an estimate.
    fn memory_available() -> u64;

    /// What is fixed for this machine. Any context.
    fn machine() -> Machine;

    /// Runs `function` with `argument` once on each of these CPUs that is on, with interrupts off, and returns when all have.
    /// Preemption is on: where a host moves the thread for that, it could not otherwise, and two CPUs that wait for each other
    /// would wait for ever.
    fn on_cpus(cpus: Cpus, function: CpuFunction, argument: *const ());

    /// The calling thread stays on its CPU, whose number is returned, and no other thread runs on it, until
    /// [`Host::preempt_on`]. Nests.
    fn preempt_off() -> usize;

    /// Ends [`Host::preempt_off`].
    fn preempt_on();

    /// Interrupts of this CPU off. They were on, and preemption is off.
    #[inline]
    fn interrupts_off() {
        // SAFETY: drivers run in ring 0; who calls switches them on again.
        unsafe { core::arch::asm!("cli", options(nostack)) };
    }

    /// Interrupts of this CPU on again.
    #[inline]
    fn interrupts_on() {
        // SAFETY: undoes interrupts_off().
        unsafe { core::arch::asm!("sti", options(nostack)) };
    }

    /// Ends [`Host::interrupts_off`] and a [`Host::preempt_off`] at once, so that the host takes what is pending as if it were
    /// neither (NT: by the level that an interrupt finds it sees whether a CPU ever gets to its threads). `last` is called before
    /// interrupts are on, when nothing else of this CPU's is needed.
    #[inline]
    fn let_go(last: impl FnOnce()) {
        last();
        Self::interrupts_on();
        Self::preempt_on();
    }

    /// This CPU goes to a guest and comes back, by `enter`. Interrupts are off, and `enter` calls nothing of this trait.
    ///
    /// Where the stay leaves the host's interrupts pending, those that [`Host::preempt_off`] holds back are to end it too (NT:
    /// deferred calls, by which one CPU interrupts another). Where it cuts the task register's limit, the host restores that
    /// before it needs more.
    fn in_guest(stay: Stay, enter: impl FnOnce());

    /// Sets or clears this CPU's CR4.VMXE, which lets it take VT-x's instructions (SDM vol. 3, 24.7); a host that keeps a
    /// record of CR4 has to know. The CPU has VT-x, and interrupts are off.
    #[inline]
    fn set_vmx_enable(on: bool) {
        // SAFETY: drivers run in ring 0, a CPU with VT-x has the bit, and it changes nothing else.
        unsafe {
            let others = read_cr4() & !CR4_VMXE;
            write_cr4(if on { others | CR4_VMXE } else { others });
        }
    }

    /// Whether the host wants this CPU for another thread, or a signal waits for this one. Interrupts may be off.
    fn must_yield() -> bool;

    /// Lets other threads run. Preemption is on.
    ///
    /// # Errors
    /// [`Interrupted`] where a signal waits for this thread.
    fn yield_now() -> Result<(), Interrupted>;

    /// Makes another CPU leave the guest, if it runs one, for a moment. Any context.
    fn kick(cpu: usize);

    /// Wall clock, nanoseconds since 1970 UTC.
    fn wall_clock_ns() -> u64;

    /// Takes a reference to the event that the loader names by `handle` (eventfd number, event handle).
    ///
    /// # Errors
    /// `None` where the handle names no event of the caller's.
    fn event_open(handle: i64) -> Option<Self::Event>;

    /// Signals an event.
    fn event_signal(event: &Self::Event);

    /// A place to sleep.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn waker_new() -> Result<Self::Waker, OutOfMemory>;

    /// Sleeps until `ready` holds; it is asked again after each [`Host::wake`].
    ///
    /// # Errors
    /// [`Interrupted`] where a signal ended the sleep.
    fn wait(waker: &Self::Waker, ready: impl Fn() -> bool) -> Result<(), Interrupted>;

    /// Wakes who waits. Any context but guest context.
    fn wake(waker: &Self::Waker);

    /// A timer, not armed. Dropping it cancels it and waits for a running callback.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn timer_new(callback: TimerCallback) -> Result<Self::Timer, OutOfMemory>;

    /// Arms the timer to expire once in `delay_ns` nanoseconds, best on this CPU; replaces an earlier setting. `None` disarms
    /// it; a callback may still be running.
    fn timer_set(timer: &Self::Timer, delay_ns: Option<u64>);
}
