//! The local APIC: delivery, priority, timers, waking from HLT; and the I/O APIC. (Intel SDM vol. 3, chapter 11; APM
//! vol. 2, chapter 16.) Each check runs in xAPIC mode and, where there is one, in x2APIC mode.

use core::arch::asm;

use super::Check;
use crate::apic;
use crate::apic::io;
use crate::apic::register;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::exception::vector;
use crate::port;
use crate::report::Report;
use crate::report::is_cpu_emulated;
use crate::rng::Rng;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "apic-modes", run: modes },
    Check { name: "apic-self-ipi", run: |report| each_mode(report, self_ipi) },
    Check { name: "apic-priority", run: |report| each_mode(report, priority) },
    Check { name: "apic-task-priority", run: |report| each_mode(report, task_priority) },
    Check { name: "apic-in-service", run: |report| each_mode(report, in_service) },
    Check { name: "apic-nmi", run: |report| each_mode(report, nmi) },
    Check { name: "apic-x2apic-reserved", run: x2apic_reserved },
    Check { name: "timer-one-shot", run: |report| each_mode(report, one_shot) },
    Check { name: "timer-once", run: |report| each_mode(report, once) },
    Check { name: "timer-masked", run: |report| each_mode(report, masked_timer) },
    Check { name: "timer-periodic", run: |report| each_mode(report, periodic) },
    Check { name: "timer-deadline", run: |report| each_mode(report, deadline) },
    Check { name: "halt-wake", run: |report| each_mode(report, halt) },
    Check { name: "halt-wake-many", run: |report| each_mode(report, halt_many) },
    Check { name: "sti-shadow", run: |report| each_mode(report, sti_shadow) },
    Check { name: "ioapic-registers", run: ioapic_registers },
    Check { name: "ioapic-serial", run: ioapic_serial },
];

/// Runs a check in xAPIC mode, then in x2APIC mode.
fn each_mode(report: &mut Report, check: fn(&mut Report)) {
    if let Err(fault) = apic::enter_xapic() {
        return report.error(format_args!("xAPIC mode: {fault}"));
    }
    exception::forget_interrupts();
    check(report);
    if apic::has_x2() {
        if let Err(fault) = apic::enter_x2apic() {
            return report.error(format_args!("x2APIC mode: {fault}"));
        }
        exception::forget_interrupts();
        check(report);
    }
    exception::set_auto_eoi(true);
    if let Err(fault) = apic::enter_xapic() {
        report.error(format_args!("back to xAPIC mode: {fault}"));
    }
}

/// The name of the mode, for texts.
fn mode() -> &'static str {
    if apic::is_x2() { "x2APIC" } else { "xAPIC" }
}

/// The modes change as the manual's state diagram allows (Intel SDM vol. 3, 11.12.1, figure 11-27), and registers keep
/// their meaning.
fn modes(report: &mut Report) {
    if !apic::has_x2() {
        return report.skip(format_args!("no x2APIC"));
    }
    if let Err(fault) = apic::enter_x2apic() {
        return report.fail(format_args!("to x2APIC: {fault}"));
    }
    // Straight back from x2APIC to xAPIC is not allowed.
    let base = cpu::rdmsr(msr::APIC_BASE);
    match cpu::try_wrmsr(msr::APIC_BASE, base & !(1 << 10)) {
        Ok(()) => report.fail(format_args!("x2APIC straight to xAPIC is taken")),
        Err(fault) => report.expect(fault.is_gp0(), format_args!("x2APIC straight to xAPIC: {fault}")),
    }
    if let Err(fault) = apic::enter_xapic() {
        return report.fail(format_args!("by way of disabled to xAPIC: {fault}"));
    }
    // In xAPIC mode the MSRs do not exist.
    match cpu::try_rdmsr(msr::X2APIC + 2) {
        Ok(_) => report.fail(format_args!("x2APIC's registers exist in xAPIC mode")),
        Err(fault) => report.expect(fault.is_gp0(), format_args!("MSR 0x802 in xAPIC mode: {fault}")),
    }
    let version = apic::read(register::VERSION);
    report.expect(version & 0xff >= 0x10 && version >> 16 & 0xff >= 3, format_args!("version {version:#x}"));
}

/// An interrupt to oneself waits in IRR while interrupts are off, is taken once, and leaves nothing in IRR or ISR.
fn self_ipi(report: &mut Report) {
    apic::send_self(0x41);
    report.expect(apic::bit(register::IRR, 0x41), format_args!("{}: not in IRR", mode()));
    report.expect(exception::count(0x41) == 0, format_args!("{}: taken with interrupts off", mode()));
    cpu::take_interrupts();
    report.expect(exception::count(0x41) == 1, format_args!("{}: taken {} times", mode(), exception::count(0x41)));
    let left = apic::bit(register::IRR, 0x41) || apic::bit(register::ISR, 0x41);
    report.expect(!left, format_args!("{}: still in IRR or ISR", mode()));
    if apic::is_x2() {
        apic::write(register::SELF_IPI, 0x42);
        cpu::take_interrupts();
        report.expect(exception::count(0x42) == 1, format_args!("SELF_IPI taken {} times", exception::count(0x42)));
    }
}

/// The higher vector goes first; the same one twice is taken once.
fn priority(report: &mut Report) {
    for vector in [0x31, 0xa0, 0x52, 0xa0, 0xa1] {
        apic::send_self(vector);
    }
    cpu::take_interrupts();
    for (index, wanted) in [0xa1, 0xa0, 0x52, 0x31].into_iter().enumerate() {
        let got = exception::order(index);
        report.expect(got == Some(wanted), format_args!("{}: number {index} is {got:x?}, not {wanted:#x}", mode()));
    }
    report.expect(exception::taken() == 4, format_args!("{}: {} taken, not 4", mode(), exception::taken()));
}

/// TPR and CR8, which are one, hold back what is not above them.
fn task_priority(report: &mut Report) {
    apic::write(register::TPR, 0x50);
    report.expect(cpu::cr8() == 5, format_args!("{}: TPR 0x50, CR8 {:#x}", mode(), cpu::cr8()));
    apic::send_self(0x58);
    cpu::take_interrupts();
    report.expect(exception::count(0x58) == 0, format_args!("{}: taken in spite of TPR", mode()));
    apic::send_self(0x60);
    cpu::take_interrupts();
    report.expect(exception::count(0x60) == 1, format_args!("{}: 0x60 is above TPR", mode()));
    let _ = cpu::try_set_cr8(4);
    report.expect(
        apic::read(register::TPR) == 0x40,
        format_args!("{}: CR8 4, TPR {:#x}", mode(), apic::read(register::TPR)),
    );
    cpu::take_interrupts();
    report.expect(exception::count(0x58) == 1, format_args!("{}: not taken after CR8 fell", mode()));
    let _ = cpu::try_set_cr8(0);
}

/// Until its end, an interrupt in service holds back what is not above it (11.8.3.1).
fn in_service(report: &mut Report) {
    exception::set_auto_eoi(false);
    apic::send_self(0x80);
    cpu::take_interrupts();
    report.expect(apic::bit(register::ISR, 0x80), format_args!("{}: 0x80 is not in ISR", mode()));
    report.expect(
        apic::read(register::PPR) & 0xf0 == 0x80,
        format_args!("{}: PPR {:#x}", mode(), apic::read(register::PPR)),
    );
    apic::send_self(0x70);
    apic::send_self(0x8f);
    cpu::take_interrupts();
    report.expect(exception::taken() == 1, format_args!("{}: a lower one was taken", mode()));
    apic::send_self(0x90);
    cpu::take_interrupts();
    report.expect(exception::count(0x90) == 1, format_args!("{}: the higher one was not taken", mode()));
    for _ in 0..2 {
        apic::end_of_interrupt();
    }
    exception::set_auto_eoi(true);
    cpu::take_interrupts();
    report.expect(
        exception::order(2) == Some(0x8f) && exception::order(3) == Some(0x70),
        format_args!("{}: not taken after EOI", mode()),
    );
}

/// An NMI comes with interrupts off, and once.
fn nmi(report: &mut Report) {
    if apic::is_x2() {
        let id = u64::from(apic::read(register::ID));
        let _ =
            cpu::try_wrmsr(msr::X2APIC + register::ICR / 16, id << 32 | u64::from(apic::ICR_NMI | apic::ICR_ASSERT));
    } else {
        apic::write(register::ICR_HIGH, apic::read(register::ID));
        apic::write(register::ICR, apic::ICR_NMI | apic::ICR_ASSERT);
    }
    let _ = cpu::cpuid(0, 0);
    report
        .expect(exception::count(vector::NMI) == 1, format_args!("{}: {} NMIs", mode(), exception::count(vector::NMI)));
}

/// In x2APIC mode, what cannot be written or has reserved bits raises #GP (Intel SDM vol. 3, 11.12.1.2).
fn x2apic_reserved(report: &mut Report) {
    if !apic::has_x2() {
        return report.skip(format_args!("no x2APIC"));
    }
    if let Err(fault) = apic::enter_x2apic() {
        return report.error(format_args!("x2APIC mode: {fault}"));
    }
    for (name, offset, value) in [
        ("ID", register::ID, 1),
        ("VERSION", register::VERSION, 1),
        ("EOI of 1", register::EOI, 1),
        ("DFR", 0xe0, 0),
        ("PPR", register::PPR, 0),
        ("TPR's upper bits", register::TPR, 0x100),
        ("ISR", register::ISR, 0),
        ("current count", register::TIMER_CURRENT, 0),
        ("upper half of SVR", register::SVR, 1 << 32),
        ("SELF_IPI's upper bits", register::SELF_IPI, 0x100),
    ] {
        match cpu::try_wrmsr(msr::X2APIC + offset / 16, value) {
            Ok(()) => report.fail(format_args!("writing {name} is taken")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("writing {name}: {fault}")),
        }
    }
    for (name, offset) in [("EOI", register::EOI), ("SELF_IPI", register::SELF_IPI), ("DFR", 0xe0)] {
        match cpu::try_rdmsr(msr::X2APIC + offset / 16) {
            Ok(_) => report.fail(format_args!("reading {name} is taken")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("reading {name}: {fault}")),
        }
    }
    if let Err(fault) = apic::enter_xapic() {
        report.error(format_args!("back to xAPIC mode: {fault}"));
    }
}

/// Timer counts, which are nanoseconds where the APIC's clock has 1 GHz: 200 us.
const SHORT: u32 = 200_000;

/// Waits of `halt-wake-many`.
const HALTS: u32 = 2000;

/// Spins with interrupts on until `done`; false when that takes too long.
fn wait_until(done: impl Fn() -> bool) -> bool {
    const ROUNDS: u32 = 20_000_000;
    cpu::enable_interrupts();
    let mut came = false;
    for _ in 0..ROUNDS {
        core::hint::spin_loop();
        if done() {
            came = true;
            break;
        }
    }
    cpu::disable_interrupts();
    came
}

/// The timer counts down, fires once, and stays at 0.
fn one_shot(report: &mut Report) {
    apic::write(register::LVT_TIMER, apic::TIMER_ONE_SHOT | 0x44);
    apic::write(register::TIMER_INITIAL, SHORT);
    let first = apic::read(register::TIMER_CURRENT);
    let second = apic::read(register::TIMER_CURRENT);
    report.expect(first <= SHORT && second <= first, format_args!("{}: counts {first}, {second} of {SHORT}", mode()));
    report.expect(wait_until(|| exception::count(0x44) > 0), format_args!("{}: does not fire", mode()));
    report.expect(apic::read(register::TIMER_CURRENT) == 0, format_args!("{}: is not at 0", mode()));
    let start = cpu::rdtsc();
    wait_until(|| cpu::rdtsc() - start > 2_000_000);
    report.expect(exception::count(0x44) == 1, format_args!("{}: fired {} times", mode(), exception::count(0x44)));
    apic::reset();
}

/// Interrupts of `timer-once`.
const ROUNDS: u32 = 100;
/// Within how many rounds of a loop each of them comes.
const COMES_WITHIN: u32 = 50_000_000;
/// For how many it must not come again.
const ONCE_FOR: u32 = 100_000;

/// An interrupt that is taken does not come again, whatever else the machine does meanwhile: nothing leaves the guest here, and
/// without an end of interrupt the local APIC has no other one.
fn once(report: &mut Report) {
    exception::set_auto_eoi(false);
    apic::write(register::LVT_TIMER, apic::TIMER_ONE_SHOT | 0x47);
    for round in 1..=ROUNDS {
        apic::write(register::TIMER_INITIAL, SHORT);
        cpu::enable_interrupts();
        // No PAUSE: an emulator may begin something new there.
        let came = (0..COMES_WITHIN).any(|_| exception::count(0x47) >= round);
        let again = (0..ONCE_FOR).any(|_| exception::count(0x47) > round);
        cpu::disable_interrupts();
        apic::write(register::EOI, 0);
        let taken = exception::count(0x47);
        if !came || again || taken != round {
            report.fail(format_args!("{}: {round} interrupts were taken {taken} times", mode()));
            break;
        }
    }
    apic::reset();
    exception::set_auto_eoi(true);
}

/// A masked timer counts, but does not fire.
fn masked_timer(report: &mut Report) {
    apic::write(register::LVT_TIMER, apic::TIMER_ONE_SHOT | apic::MASKED | 0x44);
    apic::write(register::TIMER_INITIAL, SHORT);
    report.expect(wait_until(|| apic::read(register::TIMER_CURRENT) == 0), format_args!("{}: does not count", mode()));
    cpu::take_interrupts();
    report.expect(exception::count(0x44) == 0, format_args!("{}: fires", mode()));
    apic::reset();
}

/// A periodic timer fires again and again, until its initial count is 0.
fn periodic(report: &mut Report) {
    apic::write(register::LVT_TIMER, apic::TIMER_PERIODIC | 0x45);
    apic::write(register::TIMER_INITIAL, SHORT);
    report.expect(
        wait_until(|| exception::count(0x45) >= 5),
        format_args!("{}: fired {} times", mode(), exception::count(0x45)),
    );
    apic::write(register::TIMER_INITIAL, 0);
    cpu::take_interrupts();
    let fired = exception::count(0x45);
    let start = cpu::rdtsc();
    wait_until(|| cpu::rdtsc() - start > 3_000_000);
    report.expect(exception::count(0x45) == fired, format_args!("{}: fires when stopped", mode()));
    apic::reset();
}

/// A deadline fires not before its time, at once when it is past, and not when it is cleared (11.5.4.1).
fn deadline(report: &mut Report) {
    if cpu::cpuid(1, 0).ecx & 1 << 24 == 0 {
        return report.skip(format_args!("no TSC deadline"));
    }
    /// Longer than the host takes the CPU away.
    const NEVER: u64 = 100_000_000_000;
    apic::write(register::LVT_TIMER, apic::TIMER_DEADLINE | 0x46);
    let far = cpu::rdtsc() + NEVER;
    if let Err(fault) = cpu::try_wrmsr(msr::TSC_DEADLINE, far) {
        return report.fail(format_args!("{}: {fault}", mode()));
    }
    report.expect(cpu::rdmsr(msr::TSC_DEADLINE) == far, format_args!("{}: reads another deadline", mode()));
    let due = cpu::rdtsc() + 300_000;
    let _ = cpu::try_wrmsr(msr::TSC_DEADLINE, due);
    report.expect(wait_until(|| exception::count(0x46) > 0), format_args!("{}: does not fire", mode()));
    let early = due.saturating_sub(exception::last_tsc());
    report.expect(early == 0, format_args!("{}: {early} cycles too early", mode()));
    report.expect(cpu::rdmsr(msr::TSC_DEADLINE) == 0, format_args!("{}: the deadline stays", mode()));
    let _ = cpu::try_wrmsr(msr::TSC_DEADLINE, cpu::rdtsc());
    cpu::take_interrupts();
    report.expect(exception::count(0x46) == 2, format_args!("{}: a past deadline does not fire", mode()));
    cleared_deadline(report);
    apic::reset();
}

/// See above.
fn cleared_deadline(report: &mut Report) {
    /// How far away: 10 million cycles.
    const FAR: u64 = 10_000_000;
    /// Trials to clear a deadline before it is there; the host may take the CPU away for longer than that.
    const TRIALS: u32 = 100;
    for _ in 0..TRIALS {
        exception::forget_interrupts();
        let far = cpu::rdtsc() + FAR;
        let _ = cpu::try_wrmsr(msr::TSC_DEADLINE, far);
        let _ = cpu::try_wrmsr(msr::TSC_DEADLINE, 0);
        if cpu::rdtsc() >= far {
            cpu::take_interrupts();
            continue;
        }
        wait_until(|| cpu::rdtsc() > far + FAR / 2);
        return report.expect(exception::count(0x46) == 0, format_args!("{}: a cleared deadline fires", mode()));
    }
    report.error(format_args!("{}: no deadline was cleared in time", mode()));
}

/// HLT wakes every time, whatever happens between starting the timer and waiting: no wake-up is lost. QEMU's CPU loses
/// some: its VMRUN forgets the interrupt shadow, so an interrupt that is due comes between STI and HLT where a host
/// interrupt did, and nothing wakes the HLT.
fn halt_many(report: &mut Report) {
    if is_cpu_emulated() {
        return report.skip(format_args!("(QEMU's CPU) forgets the interrupt shadow at VMRUN"));
    }
    let mut rng = Rng::new(9);
    apic::write(register::LVT_TIMER, apic::TIMER_ONE_SHOT | 0x4b);
    for round in 0..HALTS {
        let (count, _) = cpu::halves(rng.below(60_000) + 1);
        apic::write(register::TIMER_INITIAL, count);
        match rng.below(4) {
            0 => drop(port::in8(crate::port::scratch())),
            1 => drop(cpu::cpuid(0, 0)),
            _ => {}
        }
        cpu::wait_for_interrupt();
        let taken = exception::count(0x4b);
        report.expect(taken == round + 1, format_args!("{}: {taken} interrupts after {round} waits", mode()));
    }
    apic::reset();
}

/// HLT ends with the interrupt, and execution goes on behind it. On QEMU's CPU (see `halt_many`) the timer repeats.
fn halt(report: &mut Report) {
    for count in [1_000, 50_000, 1_000_000] {
        exception::forget_interrupts();
        let kind = if is_cpu_emulated() { apic::TIMER_PERIODIC } else { apic::TIMER_ONE_SHOT };
        apic::write(register::LVT_TIMER, kind | 0x47);
        apic::write(register::TIMER_INITIAL, count);
        let behind: u64;
        // SAFETY: every vector has a handler; one interrupt is due.
        unsafe { asm!("lea {}, [rip + 2f]", "sti", "hlt", "2: cli", out(reg) behind, options(nostack)) }
        apic::write(register::TIMER_INITIAL, 0);
        let (taken, rip) = (exception::count(0x47), exception::last_rip());
        report.expect(taken >= 1, format_args!("{}: woken by nothing", mode()));
        report.expect_of_cpu(taken == 1, format_args!("{}: woken by {taken} interrupts", mode()));
        report.expect(rip == behind, format_args!("{}: came at {rip:#x}, not {behind:#x}", mode()));
    }
    apic::reset();
    cpu::take_interrupts();
}

/// After STI one instruction is executed before an interrupt is taken, also when the hypervisor emulates it (APM vol. 2,
/// 15.21.5): with CLI none is taken at all, with another the interrupt comes right behind it.
fn sti_shadow(report: &mut Report) {
    /// Sends an interrupt, executes STI, the instructions, CLI; gives where the interrupt was expected.
    macro_rules! shadow {
        ($name:literal, $($line:literal),+) => {{
            exception::forget_interrupts();
            apic::send_self(0x48);
            let mut expected = 0_u64;
            // SAFETY: every vector has a handler; the instructions change only the registers named and devices.
            unsafe {
                asm!(
                    "lea {expected}, [rip + 2f]", "mov r14, rbx", "sti", $($line,)+ "2: nop", "nop", "cli", "mov rbx, r14",
                    expected = inout(reg) expected, in("dx") crate::port::scratch(),
                    inout("eax") 0 => _, inout("ecx") msr::APIC_BASE => _, out("r14") _, lateout("rdx") _,
                );
            }
            let came = exception::last_rip();
            report.expect(exception::count(0x48) == 1, format_args!("{} STI, {}: {} interrupts", mode(), $name, exception::count(0x48)));
            report.expect(came == expected, format_args!("{} STI, {}: came at {came:#x}, not {expected:#x}", mode(), $name));
        }};
    }
    shadow!("NOP", "nop");
    shadow!("CPUID", "cpuid");
    shadow!("RDMSR", "rdmsr");
    shadow!("IN", "in al, dx");
    with_hypercall!(shadow);
    exception::forget_interrupts();
    apic::send_self(0x49);
    // SAFETY: as above.
    unsafe { asm!("sti", "cli", options(nostack)) }
    report.expect(exception::taken() == 0, format_args!("{}: taken between STI and CLI", mode()));
    cpu::take_interrupts();
    report.expect(exception::count(0x49) == 1, format_args!("{}: lost", mode()));
}

/// The I/O APIC's registers (82093AA data sheet, 3.2): id, version with the number of inputs, a table whose entries keep
/// what is written but for the bits that are only read.
fn ioapic_registers(report: &mut Report) {
    let version = io::read(io::VERSION);
    let last = version >> 16 & 0xff;
    report.expect(matches!(version & 0xff, 0x11 | 0x20), format_args!("version {version:#x}"));
    report.expect(last == 23, format_args!("{} inputs", last + 1));
    for pin in 0..=last {
        let (low, high) = (io::TABLE + 2 * pin, io::TABLE + 2 * pin + 1);
        io::write(low, io::MASKED | (0x30 + pin));
        io::write(high, 0x0f00_0000);
        let got = (io::read(low), io::read(high));
        report.expect(got == (io::MASKED | (0x30 + pin), 0x0f00_0000), format_args!("entry {pin} is {got:x?}"));
        io::write(low, io::MASKED | io::REMOTE_IRR | 1 << 12 | 0x30);
        report.expect(
            io::read(low) & (io::REMOTE_IRR | 1 << 12) == 0,
            format_args!("entry {pin}: read-only bits are written"),
        );
        io::write(low, io::MASKED);
        io::write(high, 0);
    }
    // Registers that do not exist.
    io::write(0xff, u32::MAX);
    let _ = io::read(0xff);
}

/// COM1's interrupt, input 4 (edge-triggered), reaches the vector of its entry: transmitter empty, which it always is
/// (16550 data sheet, IER bit 1, IIR).
fn ioapic_serial(report: &mut Report) {
    const IER: u16 = 0x3f9;
    const IIR: u16 = 0x3fa;
    const MCR: u16 = 0x3fc;
    const OUT2: u8 = 8;
    const PIN: u32 = 4;
    if let Err(fault) = apic::enter_xapic() {
        return report.error(format_args!("xAPIC mode: {fault}"));
    }
    port::out8(IER, 0);
    if port::in8(IER) != 0 {
        return report.skip(format_args!("no serial port with interrupts"));
    }
    let id = apic::read(register::ID);
    io::write(io::TABLE + 2 * PIN + 1, id);
    io::write(io::TABLE + 2 * PIN, 0x54);
    port::out8(MCR, OUT2);
    port::out8(IER, 2);
    let came = wait_until(|| exception::count(0x54) > 0);
    let cause = port::in8(IIR) & 0xf;
    port::out8(IER, 0);
    io::write(io::TABLE + 2 * PIN, io::MASKED);
    cpu::take_interrupts();
    report.expect(came, format_args!("no interrupt, IIR {cause:#x}"));
}
