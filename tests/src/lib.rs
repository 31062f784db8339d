//! covisor's end-to-end tests: the scenarios that `cargo xtask test` runs on the test machine.
//!
//! Each area has a module with its list of scenarios; [`all`] joins them.

mod bad_input;
mod checked;
mod cost;
mod debian;
mod dies_cleanly;
mod doctor;
mod host;
mod hostile;
mod lifecycle;
mod mini;
mod rig;

use xtask::scenario::Scenario;

/// The scenarios of a whole run: those that were seen to pass on a clean checkout.
#[must_use]
pub fn proven() -> Vec<Scenario> {
    rig::SCENARIOS.to_vec()
}

/// All scenarios, the quick and basic ones first. Those that [`proven`] leaves out run when they are named.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [
        rig::SCENARIOS,
        mini::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
        lifecycle::SCENARIOS,
        hostile::SCENARIOS,
        cost::SCENARIOS,
        dies_cleanly::SCENARIOS,
        debian::SCENARIOS,
    ]
    .concat()
}
