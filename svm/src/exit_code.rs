//! Exit codes (APM vol. 2, appendix C).

/// Writes of CR4.
pub(crate) const WRITE_CR4: u64 = 0x14;
/// Writes of CR8.
pub(crate) const WRITE_CR8: u64 = 0x18;
/// First of the DR reads.
pub(crate) const READ_DR0: u64 = 0x20;
/// Last of the DR writes.
pub(crate) const WRITE_DR15: u64 = 0x3f;
/// First of the exceptions, by vector.
pub(crate) const EXCEPTION: u64 = 0x40;
/// #DB.
pub(crate) const EXCEPTION_DB: u64 = 0x41;
/// #PF.
pub(crate) const EXCEPTION_PF: u64 = 0x4e;
/// #AC.
pub(crate) const EXCEPTION_AC: u64 = 0x51;
/// #MC.
pub(crate) const EXCEPTION_MC: u64 = 0x52;
/// Last of the exceptions.
pub(crate) const EXCEPTION_LAST: u64 = 0x5f;
/// A physical interrupt.
pub(crate) const INTR: u64 = 0x60;
/// An NMI.
pub(crate) const NMI: u64 = 0x61;
/// An SMI.
pub(crate) const SMI: u64 = 0x62;
/// INIT.
pub(crate) const INIT: u64 = 0x63;
/// Interrupt window.
pub(crate) const VINTR: u64 = 0x64;
/// A CR0 write that changes more than TS or MP.
pub(crate) const CR0_SELECTIVE_WRITE: u64 = 0x65;
/// RDPMC.
pub(crate) const RDPMC: u64 = 0x6f;
/// CPUID.
pub(crate) const CPUID: u64 = 0x72;
/// RSM.
pub(crate) const RSM: u64 = 0x73;
/// IRET.
pub(crate) const IRET: u64 = 0x74;
/// INVD.
pub(crate) const INVD: u64 = 0x76;
/// PAUSE.
pub(crate) const PAUSE: u64 = 0x77;
/// HLT.
pub(crate) const HLT: u64 = 0x78;
/// INVLPGA.
pub(crate) const INVLPGA: u64 = 0x7a;
/// An I/O port.
pub(crate) const IOIO: u64 = 0x7b;
/// An MSR.
pub(crate) const MSR: u64 = 0x7c;
/// A task switch.
pub(crate) const TASK_SWITCH: u64 = 0x7d;
/// FERR freeze.
pub(crate) const FERR_FREEZE: u64 = 0x7e;
/// Triple fault.
pub(crate) const SHUTDOWN: u64 = 0x7f;
/// VMRUN.
pub(crate) const VMRUN: u64 = 0x80;
/// VMMCALL.
pub(crate) const VMMCALL: u64 = 0x81;
/// VMLOAD.
pub(crate) const VMLOAD: u64 = 0x82;
/// VMSAVE.
pub(crate) const VMSAVE: u64 = 0x83;
/// STGI.
pub(crate) const STGI: u64 = 0x84;
/// CLGI.
pub(crate) const CLGI: u64 = 0x85;
/// SKINIT.
pub(crate) const SKINIT: u64 = 0x86;
/// WBINVD.
pub(crate) const WBINVD: u64 = 0x89;
/// MONITOR.
pub(crate) const MONITOR: u64 = 0x8a;
/// MWAIT.
pub(crate) const MWAIT: u64 = 0x8b;
/// MWAIT with an armed monitor.
pub(crate) const MWAIT_ARMED: u64 = 0x8c;
/// XSETBV.
pub(crate) const XSETBV: u64 = 0x8d;
/// RDPRU.
pub(crate) const RDPRU: u64 = 0x8e;
/// First of INVLPGB and its kin.
pub(crate) const INVLPGB: u64 = 0xa0;
/// Last of them, TLBSYNC.
pub(crate) const TLBSYNC: u64 = 0xa4;
/// Nested page fault.
pub(crate) const NESTED_PAGE_FAULT: u64 = 0x400;
