//! Basic exit reasons (SDM vol. 3, appendix C).

/// Bits 0 to 15 of the exit reason.
pub(crate) const BASIC: u64 = 0xffff;
/// Bit 31 of the exit reason: the entry failed.
pub(crate) const ENTRY_FAILED: u64 = 1 << 31;

/// An exception or an NMI.
pub(crate) const EXCEPTION_OR_NMI: u64 = 0;
/// An interrupt of the host.
pub(crate) const EXTERNAL_INTERRUPT: u64 = 1;
/// Triple fault.
pub(crate) const TRIPLE_FAULT: u64 = 2;
/// INIT.
pub(crate) const INIT: u64 = 3;
/// The guest takes interrupts.
pub(crate) const INTERRUPT_WINDOW: u64 = 7;
/// The guest takes NMIs.
pub(crate) const NMI_WINDOW: u64 = 8;
/// Task switch.
pub(crate) const TASK_SWITCH: u64 = 9;
/// CPUID.
pub(crate) const CPUID: u64 = 10;
/// GETSEC.
pub(crate) const GETSEC: u64 = 11;
/// HLT.
pub(crate) const HLT: u64 = 12;
/// INVD.
pub(crate) const INVD: u64 = 13;
/// RDPMC.
pub(crate) const RDPMC: u64 = 15;
/// RSM.
pub(crate) const RSM: u64 = 17;
/// VMCALL.
pub(crate) const VMCALL: u64 = 18;
/// VMCLEAR; up to VMXON follow VMX's other instructions.
pub(crate) const VMCLEAR: u64 = 19;
/// VMXON.
pub(crate) const VMXON: u64 = 27;
/// A control register.
pub(crate) const CONTROL_REGISTER: u64 = 28;
/// A debug register.
pub(crate) const DEBUG_REGISTER: u64 = 29;
/// IN, INS, OUT, OUTS.
pub(crate) const IO: u64 = 30;
/// RDMSR.
pub(crate) const RDMSR: u64 = 31;
/// WRMSR.
pub(crate) const WRMSR: u64 = 32;
/// The entry failed for the guest's state.
pub(crate) const INVALID_GUEST_STATE: u64 = 33;
/// MWAIT.
pub(crate) const MWAIT: u64 = 36;
/// MONITOR.
pub(crate) const MONITOR: u64 = 39;
/// PAUSE.
pub(crate) const PAUSE: u64 = 40;
/// A machine check during entry.
pub(crate) const MACHINE_CHECK_AT_ENTRY: u64 = 41;
/// The task priority fell below the threshold.
pub(crate) const TPR_BELOW_THRESHOLD: u64 = 43;
/// No translation, or not such an access.
pub(crate) const EPT_VIOLATION: u64 = 48;
/// A translation that cannot be.
pub(crate) const EPT_MISCONFIGURATION: u64 = 49;
/// INVEPT.
pub(crate) const INVEPT: u64 = 50;
/// The preemption timer.
pub(crate) const PREEMPTION_TIMER: u64 = 52;
/// INVVPID.
pub(crate) const INVVPID: u64 = 53;
/// WBINVD.
pub(crate) const WBINVD: u64 = 54;
/// XSETBV.
pub(crate) const XSETBV: u64 = 55;
/// VMFUNC.
pub(crate) const VMFUNC: u64 = 59;
/// ENCLS.
pub(crate) const ENCLS: u64 = 60;
