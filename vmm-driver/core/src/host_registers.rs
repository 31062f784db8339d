//! Registers of the host that neither the switch to the guest nor extended state brings along: debug registers, `TSC_AUX`
//! and `IA32_XSS`. They are put aside when the host is left, and brought back when it is loaded again.

use crate::debug_registers::DR7_ENABLES;
use crate::debug_registers::DR7_RESET;
use crate::debug_registers::read_debug_addresses;
use crate::debug_registers::write_debug_addresses;
use crate::instructions::rdmsr;
use crate::instructions::read_dr6;
use crate::instructions::read_dr7;
use crate::instructions::write_dr6;
use crate::instructions::write_dr7;
use crate::instructions::wrmsr;
use crate::msr::index;

/// One physical CPU's.
#[derive(Debug, Default)]
pub struct HostRegisters {
    /// Values of the host, which it does not change while it runs. (Windows checks that nobody changes `TSC_AUX`.)
    tsc_aux: u32,
    xss: u64,
    has_tsc_aux: bool,
    /// Debug registers of the host, of this stay in the guest.
    dr7: u64,
    dr6: u64,
    debug_addresses: [u64; 4],
    /// DR0 to DR3 are the guest's. Whether that is needed may change while the guest runs; what was done does not.
    debug_switched: bool,
}

impl HostRegisters {
    /// Reads what the host does not change. `tsc_aux`: the CPU has `TSC_AUX`; `supervisor_state`: it has `IA32_XSS`.
    ///
    /// # Safety
    /// Ring 0, on the CPU itself, the host is loaded; the CPU has what the arguments say.
    pub unsafe fn capture(&mut self, tsc_aux: bool, supervisor_state: bool) {
        self.has_tsc_aux = tsc_aux;
        // SAFETY: by the caller.
        unsafe {
            if tsc_aux {
                #[expect(clippy::cast_possible_truncation, reason = "the MSR has 32 bits")]
                let aux = rdmsr(index::TSC_AUX) as u32;
                self.tsc_aux = aux;
            }
            self.xss = if supervisor_state { rdmsr(index::XSS) } else { 0 };
        }
    }

    /// Puts the host's registers aside and loads the guest's, of the debug registers the addresses only: DR6 and DR7 are
    /// the engine's. Whether the guest has breakpoints is `guest_debug_active`.
    ///
    /// # Safety
    /// Ring 0, on the CPU that was captured; nothing of the host's runs until [`HostRegisters::leave`] that would miss
    /// them. The guest's values are such as the CPU takes.
    #[inline]
    pub unsafe fn enter(&mut self, guest_debug_active: bool, guest_debug_addresses: &[u64; 4], guest_tsc_aux: u32) {
        // SAFETY: by the caller; the MSRs are there.
        unsafe {
            self.dr7 = read_dr7();
            self.debug_switched = self.dr7 & DR7_ENABLES != 0 || guest_debug_active;
            if self.debug_switched {
                self.dr6 = read_dr6();
                self.debug_addresses = read_debug_addresses();
                write_dr7(DR7_RESET);
                write_debug_addresses(guest_debug_addresses);
            }
            if self.has_tsc_aux && guest_tsc_aux != self.tsc_aux {
                wrmsr(index::TSC_AUX, u64::from(guest_tsc_aux));
            }
            if self.xss != 0 {
                wrmsr(index::XSS, 0);
            }
        }
    }

    /// Loads the host's registers again. `guest_tsc_aux` is what the guest has now.
    ///
    /// # Safety
    /// Ring 0; [`HostRegisters::enter`] came before on this CPU. DR7 enables nothing, as it is after an exit.
    #[inline]
    pub unsafe fn leave(&mut self, guest_tsc_aux: u32) {
        // SAFETY: by the caller; the values are those that enter() and capture() found.
        unsafe {
            if self.xss != 0 {
                wrmsr(index::XSS, self.xss);
            }
            if self.has_tsc_aux && guest_tsc_aux != self.tsc_aux {
                wrmsr(index::TSC_AUX, u64::from(self.tsc_aux));
            }
            if self.debug_switched {
                write_debug_addresses(&self.debug_addresses);
                write_dr6(self.dr6);
                write_dr7(self.dr7);
            }
        }
    }
}
