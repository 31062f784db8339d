//! What RDMSR and WRMSR do that an engine does not pass through: by allow list. A register that is not named here does
//! not exist for the guest, and the run loop answers #GP.
//!
//! Registers with a life of their own are in [`GuestMsrs::read`] and [`GuestMsrs::write`]; those that guests only want to
//! find are rows of [`CONSTANTS`]. No value of the guest's gets from here to an MSR of the host.

use crate::apic::Effect;
use crate::apic::LocalApic;
use crate::apic::X2APIC_FIRST_MSR;
use crate::apic::X2APIC_LAST_MSR;
use crate::cpuid::CpuidTable;
use crate::cpuid::Vendor;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::memory::Memory;
use crate::policy;
use crate::policy::Control;
use crate::pvclock;
use crate::pvclock::Clock;

/// The MSRs that core knows, by number (APM vol. 2, appendix A; SDM vol. 4).
pub mod index {
    /// Time stamp counter.
    pub const TSC: u32 = 0x10;
    /// Platform id, of Intel's microcode loading.
    pub const PLATFORM_ID: u32 = 0x17;
    /// Local APIC's address and mode.
    pub const APIC_BASE: u32 = 0x1b;
    /// `IA32_FEATURE_CONTROL`.
    pub const FEATURE_CONTROL: u32 = 0x3a;
    /// Prediction command.
    pub const PRED_CMD: u32 = 0x49;
    /// Microcode's version.
    pub const PATCH_LEVEL: u32 = 0x8b;
    /// SYSENTER's code segment.
    pub const SYSENTER_CS: u32 = 0x174;
    /// SYSENTER's stack pointer.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// SYSENTER's target.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Machine check capabilities.
    pub const MCG_CAP: u32 = 0x179;
    /// Machine check status.
    pub const MCG_STATUS: u32 = 0x17a;
    /// Switches for features of Intel's.
    pub const MISC_ENABLE: u32 = 0x1a0;
    /// Debug control: branch records and single steps.
    pub const DEBUGCTL: u32 = 0x1d9;
    /// Page attribute table.
    pub const PAT: u32 = 0x277;
    /// Local APIC timer's deadline.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// Supervisor state of XSAVES.
    pub const XSS: u32 = 0xda0;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// SYSCALL's segments.
    pub const STAR: u32 = 0xc000_0081;
    /// SYSCALL's target in 64-bit mode.
    pub const LSTAR: u32 = 0xc000_0082;
    /// SYSCALL's target in compatibility mode.
    pub const CSTAR: u32 = 0xc000_0083;
    /// SYSCALL's flag mask.
    pub const SFMASK: u32 = 0xc000_0084;
    /// Base of FS.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// Base of GS.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// What SWAPGS exchanges with the base of GS.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// What RDTSCP and RDPID read.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// System configuration.
    pub const SYSCFG: u32 = 0xc001_0010;
    /// Hardware configuration.
    pub const HWCR: u32 = 0xc001_0015;
    /// Northbridge configuration.
    pub const NB_CFG: u32 = 0xc001_001f;
    /// What the northbridge sends on an interrupt in C1E.
    pub const INT_PENDING: u32 = 0xc001_0055;
    /// SVM's lock.
    pub const VM_CR: u32 = 0xc001_0114;
    /// Decoder's configuration.
    pub const DE_CFG: u32 = 0xc001_1029;
    /// KVM: guest-physical address to write the wall clock to.
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    /// KVM: guest-physical address of a vCPU's clock, and bit 0 to switch it on.
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// The registers that engines let the guest read and write in hardware: those that they switch with the guest, and of
/// which the CPU itself checks every value. All others leave the guest.
pub const PASSED_THROUGH: [u32; 10] = [
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SFMASK,
    index::FS_BASE,
    index::GS_BASE,
    index::KERNEL_GS_BASE,
];

/// What happens to a write to a register of [`CONSTANTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// #GP: the register is read-only.
    Fault,
    /// Nothing: guests write it in passing, and do not look afterwards.
    Ignored,
    /// #GP but for the value that it has.
    Same,
}

/// A register whose value never changes.
pub(crate) struct Constant {
    index: u32,
    /// Whose CPUs have it; both where `None`.
    vendor: Option<Vendor>,
    pub(crate) value: u64,
    writes: Writes,
}

impl Constant {
    const fn of_both(index: u32, value: u64, writes: Writes) -> Self {
        Self { index, vendor: None, value, writes }
    }

    const fn amd(index: u32, value: u64, writes: Writes) -> Self {
        Self { index, vendor: Some(Vendor::Amd), value, writes }
    }

    const fn intel(index: u32, value: u64, writes: Writes) -> Self {
        Self { index, vendor: Some(Vendor::Intel), value, writes }
    }
}

/// `FEATURE_CONTROL`: locked, with nothing switched on.
const FEATURES_LOCKED: u64 = 1 << 0;
/// `MISC_ENABLE`: fast strings; no branch trace store; no PEBS.
const MISC_ENABLED: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// `HWCR`: the time stamp counter counts at the rate of P-state 0; without it Linux blames the firmware.
const TSC_FREQ_SEL: u64 = 1 << 24;
/// `VM_CR`: SVM is off, and that is locked.
const SVM_LOCKED_OFF: u64 = 1 << 3 | 1 << 4;
/// `DE_CFG`: LFENCE waits for what is before it.
const LFENCE_SERIALIZES: u64 = 1 << 1;
/// A version as high as any, so that no guest misses a fix (the same that KVM gives).
const MICROCODE_AMD: u64 = 0x0100_0065;
/// The same for Intel, which has it in the upper half.
const MICROCODE_INTEL: u64 = 1 << 32;

/// Registers that guests want to find and that never change: what Linux reads without being ready for #GP.
const CONSTANTS: [Constant; 15] = [
    // No machine check banks.
    Constant::of_both(index::MCG_CAP, 0, Writes::Fault),
    Constant::of_both(index::MCG_STATUS, 0, Writes::Ignored),
    // No branch records.
    Constant::of_both(index::DEBUGCTL, 0, Writes::Same),
    // No supervisor state.
    Constant::of_both(index::XSS, 0, Writes::Same),
    Constant::amd(index::PATCH_LEVEL, MICROCODE_AMD, Writes::Ignored),
    Constant::intel(index::PATCH_LEVEL, MICROCODE_INTEL, Writes::Ignored),
    Constant::intel(index::PLATFORM_ID, 0, Writes::Fault),
    Constant::intel(index::FEATURE_CONTROL, FEATURES_LOCKED, Writes::Fault),
    Constant::intel(index::MISC_ENABLE, MISC_ENABLED, Writes::Ignored),
    // No memory encryption, no RAM that only SYSCFG knows.
    Constant::amd(index::SYSCFG, 0, Writes::Ignored),
    Constant::amd(index::HWCR, TSC_FREQ_SEL, Writes::Ignored),
    // Linux switches on extended configuration cycles here.
    Constant::amd(index::NB_CFG, 0, Writes::Ignored),
    Constant::amd(index::INT_PENDING, 0, Writes::Ignored),
    Constant::amd(index::VM_CR, SVM_LOCKED_OFF, Writes::Ignored),
    Constant::amd(index::DE_CFG, LFENCE_SERIALIZES, Writes::Ignored),
];

pub(crate) fn constant(table: &CpuidTable, index: u32) -> Option<&'static Constant> {
    let fits = |row: &&Constant| row.index == index && row.vendor.is_none_or(|vendor| vendor == table.vendor());
    CONSTANTS.iter().find(fits)
}

/// What registers outside of [`GuestMsrs`] are made of.
#[derive(Debug)]
pub struct Context<'a, V: Vcpu> {
    /// The vCPU.
    pub vcpu: &'a mut V,
    /// Its local APIC.
    pub apic: &'a mut LocalApic,
    /// The VM's CPUID.
    pub table: &'a CpuidTable,
    /// The VM's memory.
    pub memory: &'a Memory,
    /// The VM's clock.
    pub clock: &'a Clock,
    /// The host's time stamp counter.
    pub now: u64,
}

/// What is left to do after a register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    Done,
    /// What the local APIC asks for.
    Apic(Effect),
    /// Execute the CPU's indirect branch prediction barrier, which it has: write [`PRED_CMD_IBPB`] to its `PRED_CMD`.
    Ibpb,
}

/// `PRED_CMD`'s only bit: indirect branch prediction barrier.
pub const PRED_CMD_IBPB: u64 = 1 << 0;
/// `KVM_SYSTEM_TIME`'s switch.
const SYSTEM_TIME_ON: u64 = 1 << 0;

const GP: Exception = Exception::GENERAL_PROTECTION;

/// A vCPU's registers that live nowhere else.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestMsrs {
    system_time: u64,
    wall_clock: u64,
    /// Version of what was last written for the two.
    clock_version: u32,
}

impl GuestMsrs {
    /// RDMSR; `None` for #GP.
    #[inline]
    #[must_use]
    pub fn read<V: Vcpu>(&self, index: u32, cpu: &Context<'_, V>) -> Option<u64> {
        Some(match index {
            X2APIC_FIRST_MSR..=X2APIC_LAST_MSR => return cpu.apic.read_msr(index, cpu.now),
            index::TSC_DEADLINE => cpu.apic.tsc_deadline(),
            index::TSC => cpu.now.wrapping_add(cpu.vcpu.tsc_offset()),
            index::APIC_BASE => cpu.apic.base(),
            index::PAT => cpu.vcpu.pat(),
            index::EFER => cpu.vcpu.efer(),
            index::TSC_AUX => u64::from(cpu.vcpu.tsc_aux()),
            index::KVM_SYSTEM_TIME => self.system_time,
            index::KVM_WALL_CLOCK => self.wall_clock,
            _ => return constant(cpu.table, index).map(|row| row.value),
        })
    }

    /// WRMSR, but for [`GuestMsrs::show_wall_clock`].
    ///
    /// # Errors
    /// #GP, for registers that do not exist or are read-only, and values that they do not take.
    #[inline]
    pub fn write<V: Vcpu>(&mut self, index: u32, value: u64, cpu: &mut Context<'_, V>) -> Result<Action, Exception> {
        match index {
            X2APIC_FIRST_MSR..=X2APIC_LAST_MSR => return cpu.apic.write_msr(index, value, cpu.now).map(Action::Apic),
            index::TSC_DEADLINE => return Ok(Action::Apic(cpu.apic.set_tsc_deadline(value, cpu.now))),
            index::APIC_BASE => return cpu.apic.set_base(value).map(Action::Apic),
            index::PRED_CMD => return predict(cpu.table, value),
            index::TSC => {
                let offset = value.wrapping_sub(cpu.now);
                cpu.vcpu.set_tsc_offset(offset);
                cpu.apic.set_tsc_offset(offset, cpu.now);
                self.show_time(cpu);
                return Ok(Action::Apic(Effect::Timer));
            }
            index::PAT => cpu.vcpu.set_pat(policy::check_pat(value)?),
            index::EFER => write_efer(cpu, value)?,
            index::TSC_AUX => cpu.vcpu.set_tsc_aux(tsc_aux(cpu.table, value)?),
            index::KVM_SYSTEM_TIME => {
                self.system_time = value;
                self.show_time(cpu);
            }
            _ => write_constant(cpu.table, index, value)?,
        }
        Ok(Action::Done)
    }

    /// WRMSR of `KVM_WALL_CLOCK`: shows the wall clock at the guest's time 0, in nanoseconds since 1970, at `gpa`.
    pub fn show_wall_clock(&mut self, memory: &Memory, gpa: u64, wall_at_start: u64) {
        self.wall_clock = gpa;
        // An address without RAM is the guest's own loss.
        let _ = pvclock::write_wall_clock(memory, gpa, wall_at_start, &mut self.clock_version);
    }

    /// Writes the vCPU's clock to guest memory, where the guest has switched it on.
    fn show_time<V: Vcpu>(&mut self, cpu: &Context<'_, V>) {
        if self.system_time & SYSTEM_TIME_ON != 0 {
            let (gpa, offset) = (self.system_time & !SYSTEM_TIME_ON, cpu.vcpu.tsc_offset());
            // An address without RAM is the guest's own loss.
            let _ = cpu.clock.write_system_time(cpu.memory, gpa, offset, &mut self.clock_version);
        }
    }
}

/// Where a write of this register would have the clock written to RAM that is absent.
#[inline]
pub(crate) fn absent_memory(memory: &Memory, index: u32, value: u64) -> Option<u64> {
    match index {
        index::KVM_SYSTEM_TIME if value & SYSTEM_TIME_ON != 0 => absent_clock(memory, value & !SYSTEM_TIME_ON),
        index::KVM_WALL_CLOCK => absent_clock(memory, value),
        _ => None,
    }
}

/// The first or last byte of a clock at `gpa` that is in RAM and absent.
#[cold]
fn absent_clock(memory: &Memory, gpa: u64) -> Option<u64> {
    let last = gpa.checked_add(Clock::LARGEST - 1)?;
    [gpa, last].into_iter().find(|gpa| memory.is_ram(*gpa) && memory.page(*gpa).is_none())
}

pub(crate) fn predict(table: &CpuidTable, value: u64) -> Result<Action, Exception> {
    match value {
        _ if !table.has_ibpb() => Err(GP),
        PRED_CMD_IBPB => Ok(Action::Ibpb),
        0 => Ok(Action::Done),
        _ => Err(GP),
    }
}

fn write_efer<V: Vcpu>(cpu: &mut Context<'_, V>, value: u64) -> Result<(), Exception> {
    let vcpu = &mut *cpu.vcpu;
    let now = Control { cr0: vcpu.cr0(), cr3: vcpu.cr3(), cr4: vcpu.cr4(), efer: vcpu.efer(), code_64bit: false };
    vcpu.set_efer(policy::check_efer(cpu.table, &now, value)?);
    Ok(())
}

/// AMD's CPUs drop the upper half, Intel's fault.
pub(crate) fn tsc_aux(table: &CpuidTable, value: u64) -> Result<u32, Exception> {
    #[expect(clippy::cast_possible_truncation, reason = "dropped, as the CPU does")]
    match table.vendor() {
        Vendor::Intel if value >> 32 != 0 => Err(GP),
        Vendor::Intel | Vendor::Amd => Ok(value as u32),
    }
}

pub(crate) fn write_constant(table: &CpuidTable, index: u32, value: u64) -> Result<(), Exception> {
    let row = constant(table, index).ok_or(GP)?;
    match row.writes {
        Writes::Ignored => Ok(()),
        Writes::Same if value == row.value => Ok(()),
        Writes::Same | Writes::Fault => Err(GP),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpuid::tests::all_features;
    use crate::cpuid::tests::all_features_intel;
    use crate::registers::Efer;
    use crate::test_support::TestGuest;

    struct Machine {
        guest: TestGuest,
        apic: LocalApic,
        table: CpuidTable,
        msrs: GuestMsrs,
    }

    const NOW: u64 = 10_000;

    impl Machine {
        fn new(table: CpuidTable) -> Self {
            let mut guest = TestGuest::long_mode();
            guest.vcpu.pat = 0x0007_0406_0007_0406;
            guest.vcpu.tsc_offset = 500;
            Self { guest, apic: LocalApic::new(0, 1_000_000, 500), table, msrs: GuestMsrs::default() }
        }

        fn with<T>(
            &mut self,
            access: impl FnOnce(&mut GuestMsrs, &mut Context<'_, crate::test_support::TestVcpu>) -> T,
        ) -> T {
            let clock = Clock::new(1_000_000, 0, 0);
            let Self { guest, apic, table, msrs } = self;
            let memory = &guest.memory;
            access(msrs, &mut Context { vcpu: &mut guest.vcpu, apic, table, memory, clock: &clock, now: NOW })
        }

        fn read(&mut self, index: u32) -> Option<u64> {
            self.with(|msrs, cpu| msrs.read(index, cpu))
        }

        fn write(&mut self, index: u32, value: u64) -> Result<Action, Exception> {
            self.with(|msrs, cpu| msrs.write(index, value, cpu))
        }
    }

    /// Every MSR that the permission maps cover, and those of KVM.
    fn all_indices() -> impl Iterator<Item = u32> {
        [0..=0x1fff, 0xc000_0000..=0xc000_1fff, 0xc001_0000..=0xc001_1fff, 0x4b56_4d00..=0x4b56_4dff]
            .into_iter()
            .flatten()
    }

    const READABLE: [u32; 12] = [
        index::TSC,
        index::APIC_BASE,
        index::PATCH_LEVEL,
        index::MCG_CAP,
        index::MCG_STATUS,
        index::DEBUGCTL,
        index::PAT,
        index::TSC_DEADLINE,
        index::XSS,
        index::EFER,
        index::TSC_AUX,
        index::KVM_SYSTEM_TIME,
    ];

    #[test]
    fn each_msr_has_its_answer() {
        let intel = [index::PLATFORM_ID, index::FEATURE_CONTROL, index::MISC_ENABLE];
        let amd = [index::SYSCFG, index::HWCR, index::NB_CFG, index::INT_PENDING, index::VM_CR, index::DE_CFG];
        for (table, own) in [(all_features(), &amd[..]), (all_features_intel(), &intel[..])] {
            let mut machine = Machine::new(table);
            for index in all_indices() {
                let listed = READABLE.contains(&index) || own.contains(&index) || index == index::KVM_WALL_CLOCK;
                assert_eq!(machine.read(index).is_some(), listed, "{index:#x}");
                let writable = listed || index == index::PRED_CMD && machine.table.has_ibpb();
                for value in [0, 1, 0xffff_ffff, u64::MAX, 0x8000_0000_0000] {
                    assert!(writable || machine.write(index, value) == Err(GP), "{index:#x} {value:#x}");
                }
            }
            for index in PASSED_THROUGH {
                assert_eq!(machine.read(index), None, "{index:#x} is the engine's");
            }
        }
    }

    #[test]
    fn x2apic_registers_appear_with_the_mode() {
        let mut machine = Machine::new(all_features());
        assert_eq!(machine.read(0x803), None);
        assert_eq!(machine.write(index::APIC_BASE, 0xfee0_0d00), Ok(Action::Apic(Effect::Identity)));
        assert_eq!(machine.read(0x803), Some(0x0005_0014));
        assert_eq!(machine.write(0x808, 0x40), Ok(Action::Apic(Effect::TaskPriority)));
        assert_eq!(machine.write(0x802, 0), Err(GP));
        assert_eq!(machine.read(index::APIC_BASE), Some(0xfee0_0d00));
        assert_eq!(machine.write(index::APIC_BASE, 0xfed0_0d00), Err(GP));
    }

    #[test]
    fn efer_pat_and_aux_are_checked() {
        let mut machine = Machine::new(all_features());
        let efer = machine.read(index::EFER).unwrap();
        assert_eq!(machine.write(index::EFER, efer | Efer::SCE.bits() | Efer::NXE.bits()), Ok(Action::Done));
        assert_eq!(machine.write(index::EFER, efer | Efer::SVME.bits()), Err(GP));
        assert_eq!(machine.write(index::EFER, 0), Err(GP));
        assert_eq!(machine.read(index::EFER), Some(efer | Efer::SCE.bits() | Efer::NXE.bits()));
        assert_eq!(machine.write(index::PAT, 3), Err(GP));
        assert_eq!(machine.write(index::PAT, 6), Ok(Action::Done));
        assert_eq!(machine.read(index::PAT), Some(6));
        assert_eq!(machine.write(index::TSC_AUX, 1 << 32 | 7), Ok(Action::Done));
        assert_eq!(machine.read(index::TSC_AUX), Some(7));
        assert_eq!(Machine::new(all_features_intel()).write(index::TSC_AUX, 1 << 32 | 7), Err(GP));
    }

    #[test]
    fn barrier_is_write_only() {
        let mut machine = Machine::new(all_features());
        assert_eq!(machine.read(index::PRED_CMD), None);
        assert_eq!(machine.write(index::PRED_CMD, 1), Ok(Action::Ibpb));
        assert_eq!(machine.write(index::PRED_CMD, 0), Ok(Action::Done));
        assert_eq!(machine.write(index::PRED_CMD, 2), Err(GP));
        assert_eq!(Machine::new(all_features_intel()).write(index::PRED_CMD, 1), Err(GP));
    }

    #[test]
    fn moving_the_counter_moves_deadline_and_clock() {
        let mut machine = Machine::new(all_features());
        assert_eq!(machine.read(index::TSC), Some(NOW + 500));
        assert_eq!(machine.write(index::KVM_SYSTEM_TIME, 0x3001), Ok(Action::Done));
        let before = machine.guest.read(0x3000, 32);
        assert_eq!((&before[..4], &before[8..16]), (&2_u32.to_le_bytes()[..], &500_u64.to_le_bytes()[..]));
        assert_eq!(machine.write(index::TSC, 0), Ok(Action::Apic(Effect::Timer)));
        assert_eq!(machine.read(index::TSC), Some(0));
        let after = machine.guest.read(0x3000, 32);
        assert_eq!((&after[..4], &after[8..16]), (&4_u32.to_le_bytes()[..], &NOW.wrapping_neg().to_le_bytes()[..]));
        assert_eq!(machine.write(index::KVM_SYSTEM_TIME, 0), Ok(Action::Done));
        assert_eq!(machine.write(index::TSC, 5), Ok(Action::Apic(Effect::Timer)));
        assert_eq!(machine.guest.read(0x3000, 32), after, "switched off");
    }

    #[test]
    fn clock_outside_of_ram_is_harmless() {
        let mut machine = Machine::new(all_features());
        for gpa in [u64::MAX, TestGuest::RAM, 1 << 63 | 1] {
            assert_eq!(machine.write(index::KVM_SYSTEM_TIME, gpa), Ok(Action::Done));
            machine.msrs.show_wall_clock(&machine.guest.memory, gpa, 5);
            assert_eq!(machine.read(index::KVM_SYSTEM_TIME), Some(gpa));
            assert_eq!(machine.read(index::KVM_WALL_CLOCK), Some(gpa));
        }
        machine.msrs.show_wall_clock(&machine.guest.memory, 0x4000, 5);
        assert_eq!(machine.guest.read(0x4008, 4), 5_u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn any_sequence_is_harmless(writes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u32>(), any::<u64>()), 0..50)) {
            let mut machine = Machine::new(all_features());
            let known: Vec<u32> = READABLE.into_iter().chain(0x800..=0x83f).chain([index::PRED_CMD]).collect();
            for (pick, other, value) in writes {
                for index in [*pick.get(&known), other] {
                    let _ = machine.write(index, value);
                    let _ = machine.write(index, value & 0xf07);
                    let _ = machine.read(index);
                }
                prop_assert_eq!(machine.guest.vcpu.efer & !machine.table.efer().bits(), 0);
                prop_assert!(policy::check_pat(machine.guest.vcpu.pat).is_ok());
            }
        }
    }
}
