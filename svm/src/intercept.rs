//! What makes the guest exit (APM vol. 2, 15.7 to 15.12; bit positions in appendix B, offsets 0x000 to 0x014).

use bitflags::bitflags;

bitflags! {
    /// Offset 0x000: CR reads, and from bit 16 on CR writes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct ControlRegisters: u32 {
        /// Writes of CR4: the guest may set what its CPUID offers.
        const WRITE_CR4 = 1 << 20;
        /// Writes of CR8: the task priority that holds an interrupt back may fall.
        const WRITE_CR8 = 1 << 24;
        const _ = !0;
    }
}

bitflags! {
    /// Offset 0x008: exceptions by vector.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Exceptions: u32 {
        /// #DB: its delivery can fault again without end (CVE-2015-8104).
        const DEBUG = 1 << 1;
        /// INT3.
        const BREAKPOINT = 1 << 3;
        /// INTO.
        const OVERFLOW = 1 << 4;
        /// #AC: likewise (CVE-2015-5307).
        const ALIGNMENT_CHECK = 1 << 17;
        /// #MC belongs to the host.
        const MACHINE_CHECK = 1 << 18;
        const _ = !0;
    }
}

bitflags! {
    /// Offset 0x00c.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Instructions1: u32 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// NMI.
        const NMI = 1 << 1;
        /// SMI.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// The guest could take a virtual interrupt: the interrupt window.
        const VINTR = 1 << 4;
        /// CR0 writes that change more than TS or MP.
        const CR0_SELECTIVE = 1 << 5;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET: the end of an NMI's handler.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// I/O ports, by the permission map.
        const IOIO = 1 << 27;
        /// MSRs, by the permission map.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR freeze.
        const FERR_FREEZE = 1 << 30;
        /// Triple fault.
        const SHUTDOWN = 1 << 31;
    }
}

bitflags! {
    /// Offset 0x010.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Instructions2: u32 {
        /// VMRUN; a VMCB without it is refused.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// ICEBP.
        const ICEBP = 1 << 8;
        /// WBINVD.
        const WBINVD = 1 << 9;
        /// MONITOR.
        const MONITOR = 1 << 10;
        /// MWAIT.
        const MWAIT = 1 << 11;
        /// MWAIT with an armed monitor.
        const MWAIT_ARMED = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
    }
}

bitflags! {
    /// Offset 0x014.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Instructions3: u32 {
        /// INVLPGB.
        const INVLPGB = 1 << 0;
        /// Illegal INVLPGB.
        const INVLPGB_ILLEGAL = 1 << 1;
        /// MCOMMIT.
        const MCOMMIT = 1 << 3;
        /// TLBSYNC.
        const TLBSYNC = 1 << 4;
    }
}

/// DR reads and writes, all of them (offset 0x004).
pub(crate) const ALL_DEBUG_REGISTERS: u32 = !0;

/// CR intercepts, without [`ControlRegisters::WRITE_CR8`], which comes and goes. CR0 writes come by
/// [`Instructions1::CR0_SELECTIVE`]; CR3 and CR8 are the guest's own, by nested paging and by the virtual TPR.
pub(crate) const CONTROL_REGISTERS: ControlRegisters = ControlRegisters::WRITE_CR4;

/// Exception intercepts. #PF is the guest's own, by nested paging; #UD has nothing to emulate.
pub(crate) const EXCEPTIONS: Exceptions =
    Exceptions::DEBUG.union(Exceptions::ALIGNMENT_CHECK).union(Exceptions::MACHINE_CHECK);

/// The same while an IRET is stepped over: all, but those which an IRET does not raise and which cannot be injected as they
/// were, with RIP behind the instruction.
pub(crate) const STEP_EXCEPTIONS: Exceptions =
    Exceptions::all().difference(Exceptions::BREAKPOINT).difference(Exceptions::OVERFLOW);

/// First vector, without [`Instructions1::VINTR`] and [`Instructions1::IRET`], which come and go. INVLPG is the guest's
/// own, by nested paging.
pub(crate) const INSTRUCTIONS1: Instructions1 = Instructions1::INTR
    .union(Instructions1::NMI)
    .union(Instructions1::SMI)
    .union(Instructions1::INIT)
    .union(Instructions1::CR0_SELECTIVE)
    .union(Instructions1::RDPMC)
    .union(Instructions1::CPUID)
    .union(Instructions1::RSM)
    .union(Instructions1::INVD)
    .union(Instructions1::HLT)
    .union(Instructions1::INVLPGA)
    .union(Instructions1::IOIO)
    .union(Instructions1::MSR)
    .union(Instructions1::TASK_SWITCH)
    .union(Instructions1::FERR_FREEZE)
    .union(Instructions1::SHUTDOWN);

/// Second vector. ICEBP raises #DB, which is intercepted.
pub(crate) const INSTRUCTIONS2: Instructions2 = Instructions2::VMRUN
    .union(Instructions2::VMMCALL)
    .union(Instructions2::VMLOAD)
    .union(Instructions2::VMSAVE)
    .union(Instructions2::STGI)
    .union(Instructions2::CLGI)
    .union(Instructions2::SKINIT)
    .union(Instructions2::WBINVD)
    .union(Instructions2::MONITOR)
    .union(Instructions2::MWAIT)
    .union(Instructions2::XSETBV)
    .union(Instructions2::RDPRU);

/// Third vector.
pub(crate) const INSTRUCTIONS3: Instructions3 = Instructions3::INVLPGB
    .union(Instructions3::INVLPGB_ILLEGAL)
    .union(Instructions3::MCOMMIT)
    .union(Instructions3::TLBSYNC);

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest must never do unseen: each missing intercept of this list was a vulnerability somewhere
    /// (CVE-2021-3656 and others).
    #[test]
    fn test_attack_missing_intercepts() {
        for needed in [
            Instructions1::INTR,
            Instructions1::NMI,
            Instructions1::SMI,
            Instructions1::INIT,
            Instructions1::RSM,
            Instructions1::INVD,
            Instructions1::INVLPGA,
            Instructions1::IOIO,
            Instructions1::MSR,
            Instructions1::TASK_SWITCH,
            Instructions1::FERR_FREEZE,
            Instructions1::SHUTDOWN,
            Instructions1::HLT,
            Instructions1::CPUID,
            Instructions1::RDPMC,
            Instructions1::CR0_SELECTIVE,
        ] {
            assert!(INSTRUCTIONS1.contains(needed), "{needed:?}");
        }
        for needed in [
            Instructions2::VMRUN,
            Instructions2::VMMCALL,
            Instructions2::VMLOAD,
            Instructions2::VMSAVE,
            Instructions2::STGI,
            Instructions2::CLGI,
            Instructions2::SKINIT,
            Instructions2::WBINVD,
            Instructions2::MONITOR,
            Instructions2::MWAIT,
            Instructions2::XSETBV,
            Instructions2::RDPRU,
        ] {
            assert!(INSTRUCTIONS2.contains(needed), "{needed:?}");
        }
        for needed in [Exceptions::DEBUG, Exceptions::ALIGNMENT_CHECK, Exceptions::MACHINE_CHECK] {
            assert!(EXCEPTIONS.contains(needed), "{needed:?}");
        }
        assert_eq!(ALL_DEBUG_REGISTERS, u32::MAX);
    }
}
