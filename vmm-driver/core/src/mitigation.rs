//! What the CPU needs so that a guest reads nothing of the host out of its buffers (Intel, "Affected processors: transient
//! execution attacks"): of the flaws of speculation, those that concern the way into a guest.

use core::arch::x86_64::__cpuid;
use core::arch::x86_64::__cpuid_count;

use crate::instructions::rdmsr;
use crate::instructions::wrmsr;

/// `IA32_ARCH_CAPABILITIES`.
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
/// `IA32_FLUSH_CMD`.
const MSR_FLUSH_COMMAND: u32 = 0x10b;
/// FLUSH_CMD: write back and invalidate the L1 data cache.
const L1D_FLUSH: u64 = 1 << 0;

/// CPUID 7, EDX: VERW overwrites buffers.
const MD_CLEAR: u32 = 1 << 10;
/// CPUID 7, EDX: `IA32_FLUSH_CMD`.
const HAS_FLUSH_COMMAND: u32 = 1 << 28;
/// CPUID 7, EDX: `IA32_ARCH_CAPABILITIES`.
const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;
/// Not vulnerable to Meltdown and L1 terminal fault.
const RDCL_NO: u64 = 1 << 0;
/// An outer hypervisor flushes the L1 data cache.
const SKIP_L1D_FLUSH: u64 = 1 << 3;
/// Not vulnerable to microarchitectural data sampling.
const MDS_NO: u64 = 1 << 5;
/// No machine check where code's pages change their size under the instruction TLB.
const PSCHANGE_MC_NO: u64 = 1 << 6;
/// VERW clears fill buffers, because of stale data of device memory.
const FB_CLEAR: u64 = 1 << 17;

/// What is done before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mitigations {
    /// Before each entry: VERW.
    pub clear_buffers: bool,
    /// Before the first entry after the host ran: the L1 data cache is flushed. Exits that core answers bring nothing into
    /// it but the guest's own state and code and data of the driver.
    flush_l1d: bool,
}

/// CPUID 7, EDX.
fn features() -> u32 {
    if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 }
}

/// `IA32_ARCH_CAPABILITIES`; 0, which is the worst, where the CPU has no such register.
///
/// # Safety
/// Ring 0.
unsafe fn capabilities() -> u64 {
    // SAFETY: by the caller, and the CPU says that it has the MSR.
    if features() & HAS_ARCH_CAPABILITIES != 0 { unsafe { rdmsr(MSR_ARCH_CAPABILITIES) } } else { 0 }
}

/// Whether guests may execute pages of 2 MiB. Where not, a guest that changes the size of its own pages can raise a machine
/// check that stops the host (CVE-2018-12207), and EPT maps its memory in pages of 4 KiB.
///
/// # Safety
/// Ring 0.
#[must_use]
pub unsafe fn large_pages_are_safe() -> bool {
    // SAFETY: by the caller.
    unsafe { capabilities() & PSCHANGE_MC_NO != 0 }
}

impl Mitigations {
    /// For the calling CPU.
    ///
    /// # Safety
    /// Ring 0.
    #[must_use]
    pub unsafe fn read() -> Self {
        // SAFETY: by the caller.
        Self::needed(features(), unsafe { capabilities() })
    }

    fn needed(features: u32, capabilities: u64) -> Self {
        let samples = features & MD_CLEAR != 0 && capabilities & MDS_NO == 0;
        Self {
            clear_buffers: samples || capabilities & FB_CLEAR != 0,
            flush_l1d: features & HAS_FLUSH_COMMAND != 0 && capabilities & (RDCL_NO | SKIP_L1D_FLUSH) == 0,
        }
    }

    /// After the host ran.
    ///
    /// # Safety
    /// Ring 0, on the CPU that they were read on.
    #[inline]
    pub unsafe fn before_stay(&self) {
        if self.flush_l1d {
            // SAFETY: the CPU has the MSR; a flush loses nothing.
            unsafe { wrmsr(MSR_FLUSH_COMMAND, L1D_FLUSH) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_attack_l1_terminal_fault_and_data_sampling_are_met_where_the_cpu_has_them() {
        let old = Mitigations::needed(MD_CLEAR | HAS_FLUSH_COMMAND, 0);
        assert_eq!(old, Mitigations { clear_buffers: true, flush_l1d: true });
        let new = Mitigations::needed(MD_CLEAR | HAS_FLUSH_COMMAND | HAS_ARCH_CAPABILITIES, RDCL_NO | MDS_NO);
        assert_eq!(new, Mitigations { clear_buffers: false, flush_l1d: false });
        let stale = Mitigations::needed(MD_CLEAR | HAS_ARCH_CAPABILITIES, RDCL_NO | MDS_NO | FB_CLEAR);
        assert!(stale.clear_buffers);
        assert!(!Mitigations::needed(HAS_FLUSH_COMMAND, SKIP_L1D_FLUSH).flush_l1d, "the outer hypervisor does it");
    }
}
