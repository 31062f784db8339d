//! Instructions that may fault: loads, stores, calls and loads of segment registers that say whether they were done, instead of
//! ending the program.

use std::arch::global_asm;
use std::mem;
use std::ptr;

use crate::error::Result;
use crate::error::done;

global_asm!(
    // Each begins with the instruction that may fault. The handler of the signal goes on at `guest_work_failed`, which returns 0.
    ".globl guest_work_load",
    "guest_work_load:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "mov eax, 1",
    "ret",
    ".globl guest_work_store",
    "guest_work_store:",
    "mov [rdi], rsi",
    "mov eax, 1",
    "ret",
    // The code called returns 1.
    ".globl guest_work_call",
    "guest_work_call:",
    "jmp rdi",
    ".globl guest_work_load_gs",
    "guest_work_load_gs:",
    "mov gs, edi",
    "mov eax, 1",
    "ret",
    ".globl guest_work_failed",
    "guest_work_failed:",
    "xor eax, eax",
    "ret",
);

unsafe extern "C" {
    fn guest_work_load(address: usize, value: *mut u64) -> u32;
    fn guest_work_store(address: usize, value: u64) -> u32;
    fn guest_work_call(address: usize) -> u32;
    fn guest_work_load_gs(selector: u32) -> u32;
    fn guest_work_failed();
}

/// Code that [`call`] can call: MOV EAX, 1; RET.
pub(crate) const CODE: u64 = 0x0000_c300_0000_01b8;

/// An instruction pointer from the context of a signal, or for it.
fn pointer(function: *const ()) -> i64 {
    function.addr().cast_signed() as i64
}

/// The handler: goes on at `guest_work_failed` if the fault was one of an attempt; anything else comes again and ends the program.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a context, and both are the handler's to use.
    let (context, address) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), (*info).si_addr()) };
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize];
    let attempts = [guest_work_load as *const (), guest_work_store as *const (), guest_work_load_gs as *const ()];
    // A call that fails does so at its target, which is the fault's address.
    let called = registers[libc::REG_RDI as usize] == at && address.addr().cast_signed() as i64 == at;
    if called || attempts.iter().any(|attempt| pointer(*attempt) == at) {
        registers[libc::REG_RIP as usize] = pointer(guest_work_failed as *const ());
        return;
    }
    // SAFETY: the default for a signal is always allowed.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Installs the handler.
pub(crate) fn prepare() -> Result<()> {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all zeros are a right value, and the handler has the form that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            done("sigaction", libc::sigaction(signal, &raw const action, ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// The word at an address, if it can be read.
pub(crate) fn load(address: usize) -> Option<u64> {
    let mut value = 0;
    // SAFETY: a load that is not allowed is none; one that is changes nothing.
    (unsafe { guest_work_load(address, &raw mut value) } != 0).then_some(value)
}

/// Writes a word, if that is allowed.
///
/// # Safety
/// If it is allowed there, it is the caller's.
pub(crate) unsafe fn store(address: usize, value: u64) -> bool {
    // SAFETY: by the caller.
    unsafe { guest_work_store(address, value) != 0 }
}

/// Calls [`CODE`] at an address, if that is allowed.
///
/// # Safety
/// If code can be executed there, it is [`CODE`].
pub(crate) unsafe fn call(address: usize) -> bool {
    // SAFETY: by the caller.
    unsafe { guest_work_call(address) == 1 }
}

/// Loads GS, if the selector is one that can be loaded.
pub(crate) fn load_gs(selector: u16) -> bool {
    // SAFETY: nothing in a program on x86-64 Linux uses GS.
    unsafe { guest_work_load_gs(selector.into()) != 0 }
}
