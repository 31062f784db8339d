//! covisor's end-to-end tests: the scenarios that `cargo xtask test` runs on the test machine.
//!
//! Each area has a module with its list of scenarios; [`all`] joins them.

mod rig;

use xtask::scenario::Scenario;

/// All scenarios, the quick and basic ones first.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [rig::SCENARIOS].concat()
}
