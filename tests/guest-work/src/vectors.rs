//! Extended state: vector registers and what x87 and SSE round by keep their values, whoever uses them in between.

use std::arch::global_asm;
use std::arch::is_x86_feature_detected;
use std::mem;
use std::ptr;

use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::processes;
use crate::processes::Child;
use crate::random::pattern;

/// How often the loop goes round while the registers have their values: about half a millisecond.
const SPINS: u64 = 250_000;
/// As above, in the signal's handler.
const SPINS_IN_HANDLER: u64 = 20_000;
/// How often the signal comes, in microseconds.
const PERIOD: libc::suseconds_t = 1_700;

/// The registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct Registers {
    vectors: [[u64; 4]; 16],
    mxcsr: u32,
    x87: u32,
}

/// MXCSR and x87's control word as programs have them, all exceptions masked; the bits of the rounding are added.
const MXCSR: u32 = 0x1f80;
/// As above.
const X87: u32 = 0x037f;
/// Offsets of the controls in [`Registers`].
const MXCSR_AT: usize = mem::offset_of!(Registers, mxcsr);
/// As above.
const X87_AT: usize = mem::offset_of!(Registers, x87);

/// A function that loads all registers from RDI, spins for RDX rounds, and stores them to RSI.
macro_rules! keeper {
    ($name:literal, $move:literal, $register:literal) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!($name, ":"),
            "stmxcsr [rsp - 8]",
            "fnstcw [rsp - 16]",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            concat!($move, " ", $register, "\\n, [rdi + 32 * \\n]"),
            ".endr",
            "ldmxcsr [rdi + {mxcsr}]",
            "fldcw [rdi + {x87}]",
            "2:",
            "dec rdx",
            "jnz 2b",
            "fnstcw [rsi + {x87}]",
            "stmxcsr [rsi + {mxcsr}]",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            concat!($move, " [rsi + 32 * \\n], ", $register, "\\n"),
            ".endr",
            "fldcw [rsp - 16]",
            "ldmxcsr [rsp - 8]",
            "ret",
            mxcsr = const MXCSR_AT,
            x87 = const X87_AT,
        );
    };
}
keeper!("guest_work_keep_avx", "vmovaps", "ymm");
keeper!("guest_work_keep_sse", "movaps", "xmm");

unsafe extern "C" {
    fn guest_work_keep_avx(from: *const Registers, to: *mut Registers, spins: u64);
    fn guest_work_keep_sse(from: *const Registers, to: *mut Registers, spins: u64);
}

/// Has so many processes keep values over so many rounds.
pub(crate) fn work(processes: u32, rounds: u32) -> Result<String> {
    let children = (1..=processes).map(|process| processes::fork(|| keep(process, rounds)));
    let children = children.collect::<Result<Vec<Child>>>()?;
    children.iter().try_for_each(Child::succeeds)?;
    Ok(format!("vectors: {processes} processes, {rounds} rounds by {}", if has_avx() { "AVX" } else { "SSE" }))
}

fn has_avx() -> bool {
    is_x86_feature_detected!("avx")
}

/// The values of a process in a round.
fn values(process: u32, round: u32) -> Registers {
    let mut registers = Registers { vectors: [[0; 4]; 16], mxcsr: 0, x87: 0 };
    for (index, word) in (0..).zip(registers.vectors.as_flattened_mut()) {
        *word = if has_avx() || index % 4 < 2 {
            pattern(u64::from(process) << 8, index ^ u64::from(round) << 16)
        } else {
            0
        };
    }
    let rounding = process.wrapping_add(round) & 3;
    (registers.mxcsr, registers.x87) = (MXCSR | rounding << 13, X87 | rounding << 10);
    registers
}

/// Loads the registers, spins, and gives what they are then.
fn kept(values: &Registers, spins: u64) -> Registers {
    let mut after = Registers { vectors: [[0; 4]; 16], mxcsr: 0, x87: 0 };
    // SAFETY: both values are as large and as aligned as the functions need, which keep to the calling convention; AVX is there.
    unsafe {
        if has_avx() {
            guest_work_keep_avx(values, &raw mut after, spins);
        } else {
            guest_work_keep_sse(values, &raw mut after, spins);
        }
    }
    after
}

/// The signal's handler: uses all registers, and lets other processes run meanwhile.
extern "C" fn on_alarm(_: libc::c_int) {
    let values = values(0xff, 1);
    // SAFETY: sched_yield(2) and _exit(2) have no other effects, and a handler may call them.
    unsafe {
        libc::sched_yield();
        if kept(&values, SPINS_IN_HANDLER) != values {
            libc::_exit(2);
        }
    }
}

fn keep(process: u32, rounds: u32) -> Result<()> {
    let period = libc::timeval { tv_sec: 0, tv_usec: PERIOD };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: all zeros are a right action, the handler has the form of one, and both structures live over the calls.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        done("sigaction", libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()))?;
        done("setitimer", libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()))?;
    }
    for round in 0..rounds {
        let before = values(process, round);
        let after = kept(&before, SPINS);
        ensure!(after == before, "process {process}, round {round}: {before:x?} became {after:x?}");
    }
    Ok(())
}
