//! Model-specific registers: whatever a guest reads or writes, it gets a value or #GP, and the host never notices.

use super::Check;
use super::skips_paravirtual;
use crate::cpu;
use crate::cpu::msr;
use crate::report::Report;
use crate::rng::Rng;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "msr-read", run: read },
    Check { name: "msr-write-back", run: write_back },
    Check { name: "msr-write-junk", run: write_junk },
    Check { name: "msr-efer", run: efer },
    Check { name: "msr-noncanonical", run: noncanonical },
    Check { name: "msr-pat", run: pat },
    Check { name: "msr-apic-base", run: apic_base },
    Check { name: "msr-tsc", run: tsc },
];

/// Every register that an MSR permission map of SVM (APM vol. 2, 15.11) or an MSR bitmap of VMX (SDM vol. 3, 25.6.9, which
/// has the first two ranges) has a bit for, KVM's own, and some that no map knows.
pub(crate) fn all() -> impl Iterator<Item = u32> {
    (0..=0x1fff)
        .chain(0xc000_0000..=0xc000_1fff)
        .chain(0xc001_0000..=0xc001_1fff)
        .chain(0x4b56_4d00..=0x4b56_4dff)
        .chain([
            0x2000,
            0x4000_0000,
            0x7fff_ffff,
            0x8000_0000,
            0xbfff_ffff,
            0xc000_2000,
            0xc000_ffff,
            0xc001_2000,
            0xffff_ffff,
        ])
}

/// Registers whose change would take the check's own ground away: the local APIC's in x2APIC mode, and those through which
/// the host is asked to write to memory (KVM's clocks).
const fn is_ours(index: u32) -> bool {
    matches!(index, 0x11 | 0x12 | 0x800..=0x83f | 0x4b56_4d00..=0x4b56_4dff)
}

/// RDMSR gives a value or #GP(0) (APM vol. 3, RDMSR).
fn read(report: &mut Report) {
    let mut there = 0;
    for index in all() {
        match cpu::try_rdmsr(index) {
            Ok(_) => there += 1,
            Err(fault) => report.expect(fault.is_gp0(), format_args!("RDMSR {index:#x}: {fault}")),
        }
    }
    report.note(format_args!("{there} registers can be read"));
}

/// Writing what was read is taken or #GP(0).
fn write_back(report: &mut Report) {
    for index in all().filter(|index| !is_ours(*index)) {
        if let Ok(value) = cpu::try_rdmsr(index)
            && let Err(fault) = cpu::try_wrmsr(index, value)
        {
            report.expect(fault.is_gp0(), format_args!("WRMSR {index:#x} = {value:#x}: {fault}"));
        }
    }
}

/// Writing random values is taken or #GP(0); what was taken is undone.
fn write_junk(report: &mut Report) {
    let mut rng = Rng::new(7);
    for index in all().filter(|index| !is_ours(*index)) {
        let old = cpu::try_rdmsr(index);
        for value in [rng.draw(), rng.few_bits(), rng.draw() & 0xffff_ffff] {
            match cpu::try_wrmsr(index, value) {
                Ok(()) => {
                    if let Ok(old) = old {
                        let _ = cpu::try_wrmsr(index, old);
                    }
                }
                Err(fault) => report.expect(fault.is_gp0(), format_args!("WRMSR {index:#x} = {value:#x}: {fault}")),
            }
        }
    }
}

/// EFER's reserved bits, and those that cannot change in long mode, raise #GP (APM vol. 2, 3.1.7); SVME is not for guests.
fn efer(report: &mut Report) {
    const LME: u64 = 1 << 8;
    const SVME: u64 = 1 << 12;
    let before = cpu::rdmsr(msr::EFER);
    for (value, name) in [
        (before | SVME, "SVME"),
        (before & !LME, "LME cleared"),
        (before | 1 << 1, "bit 1"),
        (before | 1 << 9, "bit 9"),
        (before | 1 << 63, "bit 63"),
    ] {
        match cpu::try_wrmsr(msr::EFER, value) {
            // What a paravirtual guest writes may be ignored.
            Ok(()) if xen::active() => {}
            Ok(()) => {
                report.fail(format_args!("{name} is taken"));
                let _ = cpu::try_wrmsr(msr::EFER, before);
            }
            Err(fault) => report.expect(fault.is_gp0(), format_args!("{name}: {fault}")),
        }
    }
    report
        .expect(cpu::rdmsr(msr::EFER) == before, format_args!("EFER is {:#x}, was {before:#x}", cpu::rdmsr(msr::EFER)));
}

/// Addresses that are not canonical raise #GP in registers that hold addresses (APM vol. 2, 5.3.1). QEMU's own CPU takes
/// them; then they can at least be read again, and the machine lives on.
fn noncanonical(report: &mut Report) {
    let registers =
        [msr::LSTAR, msr::CSTAR, msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::SYSENTER_ESP, msr::SYSENTER_EIP];
    let mut taken = 0;
    // A paravirtual guest has only some of them.
    for index in registers.into_iter().filter(|index| !xen::active() || cpu::try_rdmsr(*index).is_ok()) {
        let before = cpu::rdmsr(index);
        for value in [0x8000_0000_0000_0000, 0x0000_8000_0000_0000, 0xffff_0000_0000_0000] {
            match cpu::try_wrmsr(index, value) {
                Ok(()) => taken += 1,
                Err(fault) => report.expect(fault.is_gp0(), format_args!("WRMSR {index:#x} = {value:#x}: {fault}")),
            }
            // An exit with the value in place: whatever the host loads and stores must stand it.
            let _ = cpu::cpuid(0, 0);
            let _ = crate::port::in8(crate::port::scratch());
        }
        if let Err(fault) = cpu::try_wrmsr(index, before) {
            report.fail(format_args!("WRMSR {index:#x} = {before:#x}: {fault}"));
        }
    }
    report.note(format_args!("{taken} are taken"));
}

/// PAT's memory types are 0, 1, 4 to 7 (APM vol. 2, 7.8.2); others raise #GP.
fn pat(report: &mut Report) {
    if skips_paravirtual(report, "a PAT of its own") {
        return;
    }
    let before = cpu::rdmsr(msr::PAT);
    for shift in (0..64).step_by(8) {
        for kind in [2_u64, 3, 8, 0x80, 0xff] {
            let value = before & !(0xff << shift) | kind << shift;
            match cpu::try_wrmsr(msr::PAT, value) {
                Ok(()) => {
                    report.fail(format_args!("{value:#x} is taken"));
                    let _ = cpu::try_wrmsr(msr::PAT, before);
                }
                Err(fault) => report.expect(fault.is_gp0(), format_args!("{value:#x}: {fault}")),
            }
        }
    }
    let other = 0x0007_0106_0007_0506;
    match cpu::try_wrmsr(msr::PAT, other) {
        Ok(()) => report
            .expect(cpu::rdmsr(msr::PAT) == other, format_args!("{other:#x} reads as {:#x}", cpu::rdmsr(msr::PAT))),
        Err(fault) => report.fail(format_args!("{other:#x}: {fault}")),
    }
    let _ = cpu::try_wrmsr(msr::PAT, before);
}

/// Reserved bits and modes that do not exist raise #GP (Intel SDM vol. 3, 11.12.1 and 11.12.5).
fn apic_base(report: &mut Report) {
    if skips_paravirtual(report, "an APIC") {
        return;
    }
    let before = cpu::rdmsr(msr::APIC_BASE);
    for (value, name) in
        [(before & !(3 << 10) | 1 << 10, "x2APIC without enable"), (before | 1, "bit 0"), (before | 1 << 63, "bit 63")]
    {
        match cpu::try_wrmsr(msr::APIC_BASE, value) {
            Ok(()) => {
                report.fail(format_args!("{name} is taken"));
                let _ = cpu::try_wrmsr(msr::APIC_BASE, before);
            }
            Err(fault) => report.expect(fault.is_gp0(), format_args!("{name}: {fault}")),
        }
    }
}

/// The time stamp counter goes on from what was written, and TSC_AUX is what RDTSCP gives (APM vol. 3, RDTSCP).
fn tsc(report: &mut Report) {
    if xen::active() {
        // The counter is the host's.
        return tsc_aux(report);
    }
    let start = cpu::rdtsc();
    // However long the host takes the CPU away.
    let (there, later) = (start + 1_000_000_000_000, 100_000_000_000);
    match cpu::try_wrmsr(msr::TSC, there) {
        Ok(()) => {
            let now = cpu::rdtsc();
            report.expect(now >= there && now - there < later, format_args!("wrote {there}, reads {now}"));
            let _ = cpu::try_wrmsr(msr::TSC, start);
        }
        Err(fault) => report.fail(format_args!("WRMSR TSC: {fault}")),
    }
    tsc_aux(report);
}

/// See above.
fn tsc_aux(report: &mut Report) {
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 == 0 {
        return;
    }
    let before = cpu::rdmsr(msr::TSC_AUX);
    match cpu::try_wrmsr(msr::TSC_AUX, 0x1234_5678) {
        Ok(()) => {
            let _ = crate::port::in8(crate::port::scratch());
            let aux: u32;
            // SAFETY: reads counters.
            unsafe { core::arch::asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux, options(nomem, nostack)) }
            report.expect(aux == 0x1234_5678, format_args!("TSC_AUX reads as {aux:#x}"));
            let _ = cpu::try_wrmsr(msr::TSC_AUX, before);
        }
        // Xen does not have it.
        Err(_) if xen::active() && !xen::is_covisor() => {}
        Err(fault) => report.fail(format_args!("WRMSR TSC_AUX: {fault}")),
    }
}
