//! `vcpu_op`: the only vCPU, and where its `vcpu_info` is.

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::cpu;
use crate::exception::vector;
use crate::report::Report;
use crate::user;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::abi::vcpu;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::info;
use crate::xen::info::VCPU_INFO_SIZE;
use crate::xen::tables;
use crate::xen::timer;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "xen-vcpus", run: vcpus }, Check { name: "xen-vcpu-info", run: vcpu_info }];

/// There is one: Linux looks for others as far as it has room for them, and wants `-ENOENT`.
fn vcpus(report: &mut Report) {
    expect(report, "vCPU 0 is up", hypercall(call::VCPU_OP, [vcpu::IS_UP, 0, 0]), 1);
    for number in [1, 2, 31, 100, 8191, u64::from(u32::MAX)] {
        for operation in [vcpu::IS_UP, vcpu::UP] {
            let result = hypercall(call::VCPU_OP, [operation, number, 0]);
            report.expect(result == errno::ENOENT, format_args!("operation {operation} of vCPU {number}: {result}"));
        }
    }
    if xen::is_covisor() {
        let words = [0_u64; 4];
        for operation in [vcpu::INITIALISE, vcpu::SEND_NMI, 13, 100] {
            let result = hypercall(call::VCPU_OP, [operation, 0, at(words.as_ptr())]);
            report.expect(result == errno::ENOSYS, format_args!("operation {operation}: {result}"));
        }
    }
}

/// `register_vcpu_info`: places that are refused; then one that is taken, where everything goes on.
fn vcpu_info(report: &mut Report) {
    let register = |frame: u64, offset: u64| {
        let argument = [frame, offset];
        hypercall(call::VCPU_OP, [vcpu::REGISTER_VCPU_INFO, 0, at(argument.as_ptr())])
    };
    let page = frames::take_for_good();
    let frame = tables::frame(page);
    for offset in [4096 - VCPU_INFO_SIZE + 8, 4096, 1 << 31] {
        expect_error(report, "over the page's end", register(frame, offset), errno::EINVAL);
    }
    for frame in [frames::count() + (1 << 28), u64::MAX >> 12, u64::MAX] {
        expect_error(report, "no frame of the guest's", register(frame, 0), errno::EINVAL);
    }
    let (cr2, time) = (0x1234_5678, timer::now());
    let _ = catch!(["mov al, [{0}]"], in(reg) cr2, out("al") _);
    events::mask();
    let offset = 1024;
    expect(report, "the move", register(frame, offset), 0);
    info::set_vcpu(page + offset);
    report.expect(cpu::cr2() == cr2, format_args!("CR2 is {:#x}", cpu::cr2()));
    report.expect(timer::now() >= time, format_args!("the time is {}, was {time}", timer::now()));
    let masked = info::vcpu().mask.load(core::sync::atomic::Ordering::SeqCst);
    report.expect(masked == 1, format_args!("the mask is {masked}"));
    // What was set on the way comes once, perhaps for nothing.
    events::unmask();
    events::mask();
    match events::bind_ipi() {
        Ok(channel) => {
            events::forget();
            events::send(channel);
            events::unmask();
            events::mask();
            report.expect(events::count(channel) == 1, format_args!("{} events", events::count(channel)));
            events::close(channel);
        }
        Err(error) => report.fail(format_args!("no channel: {error}")),
    }
    events::forget();
    timer::after(100_000);
    events::block();
    events::mask();
    report.expect(events::count(timer::channel()) == 1, format_args!("the timer's event does not come"));
    let raised = user::run(&[0xa0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let right = raised.is_some_and(|fault| fault.vector == vector::PF) && crate::exception::caught_cr2() == 1 << 32;
    report.expect(right, format_args!("a page fault: {raised:?}, CR2 {:#x}", crate::exception::caught_cr2()));
}
