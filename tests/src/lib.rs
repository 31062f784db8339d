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

use xtask::rig::RigKind;
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
        &with_vt_x(),
        hostile::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
    ]
    .concat()
}

/// What is tried on the machine with VT-x, too: all in which the engine has a part.
fn with_vt_x() -> Vec<Scenario> {
    /// Boots are measured on QEMU's machine alone, other guests' kernels and the Debian guest's work are the same for both
    /// engines, and what a CPU without any extension makes of it is no question of the engine.
    const LEFT_OUT: [&str; 6] = [
        "cost/boot",
        "debian/boots-generic-6.1",
        "debian/compiles-and-runs",
        "debian/disk-round-trip",
        "debian/stop-powers-off",
        "doctor/cpu-without-amd-v",
    ];
    let all = [
        dies_cleanly::SCENARIOS,
        debian::SCENARIOS,
        mini::SCENARIOS,
        lifecycle::SCENARIOS,
        cost::SCENARIOS,
        hostile::SCENARIOS,
        doctor::SCENARIOS,
    ];
    let is_in = |scenario: &&Scenario| !LEFT_OUT.contains(&scenario.name);
    all.concat().iter().filter(is_in).map(|scenario| scenario.on(RigKind::Bochs)).collect()
}
