//! What RDMSR and WRMSR do for a paravirtual guest: by a list of its own, and shorter than [`crate::msr`]'s.
//!
//! Linux reads some registers on its way up and is ready for #GP at the others. What it writes it has Xen's calls for, but for the
//! bases of FS and GS, which the engine keeps. System calls and the local APIC are the monitor's and core's: STAR, LSTAR,
//! SYSENTER's registers, x2APIC's and the timer's do not exist here, nor do KVM's. No value of the guest's gets from here to an
//! MSR of the host.

use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::msr::Action;
use crate::msr::Context;
use crate::msr::constant;
use crate::msr::index;
use crate::msr::predict;
use crate::msr::tsc_aux;
use crate::msr::write_constant;
use crate::registers::SegmentName;
use crate::registers::is_canonical;

/// The segment register that an MSR is the base of.
const fn based_on(index: u32) -> SegmentName {
    if index == index::FS_BASE { SegmentName::Fs } else { SegmentName::Gs }
}

/// RDMSR; `None` for #GP.
pub(crate) fn read<V: Vcpu>(index: u32, cpu: &Context<'_, V>) -> Option<u64> {
    Some(match index {
        index::FS_BASE | index::GS_BASE => cpu.vcpu.segment(based_on(index)).base,
        index::KERNEL_GS_BASE => cpu.vcpu.kernel_gs_base(),
        index::EFER => cpu.vcpu.efer(),
        index::PAT => cpu.vcpu.pat(),
        index::APIC_BASE => cpu.apic.base(),
        index::TSC => cpu.now.wrapping_add(cpu.vcpu.tsc_offset()),
        index::TSC_AUX => u64::from(cpu.vcpu.tsc_aux()),
        _ => return constant(cpu.table, index).map(|row| row.value),
    })
}

/// WRMSR.
///
/// # Errors
/// #GP, for registers that do not exist or are read-only, and values that they do not take.
pub(crate) fn write<V: Vcpu>(index: u32, value: u64, cpu: &mut Context<'_, V>) -> Result<Action, Exception> {
    match index {
        index::FS_BASE | index::GS_BASE => {
            let name = based_on(index);
            let base = base(value)?;
            cpu.vcpu.set_segment(name, covisor_abi::Segment { base, ..cpu.vcpu.segment(name) });
        }
        index::KERNEL_GS_BASE => cpu.vcpu.set_kernel_gs_base(base(value)?),
        index::TSC_AUX => cpu.vcpu.set_tsc_aux(tsc_aux(cpu.table, value)?),
        index::PRED_CMD => return predict(cpu.table, value),
        // What the guest has found there changes nothing.
        index::EFER | index::PAT | index::APIC_BASE if read(index, cpu) == Some(value) => {}
        _ => write_constant(cpu.table, index, value)?,
    }
    Ok(Action::Done)
}

/// A segment's base, which WRMSR wants canonical (APM vol. 3, WRMSR).
fn base(value: u64) -> Result<u64, Exception> {
    if is_canonical(value) { Ok(value) } else { Err(Exception::GENERAL_PROTECTION) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::apic::LocalApic;
    use crate::cpuid::CpuidTable;
    use crate::cpuid::tests::all_features_paravirtual;
    use crate::cpuid::tests::all_features_paravirtual_intel;
    use crate::paravirtual::local_apic;
    use crate::pvclock::Clock;
    use crate::test_support::TestGuest;
    use crate::test_support::TestVcpu;

    const NOW: u64 = 10_000;
    const GP: Exception = Exception::GENERAL_PROTECTION;

    struct Machine {
        guest: TestGuest,
        apic: LocalApic,
        table: CpuidTable,
    }

    impl Machine {
        fn new(table: CpuidTable) -> Self {
            let mut guest = TestGuest::long_mode();
            guest.vcpu.pat = 0x0007_0406_0007_0406;
            Self { guest, apic: local_apic(0, 1_000_000), table }
        }

        fn with<T>(&mut self, access: impl FnOnce(&mut Context<'_, TestVcpu>) -> T) -> T {
            let clock = Clock::new(1_000_000, 0, 5);
            let Self { guest, apic, table } = self;
            let memory = &guest.memory;
            access(&mut Context { vcpu: &mut guest.vcpu, apic, table, memory, clock: &clock, now: NOW })
        }

        fn read(&mut self, index: u32) -> Option<u64> {
            self.with(|cpu| read(index, cpu))
        }

        fn write(&mut self, index: u32, value: u64) -> Result<Action, Exception> {
            self.with(|cpu| write(index, value, cpu))
        }
    }

    #[test]
    fn test_what_linux_reads_is_there() {
        let mut machine = Machine::new(all_features_paravirtual());
        assert_eq!(machine.read(index::EFER), Some(machine.guest.vcpu.efer));
        assert_eq!(machine.read(index::PAT), Some(0x0007_0406_0007_0406));
        assert_eq!(machine.read(index::APIC_BASE), Some(0xfee0_0900));
        assert_eq!(machine.read(index::TSC), Some(NOW));
        assert_eq!(machine.read(index::MCG_CAP), Some(0));
        assert!(machine.read(index::HWCR).is_some());
        assert!(Machine::new(all_features_paravirtual_intel()).read(index::MISC_ENABLE).is_some());
    }

    #[test]
    fn test_bases_of_fs_and_gs_are_the_vcpus() {
        let mut machine = Machine::new(all_features_paravirtual());
        for (register, base) in [
            (index::FS_BASE, 0x7fff_ffff_f000),
            (index::GS_BASE, 0xffff_8880_0000_0000),
            (index::KERNEL_GS_BASE, 0x1234),
        ] {
            assert_eq!(machine.write(register, base), Ok(Action::Done));
            assert_eq!(machine.read(register), Some(base));
            assert_eq!(machine.write(register, 0x8000_0000_0000), Err(GP));
            assert_eq!(machine.read(register), Some(base));
        }
        let TestVcpu { segments, kernel_gs_base, .. } = &machine.guest.vcpu;
        let bases = [SegmentName::Fs, SegmentName::Gs].map(|name| segments[name as usize].base);
        assert_eq!((bases, *kernel_gs_base), ([0x7fff_ffff_f000, 0xffff_8880_0000_0000], 0x1234));
    }

    #[test]
    fn test_what_is_the_drivers_does_not_exist() {
        let kvm = [index::KVM_WALL_CLOCK, index::KVM_SYSTEM_TIME];
        let syscall = [index::STAR, index::LSTAR, index::CSTAR, index::SFMASK];
        let sysenter = [index::SYSENTER_CS, index::SYSENTER_ESP, index::SYSENTER_EIP];
        let apic = [index::TSC_DEADLINE, 0x802, 0x808, 0x80b, 0x830, 0x832];
        // SPEC_CTRL, MTRR_CAP, the first MTRR, the one of all types.
        let others = [0x48, 0xfe, 0x200, 0x2ff];
        for table in [all_features_paravirtual(), all_features_paravirtual_intel()] {
            let mut machine = Machine::new(table);
            for index in [&kvm[..], &syscall, &sysenter, &apic, &others].concat() {
                assert_eq!(machine.read(index), None, "{index:#x}");
                for value in [0, 1, u64::MAX] {
                    assert_eq!(machine.write(index, value), Err(GP), "{index:#x}");
                }
            }
        }
    }

    #[test]
    fn test_registers_that_are_fixed_take_their_own_value() {
        let mut machine = Machine::new(all_features_paravirtual());
        for index in [index::EFER, index::PAT, index::APIC_BASE] {
            let value = machine.read(index).unwrap();
            assert_eq!(machine.write(index, value), Ok(Action::Done), "{index:#x}");
            assert_eq!(machine.write(index, value ^ 1), Err(GP), "{index:#x}");
        }
        assert_eq!(machine.write(index::TSC, 0), Err(GP));
        assert_eq!(machine.write(index::HWCR, 0), Ok(Action::Done), "ignored");
        assert_eq!(machine.write(index::TSC_AUX, 7), Ok(Action::Done));
        assert_eq!(machine.read(index::TSC_AUX), Some(7));
        assert_eq!(machine.write(index::PRED_CMD, 1), Ok(Action::Ibpb));
    }

    proptest! {
        #[test]
        fn no_write_changes_more_than_bases_and_aux(
            writes in proptest::collection::vec((0..3_u32, 0..0x2000_u32, any::<u64>()), 0..100),
        ) {
            let mut machine = Machine::new(all_features_paravirtual());
            let mut before = machine.guest.vcpu.clone();
            for (range, index, value) in writes {
                let index = [0, 0xc000_0000, 0xc001_0000][range as usize] + index;
                let _ = machine.read(index);
                let _ = machine.write(index, value);
                let _ = machine.write(0xc000_0080 + (index & 0xff), value);
            }
            let after = &machine.guest.vcpu;
            before.tsc_aux = after.tsc_aux;
            before.kernel_gs_base = after.kernel_gs_base;
            for name in [SegmentName::Fs, SegmentName::Gs] {
                before.segments[name as usize].base = after.segments[name as usize].base;
                prop_assert!(is_canonical(after.segments[name as usize].base));
            }
            prop_assert!(is_canonical(after.kernel_gs_base));
            prop_assert_eq!(&before, after);
            prop_assert_eq!(machine.apic.deadline(), None);
        }
    }
}
