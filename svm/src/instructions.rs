//! AMD-V's instructions, one small function each; those that other engines need too are core's.

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

/// Writes the task priority that is there, at which the local APIC looks for what it has to tell the CPU.
///
/// # Safety
/// Ring 0.
#[cold]
pub(crate) unsafe fn renew_task_priority() {
    // SAFETY: by the caller; nothing changes.
    unsafe { asm!("mov {value}, cr8", "mov cr8, {value}", value = out(reg) _, options(nostack, preserves_flags)) };
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
