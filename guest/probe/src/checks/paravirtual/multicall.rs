//! `multicall`: every call of the list is made, and has its own result.

use super::super::Check;
use super::expect;
use crate::report::Report;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::abi::sched;
use crate::xen::abi::uvmf;
use crate::xen::abi::version;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::hypercall::at;
use crate::xen::multicall::entry;
use crate::xen::multicall::multicall;
use crate::xen::tables::RW;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-multicall", run: results },
    Check { name: "xen-multicall-long", run: long },
    Check { name: "xen-multicall-refused", run: refused },
];

/// Successes and failures side by side.
fn results(report: &mut Report) {
    let loan = Loan::new();
    let window = Window::new();
    let page = loan.take();
    frames::write(page, 0xabcd);
    let mut entries = [
        entry(call::XEN_VERSION, [version::VERSION, 0, 0]),
        entry(1000, [0; 3]),
        entry(call::UPDATE_VA_MAPPING, [Window::page(2), frames::machine(page) | RW, uvmf::INVLPG]),
        entry(call::XEN_VERSION, [version::GET_FEATURES, 0x1234_5678_9000, 0]),
        entry(call::STACK_SWITCH, [0xe02b, crate::exception::user_entry_stack(), 0]),
        entry(call::FPU_TASKSWITCH, [0, 0, 0]),
    ];
    expect(report, "the calls", multicall(&mut entries), 0);
    let [version, unknown, mapping, features, stack, fpu] = entries.map(|entry| entry[1].cast_signed());
    report.expect(version >= 4 << 16, format_args!("xen_version: {version:#x}"));
    expect(report, "a call that does not exist", unknown, errno::ENOSYS);
    expect(report, "update_va_mapping", mapping, 0);
    expect(report, "get_features, nowhere", features, errno::EFAULT);
    expect(report, "stack_switch", stack, 0);
    expect(report, "fpu_taskswitch", fpu, 0);
    let seen = frames::read(Window::page(2));
    report.expect(seen == 0xabcd, format_args!("the page that was mapped has {seen:#x}"));
    window.set(2, 0);
    expect(report, "no calls", multicall(&mut []), 0);
}

/// Many calls, some of which leave to the host, with events in between: all are made once, and the guest does not notice the breaks.
fn long(report: &mut Report) {
    const COUNT: usize = 200;
    let mut entries = [entry(call::XEN_VERSION, [version::VERSION, 0, 0]); COUNT];
    for entry in entries.iter_mut().step_by(7) {
        *entry = self::entry(call::SCHED_OP, [sched::YIELD, 0, 0]);
    }
    let channel = crate::xen::timer::channel();
    for round in 0..3 {
        events::forget();
        for entry in &mut entries {
            entry[1] = 0x5555;
        }
        crate::xen::timer::after(20_000);
        events::unmask();
        let result = multicall(&mut entries);
        events::mask();
        report.expect(result == 0, format_args!("round {round}: {result}"));
        for (index, entry) in entries.iter().enumerate() {
            let wanted = if index % 7 == 0 { 0 } else { entries[1][1] };
            report.expect(entry[1] == wanted, format_args!("round {round}: call {index} gave {:#x}", entry[1]));
        }
        report.expect(events::count(channel) <= 1, format_args!("{} events", events::count(channel)));
        crate::xen::timer::stop();
    }
    report.expect(entries[1][1] >= 4 << 16, format_args!("xen_version gave {:#x}", entries[1][1]));
}

/// What is no call of a list: another list, `iret`. It has an error, and those behind it are made.
fn refused(report: &mut Report) {
    let mut inner = [entry(call::XEN_VERSION, [version::VERSION, 0, 0])];
    let nested = entry(call::MULTICALL, [at(inner.as_mut_ptr()), 1, 0]);
    let mut entries = [nested, entry(call::XEN_VERSION, [version::VERSION, 0, 0])];
    let result = multicall(&mut entries);
    let [nested, version] = entries.map(|entry| entry[1].cast_signed());
    report.expect(result <= 0 && nested < 0, format_args!("a list in a list: {result}, {nested}"));
    report.expect_of_covisor(version >= 4 << 16, format_args!("the call behind it: {version:#x}"));
    report.expect(inner[0][1] == 0x5555, format_args!("the inner list was called: {:#x}", inner[0][1]));
    if !xen::is_covisor() {
        // Xen goes where the stack says.
        return;
    }
    let mut entries = [entry(call::IRET, [0; 3]), entry(u64::MAX, [0; 3])];
    let result = multicall(&mut entries);
    let [iret, unknown] = entries.map(|entry| entry[1].cast_signed());
    report.expect(result <= 0 && iret < 0, format_args!("iret in a list: {result}, {iret}"));
    report.expect(unknown == errno::ENOSYS, format_args!("the call behind it: {unknown}"));
}
