//! I/O port instructions.

use core::arch::asm;

use crate::pci;
use crate::xen;

/// Scratch register of COM1 (16550): keeps what was written, means nothing.
const COM1_SCRATCH: u16 = 0x3ff;

/// A port that keeps what was written as one byte, means nothing, and is user mode's: COM1's scratch register, or for a paravirtual
/// guest, which has no COM1, a PCI function's register of interrupt lines.
#[must_use]
pub fn scratch() -> u16 {
    if xen::active() { pci::scratch() } else { COM1_SCRATCH }
}

/// OUT of one byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: ports reach devices only; the probe owns the machine and hands none of its memory to one.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// OUT of two bytes.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

/// OUT of four bytes.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// IN of one byte.
#[must_use]
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// IN of two bytes.
#[must_use]
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// IN of four bytes.
#[must_use]
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}
