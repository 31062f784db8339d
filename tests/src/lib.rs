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
mod engine;
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
        engine::SCENARIOS,
        &with_vt_x(),
        hostile::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
    ]
    .concat()
}

/// What is tried on the machine with VT-x, too: all in which the engine has a part. Bochs is slow, so of what asks the loader
/// and not the engine, and of what is only more of the same, every run has a part; the rest is there on demand.
fn with_vt_x() -> Vec<Scenario> {
    /// Boots are measured on QEMU's machine alone, and what a CPU without any extension makes of it is no question of the engine.
    const LEFT_OUT: [&str; 3] = ["cost/boot", "doctor/cpu-without-amd-v", "engine/auto-tells-why-none"];
    const ON_DEMAND: [&str; 15] = [
        "debian/boots-generic-6.1",
        "debian/compiles-and-runs",
        "debian/disk-round-trip",
        "debian/stop-powers-off",
        "dies-cleanly/killed-50-times",
        "doctor/driver-not-loaded",
        "host-state/registers-stay-on-two-cpus",
        "lifecycle/driver-in-use-stays",
        "lifecycle/name-is-taken",
        "lifecycle/ps-and-stop",
        "mini/exec-gives-a-signal-as-status",
        "mini/exec-is-binary-clean",
        "mini/exec-tells-of-a-guest-that-leaves",
        "mini/read-only-disk-stays",
        "mini/timeout-ends-it",
    ];
    let all = [
        dies_cleanly::SCENARIOS,
        &[dies_cleanly::FEWER],
        debian::SCENARIOS,
        mini::SCENARIOS,
        lifecycle::SCENARIOS,
        engine::SCENARIOS,
        cost::SCENARIOS,
        hostile::SCENARIOS,
        doctor::SCENARIOS,
        doctor::WITH_VT_X,
    ];
    let on_bochs = |scenario: &Scenario| {
        let there = scenario.on(RigKind::Bochs);
        if ON_DEMAND.contains(&there.name) { there.on_demand() } else { there }
    };
    all.concat().iter().filter(|scenario| !LEFT_OUT.contains(&scenario.name)).map(on_bochs).collect()
}
