//! A program for a debugger: it stops itself once, and then does what can be watched.

use std::arch::global_asm;

use crate::tracing::STEP;

/// How often the function is called.
const CALLS: u64 = 3;

global_asm!(
    // The debugger finds the word's address in RDI and the function's in RSI.
    ".globl guest_work_debuggee",
    "guest_work_debuggee:",
    "push rbx",
    "int3",
    "mov ebx, {calls}",
    "2:",
    "call rsi",
    "dec ebx",
    "jnz 2b",
    "pop rbx",
    "ret",
    ".globl guest_work_step",
    "guest_work_step:",
    "add qword ptr [rdi], {step}",
    "ret",
    calls = const CALLS,
    step = const STEP,
);

unsafe extern "C" {
    fn guest_work_debuggee(word: *mut u64, function: unsafe extern "C" fn());
    fn guest_work_step();
}

/// Goes through it.
pub(crate) fn work() -> String {
    let mut word = 0;
    // SAFETY: the function adds to the word, which lives.
    unsafe { guest_work_debuggee(&raw mut word, guest_work_step) };
    format!("debuggee: {word}")
}
