//! Ring 3, or user mode of a paravirtual guest: a few bytes of code at a time.

use core::arch::asm;

use crate::exception;
use crate::exception::Fault;
use crate::exception::selector;
use crate::exception::vector;
use crate::layout;
use crate::xen;
use crate::xen::abi::call;

/// Flags in ring 3: nothing but the bit that is always set.
const RFLAGS: u64 = 2;

/// Its stack.
pub const STACK: u64 = layout::USER_PAGE + 0x1f_fff0;

/// Executes `code` in ring 3, with an INT3 behind it; gives the exception that brought the CPU back.
pub fn run(code: &[u8]) -> Option<Fault> {
    run_as(code, selector::USER_CODE, RFLAGS)
}

/// What `code` raised in ring 3; `None`: it came to the INT3.
pub fn raised(code: &[u8]) -> Option<Fault> {
    run(code).filter(|fault| fault.vector != vector::BP)
}

/// As [`run`], with a code segment and flags of the caller's choice.
pub fn run_as(code: &[u8], code_segment: u16, flags: u64) -> Option<Fault> {
    const INT3: u8 = 0xcc;
    let Ok(base) = usize::try_from(layout::USER_PAGE) else { return None };
    let page = core::ptr::with_exposed_provenance_mut::<u8>(base);
    for (index, byte) in code.iter().copied().chain([INT3]).enumerate() {
        // SAFETY: the page is the probe's own, and code is far smaller than it.
        unsafe { page.add(index).write_volatile(byte) }
    }
    if xen::active() {
        return run_paravirtual(code_segment, flags);
    }
    exception::guarded(|| {
        // SAFETY: leaves for ring 3, whose page holds nothing but the code; the next exception unwinds to `guarded`.
        unsafe {
            asm!(
                "push {ss}", "push {rsp}", "push {flags}", "push {cs}", "push {rip}",
                "iretq",
                ss = in(reg) u64::from(selector::USER_DATA),
                rsp = in(reg) STACK,
                flags = in(reg) flags,
                cs = in(reg) u64::from(code_segment),
                rip = in(reg) layout::USER_PAGE,
                in("ecx") 0, in("eax") 0, in("edx") 0,
            );
        }
    })
}

/// The way into user mode of a paravirtual guest: the hypercall `iret`, whose frame is on the stack (Xen public headers,
/// `arch-x86/xen-x86_64.h`, `iret_context`).
fn run_paravirtual(code_segment: u16, flags: u64) -> Option<Fault> {
    exception::guarded(|| {
        // SAFETY: as above.
        unsafe {
            asm!(
                "push {ss}", "push {rsp}", "push {flags}", "push {cs}", "push {rip}", "push 0", "push 0", "push 0", "push 0",
                "syscall",
                ss = in(reg) u64::from(selector::USER_DATA),
                rsp = in(reg) STACK,
                flags = in(reg) flags,
                cs = in(reg) u64::from(code_segment),
                rip = in(reg) layout::USER_PAGE,
                in("rax") call::IRET, in("edx") 0,
            );
        }
    })
}
