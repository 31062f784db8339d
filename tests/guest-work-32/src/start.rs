//! The program's beginning and its end.

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::calls;
use crate::calls::Kernel;
use crate::output::say;
use crate::signals;
use crate::threads;

/// Entries of the auxiliary vector (`elf.h`): its end, and where the vDSO has the way into the kernel.
const AT_NULL: usize = 0;
/// As above.
const AT_SYSINFO: usize = 32;
/// How often a system call is made each way.
const CALLS: u32 = 3_000;

global_asm!(
    ".globl _start",
    "_start:",
    "mov eax, esp",
    "and esp, -16",
    "sub esp, 12",
    "push eax",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

/// What goes wrong, in words.
pub(crate) type Done = Result<(), &'static str>;

/// The first function. The stack has the number of arguments, the arguments, a null, the environment, a null, the auxiliary vector.
///
/// # Safety
/// `stack` is the program's first stack pointer.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: by the caller.
    let entry = unsafe { way_into_the_kernel(stack) };
    let done = work(entry);
    if let Err(what) = done {
        say(&["FAILED: ", what, "\n"]);
    }
    calls::exit(i32::from(done.is_err()))
}

/// Does all of it.
fn work(entry: Option<usize>) -> Done {
    same_by_each_way(entry)?;
    signals::work()?;
    threads::work()?;
    say(&["32-bit: system calls by INT 0x80 and by the kernel's way, signals, threads\n"]);
    Ok(())
}

/// Finds AT_SYSINFO.
///
/// # Safety
/// As for [`begin`].
unsafe fn way_into_the_kernel(stack: *const usize) -> Option<usize> {
    // SAFETY: by the caller all of it is there.
    unsafe {
        let mut at = stack.add(stack.read() + 2);
        while at.read() != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while at.read() != AT_NULL {
            if at.read() == AT_SYSINFO {
                return Some(at.add(1).read());
            }
            at = at.add(2);
        }
    }
    None
}

/// All ways give the same, again and again.
fn same_by_each_way(entry: Option<usize>) -> Done {
    let by_interrupt = Kernel::ByInterrupt;
    // SAFETY: the kernel says that this is its way in.
    let by_vdso = unsafe { Kernel::by_vdso(entry.ok_or("the kernel does not tell its way in")?) };
    let pid = by_interrupt.process();
    if pid <= 1 {
        return Err("INT 0x80 gives no process");
    }
    for _ in 0..CALLS {
        if by_interrupt.process() != pid || by_vdso.process() != pid {
            return Err("getpid gives different processes");
        }
    }
    // All six arguments arrive: a page is mapped where and how they say.
    for kernel in [by_interrupt, by_vdso] {
        kernel.map_and_unmap()?;
    }
    Ok(())
}

/// Nothing here panics but by an error of this program's.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    say(&["FAILED: the program panicked\n"]);
    calls::exit(2)
}
