//! The MSRs of SYSCALL and SWAPGS, which the guest reads and writes in hardware, and which VMX does not switch.

use covisor_core::instructions::rdmsr;
use covisor_core::instructions::wrmsr;
use covisor_core::msr::index;

/// Their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyscallMsrs {
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    /// A user program's base of GS, while its kernel runs.
    pub(crate) kernel_gs_base: u64,
}

impl SyscallMsrs {
    /// The values that the CPU has.
    ///
    /// # Safety
    /// Ring 0, on a 64-bit CPU.
    #[inline]
    pub(crate) unsafe fn read() -> Self {
        // SAFETY: by the caller.
        unsafe {
            Self {
                star: rdmsr(index::STAR),
                lstar: rdmsr(index::LSTAR),
                cstar: rdmsr(index::CSTAR),
                sfmask: rdmsr(index::SFMASK),
                kernel_gs_base: rdmsr(index::KERNEL_GS_BASE),
            }
        }
    }

    /// Reads anew what changes while the host runs: the other values it sets once.
    ///
    /// # Safety
    /// As [`SyscallMsrs::read`].
    #[inline]
    pub(crate) unsafe fn read_changing(&mut self) {
        // SAFETY: by the caller.
        self.kernel_gs_base = unsafe { rdmsr(index::KERNEL_GS_BASE) };
    }

    /// Gives the CPU these values, which differ from those that it has in few: `now`.
    ///
    /// # Safety
    /// As [`SyscallMsrs::read`]; the CPU had the values before, so it takes them; nobody uses them until the host's are back.
    #[inline]
    pub(crate) unsafe fn write(&self, now: &Self) {
        let set = |msr, value, now| {
            if value != now {
                // SAFETY: by the caller.
                unsafe { wrmsr(msr, value) };
            }
        };
        set(index::STAR, self.star, now.star);
        set(index::LSTAR, self.lstar, now.lstar);
        set(index::CSTAR, self.cstar, now.cstar);
        set(index::SFMASK, self.sfmask, now.sfmask);
        set(index::KERNEL_GS_BASE, self.kernel_gs_base, now.kernel_gs_base);
    }
}
