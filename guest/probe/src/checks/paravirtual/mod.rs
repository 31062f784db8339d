//! What a paravirtual guest is promised (Xen public headers): hypercalls with their results and errors, page tables, events, time,
//! segments, exceptions. What only covisor promises, and what Xen does in its own way, is told apart.

mod bounce;
mod calls;
mod channels;
mod debug_registers;
mod descriptors;
mod instructions;
mod iret;
mod memory;
mod multicall;
mod page_faults;
mod pins;
mod pointers;
mod segment_bases;
mod stores;
mod timer;
mod updates;
mod user_mode;
mod vcpu;

use super::Check;
use super::Group;
use super::Place;
use crate::report::Report;

const fn group(checks: &'static [Check]) -> Group {
    Group { checks, place: Place::Paravirtual }
}

/// All of them. The last one moves `vcpu_info` for good.
pub(super) const ALL: &[Group] = &[
    group(calls::CHECKS),
    group(pointers::CHECKS),
    group(instructions::CHECKS),
    group(memory::CHECKS),
    group(updates::CHECKS),
    group(page_faults::CHECKS),
    group(stores::CHECKS),
    group(pins::CHECKS),
    group(channels::CHECKS),
    group(timer::CHECKS),
    group(descriptors::CHECKS),
    group(segment_bases::CHECKS),
    group(bounce::CHECKS),
    group(iret::CHECKS),
    group(debug_registers::CHECKS),
    group(multicall::CHECKS),
    group(user_mode::CHECKS),
    group(vcpu::CHECKS),
];

/// Expects a result.
fn expect(report: &mut Report, name: &str, result: i64, wanted: i64) {
    report.expect(result == wanted, format_args!("{name}: {result}, not {wanted}"));
}

/// Expects an error: of covisor this one, of Xen any.
fn expect_error(report: &mut Report, name: &str, result: i64, wanted: i64) {
    report.expect(result < 0, format_args!("{name}: {result}"));
    report.expect_of_covisor(result == wanted, format_args!("{name}: {result}, not {wanted}"));
}
