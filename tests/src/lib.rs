//! covisor's end-to-end tests: the scenarios that `cargo xtask test` runs on the test machine.
//!
//! Each area has a module with its list of scenarios; [`all`] joins them.

mod bad_input;
mod checked;
mod contract;
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

/// All scenarios: the longest ones first, so that none of them is left alone at the end.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [
        debian::SCENARIOS,
        contract::SCENARIOS,
        dies_cleanly::SCENARIOS,
        rig::SCENARIOS,
        mini::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
        lifecycle::SCENARIOS,
        hostile::SCENARIOS,
        cost::SCENARIOS,
    ]
    .concat()
}
