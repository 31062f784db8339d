//! Control registers of the monitor's world (SDM vol. 3, 2.5).

use bitflags::bitflags;

bitflags! {
    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Cr4: u64 {
        /// Debugging extensions: no aliases of debug registers.
        const DE = 1 << 3;
        /// Physical address extension, as long mode wants it.
        const PAE = 1 << 5;
        /// Machine checks are exceptions; without it they stop the machine.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// SSE.
        const OSFXSR = 1 << 9;
        /// SSE's exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// VMX operation, which another hypervisor may be in: then the bit cannot be cleared.
        const VMXE = 1 << 13;
        /// SMX.
        const SMXE = 1 << 14;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE.
        const OSXSAVE = 1 << 18;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Flexible return and event delivery.
        const FRED = 1 << 32;
    }

    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Cr0: u64 {
        /// Protection.
        const PE = 1 << 0;
        /// WAIT heeds TS.
        const MP = 1 << 1;
        /// Extended state is not to be used.
        const TS = 1 << 3;
        /// Extension type; always 1.
        const ET = 1 << 4;
        /// x87 errors are exceptions.
        const NE = 1 << 5;
        /// Ring 0 heeds read-only pages.
        const WP = 1 << 16;
        /// Programs may ask for alignment checks.
        const AM = 1 << 18;
        /// Paging.
        const PG = 1 << 31;
    }
}

impl Cr4 {
    /// What the monitor's world has as the host has it: what cannot be changed in long mode or in VMX operation, what programs of
    /// the guest's use, and machine checks. All else is off. PGE and PCIDE are, so that each crossing flushes the TLB (SDM vol. 3,
    /// 4.10.4.1); SMEP and SMAP are, for the guest's kernel runs in ring 3.
    const AS_THE_HOST: Self = Self::DE
        .union(Self::PAE)
        .union(Self::MCE)
        .union(Self::OSFXSR)
        .union(Self::OSXMMEXCPT)
        .union(Self::LA57)
        .union(Self::VMXE)
        .union(Self::SMXE)
        .union(Self::OSXSAVE);

    /// The monitor's CR4 in a host with this one.
    pub(crate) const fn of_monitor(host: Self) -> Self {
        host.intersection(Self::AS_THE_HOST)
    }

    /// What the guest's kernel has there, as core sees it.
    pub(crate) const fn of_guest(xsave: bool) -> Self {
        let always = Self::PAE.union(Self::OSFXSR).union(Self::OSXMMEXCPT);
        if xsave { always.union(Self::OSXSAVE) } else { always }
    }
}

impl Cr0 {
    /// The guest's, without TS.
    pub(crate) const GUEST: Self =
        Self::PE.union(Self::MP).union(Self::ET).union(Self::NE).union(Self::WP).union(Self::AM).union(Self::PG);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitor_has_nothing_that_changes_what_pages_are() {
        let monitor = Cr4::of_monitor(Cr4::from_bits_retain(u64::MAX));
        assert!(monitor.contains(Cr4::PAE | Cr4::MCE | Cr4::VMXE | Cr4::LA57 | Cr4::OSXSAVE));
        assert!(!monitor.intersects(Cr4::PGE | Cr4::PCIDE | Cr4::CET | Cr4::FRED));
        // UMIP, FSGSBASE, SMEP, SMAP, PKE, PKS.
        for bit in [11, 16, 20, 21, 22, 24] {
            assert_eq!(monitor.bits() >> bit & 1, 0, "bit {bit}");
        }
        assert_eq!(Cr4::of_monitor(Cr4::PAE), Cr4::PAE);
    }
}
