//! Privileged instructions that more than one engine needs, one small function each.

use core::arch::asm;

/// Reads an MSR.
///
/// # Safety
/// Ring 0, and this CPU has the MSR.
#[inline]
#[must_use]
pub unsafe fn rdmsr(msr: u32) -> u64 {
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
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by the caller.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    };
}

/// Defines the reader of a register.
macro_rules! reader {
    ($read:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".\n\n# Safety\nRing 0.")]
        #[inline]
        #[must_use]
        pub unsafe fn $read() -> u64 {
            let value;
            // SAFETY: by the caller.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

/// Defines the writer of a register.
macro_rules! writer {
    ($write:ident, $name:literal, $contract:literal) => {
        #[doc = concat!("Writes ", $name, ".\n\n# Safety\nRing 0; ", $contract)]
        #[inline]
        pub unsafe fn $write(value: u64) {
            // SAFETY: by the caller.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

reader!(read_cr0, "cr0");
reader!(read_cr2, "cr2");
writer!(write_cr2, "cr2", "no page fault of the host's is on its way to a handler that reads it.");
reader!(read_cr3, "cr3");
reader!(read_cr4, "cr4");
writer!(write_cr4, "cr4", "the CPU has what the bits switch on, and the host can live with it.");

reader!(read_dr0, "dr0");
writer!(write_dr0, "dr0", "no breakpoint is enabled there, or the host wants it at this address.");
reader!(read_dr1, "dr1");
writer!(write_dr1, "dr1", "as [`write_dr0`].");
reader!(read_dr2, "dr2");
writer!(write_dr2, "dr2", "as [`write_dr0`].");
reader!(read_dr3, "dr3");
writer!(write_dr3, "dr3", "as [`write_dr0`].");
reader!(read_dr6, "dr6");
writer!(write_dr6, "dr6", "the value has no reserved bit set.");
reader!(read_dr7, "dr7");
writer!(
    write_dr7,
    "dr7",
    "the value has no reserved bit set, and the host can live with the breakpoints that it enables."
);

/// Raises #MC through the host's own IDT: how a machine check that hit the guest is handed on.
///
/// # Safety
/// Ring 0, the host's state is loaded, and a machine check was just intercepted.
pub unsafe fn raise_machine_check() {
    // SAFETY: by the caller; the host's handler returns or ends the machine.
    unsafe { asm!("int 18") };
}

/// Raises an NMI through the host's own IDT: how one that made the guest exit is handed on where the exit took it from the
/// CPU (SDM vol. 3, 28.1). The handler's IRET lets the next NMI come.
///
/// # Safety
/// Ring 0, the host's state is loaded, and an NMI just made the guest exit, so that NMIs are still blocked.
pub unsafe fn raise_nmi() {
    // SAFETY: by the caller; the host's handler returns.
    unsafe { asm!("int 2") };
}

/// Fills the return stack buffer, so that no return of the host is predicted by what the guest left there (APM vol. 2,
/// 3.2.9 and AMD's "Software techniques for managing speculation", mitigation V2-3; Intel's "Retpoline: A Branch Target
/// Injection Mitigation" has the same).
///
/// # Safety
/// There are 256 bytes of stack left.
#[inline]
pub unsafe fn fill_return_stack() {
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
