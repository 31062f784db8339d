//! The local APIC by either of its interfaces (Intel SDM vol. 3, chapter 11; APM vol. 2, chapter 16), and the I/O APIC.

use core::arch::asm;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use crate::cpu;
use crate::cpu::msr;
use crate::exception::Fault;

/// Where the registers are in xAPIC mode.
pub const BASE: u64 = 0xfee0_0000;

/// Registers, by their offset in xAPIC mode; x2APIC's MSR is 0x800 + offset / 16.
pub mod register {
    /// Identification.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xa0;
    /// End of interrupt.
    pub const EOI: u32 = 0xb0;
    /// Logical destination.
    pub const LDR: u32 = 0xd0;
    /// Spurious interrupt vector, and the software switch.
    pub const SVR: u32 = 0xf0;
    /// First of eight: in service.
    pub const ISR: u32 = 0x100;
    /// First of eight: requested.
    pub const IRR: u32 = 0x200;
    /// Errors.
    pub const ESR: u32 = 0x280;
    /// Interrupt command.
    pub const ICR: u32 = 0x300;
    /// Its upper half, in xAPIC mode.
    pub const ICR_HIGH: u32 = 0x310;
    /// Timer entry.
    pub const LVT_TIMER: u32 = 0x320;
    /// LINT0 entry.
    pub const LVT_LINT0: u32 = 0x350;
    /// Timer: first count.
    pub const TIMER_INITIAL: u32 = 0x380;
    /// Timer: count now.
    pub const TIMER_CURRENT: u32 = 0x390;
    /// Timer: divider.
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    /// Self IPI, in x2APIC mode.
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Timer entry: counts once.
pub const TIMER_ONE_SHOT: u32 = 0 << 17;
/// Timer entry: counts again and again.
pub const TIMER_PERIODIC: u32 = 1 << 17;
/// Timer entry: fires at the time in `TSC_DEADLINE`.
pub const TIMER_DEADLINE: u32 = 2 << 17;
/// An entry that does not deliver.
pub const MASKED: u32 = 1 << 16;
/// Divider: by one.
pub const DIVIDE_BY_1: u32 = 0b1011;
/// ICR: to the sender itself.
pub const ICR_SELF: u32 = 1 << 18;
/// ICR: delivered as NMI.
pub const ICR_NMI: u32 = 4 << 8;
/// ICR: asserted.
pub const ICR_ASSERT: u32 = 1 << 14;

/// APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// APIC_BASE: on.
const BASE_ENABLE: u64 = 1 << 11;

/// The vector of spurious interrupts.
const SPURIOUS: u32 = 0xff;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Whether registers are MSRs now.
#[must_use]
pub fn is_x2() -> bool {
    X2APIC.load(Relaxed)
}

/// Whether CPUID promises x2APIC.
#[must_use]
pub fn has_x2() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Reads a register.
#[must_use]
pub fn read(register: u32) -> u32 {
    if is_x2() {
        let value: u32;
        // SAFETY: x2APIC mode is on, and the register exists.
        unsafe {
            asm!("rdmsr", in("ecx") msr::X2APIC + register / 16, out("eax") value, out("edx") _, options(nostack))
        }
        value
    } else {
        // SAFETY: the APIC's page is mapped, not cached, and nothing else.
        unsafe { core::ptr::with_exposed_provenance::<u32>(address(register)).read_volatile() }
    }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    if is_x2() {
        // SAFETY: as in `read`; what the value does is the caller's purpose.
        unsafe { asm!("wrmsr", in("ecx") msr::X2APIC + register / 16, in("eax") value, in("edx") 0, options(nostack)) }
    } else {
        // SAFETY: as in `read`.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address(register)).write_volatile(value) }
    }
}

const fn address(register: u32) -> usize {
    0xfee0_0000 + register as usize
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(register::EOI, 0);
}

/// Goes to xAPIC mode with everything masked and the APIC on. From x2APIC mode the way leads through "disabled".
///
/// # Errors
/// The fault of a refused change of mode.
pub fn enter_xapic() -> Result<(), Fault> {
    if cpu::rdmsr(msr::APIC_BASE) & BASE_X2APIC != 0 {
        cpu::try_wrmsr(msr::APIC_BASE, BASE)?;
    }
    cpu::try_wrmsr(msr::APIC_BASE, BASE | BASE_ENABLE | 1 << 8)?;
    X2APIC.store(false, Relaxed);
    reset();
    Ok(())
}

/// Goes to x2APIC mode likewise.
///
/// # Errors
/// The fault of a refused change of mode.
pub fn enter_x2apic() -> Result<(), Fault> {
    let base = cpu::rdmsr(msr::APIC_BASE);
    cpu::try_wrmsr(msr::APIC_BASE, base | BASE_ENABLE)?;
    cpu::try_wrmsr(msr::APIC_BASE, base | BASE_ENABLE | BASE_X2APIC)?;
    X2APIC.store(true, Relaxed);
    reset();
    Ok(())
}

/// Software-enables the APIC, masks the timer and lets every priority through.
pub fn reset() {
    write(register::SVR, 1 << 8 | SPURIOUS);
    write(register::TPR, 0);
    write(register::LVT_TIMER, MASKED);
    write(register::TIMER_INITIAL, 0);
    write(register::TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Sends an interrupt to this CPU.
pub fn send_self(vector: u8) {
    write(register::ICR, ICR_SELF | ICR_ASSERT | u32::from(vector));
}

/// Whether `vector`'s bit is set in the 256-bit register that begins at `first`.
#[must_use]
pub fn bit(first: u32, vector: u8) -> bool {
    read(first + u32::from(vector) / 32 * 16) & 1 << (vector % 32) != 0
}

/// The I/O APIC (82093AA data sheet, 3.0).
pub mod io {
    /// Where it is.
    const BASE: usize = 0xfec0_0000;
    /// Identification register.
    pub const ID: u32 = 0;
    /// Version register.
    pub const VERSION: u32 = 1;
    /// First of the redirection table, two registers an input.
    pub const TABLE: u32 = 0x10;
    /// Redirection entry: masked.
    pub const MASKED: u32 = 1 << 16;
    /// Redirection entry: level-triggered.
    pub const LEVEL: u32 = 1 << 15;
    /// Redirection entry: not yet ended by the local APIC.
    pub const REMOTE_IRR: u32 = 1 << 14;

    fn select(register: u32) {
        // SAFETY: the I/O APIC's page is mapped, not cached, and nothing else.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(BASE).write_volatile(register) }
    }

    /// Reads a register.
    #[must_use]
    pub fn read(register: u32) -> u32 {
        select(register);
        // SAFETY: as in `select`.
        unsafe { core::ptr::with_exposed_provenance::<u32>(BASE + 0x10).read_volatile() }
    }

    /// Writes a register.
    pub fn write(register: u32, value: u32) {
        select(register);
        // SAFETY: as in `select`.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(BASE + 0x10).write_volatile(value) }
    }
}
