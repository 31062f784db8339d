//! covisor's end-to-end tests: the scenarios that `cargo xtask test` runs on the test machine.
//!
//! Each area has a module with its list of scenarios; [`all`] joins them.

mod bad_input;
mod bochs;
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

/// All scenarios, in the order in which they are begun: first the one that takes longest and builds the Debian image on its
/// way, then what needs no image, then what waits for it; many short ones at the end, so that no CPU is left alone.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let (first_debian, more_debian) = debian::SCENARIOS.split_at(1);
    [
        first_debian,
        dies_cleanly::SCENARIOS,
        rig::SCENARIOS,
        bochs::SCENARIOS,
        mini::SCENARIOS,
        contract::SCENARIOS,
        more_debian,
        lifecycle::SCENARIOS,
        cost::SCENARIOS,
        hostile::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
    ]
    .concat()
}
