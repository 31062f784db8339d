//! KVM's paravirtual clock (Linux `Documentation/virt/kvm/x86/msr.rst`), and the ACPI timer.

use super::Check;
use crate::cpu;
use crate::cpu::msr;
use crate::layout;
use crate::port;
use crate::report::Report;
use crate::time_info::TimeInfo;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "tsc-monotonic", run: tsc_monotonic },
    Check { name: "pvclock", run: pvclock },
    Check { name: "wall-clock", run: wall_clock },
    Check { name: "pm-timer", run: pm_timer },
];

/// Hypervisor leaf: KVM's features.
const FEATURES: u32 = 0x4000_0001;
/// Feature: the clock by MSRs 0x4b564d00 and 0x4b564d01.
const CLOCKSOURCE2: u32 = 1 << 3;

/// Offered at all?
fn offered() -> bool {
    cpu::cpuid(0x4000_0000, 0).ebx == u32::from_le_bytes(*b"KVMK") && cpu::cpuid(FEATURES, 0).eax & CLOCKSOURCE2 != 0
}

/// The clock's page as it is now.
fn read_clock() -> Option<TimeInfo> {
    let pointer = core::ptr::with_exposed_provenance(usize::try_from(layout::SCRATCH).ok()?);
    // SAFETY: scratch memory, where the clock is while checks read it.
    unsafe { TimeInfo::read(pointer) }
}

/// The time stamp counter never goes back, whatever happens between two readings.
fn tsc_monotonic(report: &mut Report) {
    let mut last = cpu::rdtsc();
    for round in 0..2000 {
        match round % 4 {
            0 => drop(cpu::cpuid(0, 0)),
            1 => drop(port::in8(port::scratch())),
            2 => drop(cpu::try_rdmsr(msr::APIC_BASE)),
            _ => {}
        }
        let now = cpu::rdtsc();
        report.expect(now > last, format_args!("{now} after {last}"));
        last = now;
    }
}

/// The clock runs, does not go back, and its rate is the ACPI timer's where there is one.
fn pvclock(report: &mut Report) {
    if !offered() {
        return report.skip(format_args!("not offered"));
    }
    if let Err(fault) = cpu::try_wrmsr(msr::KVM_SYSTEM_TIME, layout::SCRATCH | 1) {
        return report.fail(format_args!("WRMSR: {fault}"));
    }
    let _ = cpu::cpuid(0, 0);
    let Some(info) = read_clock() else {
        return report.fail(format_args!("the version never rests"));
    };
    report.expect(
        info.version != 0 && info.multiplier != 0,
        format_args!("version {}, multiplier {}", info.version, info.multiplier),
    );
    let mut last = 0;
    for _ in 0..1000 {
        let _ = cpu::try_rdmsr(msr::APIC_BASE);
        let Some(info) = read_clock() else { break };
        let now = info.nanoseconds(cpu::rdtsc());
        report.expect(now >= last, format_args!("{now} ns after {last} ns"));
        last = now;
    }
    // At 100 MHz to 10 GHz, a million cycles are 100 us to 10 ms.
    if let Some(info) = read_clock() {
        let span = info.nanoseconds(info.tsc + 1_000_000) - info.nanoseconds(info.tsc);
        report.expect((90_000..11_000_000).contains(&span), format_args!("a million cycles are {span} ns"));
    }
    // Addresses that are not the guest's, or not aligned: refused or ignored.
    for value in
        [1 << 62 | 1, u64::MAX, layout::HOLE | 1, 0xfee0_0001, layout::SCRATCH + 4095, layout::SCRATCH + 0x1ff_fffd]
    {
        if let Err(fault) = cpu::try_wrmsr(msr::KVM_SYSTEM_TIME, value) {
            report.expect(fault.is_gp0(), format_args!("WRMSR {value:#x}: {fault}"));
        }
        let _ = cpu::cpuid(0, 0);
    }
    let _ = cpu::try_wrmsr(msr::KVM_SYSTEM_TIME, 0);
}

/// The wall clock at boot: version, seconds, nanoseconds.
fn wall_clock(report: &mut Report) {
    if !offered() {
        return report.skip(format_args!("not offered"));
    }
    if let Err(fault) = cpu::try_wrmsr(msr::KVM_WALL_CLOCK, layout::SCRATCH) {
        return report.fail(format_args!("WRMSR: {fault}"));
    }
    let pointer = core::ptr::with_exposed_provenance::<[u32; 3]>(0x60_0000);
    // SAFETY: scratch memory.
    let [version, seconds, nanoseconds] = unsafe { pointer.read_volatile() };
    report.expect(version & 1 == 0 && version != 0, format_args!("version {version}"));
    report.expect(nanoseconds < 1_000_000_000, format_args!("{nanoseconds} ns"));
    report.note(format_args!("started {seconds} s after 1970"));
    for value in [1 << 62, u64::MAX, layout::HOLE, 0xfee0_0000] {
        if let Err(fault) = cpu::try_wrmsr(msr::KVM_WALL_CLOCK, value) {
            report.expect(fault.is_gp0(), format_args!("WRMSR {value:#x}: {fault}"));
        }
    }
}

/// The ACPI timer (ACPI 6.5, 4.8.3.3) counts at 3.579545 MHz, 32 bits wide, as the paravirtual clock sees it.
fn pm_timer(report: &mut Report) {
    const PM_TIMER: u16 = 0x608;
    const HERTZ: u64 = 3_579_545;
    if port::in32(PM_TIMER) == u32::MAX {
        return report.skip(format_args!("nothing at port {PM_TIMER:#x}"));
    }
    if !offered() || cpu::try_wrmsr(msr::KVM_SYSTEM_TIME, layout::SCRATCH | 1).is_err() {
        return report.skip(format_args!("no clock to compare with"));
    }
    let _ = cpu::cpuid(0, 0);
    let now = || read_clock().map_or(0, |info| info.nanoseconds(cpu::rdtsc()));
    // The host may take the CPU away between two readings: a count is of some time between the two around it.
    let reading = || (now(), port::in32(PM_TIMER), now());
    let (before_first, first, after_first) = reading();
    while now() - after_first < 5_000_000 {
        core::hint::spin_loop();
    }
    let (before_last, last, after_last) = reading();
    let counted = u64::from(last.wrapping_sub(first));
    let counts = |span: u64| span * HERTZ / 1_000_000_000;
    let (least, most) = (counts(before_last - after_first), counts(after_last - before_first));
    // A fiftieth: what two clocks' rates may differ by.
    report.expect(
        (least - least / 50..=most + most / 50).contains(&counted),
        format_args!("{counted} counts, not {least} to {most}"),
    );
    let _ = cpu::try_wrmsr(msr::KVM_SYSTEM_TIME, 0);
}
