//! Ending the machine.

use core::arch::asm;

use crate::port;
use crate::xen;
use crate::xen::abi::sched;
use crate::xen::hypercall;

/// Sleep control register of covisor's hardware-reduced ACPI (ACPI 6.5, 4.8.3.7).
const SLEEP_CONTROL: u16 = 0x600;

/// SLP_EN with the sleep type of S5, 5.
const SLEEP_S5: u8 = 1 << 5 | 5 << 2;

/// Reset control register of PC chip sets.
const RESET_CONTROL: u16 = 0xcf9;

/// Full reset.
const RESET_FULL: u8 = 6;

/// Switches the machine off: by ACPI, else by a reset, else by a triple fault.
pub fn power_off() -> ! {
    if xen::active() {
        hypercall::shutdown(sched::REASON_POWER_OFF)
    }
    port::out8(SLEEP_CONTROL, SLEEP_S5);
    port::out8(RESET_CONTROL, RESET_FULL);
    triple_fault()
}

/// Shuts the CPU down: an exception with an empty interrupt table (APM vol. 2, 8.2.9). A paravirtual guest has no handlers then, so the
/// same exception is its end.
pub fn triple_fault() -> ! {
    if xen::active() {
        xen::traps::set_table(&[[0; 2]]);
        hypercall::hypercall(xen::abi::call::SET_TRAP_TABLE, [0]);
        // SAFETY: never returns, which is the purpose.
        unsafe { asm!("ud2", options(noreturn)) }
    }
    let empty = [0_u64; 2];
    // SAFETY: never returns, which is the purpose.
    unsafe { asm!("cli", "lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}
