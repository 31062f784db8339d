//! What the CPU's VMX can do (SDM vol. 3, appendix A), read once from its capability MSRs, and why it cannot be used.

use covisor_abi::EngineStatus;
use covisor_core::cpuid::Vendor;
use covisor_core::hypervisor;
use covisor_core::instructions::rdmsr;
use covisor_core::instructions::read_cr4;

use crate::controls;
use crate::controls::Allowed;
use crate::controls::Pin;
use crate::controls::Processor;
use crate::controls::Secondary;

/// `IA32_FEATURE_CONTROL` (SDM vol. 3, 24.7).
pub(crate) const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// FEATURE_CONTROL: it cannot be written any more.
pub(crate) const FEATURES_LOCKED: u64 = 1 << 0;
/// FEATURE_CONTROL: VMX outside of SMX.
pub(crate) const FEATURES_VMX: u64 = 1 << 2;
/// CR4.VMXE.
pub(crate) const CR4_VMXE: u64 = 1 << 13;

/// `IA32_VMX_BASIC` (A.1).
const MSR_BASIC: u32 = 0x480;
/// `IA32_VMX_PROCBASED_CTLS` (A.3.2): the one that tells of secondary controls, whatever else there is.
const MSR_PROCESSOR: u32 = 0x482;
/// `IA32_VMX_MISC` (A.6).
const MSR_MISC: u32 = 0x485;
/// `IA32_VMX_CR0_FIXED0` (A.7).
const MSR_CR0_FIXED0: u32 = 0x486;
/// `IA32_VMX_CR0_FIXED1`.
const MSR_CR0_FIXED1: u32 = 0x487;
/// `IA32_VMX_CR4_FIXED0` (A.8).
const MSR_CR4_FIXED0: u32 = 0x488;
/// `IA32_VMX_CR4_FIXED1`.
const MSR_CR4_FIXED1: u32 = 0x489;
/// `IA32_VMX_PROCBASED_CTLS2` (A.3.3).
const MSR_SECONDARY: u32 = 0x48b;
/// `IA32_VMX_EPT_VPID_CAP` (A.10).
const MSR_EPT_VPID: u32 = 0x48c;

/// VMX_BASIC: the region's revision.
const BASIC_REVISION: u64 = 0x7fff_ffff;
/// VMX_BASIC: the TRUE capability MSRs are there, 0xc above the others but for the pin controls' (A.2).
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// CPUs whose preemption timer counts at another rate than it says, by leaf 1's EAX, as Intel's specification updates tell.
const TIMER_ERRATA: [u32; 9] = [0x106a0, 0x106a1, 0x106a4, 0x106a5, 0x106e5, 0x20652, 0x20655, 0x206e6, 0x306a8];

/// CR0.PE and CR0.PG, which are free with unrestricted guest (24.8).
const CR0_FREE: u64 = 1 << 0 | 1 << 31;

bitflags::bitflags! {
    /// `IA32_VMX_EPT_VPID_CAP`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct EptVpid: u64 {
        /// Walks of four levels.
        const WALK_4 = 1 << 6;
        /// EPT structures in write-back memory.
        const WRITE_BACK = 1 << 14;
        /// Pages of 2 MiB.
        const PAGES_2M = 1 << 16;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// INVEPT for one root.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT for all.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID for one VPID.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID for all.
        const INVVPID_ALL = 1 << 42;
        const _ = !0;
    }
}

/// What of EPT has to be there.
const EPT_NEEDED: EptVpid = EptVpid::WALK_4
    .union(EptVpid::WRITE_BACK)
    .union(EptVpid::PAGES_2M)
    .union(EptVpid::INVEPT)
    .union(EptVpid::INVEPT_ALL);
/// What of VPIDs has to be there, or they are not used.
const VPID_NEEDED: EptVpid = EptVpid::INVVPID.union(EptVpid::INVVPID_SINGLE).union(EptVpid::INVVPID_ALL);

/// The capability MSRs' values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Raw {
    basic: u64,
    pin: u64,
    processor: u64,
    secondary: u64,
    exit: u64,
    entry: u64,
    misc: u64,
    ept_vpid: u64,
    cr0_fixed: [u64; 2],
    cr4_fixed: [u64; 2],
    /// CPUID's leaf 1, EAX.
    processor_signature: u32,
}

/// Features of the CPU, and the controls that follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// What the first word of a VMCS has to be.
    pub(crate) revision: u32,
    /// Pin-based controls.
    pub(crate) pin: u32,
    /// Primary processor-based controls.
    pub(crate) processor: u32,
    /// Secondary processor-based controls.
    pub(crate) secondary: Secondary,
    /// Exit controls.
    pub(crate) exit: u32,
    /// Entry controls.
    pub(crate) entry: u32,
    /// Bits that the guest's CR0 must have.
    pub(crate) cr0_ones: u64,
    /// Bits that it can have.
    pub(crate) cr0_possible: u64,
    /// Bits that the guest's CR4 must have.
    pub(crate) cr4_ones: u64,
    /// Bits that it can have.
    pub(crate) cr4_possible: u64,
    /// INVEPT can be for one root.
    pub(crate) invept_single: bool,
    /// The preemption timer counts once in 2^this counts of the TSC; `None` without a timer.
    pub(crate) preemption_timer_shift: Option<u32>,
    /// RDTSCP, hence `TSC_AUX`.
    pub(crate) tsc_aux: bool,
    /// XSAVES, hence `IA32_XSS`.
    pub(crate) supervisor_state: bool,
}

impl Raw {
    /// # Safety
    /// Ring 0, on a CPU with VMX.
    unsafe fn read() -> Self {
        // SAFETY: by the caller; what is not on every such CPU is asked only where another MSR says that it is there.
        unsafe {
            let basic = rdmsr(MSR_BASIC);
            // The TRUE MSRs allow more (A.2): pin 0x48d, processor 0x48e, exit 0x48f, entry 0x490, in the order of 0x481 to 0x484.
            let shift = if basic & BASIC_TRUE_CONTROLS != 0 { 0xc } else { 0 };
            let has_secondary = rdmsr(MSR_PROCESSOR) >> 32 & u64::from(Processor::SECONDARY.bits()) != 0;
            let secondary = if has_secondary { rdmsr(MSR_SECONDARY) } else { 0 };
            let has_ept = secondary >> 32 & u64::from((Secondary::EPT | Secondary::VPID).bits()) != 0;
            Self {
                basic,
                pin: rdmsr(0x481 + shift),
                processor: rdmsr(0x482 + shift),
                secondary,
                exit: rdmsr(0x483 + shift),
                entry: rdmsr(0x484 + shift),
                misc: rdmsr(MSR_MISC),
                ept_vpid: if has_ept { rdmsr(MSR_EPT_VPID) } else { 0 },
                cr0_fixed: [rdmsr(MSR_CR0_FIXED0), rdmsr(MSR_CR0_FIXED1)],
                cr4_fixed: [rdmsr(MSR_CR4_FIXED0), rdmsr(MSR_CR4_FIXED1)],
                processor_signature: core::arch::x86_64::__cpuid(1).eax,
            }
        }
    }
}

impl Capabilities {
    /// Of the calling CPU.
    ///
    /// # Errors
    /// What it lacks.
    ///
    /// # Safety
    /// Ring 0, on a CPU with VMX.
    pub(crate) unsafe fn read() -> Result<Self, EngineStatus> {
        // SAFETY: by the caller.
        Self::from_raw(&unsafe { Raw::read() })
    }

    fn from_raw(raw: &Raw) -> Result<Self, EngineStatus> {
        let allowed_secondary = Allowed::from_msr(raw.secondary);
        let ept = EptVpid::from_bits_retain(raw.ept_vpid);
        if allowed_secondary.of(Secondary::EPT.bits()) == 0 || !ept.contains(EPT_NEEDED) {
            return Err(EngineStatus::NoNestedPaging);
        }
        if allowed_secondary.of(Secondary::UNRESTRICTED_GUEST.bits()) == 0 {
            return Err(EngineStatus::NoUnrestrictedGuest);
        }
        let mut welcome = controls::SECONDARY_WELCOME;
        welcome.set(Secondary::VPID, ept.contains(VPID_NEEDED));
        let secondary = controls::SECONDARY.bits() | allowed_secondary.of(welcome.bits());
        let pin = Allowed::from_msr(raw.pin);
        let timer = pin.of(Pin::PREEMPTION_TIMER.bits()) != 0 && !TIMER_ERRATA.contains(&raw.processor_signature);
        let pin_controls = controls::PIN | if timer { Pin::PREEMPTION_TIMER } else { Pin::empty() };
        let choose = |msr: u64, wanted: u32, unwanted: u32| {
            Allowed::from_msr(msr).choose(wanted, unwanted).ok_or(EngineStatus::LacksControls)
        };
        Ok(Self {
            revision: (raw.basic & BASIC_REVISION) as u32,
            pin: choose(raw.pin, pin_controls.bits(), 0)?,
            processor: choose(raw.processor, controls::PROCESSOR.bits(), controls::PROCESSOR_OFF.bits())?,
            secondary: Secondary::from_bits_retain(choose(raw.secondary, secondary, 0)?),
            exit: choose(raw.exit, controls::EXIT.bits(), controls::Exit::ACKNOWLEDGE_INTERRUPT.bits())?,
            entry: choose(raw.entry, controls::ENTRY.bits(), controls::Entry::GUEST_LONG_MODE.bits())?,
            cr0_ones: raw.cr0_fixed[0] & !CR0_FREE,
            cr0_possible: raw.cr0_fixed[1],
            cr4_ones: raw.cr4_fixed[0],
            cr4_possible: raw.cr4_fixed[1],
            invept_single: ept.contains(EptVpid::INVEPT_SINGLE),
            preemption_timer_shift: timer.then_some((raw.misc & 0x1f) as u32),
            tsc_aux: extended_features() & 1 << 27 != 0,
            supervisor_state: has_xsaves(),
        })
    }
}

/// EDX of CPUID's leaf 0x80000001.
fn extended_features() -> u32 {
    core::arch::x86_64::__cpuid(0x8000_0001).edx
}

/// Whether the CPU has XSAVES.
fn has_xsaves() -> bool {
    core::arch::x86_64::__cpuid(0).eax >= 0xd && core::arch::x86_64::__cpuid_count(0xd, 1).eax & 1 << 3 != 0
}

/// Whether the calling CPU can run guests. What it lacks comes before what somebody could change (SDM vol. 3, 24.6, 24.7).
pub(crate) fn status() -> EngineStatus {
    if core::arch::x86_64::__cpuid(1).ecx & 1 << 5 == 0 {
        return hypervisor::status_without_extension(Vendor::Intel);
    }
    // SAFETY: drivers run in ring 0, and a CPU with VMX has the MSRs.
    unsafe { judge(Capabilities::read().err(), rdmsr(MSR_FEATURE_CONTROL), read_cr4()) }
}

/// What stands against the use of VMX, if anything does: what the CPU lacks, its switch in the firmware's hands, and whether
/// somebody else is in VMX operation.
fn judge(lack: Option<EngineStatus>, features: u64, cr4: u64) -> EngineStatus {
    match lack {
        Some(status) => status,
        None if features & FEATURES_LOCKED != 0 && features & FEATURES_VMX == 0 => EngineStatus::DisabledByFirmware,
        None if cr4 & CR4_VMXE != 0 => EngineStatus::Taken,
        None => EngineStatus::Usable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Haswell says (Linux prints most of it as `vmx flags` in /proc/cpuinfo).
    fn haswell() -> Raw {
        Raw {
            basic: 0x00da_0400_0000_0012,
            pin: 0x0000_007f_0000_0016,
            processor: 0xfff9_fffe_0400_6172,
            secondary: 0x0000_7fff_0000_0000,
            exit: 0x007f_ffff_0003_6dfb,
            entry: 0x0000_ffff_0000_11fb,
            misc: 0x0000_0000_7004_c1e7,
            ept_vpid: 0x0000_0f01_0633_4141,
            cr0_fixed: [0x8000_0021, 0xffff_ffff],
            cr4_fixed: [0x2000, 0x0017_27ff],
            processor_signature: 0x306c3,
        }
    }

    #[test]
    fn test_a_cpu_with_everything_gets_what_is_wanted() {
        let capabilities = Capabilities::from_raw(&haswell()).unwrap();
        assert_eq!(capabilities.revision, 0x12);
        assert!(Pin::from_bits_retain(capabilities.pin).contains(controls::PIN));
        assert!(Processor::from_bits_retain(capabilities.processor).contains(controls::PROCESSOR));
        assert!(!Processor::from_bits_retain(capabilities.processor).intersects(controls::PROCESSOR_OFF));
        assert!(capabilities.secondary.contains(controls::SECONDARY | Secondary::VPID));
        assert_eq!(capabilities.cr0_ones, 0x20, "only NE");
        assert_eq!(capabilities.preemption_timer_shift, Some(7));
    }

    #[test]
    fn test_what_a_cpu_lacks_is_told_apart() {
        let without = |secondary: Secondary| {
            let mut raw = haswell();
            raw.secondary &= !(u64::from(secondary.bits()) << 32);
            Capabilities::from_raw(&raw).unwrap_err()
        };
        assert_eq!(without(Secondary::EPT), EngineStatus::NoNestedPaging);
        assert_eq!(without(Secondary::UNRESTRICTED_GUEST), EngineStatus::NoUnrestrictedGuest);
        assert_eq!(without(Secondary::WBINVD), EngineStatus::LacksControls);
        let no_large_pages = Raw { ept_vpid: haswell().ept_vpid & !EptVpid::PAGES_2M.bits(), ..haswell() };
        assert_eq!(Capabilities::from_raw(&no_large_pages), Err(EngineStatus::NoNestedPaging));
        let forced = Raw { processor: haswell().processor | 1 << 15, ..haswell() };
        assert_eq!(Capabilities::from_raw(&forced), Err(EngineStatus::LacksControls), "CR3 loads would exit");
    }

    #[test]
    fn test_what_stands_against_it_is_told_in_this_order() {
        let lack = Some(EngineStatus::NoNestedPaging);
        assert_eq!(judge(lack, FEATURES_LOCKED, CR4_VMXE), EngineStatus::NoNestedPaging);
        assert_eq!(judge(None, FEATURES_LOCKED, CR4_VMXE), EngineStatus::DisabledByFirmware);
        assert_eq!(judge(None, FEATURES_LOCKED | FEATURES_VMX, CR4_VMXE), EngineStatus::Taken);
        assert_eq!(judge(None, FEATURES_LOCKED | FEATURES_VMX, 0), EngineStatus::Usable);
        assert_eq!(judge(None, 0, 0), EngineStatus::Usable, "unlocked: the driver sets and locks it");
    }

    #[test]
    fn test_timers_that_count_wrong_are_not_used() {
        let raw = Raw { processor_signature: 0x20652, ..haswell() };
        let capabilities = Capabilities::from_raw(&raw).unwrap();
        assert_eq!(capabilities.preemption_timer_shift, None);
        assert!(!Pin::from_bits_retain(capabilities.pin).contains(Pin::PREEMPTION_TIMER));
    }

    #[test]
    fn test_vpids_are_used_only_with_their_invalidations() {
        let raw = Raw { ept_vpid: haswell().ept_vpid & !EptVpid::INVVPID_SINGLE.bits(), ..haswell() };
        assert!(!Capabilities::from_raw(&raw).unwrap().secondary.contains(Secondary::VPID));
    }
}
