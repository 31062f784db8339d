//! The checks. Each is a function of one [`Report`]; its doc comment says what it looks at and where the manual says so.

use crate::cmdline::CommandLine;
use crate::exception;
use crate::report::Outcome;
use crate::report::Report;
use crate::xen;

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
mod paravirtual;
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

/// Checks that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The checks.
    pub checks: &'static [Check],
    /// Where they run.
    pub place: Place,
}

/// Where checks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On every engine; some of them skip what a paravirtual guest does not have.
    Anywhere,
    /// Where the guest has a machine of its own. A paravirtual one does not have what is named.
    OwnMachine(&'static str),
    /// Where the guest is paravirtual.
    Paravirtual,
}

impl Place {
    /// What checks of this place need that is not there.
    fn missing(self, paravirtual: bool) -> Option<&'static str> {
        match self {
            Self::OwnMachine(needs) if paravirtual => Some(needs),
            Self::Paravirtual if !paravirtual => Some("the Xen PV ABI"),
            _ => None,
        }
    }
}

const fn anywhere(checks: &'static [Check]) -> Group {
    Group { checks, place: Place::Anywhere }
}

const fn own_machine(needs: &'static str, checks: &'static [Check]) -> Group {
    Group { checks, place: Place::OwnMachine(needs) }
}

/// All checks, in the order in which they run.
pub const ALL: &[&[Group]] = &[MACHINE, paravirtual::ALL];

/// Those of a machine as such.
const MACHINE: &[Group] = &[
    anywhere(cpuid::CHECKS),
    anywhere(virtualization::CHECKS),
    anywhere(instructions::CHECKS),
    anywhere(control::CHECKS),
    own_machine("control registers of its own", control_bits::CHECKS),
    anywhere(msr::CHECKS),
    own_machine("an APIC", interrupts::CHECKS),
    own_machine("an APIC", nmi::CHECKS),
    anywhere(software_interrupts::CHECKS),
    own_machine("an interrupt table of its own", delivery::CHECKS),
    anywhere(debug::CHECKS),
    anywhere(breakpoints::CHECKS),
    anywhere(ports::CHECKS),
    anywhere(clock::CHECKS),
    anywhere(state::CHECKS),
    own_machine("ring 0", modes::CHECKS),
    own_machine("ring 0", real_mode::CHECKS),
    anywhere(emulation::CHECKS),
];

/// Skips a check that is not for paravirtual guests, and says what it `needs`.
fn skips_paravirtual(report: &mut Report, needs: &str) -> bool {
    if xen::active() {
        report.skip(format_args!("needs {needs}"));
    }
    xen::active()
}

/// Runs the checks that `names` names, divided by commas; all for `all`. Prints a line each, and the sum.
pub fn run(names: &str, _line: &CommandLine) {
    let mut counts = [0_u32; 4];
    let wanted = |check: &Check| names == "all" || names.split(',').any(|name| name == check.name);
    let all = ALL.iter().copied().flatten().flat_map(|group| group.checks.iter().map(|check| (group.place, check)));
    for (place, check) in all.filter(|(_, check)| wanted(check)) {
        let mut report = Report::new();
        exception::forget_interrupts();
        if let Some(missing) = place.missing(xen::active()) {
            report.skip(format_args!("needs {missing}"));
        } else if let Some(fault) = exception::guarded(|| (check.run)(&mut report)) {
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
