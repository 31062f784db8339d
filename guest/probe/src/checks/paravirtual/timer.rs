//! The guest's time, its timer, and how long it ran.

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::cpu;
use crate::report::Report;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::abi::vcpu;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::info;
use crate::xen::timer;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-time", run: time },
    Check { name: "xen-wall-clock", run: wall_clock },
    Check { name: "xen-timer", run: one_shot },
    Check { name: "xen-timer-stop", run: stop },
    Check { name: "xen-block", run: block },
    Check { name: "xen-runstate", run: run_state },
];

/// How long checks wait: 300 us.
const SPAN: u64 = 300_000;
/// A time before which something can be done: 3 ms.
const SOON: u64 = 10 * SPAN;
/// When they give up.
const LONG: u64 = 1000 * SPAN;

/// The record is there, does not go back, and says of the counter what CPUs can have.
fn time(report: &mut Report) {
    let Some(info) = info::time() else { return report.fail(format_args!("the version never rests")) };
    report.expect(
        info.version != 0 && info.multiplier != 0,
        format_args!("version {}, multiplier {}", info.version, info.multiplier),
    );
    // At 100 MHz to 10 GHz, a million cycles are 100 us to 10 ms.
    let span = info.nanoseconds(info.tsc + 1_000_000) - info.nanoseconds(info.tsc);
    report.expect((90_000..11_000_000).contains(&span), format_args!("a million cycles are {span} ns"));
    let mut last = 0;
    for round in 0..1000 {
        match round % 3 {
            0 => drop(cpu::cpuid(0, 0)),
            1 => drop(hypercall(call::SCHED_OP, [0, 0])),
            _ => {}
        }
        let now = timer::now();
        report.expect(now >= last, format_args!("{now} ns after {last} ns"));
        last = now;
    }
}

/// The wall clock at time 0 is of these years.
fn wall_clock(report: &mut Report) {
    use core::sync::atomic::Ordering::Acquire;
    let shared = info::shared();
    let (version, seconds) = (shared.wall_version.load(Acquire), shared.wall_seconds.load(Acquire));
    let nanoseconds = shared.wall_nanoseconds.load(Acquire);
    report.expect(version & 1 == 0, format_args!("version {version}"));
    report.expect(nanoseconds < 1_000_000_000, format_args!("{nanoseconds} ns"));
    // 2020 on.
    report.expect(seconds > 1_577_836_800, format_args!("{seconds} s after 1970"));
    report.note(format_args!("started {seconds} s after 1970"));
}

/// Spins with events unmasked until the timer's event came; gives when.
fn spin(channel: u32) -> Option<u64> {
    let begin = timer::now();
    events::unmask();
    while events::count(channel) == 0 && timer::now() - begin < LONG {
        core::hint::spin_loop();
    }
    events::mask();
    (events::count(channel) != 0).then(timer::now)
}

/// The event comes once and not before its time; a time that has passed is at once, or an error where the guest wants that.
fn one_shot(report: &mut Report) {
    let channel = timer::channel();
    for span in [0, 1, SPAN, 3 * SPAN] {
        events::forget();
        let wanted = timer::now() + span;
        expect(report, "set", timer::set(wanted, 0), 0);
        match spin(channel) {
            Some(came) => report.expect(came >= wanted, format_args!("came at {came}, was for {wanted}")),
            None => report.fail(format_args!("{span} ns: it never comes")),
        }
        let count = events::count(channel);
        report.expect(count == 1, format_args!("{span} ns: {count} events"));
    }
    events::forget();
    expect(report, "a time that has passed", timer::set(1, 0), 0);
    report.expect(spin(channel).is_some(), format_args!("a time that has passed never comes"));
    events::forget();
    let result = timer::set(1, vcpu::FUTURE);
    report.expect_of_covisor(result == errno::ETIME, format_args!("a time that has passed, not wanted: {result}"));
    let count = events::count(channel);
    report.expect_of_covisor(count == 0, format_args!("a time that was refused: {count} events"));
    // Only the last one counts.
    events::forget();
    let start = timer::now();
    timer::set(start + LONG * 10, 0);
    timer::set(start + SPAN, 0);
    report.expect(spin(channel).is_some(), format_args!("an earlier time instead of a later one never comes"));
    let end = in_time(|end| {
        timer::set(end, 0);
        timer::set(end + LONG / 20, 0)
    });
    let Some((end, _)) = end else { return report.error(format_args!("two times were never set in time")) };
    let (came, later) = (spin(channel).unwrap_or(0), end + LONG / 20);
    report.expect(came >= later, format_args!("a later time instead of an earlier one: {came}, not {later}"));
}

/// Does something that must be done before a time that is [`SOON`], again where the host took the CPU away for so long; gives that
/// time, and what it gave.
fn in_time<T>(act: impl Fn(u64) -> T) -> Option<(u64, T)> {
    const TRIALS: u32 = 100;
    (0..TRIALS).find_map(|_| {
        // What came of the last one.
        cpu::take_interrupts();
        events::forget();
        let end = timer::now() + SOON;
        let given = act(end);
        (timer::now() < end).then_some((end, given))
    })
}

/// What was stopped does not come.
fn stop(report: &mut Report) {
    let channel = timer::channel();
    let stopped = in_time(|end| {
        timer::set(end, 0);
        timer::stop()
    });
    let Some((end, result)) = stopped else { return report.error(format_args!("nothing was stopped in time")) };
    expect(report, "stop", result, 0);
    events::unmask();
    while timer::now() < end + SOON {
        core::hint::spin_loop();
    }
    events::mask();
    let count = events::count(channel);
    report.expect(count == 0, format_args!("{count} events after it was stopped"));
    expect(report, "stop again", timer::stop(), 0);
    let result = hypercall(call::VCPU_OP, [vcpu::STOP_PERIODIC_TIMER, 0, 0]);
    expect(report, "stop of the periodic timer", result, 0);
}

/// `SCHEDOP_block` ends with the event, at once where one waits, and unmasks events.
fn block(report: &mut Report) {
    let channel = timer::channel();
    for round in 0..20 {
        events::forget();
        let wanted = timer::now() + SPAN;
        timer::set(wanted, 0);
        expect(report, "block", events::block(), 0);
        let now = timer::now();
        let masked = info::vcpu().mask.load(core::sync::atomic::Ordering::SeqCst);
        events::mask();
        let count = events::count(channel);
        report.expect(count == 1 && now >= wanted, format_args!("round {round}: {count} events, {now}, not {wanted}"));
        report.expect(masked == 0, format_args!("round {round}: events are masked after it"));
    }
    let Ok(own) = events::bind_ipi() else { return report.error(format_args!("no channel")) };
    events::forget();
    events::send(own);
    let begin = timer::now();
    timer::set(begin + LONG, 0);
    expect(report, "block with an event", events::block(), 0);
    events::mask();
    let (count, span) = (events::count(own), timer::now() - begin);
    report.expect(count == 1 && span < LONG, format_args!("with an event waiting: {count} events after {span} ns"));
    timer::stop();
    events::close(own);
}

/// The run state: running now, since a time that has passed; waiting counts as such, and the sum is the time that has passed.
fn run_state(report: &mut Report) {
    /// `RUNSTATE_running`, `RUNSTATE_blocked`: states, and which of the four times they are.
    const RUNNING: usize = 0;
    const BLOCKED: usize = 2;
    /// How long it waits: 10 ms.
    const WAIT: u64 = 10_000_000;
    let area = frames::take_for_good();
    let pointer = area;
    let result = hypercall(call::VCPU_OP, [vcpu::REGISTER_RUNSTATE, 0, at(&raw const pointer)]);
    expect(report, "register_runstate", result, 0);
    let times = |name: &str, report: &mut Report| {
        let state = frames::read(area) & 0xffff_ffff;
        report.expect(state == RUNNING as u64, format_args!("{name}: state {state}"));
        let entered = frames::read(area + 8) & !(1 << 63);
        report.expect(entered <= timer::now(), format_args!("{name}: since {entered}"));
        [0, 1, 2, 3].map(|index| frames::read(area + 16 + index * 8))
    };
    let before = times("at first", report);
    let channel = timer::channel();
    events::forget();
    timer::set(timer::now() + WAIT, 0);
    events::block();
    events::mask();
    report.expect(events::count(channel) == 1, format_args!("{} events", events::count(channel)));
    let after = times("after waiting", report);
    let waited = after[BLOCKED].saturating_sub(before[BLOCKED]);
    report.expect((SPAN..LONG).contains(&waited), format_args!("waited {waited} ns of {WAIT}"));
    let shrunk = before.iter().zip(&after).any(|(before, after)| after < before);
    report.expect(!shrunk, format_args!("times go back: {before:?}, then {after:?}"));
    let other = hypercall(call::VCPU_OP, [vcpu::REGISTER_RUNSTATE, 1, at(&raw const pointer)]);
    expect_error(report, "another vCPU", other, errno::ENOENT);
}
