//! Event channels: what is bound, sent, masked, waited for and closed; no event is lost, none comes twice.

use core::sync::atomic::Ordering::SeqCst;

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::report::Report;
use crate::user;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::channel;
use crate::xen::abi::errno;
use crate::xen::abi::physdev;
use crate::xen::abi::version;
use crate::xen::abi::virq;
use crate::xen::events;
use crate::xen::events::operate;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::info;
use crate::xen::timer;
use crate::xen::traps;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-channels", run: send },
    Check { name: "xen-channel-masks", run: masks },
    Check { name: "xen-channel-unmask", run: unmask },
    Check { name: "xen-channel-pending", run: pending },
    Check { name: "xen-channel-close", run: close },
    Check { name: "xen-channels-refused", run: refused },
    Check { name: "xen-channels-many", run: many },
    Check { name: "xen-channels-user", run: from_user_mode },
    Check { name: "xen-interrupt-lines", run: lines },
];

/// A channel to oneself.
fn bind(report: &mut Report) -> Option<u32> {
    match events::bind_ipi() {
        Ok(channel) if channel != 0 => {
            events::forget();
            Some(channel)
        }
        other => {
            report.fail(format_args!("no channel: {other:?}"));
            None
        }
    }
}

/// Expects how often an event has come on a channel since `events::forget`.
fn expect_count(report: &mut Report, name: &str, channel: u32, wanted: u32) {
    let count = events::count(channel);
    report.expect(count == wanted, format_args!("{name}: {count} events, not {wanted}"));
    report.expect(events::empty() == 0, format_args!("{name}: {} upcalls for nothing", events::empty()));
    events::forget();
}

/// An event waits as long as events are masked, and comes once; with events unmasked it comes before the call returns.
fn send(report: &mut Report) {
    let Some(channel) = bind(report) else { return };
    for _ in 0..5 {
        expect(report, "send", events::send(channel), 0);
        let waits = info::shared().is_pending(channel) && info::vcpu().pending.load(SeqCst) != 0;
        report.expect(waits, format_args!("an event that was sent does not wait"));
        expect_count(report, "masked", channel, 0);
        // Twice is once.
        events::send(channel);
        events::unmask();
        events::mask();
        expect_count(report, "unmasked", channel, 1);
        report.expect(!info::shared().is_pending(channel), format_args!("an event that came still waits"));
    }
    events::unmask();
    events::send(channel);
    expect_count(report, "sent while unmasked", channel, 1);
    // The handler masks events and its return unmasks them: it is not called within itself.
    report.expect(info::vcpu().mask.load(SeqCst) == 0, format_args!("events are masked after an upcall"));
    events::mask();
    expect(report, "close", events::close(channel), 0);
}

/// A channel that is masked keeps its event without an upcall.
fn masks(report: &mut Report) {
    let Some(channel) = bind(report) else { return };
    info::shared().set_masked(channel, true);
    events::unmask();
    expect(report, "send", events::send(channel), 0);
    let upcalls = events::upcalls();
    report.expect(upcalls == 0, format_args!("{upcalls} upcalls of a masked channel"));
    report.expect(info::shared().is_pending(channel), format_args!("the masked channel's event is lost"));
    // Another one comes alone.
    if let Ok(other) = events::bind_ipi() {
        events::send(other);
        expect_count(report, "beside a masked channel", other, 1);
        events::close(other);
    }
    report.expect(info::shared().is_pending(channel), format_args!("the masked channel's event is gone"));
    events::mask();
    expect(report, "close", events::close(channel), 0);
    report.expect_of_covisor(!info::shared().is_pending(channel), format_args!("a closed channel's event still waits"));
}

/// `EVTCHNOP_unmask` has an event come that waited, and does nothing where none did.
fn unmask(report: &mut Report) {
    let Some(channel) = bind(report) else { return };
    events::unmask();
    for _ in 0..3 {
        info::shared().set_masked(channel, true);
        events::send(channel);
        expect_count(report, "masked", channel, 0);
        expect(report, "unmask", operate(channel::UNMASK, &mut [channel]), 0);
        expect_count(report, "unmasked", channel, 1);
        report.expect(!info::shared().is_masked(channel), format_args!("still masked"));
        expect(report, "unmask again", operate(channel::UNMASK, &mut [channel]), 0);
        expect_count(report, "unmasked again", channel, 0);
    }
    events::mask();
    events::close(channel);
}

/// The event that comes between "no event waits" and "events are unmasked": the guest unmasks, finds that one waits, and calls the
/// hypervisor for nothing; the upcall comes then. Without it, Linux would sleep on an event that came.
fn pending(report: &mut Report) {
    let Some(channel) = bind(report) else { return };
    type Call = (&'static str, fn() -> i64);
    let calls: [Call; 3] = [
        ("xen_version", || hypercall(call::XEN_VERSION, [version::VERSION])),
        ("a call that does not exist", || hypercall(1000, [])),
        ("block", events::block),
    ];
    for (name, make) in calls {
        events::send(channel);
        info::vcpu().mask.store(0, SeqCst);
        let _ = make();
        expect_count(report, name, channel, 1);
        events::mask();
    }
    // The guest sets the bits itself, as after it moved its vcpu_info: an upcall that finds what it finds.
    info::shared().set_pending(channel, true);
    info::vcpu().pending_selector.fetch_or(1 << (channel / 64), SeqCst);
    info::vcpu().pending.store(1, SeqCst);
    events::unmask();
    events::mask();
    expect_count(report, "set by the guest", channel, 1);
    // Nothing waits but the flag: an upcall for nothing is the guest's own doing.
    info::vcpu().pending.store(1, SeqCst);
    events::unmask();
    events::mask();
    report.expect(events::upcalls() == 1, format_args!("{} upcalls of a flag alone", events::upcalls()));
    // An exception's return unmasks, too.
    events::forget();
    events::send(channel);
    let raised = catch!(["ud2"]);
    report.expect(raised.is_some(), format_args!("UD2 is carried out"));
    expect_count(report, "after an exception with events masked", channel, 0);
    info::shared().set_pending(channel, false);
    info::vcpu().pending_selector.store(0, SeqCst);
    info::vcpu().pending.store(0, SeqCst);
    events::close(channel);
}

/// A channel that was closed is none, and is given again.
fn close(report: &mut Report) {
    let Some(channel) = bind(report) else { return };
    for _ in 0..3 {
        expect(report, "close", events::close(channel), 0);
        expect_error(report, "close again", operate(channel::CLOSE, &mut [channel]), errno::EINVAL);
        expect_error(report, "send", events::send(channel), errno::EINVAL);
        let result = operate(channel::UNMASK, &mut [channel]);
        report.expect_of_covisor(result == errno::EINVAL, format_args!("unmask: {result}"));
        expect_error(report, "bind to a vCPU", operate(channel::BIND_VCPU, &mut [channel, 0]), errno::EINVAL);
        let again = events::bind_ipi();
        report.expect(again == Ok(channel), format_args!("after {channel} was closed: {again:?}"));
        let result = operate(channel::BIND_VCPU, &mut [channel, 0]);
        report.expect_of_covisor(result == 0, format_args!("bind to the vCPU: {result}"));
    }
    events::close(channel);
}

/// Channels, virtual interrupts and vCPUs that do not exist.
fn refused(report: &mut Report) {
    for channel in [0, 200, 255, 256, 4095, 4096, 1 << 16, u32::MAX] {
        for operation in [channel::SEND, channel::CLOSE, channel::UNMASK, channel::BIND_VCPU] {
            let result = operate(operation, &mut [channel, 0]);
            let name = format_args!("operation {operation} on channel {channel:#x}: {result}");
            // Xen has nothing against unmasking a channel that is none.
            if operation == channel::UNMASK {
                report.expect_of_covisor(result < 0, name);
            } else {
                report.expect(result < 0, name);
            }
        }
    }
    for (virq, vcpu, wanted) in [
        (virq::COUNT, 0, errno::EINVAL),
        (u32::MAX, 0, errno::EINVAL),
        (virq::TIMER, 1, errno::ENOENT),
        (1, u32::MAX, errno::ENOENT),
    ] {
        let result = operate(channel::BIND_VIRQ, &mut [virq, vcpu, 0]);
        expect_error(report, "binding a virtual interrupt that is not there", result, wanted);
    }
    for vcpu in [1, u32::MAX] {
        expect_error(report, "binding to another vCPU", operate(channel::BIND_IPI, &mut [vcpu, 0]), errno::ENOENT);
    }
    let _ = timer::channel();
    let result = operate(channel::BIND_VIRQ, &mut [virq::TIMER, 0, 0]);
    expect_error(report, "binding the timer twice", result, errno::EEXIST);
}

/// As many channels as there are; then there are no more. All of them have events at once.
fn many(report: &mut Report) {
    /// More than a word of bits.
    const COUNT: usize = 100;
    let mut channels = [0_u32; COUNT];
    for channel in &mut channels {
        match events::bind_ipi() {
            Ok(bound) => *channel = bound,
            Err(error) => return report.fail(format_args!("no channel: {error}")),
        }
    }
    let distinct = channels.iter().enumerate().all(|(index, channel)| !channels[..index].contains(channel));
    report.expect(distinct, format_args!("a channel was given twice: {channels:?}"));
    events::forget();
    for channel in channels.iter().rev() {
        events::send(*channel);
    }
    events::unmask();
    events::mask();
    for channel in channels {
        let count = events::count(channel);
        report.expect(count == 1, format_args!("channel {channel}: {count} events"));
    }
    if xen::is_covisor() {
        let mut last = 0;
        let error = loop {
            match events::bind_ipi() {
                Ok(channel) => last = channel,
                Err(error) => break error,
            }
        };
        report.expect(error == errno::ENOSPC, format_args!("after the last channel: {error}"));
        for channel in 1..=last {
            // The timer's stays, and the console's and lines' are not closed by this.
            if channel != timer::channel() && !channels.contains(&channel) {
                let _ = operate(channel::CLOSE, &mut [channel]);
            }
        }
    }
    for channel in channels {
        events::close(channel);
    }
}

/// An event comes in user mode, too, as an upcall of the kernel's.
fn from_user_mode(report: &mut Report) {
    /// `jmp .`
    const LOOP: [u8; 2] = [0xeb, 0xfe];
    /// Interrupts on, and the bit that is always set.
    const RFLAGS: u64 = 1 << 9 | 2;
    let channel = timer::channel();
    for _ in 0..3 {
        events::forget();
        timer::after(200_000);
        let came = user::run_as(&LOOP, crate::exception::selector::USER_CODE, RFLAGS);
        let right = came.is_some_and(|fault| fault.vector == traps::EVENT);
        report.expect(right, format_args!("user mode ends by {came:?}"));
        expect_count(report, "in user mode", channel, 1);
    }
    // One that waits already comes before the first instruction.
    if let Ok(channel) = events::bind_ipi() {
        events::forget();
        events::send(channel);
        let came = user::run_as(&LOOP, crate::exception::selector::USER_CODE, RFLAGS);
        let at = crate::layout::USER_PAGE;
        let right = came.is_some_and(|fault| fault.vector == traps::EVENT && fault.rip == at);
        report.expect(right, format_args!("with an event waiting, user mode ends by {came:?}"));
        expect_count(report, "on the way into user mode", channel, 1);
        events::close(channel);
    }
}

/// Interrupt lines: bound once, asked for, ended; lines that nobody asserts do not come.
fn lines(report: &mut Report) {
    /// A line of a PCI device's, and none.
    const LINE: u32 = 16;
    const BEYOND: u32 = 1000;
    if !xen::is_covisor() {
        return report.skip(format_args!("needs covisor"));
    }
    let mut argument = [LINE, 0, 0];
    expect(report, "bind_pirq", operate(channel::BIND_PIRQ, &mut argument), 0);
    let channel = argument[2];
    report.expect(channel != 0, format_args!("bind_pirq gives channel 0"));
    let result = operate(channel::BIND_PIRQ, &mut [LINE, 0, 0]);
    report.expect(result == errno::EEXIST, format_args!("bind_pirq again: {result}"));
    for line in [BEYOND, u32::MAX] {
        let result = operate(channel::BIND_PIRQ, &mut [line, 0, 0]);
        report.expect(result == errno::EINVAL, format_args!("bind_pirq of line {line:#x}: {result}"));
    }
    let mut query = [LINE, 0];
    let result = hypercall(call::PHYSDEV_OP, [physdev::IRQ_STATUS_QUERY, at(query.as_mut_ptr())]);
    report.expect(result == 0 && query[1] == physdev::NEEDS_EOI, format_args!("irq_status_query: {result}, {query:?}"));
    for line in [LINE, BEYOND, u32::MAX] {
        let result = hypercall(call::PHYSDEV_OP, [physdev::EOI, at(&raw const line)]);
        report.expect(result == 0 || line != LINE, format_args!("eoi of line {line:#x}: {result}"));
    }
    events::forget();
    info::shared().set_masked(channel, false);
    events::unmask();
    events::mask();
    expect_count(report, "a line that nobody asserts", channel, 0);
    let result = events::send(channel);
    report.expect(result == errno::EINVAL, format_args!("send on a line's channel: {result}"));
    expect(report, "close", events::close(channel), 0);
}
