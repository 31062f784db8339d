//! A machine with one CPU. Whoever is at DISPATCH_LEVEL or has interrupts off has the CPU, which is a lock; everybody else runs
//! on the real ones and has nothing of it. As on a CPU, the level may be low while interrupts are off, and the guest runs so: the
//! CPU is free when both let others in.

use core::arch::asm;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_nt::Kapi;
use covisor_nt::kapi::Irql;

use crate::kernel;

/// Where a thread's block has its own address (`NT_TIB.Self`), which no two threads share.
const GS_SELF: usize = 0x30;

/// Those who want the CPU draw numbers, and have it in their order: who runs a guest asks again at once.
static DRAWN: AtomicU32 = AtomicU32::new(0);
/// Whose turn it is.
static SERVED: AtomicU32 = AtomicU32::new(0);
/// The thread that has it, or 0.
static HOLDER: AtomicUsize = AtomicUsize::new(0);
/// The holder's level; written by the holder alone, as is the next.
static LEVEL: AtomicU8 = AtomicU8::new(0);
static INTERRUPTS_OFF: AtomicBool = AtomicBool::new(false);

fn thread() -> usize {
    let thread;
    // SAFETY: GS has the thread's block, as it has in every program for Windows.
    unsafe { asm!("mov {}, gs:[{}]", out(reg) thread, const GS_SELF, options(nostack, readonly, preserves_flags)) };
    thread
}

/// Whether the calling thread has the CPU. Only itself can change that.
fn is_here() -> bool {
    HOLDER.load(Ordering::Relaxed) == thread()
}

fn take() {
    let number = DRAWN.fetch_add(1, Ordering::Relaxed);
    while SERVED.load(Ordering::Acquire) != number {
        // Lets other threads run.
        kernel::Kernel::sleep(0);
    }
    HOLDER.store(thread(), Ordering::Relaxed);
}

/// Gives it back, if nothing holds others back any more.
fn release() {
    if LEVEL.load(Ordering::Relaxed) < Irql::DISPATCH.0 && !INTERRUPTS_OFF.load(Ordering::Relaxed) {
        HOLDER.store(0, Ordering::Relaxed);
        SERVED.fetch_add(1, Ordering::Release);
    }
}

/// The calling thread's level.
pub(super) fn level() -> Irql {
    if is_here() { Irql(LEVEL.load(Ordering::Relaxed)) } else { Irql::PASSIVE }
}

/// Raises it, and returns what it was.
pub(super) fn raise(to: Irql) -> Irql {
    let before = level();
    if !is_here() {
        take();
    }
    LEVEL.store(to.0, Ordering::Relaxed);
    before
}

/// Lowers it again.
pub(super) fn lower(to: Irql) {
    LEVEL.store(to.0, Ordering::Relaxed);
    release();
}

/// Interrupts off. At DISPATCH_LEVEL.
pub(super) fn interrupts_off() {
    INTERRUPTS_OFF.store(true, Ordering::Relaxed);
}

/// Interrupts on.
pub(super) fn interrupts_on() {
    INTERRUPTS_OFF.store(false, Ordering::Relaxed);
    release();
}
