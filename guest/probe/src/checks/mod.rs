//! The checks. Each is a function of one [`Report`]; its doc comment says what it looks at and where the manual says so.

use crate::cmdline::CommandLine;
use crate::exception;
use crate::report::Outcome;
use crate::report::Report;

mod breakpoints;
mod clock;
mod control;
mod control_bits;
mod cpuid;
mod debug;
mod delivery;
mod emulation;
mod instructions;
mod interrupts;
mod modes;
pub(crate) mod msr;
pub(crate) mod nmi;
mod ports;
mod real_mode;
mod software_interrupts;
mod state;
mod virtualization;

/// A check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Report),
}

/// All checks, in the order in which they run.
pub const ALL: &[&[Check]] = &[
    cpuid::CHECKS,
    virtualization::CHECKS,
    instructions::CHECKS,
    control::CHECKS,
    control_bits::CHECKS,
    msr::CHECKS,
    interrupts::CHECKS,
    nmi::CHECKS,
    software_interrupts::CHECKS,
    delivery::CHECKS,
    debug::CHECKS,
    breakpoints::CHECKS,
    ports::CHECKS,
    clock::CHECKS,
    state::CHECKS,
    modes::CHECKS,
    real_mode::CHECKS,
    emulation::CHECKS,
];

/// Runs the checks that `names` names, divided by commas; all for `all`. Prints a line each, and the sum.
pub fn run(names: &str, _line: &CommandLine) {
    let mut counts = [0_u32; 4];
    let wanted = |check: &Check| names == "all" || names.split(',').any(|name| name == check.name);
    for check in ALL.iter().copied().flatten().filter(|check| wanted(check)) {
        let mut report = Report::new();
        exception::forget_interrupts();
        if let Some(fault) = exception::guarded(|| (check.run)(&mut report)) {
            report.error(format_args!("stopped by {fault}"));
        }
        println!("probe: {}: {report}", check.name);
        let slot = match report.outcome() {
            Outcome::Success => 0,
            Outcome::Failure => 1,
            Outcome::Error => 2,
            Outcome::Skip => 3,
        };
        if let Some(count) = counts.get_mut(slot) {
            *count += 1;
        }
    }
    let [success, failure, error, skip] = counts;
    println!("probe: {success} success, {failure} failure, {error} error, {skip} skip");
}
