//! Registers of the guest that neither the switch nor a control block moves: XCR0, `TSC_AUX` and the breakpoints' addresses. An
//! engine keeps them here; [`crate::host_registers`] has the host's.

use crate::instructions::wrmsr;
use crate::msr::index;
use crate::xstate;

/// One vCPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRegisters {
    /// XCR0; valid on this CPU.
    pub xcr0: u64,
    /// `TSC_AUX`.
    pub tsc_aux: u32,
    /// DR0 to DR3.
    pub debug_addresses: [u64; 4],
    /// The host's are put aside, and these are in the CPU.
    loaded: bool,
}

impl GuestRegisters {
    /// After reset.
    pub const RESET: Self = Self { xcr0: 1, tsc_aux: 0, debug_addresses: [0; 4], loaded: false };

    /// Whether they are in the CPU.
    #[inline]
    #[must_use]
    pub const fn are_loaded(&self) -> bool {
        self.loaded
    }

    /// Says whether they are in the CPU.
    ///
    /// # Safety
    /// They are: what is set from now on is written into the calling CPU, which is in ring 0, until this says that they are not.
    #[inline]
    pub const unsafe fn set_loaded(&mut self, loaded: bool) {
        self.loaded = loaded;
    }

    /// XCR0 as it is now, for a guest whose CR4.OSXSAVE is set or not. QEMU's CPU (7.2) lets the guest's XSETBV through although it
    /// is intercepted, so while it is in the CPU it is read there.
    #[must_use]
    pub fn current_xcr0(&self, os_xsave: bool) -> u64 {
        if self.loaded && os_xsave {
            // SAFETY: loaded; and the host has CR4.OSXSAVE set, or the guest would not be offered it.
            unsafe { xstate::read_xcr0() }
        } else {
            self.xcr0
        }
    }

    /// Sets XCR0 to a value that is valid on this CPU.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.loaded {
            // SAFETY: loaded, and the value is valid, by the contract of `Vcpu::set_xcr0`.
            unsafe { xstate::write_xcr0(value) };
        }
    }

    /// Sets `TSC_AUX`, which core offers only where the CPU has it.
    pub fn set_tsc_aux(&mut self, value: u32) {
        self.tsc_aux = value;
        if self.loaded {
            // SAFETY: loaded, and the CPU has the MSR; the host's value comes back with the host.
            unsafe { wrmsr(index::TSC_AUX, u64::from(value)) };
        }
    }

    /// DR0 to DR3; only the low two bits of the number count.
    #[must_use]
    pub const fn debug_address(&self, number: usize) -> u64 {
        self.debug_addresses[number & 3]
    }

    /// Sets one. Breakpoints that are loaded stay as they are: the next entry loads them anew.
    pub const fn set_debug_address(&mut self, number: usize, value: u64) {
        self.debug_addresses[number & 3] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_kept_while_the_host_is_loaded() {
        let mut registers = GuestRegisters::RESET;
        registers.set_xcr0(7);
        registers.set_tsc_aux(5);
        registers.set_debug_address(6, 0x1000);
        assert_eq!(registers.current_xcr0(true), 7);
        assert_eq!((registers.xcr0, registers.tsc_aux, registers.debug_address(2)), (7, 5, 0x1000));
        assert!(!registers.are_loaded());
    }
}
