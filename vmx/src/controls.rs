//! VM-execution, exit and entry controls (SDM vol. 3, 25.6 to 25.8): which are wanted, and which the CPU allows.

use bitflags::bitflags;

bitflags! {
    /// Pin-based controls (25.6.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Pin: u32 {
        /// Interrupts of the host exit, whatever the guest's flags are.
        const EXTERNAL_INTERRUPT = 1 << 0;
        /// NMIs exit.
        const NMI = 1 << 3;
        /// The guest's NMIs have a blocking of their own.
        const VIRTUAL_NMIS = 1 << 5;
        /// A timer that counts down in the guest and exits at 0.
        const PREEMPTION_TIMER = 1 << 6;
        const _ = !0;
    }
}

bitflags! {
    /// Primary processor-based controls (25.6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Processor: u32 {
        /// Exits as soon as the guest takes interrupts.
        const INTERRUPT_WINDOW = 1 << 2;
        /// RDTSC adds the offset.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT.
        const HLT = 1 << 7;
        /// INVLPG.
        const INVLPG = 1 << 9;
        /// MWAIT.
        const MWAIT = 1 << 10;
        /// RDPMC.
        const RDPMC = 1 << 11;
        /// RDTSC.
        const RDTSC = 1 << 12;
        /// MOV to CR3.
        const CR3_LOAD = 1 << 15;
        /// MOV from CR3.
        const CR3_STORE = 1 << 16;
        /// MOV to CR8.
        const CR8_LOAD = 1 << 19;
        /// MOV from CR8.
        const CR8_STORE = 1 << 20;
        /// CR8 is the virtual-APIC page's task priority.
        const TPR_SHADOW = 1 << 21;
        /// Exits as soon as the guest takes NMIs.
        const NMI_WINDOW = 1 << 22;
        /// MOV to and from debug registers.
        const MOV_DR = 1 << 23;
        /// Ports exit by the bitmaps.
        const IO_BITMAPS = 1 << 25;
        /// RDMSR and WRMSR exit by the bitmap.
        const MSR_BITMAP = 1 << 28;
        /// MONITOR.
        const MONITOR = 1 << 29;
        /// PAUSE.
        const PAUSE = 1 << 30;
        /// The secondary controls count.
        const SECONDARY = 1 << 31;
        const _ = !0;
    }
}

bitflags! {
    /// Secondary processor-based controls (25.6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Secondary: u32 {
        /// Guest-physical addresses are translated by EPT.
        const EPT = 1 << 1;
        /// RDTSCP and RDPID do not fault.
        const RDTSCP = 1 << 3;
        /// Translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD.
        const WBINVD = 1 << 6;
        /// Real mode and protected mode without paging run as they are.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// INVPCID does not fault.
        const INVPCID = 1 << 12;
        /// VMFUNC does not fault.
        const VMFUNC = 1 << 13;
        /// ENCLS exits by its own bitmap.
        const ENCLS = 1 << 15;
        /// Writes are logged.
        const PAGE_MODIFICATION_LOG = 1 << 17;
        /// XSAVES and XRSTORS do not fault.
        const XSAVES = 1 << 20;
        const _ = !0;
    }
}

bitflags! {
    /// Exit controls (25.7.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Exit: u32 {
        /// DR7 and DEBUGCTL are stored.
        const SAVE_DEBUG = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// The interrupt that exits is taken from the controller: then the host would not see it.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// PAT is stored.
        const SAVE_PAT = 1 << 18;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// EFER is stored.
        const SAVE_EFER = 1 << 20;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 21;
        const _ = !0;
    }
}

bitflags! {
    /// Entry controls (25.8.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Entry: u32 {
        /// DR7 and DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in long mode; follows its EFER.LMA.
        const GUEST_LONG_MODE = 1 << 9;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 15;
        const _ = !0;
    }
}

/// Pin-based controls that have to be.
pub(crate) const PIN: Pin = Pin::EXTERNAL_INTERRUPT.union(Pin::NMI).union(Pin::VIRTUAL_NMIS);

/// Primary controls that have to be, without [`Processor::INTERRUPT_WINDOW`] and [`Processor::NMI_WINDOW`], which come and
/// go. Ports and MSRs all exit but for those that the bitmaps name; INVLPG and CR3 are the guest's own, by EPT.
pub(crate) const PROCESSOR: Processor = Processor::TSC_OFFSETTING
    .union(Processor::HLT)
    .union(Processor::MWAIT)
    .union(Processor::RDPMC)
    .union(Processor::TPR_SHADOW)
    .union(Processor::MOV_DR)
    .union(Processor::IO_BITMAPS)
    .union(Processor::MSR_BITMAP)
    .union(Processor::MONITOR)
    .union(Processor::SECONDARY);

/// Primary controls that must not be: what they make exit is the guest's own.
pub(crate) const PROCESSOR_OFF: Processor = Processor::INVLPG
    .union(Processor::RDTSC)
    .union(Processor::CR3_LOAD)
    .union(Processor::CR3_STORE)
    .union(Processor::CR8_LOAD)
    .union(Processor::CR8_STORE)
    .union(Processor::PAUSE)
    .union(Processor::INTERRUPT_WINDOW)
    .union(Processor::NMI_WINDOW);

/// Secondary controls that have to be.
pub(crate) const SECONDARY: Secondary = Secondary::EPT.union(Secondary::WBINVD).union(Secondary::UNRESTRICTED_GUEST);

/// Secondary controls that are set where the CPU has them. Without the first two their instructions fault, so CPUs that have
/// the instructions have these.
pub(crate) const SECONDARY_WELCOME: Secondary =
    Secondary::RDTSCP.union(Secondary::INVPCID).union(Secondary::VPID).union(Secondary::ENCLS);

/// Exit controls that have to be.
pub(crate) const EXIT: Exit = Exit::SAVE_DEBUG
    .union(Exit::HOST_64_BIT)
    .union(Exit::SAVE_PAT)
    .union(Exit::LOAD_PAT)
    .union(Exit::SAVE_EFER)
    .union(Exit::LOAD_EFER);

/// Entry controls that have to be, without [`Entry::GUEST_LONG_MODE`], which follows the guest's EFER.
pub(crate) const ENTRY: Entry = Entry::LOAD_DEBUG.union(Entry::LOAD_PAT).union(Entry::LOAD_EFER);

/// Exceptions that exit, by vector: #DB and #AC, whose delivery can fault again without end (CVE-2015-8104,
/// CVE-2015-5307), and #MC, which is the host's. #PF is the guest's own, by EPT; #UD has nothing to emulate.
pub(crate) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// What the CPU allows of a set of controls (SDM vol. 3, A.2): the low half of a capability MSR has ones where a control must
/// be 1, the high half zeros where it must be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Controls that must be 1.
    required: u32,
    /// Controls that can be 1.
    possible: u32,
}

impl Allowed {
    /// From a capability MSR.
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    pub(crate) const fn from_msr(value: u64) -> Self {
        Self { required: value as u32, possible: (value >> 32) as u32 }
    }

    /// Which of `wanted` can be.
    pub(crate) const fn of(self, wanted: u32) -> u32 {
        self.possible & wanted
    }

    /// `wanted` and what must be; `None` where something of `wanted` cannot be, or something of `unwanted` must.
    pub(crate) const fn choose(self, wanted: u32, unwanted: u32) -> Option<u32> {
        if wanted & !self.possible != 0 || unwanted & self.required != 0 {
            return None;
        }
        Some(wanted | self.required)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_controls_are_those_that_are_wanted_and_those_that_must_be() {
        let allowed = Allowed::from_msr(0x0000_00ff_0000_0016);
        assert_eq!(allowed.choose(0x08, 0x40), Some(0x1e));
        assert_eq!(allowed.choose(0x100, 0), None, "the CPU lacks it");
        assert_eq!(allowed.choose(0x08, 0x10), None, "the CPU forces what must not be");
        assert_eq!(allowed.of(0x180), 0x80);
    }

    /// What a guest must never do unseen, as `svm`'s list of intercepts has it; the instructions that are not here exit
    /// always (SDM vol. 3, 26.1.2).
    #[test]
    fn test_attack_missing_exits() {
        for needed in [
            Processor::HLT,
            Processor::MWAIT,
            Processor::MONITOR,
            Processor::RDPMC,
            Processor::MOV_DR,
            Processor::IO_BITMAPS,
            Processor::MSR_BITMAP,
        ] {
            assert!(PROCESSOR.contains(needed), "{needed:?}");
        }
        for needed in [Pin::EXTERNAL_INTERRUPT, Pin::NMI, Pin::VIRTUAL_NMIS] {
            assert!(PIN.contains(needed), "{needed:?}");
        }
        for vector in [1, 17, 18] {
            assert_eq!(EXCEPTIONS >> vector & 1, 1, "exception {vector}");
        }
        assert!(SECONDARY.contains(Secondary::EPT | Secondary::WBINVD));
    }

    /// VMFUNC lets a guest switch its EPT, XSAVES would change supervisor state that is not switched, and a log of writes
    /// goes to an address that nobody set.
    #[test]
    fn test_attack_controls_that_open_the_host() {
        let all = SECONDARY | SECONDARY_WELCOME;
        for never in [Secondary::VMFUNC, Secondary::XSAVES, Secondary::PAGE_MODIFICATION_LOG] {
            assert!(!all.intersects(never), "{never:?}");
        }
        assert!(!EXIT.contains(Exit::ACKNOWLEDGE_INTERRUPT), "interrupts of the host stay pending for it");
        assert!(!PROCESSOR.intersects(PROCESSOR_OFF));
    }
}
