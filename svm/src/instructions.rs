//! Privileged instructions, one small function each.

use core::arch::asm;

/// Clears the global interrupt flag: no interrupt, NMI or SMI until [`stgi`] (APM vol. 2, 15.17).
///
/// # Safety
/// Ring 0, EFER.SVME is set.
#[inline]
pub(crate) unsafe fn clgi() {
    // SAFETY: by the caller.
    unsafe { asm!("clgi", options(nostack)) };
}

/// Sets the global interrupt flag.
///
/// # Safety
/// As [`clgi`].
#[inline]
pub(crate) unsafe fn stgi() {
    // SAFETY: by the caller.
    unsafe { asm!("stgi", options(nostack)) };
}

/// Sets the interrupt flag.
///
/// # Safety
/// Ring 0; interrupts can be taken here, or GIF is 0.
#[inline]
pub(crate) unsafe fn sti() {
    // SAFETY: by the caller.
    unsafe { asm!("sti", options(nostack)) };
}

/// Clears the interrupt flag.
///
/// # Safety
/// Ring 0.
#[inline]
pub(crate) unsafe fn cli() {
    // SAFETY: by the caller.
    unsafe { asm!("cli", options(nostack)) };
}

/// Loads FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs from a VMCB (15.5.2).
///
/// # Safety
/// Ring 0, EFER.SVME is set; `vmcb` is the physical address of a VMCB whose values may be loaded.
#[inline]
pub(crate) unsafe fn vmload(vmcb: u64) {
    // SAFETY: by the caller.
    unsafe { asm!("vmload rax", in("rax") vmcb, options(nostack, preserves_flags)) };
}

/// Stores what [`vmload`] loads.
///
/// # Safety
/// Ring 0, EFER.SVME is set; `vmcb` is the physical address of a VMCB that is ours to write.
#[inline]
pub(crate) unsafe fn vmsave(vmcb: u64) {
    // SAFETY: by the caller.
    unsafe { asm!("vmsave rax", in("rax") vmcb, options(nostack, preserves_flags)) };
}

/// Reads an MSR.
///
/// # Safety
/// Ring 0, and this CPU has the MSR.
#[inline]
pub(crate) unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the caller.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// Ring 0, this CPU has the MSR, and the value is one that it takes and that the host can live with.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by the caller.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    };
}

/// Reads CR4.
///
/// # Safety
/// Ring 0.
pub(crate) unsafe fn read_cr4() -> u64 {
    let value;
    // SAFETY: by the caller.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Defines readers and writers of debug registers.
macro_rules! debug_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".\n\n# Safety\nRing 0.")]
        #[inline]
        pub(crate) unsafe fn $read() -> u64 {
            let value;
            // SAFETY: by the caller.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".\n\n# Safety\nRing 0; the value has no reserved bit set.")]
        #[inline]
        pub(crate) unsafe fn $write(value: u64) {
            // SAFETY: by the caller.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}
debug_register!(read_dr0, write_dr0, "dr0");
debug_register!(read_dr1, write_dr1, "dr1");
debug_register!(read_dr2, write_dr2, "dr2");
debug_register!(read_dr3, write_dr3, "dr3");
debug_register!(read_dr6, write_dr6, "dr6");
debug_register!(read_dr7, write_dr7, "dr7");

/// Raises #MC through the host's own IDT: how a machine check that hit the guest is handed on.
///
/// # Safety
/// Ring 0, the host's state is loaded, and a machine check was just intercepted.
pub(crate) unsafe fn raise_machine_check() {
    // SAFETY: by the caller; the host's handler returns or ends the machine.
    unsafe { asm!("int 18") };
}

/// Fills the return stack buffer, so that no return of the host is predicted by what the guest left there (APM vol. 2,
/// 3.2.9 and AMD's "Software techniques for managing speculation", mitigation V2-3).
///
/// # Safety
/// There are 256 bytes of stack left.
#[inline]
pub(crate) unsafe fn fill_return_stack() {
    // SAFETY: 32 calls push 256 bytes, which are taken off at once; nothing below the stack pointer is in use, since the
    // kernel's code has no red zone.
    unsafe {
        asm!(
            ".rept 32",
            "3:",
            "call 2f",
            // Where a prediction from one of these entries lands.
            "int3",
            "2:",
            // Linux's objtool reads no code with calls into itself if it is not told of them, up to 6.13 in the first way, since
            // then in the second. These sections end with it; other hosts' tools know nothing of them.
            #[cfg(target_os = "none")]
            ".pushsection .discard.intra_function_calls, \"\", @progbits\n\
             .long 3b\n\
             .popsection\n\
             .pushsection .discard.annotate_insn, \"M\", @progbits, 8\n\
             .long 3b - ., {intra_function_call}\n\
             .popsection",
            ".endr",
            "add rsp, 256",
            #[cfg(target_os = "none")]
            intra_function_call = const 7, // ANNOTYPE_INTRA_FUNCTION_CALL
        );
    }
}
