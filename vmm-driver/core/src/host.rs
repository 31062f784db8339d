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

/// The operating system.
pub trait Host: Sized + Send + Sync + 'static {
    /// An event of the loader's that the driver signals: eventfd, KEVENT. Dropping it gives the reference back.
    type Event: Send + Sync;
    /// Where one vCPU's thread sleeps until it is woken.
    type Waker: Send + Sync;
    /// One-shot timer.
    type Timer: Send + Sync;

    /// Zeroed pages, 2^`order` of them in a row. `None` where the host has no such block; callers that can do with
    /// smaller ones ask again for those.
    fn alloc_block(order: u32) -> Option<Block>;

    /// Gives a block back.
    ///
    /// # Safety
    /// The block comes from [`Host::alloc_block`], was not freed yet, and nothing uses it any more.
    unsafe fn free_block(block: Block);

    /// Makes guest RAM, the blocks in their order from `gpa`, reachable for the calling process; returns
    /// [`covisor_abi::MemoryAdd::map`].
    ///
    /// # Errors
    /// [`OutOfMemory`] where the host could not map it.
    fn map_to_loader(gpa: u64, blocks: &[Block]) -> Result<u64, OutOfMemory>;

    /// Bytes that the host could give now; an estimate.
    fn memory_available() -> u64;

    /// Runs `function(argument)` once on every CPU, with interrupts off, and returns when all have.
    fn on_each_cpu(function: fn(*const ()), argument: *const ());

    /// Runs `function(argument)` once on that CPU, with interrupts off, and returns when it has; does nothing where the CPU
    /// is off. Preemption may be off.
    fn on_cpu(cpu: usize, function: fn(*const ()), argument: *const ());

    /// Number of CPUs that there can ever be; their numbers are below it.
    fn cpu_limit() -> usize;

    /// The calling CPU's number. Preemption is off.
    fn cpu() -> usize;

    /// The calling thread stays on its CPU, and no other thread runs on it, until [`Host::preempt_on`]. Nests.
    fn preempt_off();

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

    /// The limit of this CPU's task register is 0x67 now, the least that the CPU knows: a VM exit of VT-x leaves it so (SDM
    /// vol. 3, 28.5.2). The host restores it before it needs more. Interrupts are off.
    fn task_segment_cut();

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

    /// Rate of the time stamp counter in kHz; it counts at the same rate on all CPUs.
    fn tsc_khz() -> u32;

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

    /// Arms the timer to expire once in `delay_ns` nanoseconds, best on this CPU; replaces an earlier setting.
    fn timer_set(timer: &Self::Timer, delay_ns: u64);

    /// Disarms the timer; a callback may still be running.
    fn timer_cancel(timer: &Self::Timer);
}
