//! Signals: one that the program sends itself, and faults whose handler repairs what they were for.

use core::arch::global_asm;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use crate::calls::Kernel;
use crate::calls::PAGE;
use crate::calls::number;
use crate::start::Done;

/// Signals.
const SIGUSR1: usize = 10;
/// As above.
const SIGSEGV: usize = 11;
/// The handler gets what the signal was for; it returns by a function of the program's.
const SA_SIGINFO: usize = 4;
/// As above.
const SA_RESTORER: usize = 0x0400_0000;
/// How often each is done.
const ROUNDS: usize = 200;
/// Bytes of the kernel's signal sets.
const SET_SIZE: usize = 8;
/// Offset of the faulting address in what a handler gets.
const FAULT_ADDRESS: usize = 12;

global_asm!(
    ".globl guest_work_restore",
    "guest_work_restore:",
    "mov eax, 173", // rt_sigreturn
    "int 0x80",
    "ud2",
);

unsafe extern "C" {
    fn guest_work_restore();
}

/// `struct sigaction` as the kernel has it.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: [usize; 2],
}

/// Signals that came.
static CAME: AtomicUsize = AtomicUsize::new(0);
/// Page faults that came.
static FAULTS: AtomicUsize = AtomicUsize::new(0);
/// A page that faults may be in; 0 for none.
static LACKING: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: usize, _: *const u8, _: *mut u8) {
    CAME.fetch_add(1, Relaxed);
}

/// Maps the page that was lacking. Any other fault ends the program.
extern "C" fn on_fault(_: usize, info: *const u8, _: *mut u8) {
    // SAFETY: the kernel gives the handler what the signal was for.
    let address = unsafe { info.add(FAULT_ADDRESS).cast::<usize>().read_unaligned() };
    let page = LACKING.swap(0, Relaxed);
    if page == 0 || address & !(PAGE - 1) != page || Kernel::ByInterrupt.map(Some(page), PAGE).is_err() {
        crate::output::say(&["FAILED: a fault elsewhere\n"]);
        crate::calls::exit(3);
    }
    FAULTS.fetch_add(1, Relaxed);
}

fn install(signal: usize, handler: extern "C" fn(usize, *const u8, *mut u8)) -> Done {
    let action = Action {
        handler: (handler as *const ()).addr(),
        flags: SA_SIGINFO | SA_RESTORER,
        restorer: (guest_work_restore as *const ()).addr(),
        mask: [0; 2],
    };
    let arguments = [signal, (&raw const action).addr(), 0, SET_SIZE, 0, 0];
    // SAFETY: the structure lives over the call, and the handler has the form that it says.
    let result = unsafe { Kernel::ByInterrupt.call(number::RT_SIGACTION, arguments) };
    if result == 0 { Ok(()) } else { Err("rt_sigaction is refused") }
}

/// Takes many of both.
pub(crate) fn work() -> Done {
    let kernel = Kernel::ByInterrupt;
    install(SIGUSR1, on_signal)?;
    install(SIGSEGV, on_fault)?;
    let process = kernel.process().cast_unsigned();
    for round in 1..=ROUNDS {
        // The signal is taken before the call returns.
        // SAFETY: the handler only counts.
        let sent = unsafe { kernel.call(number::KILL, [process, SIGUSR1, 0, 0, 0, 0]) };
        if sent != 0 || CAME.load(Relaxed) != round {
            return Err("a signal is lost");
        }
    }
    for round in 1..=ROUNDS {
        let address = kernel.map(None, PAGE)?;
        // SAFETY: the page is unmapped, and comes back by the handler.
        unsafe {
            kernel.call(number::MUNMAP, [address, PAGE, 0, 0, 0, 0]);
            LACKING.store(address, Relaxed);
            let word = core::ptr::with_exposed_provenance_mut::<usize>(address + round % 1000 * 4);
            word.write_volatile(round);
            if FAULTS.load(Relaxed) != round || word.read_volatile() != round {
                return Err("a page fault is not repaired by its handler");
            }
            kernel.call(number::MUNMAP, [address, PAGE, 0, 0, 0, 0]);
        }
    }
    Ok(())
}
