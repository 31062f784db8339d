//! covisor's end-to-end tests: the scenarios that `cargo xtask test` runs on the emulated machine.
//!
//! Each area has a module with its list of scenarios; [`all`] joins them.

mod bad_input;
mod bochs;
mod checked;
mod conformance;
mod contract;
mod coop;
mod coop_probe;
mod cost;
mod day;
mod debian;
mod dies_cleanly;
mod disk;
mod doctor;
mod engine;
mod host;
mod host_state;
mod hostile;
mod images;
mod lifecycle;
mod memory;
mod mini;
mod net;
mod nt;
mod real_work;
mod rig;
mod share;
mod undisturbed;
mod wine;

use xtask::rig::RigKind;
use xtask::scenario::Scenario;

/// All scenarios, in the order in which they are begun: first the one that takes longest and builds the Debian image on its
/// way, then what needs no image, then what waits for it; many short ones at the end, so that no CPU is left alone.
///
/// # Panics
/// Where the lists of what is on demand name what there is not.
#[must_use]
pub fn all() -> Vec<Scenario> {
    /// What takes minutes, and what another scenario shows as well: `contract/run-debian`, and the same on the machine without
    /// virtualization.
    const ON_DEMAND: [&str; 5] = [
        "debian/boots-cloud-6.1",
        "dies-cleanly/killed-50-times",
        "memory/ten-idle-debians",
        "memory/ten-idle-guests",
        "real-work/memory-pressure",
    ];
    let (first_debian, more_debian) = debian::SCENARIOS.split_at(1);
    // What is built for Windows is built beside scenarios that do not wait for it.
    let (first_wine, more_wine) = wine::SCENARIOS.split_at(1);
    let mut all = [
        first_debian,
        dies_cleanly::SCENARIOS,
        &[dies_cleanly::FEWER],
        rig::SCENARIOS,
        bochs::SCENARIOS,
        mini::SCENARIOS,
        contract::SCENARIOS,
        more_debian,
        lifecycle::SCENARIOS,
        lifecycle::ON_ONE_ENGINE,
        memory::SCENARIOS,
        day::SCENARIOS,
        net::SCENARIOS,
        share::SCENARIOS,
        share::ON_ONE_ENGINE,
        real_work::SCENARIOS,
        undisturbed::SCENARIOS,
        host_state::SCENARIOS,
        &[host_state::ON_QEMU],
        cost::SCENARIOS,
        engine::SCENARIOS,
        conformance::SCENARIOS,
        &without_virtualization(),
        first_wine,
        &with_vt_x(),
        hostile::SCENARIOS,
        more_wine,
        nt::SCENARIOS,
        nt::OF_MACHINES,
        disk::SCENARIOS,
        disk::ON_ONE_ENGINE,
        images::SCENARIOS,
        bad_input::SCENARIOS,
        doctor::SCENARIOS,
    ]
    .concat();
    for listed in ON_DEMAND {
        assert!(
            all.iter().any(|scenario| scenario.full_name() == listed),
            "there is no scenario {listed} to be on demand"
        );
    }
    for scenario in &mut all {
        if ON_DEMAND.contains(&scenario.full_name().as_str()) {
            *scenario = scenario.on_demand();
        }
    }
    all
}

/// What is tried on the machine with VT-x, too: all in which the engine has a part. Bochs is slow, so of what asks the loader
/// and not the engine, and of what is only more of the same, every run has a part; the rest is there on demand.
fn with_vt_x() -> Vec<Scenario> {
    /// Boots, network and disks are measured on QEMU's machine alone, and what a CPU without any extension makes of it is no question
    /// of the engine.
    const LEFT_OUT: [&str; 5] =
        ["cost/beside-qemu", "cost/boot", "cost/io", "doctor/cpu-for-no-engine", "engine/auto-tells-why-none"];
    const ON_DEMAND: [&str; 41] = [
        "debian/boots-cloud-6.1",
        "debian/boots-generic-6.1",
        "debian/compiles-and-runs",
        "debian/disk-round-trip",
        "debian/stop-powers-off",
        "dies-cleanly/200-machines-one-after-another",
        "dies-cleanly/killed-12-times",
        "dies-cleanly/killed-50-times",
        "dies-cleanly/killed-on-two-cpus",
        "disk/comes-and-goes-while-the-guest-runs",
        "doctor/driver-not-loaded",
        "engine/coop-where-there-is-better",
        "host-state/nmis-reach-the-host",
        "host-state/nmis-reach-the-host-while-the-guest-idles",
        "host-state/registers-stay",
        "host-state/registers-stay-on-two-cpus",
        "host-state/the-kernels-own-stays",
        "host-state/the-kernels-own-stays-on-two-cpus",
        "lifecycle/a-signal-powers-off",
        "lifecycle/clock-follows-the-host",
        "lifecycle/console-and-logs",
        "lifecycle/driver-in-use-stays",
        "lifecycle/exec-in-a-running-guest",
        "lifecycle/guests-with-names",
        "lifecycle/name-is-taken",
        "lifecycle/ps-and-stop",
        "memory/ten-idle-debians",
        "memory/ten-idle-guests",
        "memory/the-host-has-none-left",
        "memory/what-a-guest-frees-comes-back",
        "mini/disk-keeps-what-is-written",
        "mini/exec-gives-a-signal-as-status",
        "mini/exec-is-binary-clean",
        "mini/exec-tells-of-a-guest-that-leaves",
        "mini/read-only-disk-stays",
        "mini/timeout-ends-it",
        "nt/conformance",
        "nt/runs-guests-on-5.2",
        "nt/runs-guests-on-two-cpus",
        "probe/interrupts-come-once",
        "share/both-see-what-the-other-does",
    ];
    let all = [
        dies_cleanly::SCENARIOS,
        &[dies_cleanly::FEWER],
        debian::SCENARIOS,
        disk::SCENARIOS,
        mini::SCENARIOS,
        lifecycle::SCENARIOS,
        memory::SCENARIOS,
        &[net::BRIEF],
        share::SCENARIOS,
        host_state::SCENARIOS,
        &[host_state::COOP_THERE],
        engine::SCENARIOS,
        conformance::SCENARIOS,
        cost::SCENARIOS,
        hostile::SCENARIOS,
        nt::SCENARIOS,
        nt::OF_MACHINES,
        doctor::SCENARIOS,
        doctor::WITH_VT_X,
    ];
    twins(&all.concat(), RigKind::Bochs, &LEFT_OUT, &ON_DEMAND)
}

/// What is tried on the machine without virtualization, too. Linux takes twice as long to boot there, so of what asks the loader
/// and not the engine, and of what is only more of the same, every run has a part; the rest is there on demand.
fn without_virtualization() -> Vec<Scenario> {
    /// What takes KVM, which runs no guests there; what takes another engine; and what no engine has a part in.
    const LEFT_OUT: [&str; 9] = [
        "cost/beside-qemu",
        "cost/boot",
        "cost/exits",
        "cost/io",
        "doctor/cpu-for-no-engine",
        "doctor/kvm-does-not-get-what-covisor-has",
        "doctor/taken-by-kvm",
        "engine/auto-tells-why-none",
        "engine/coop-where-there-is-better",
    ];
    const ON_DEMAND: [&str; 24] = [
        "debian/boots-generic-6.1",
        "debian/boots-on-epyc-6.1",
        "debian/boots-on-epyc-6.12",
        "debian/boots-on-five-levels-6.1",
        "debian/boots-on-intel-6.12",
        "debian/compiles-and-runs",
        "debian/disk-round-trip",
        "debian/stop-powers-off",
        "dies-cleanly/killed-50-times",
        "disk/comes-and-goes-while-the-guest-runs",
        "host-state/registers-stay",
        "host-state/the-kernels-own-stays",
        "lifecycle/a-signal-powers-off",
        "lifecycle/clock-follows-the-host",
        "lifecycle/console-and-logs",
        "lifecycle/guests-with-names",
        "mini/exec-gives-a-signal-as-status",
        "mini/read-only-disk-stays",
        "mini/timeout-ends-it",
        "nt/runs-guests-on-5.2",
        "nt/runs-guests-on-two-cpus",
        "real-work/memory-pressure",
        "share/both-see-what-the-other-does",
        "undisturbed/host-under-stress",
    ];
    let all = [
        dies_cleanly::SCENARIOS,
        &[dies_cleanly::FEWER],
        debian::SCENARIOS,
        disk::SCENARIOS,
        coop::SCENARIOS,
        mini::SCENARIOS,
        lifecycle::SCENARIOS,
        day::SCENARIOS,
        &[net::BRIEF],
        share::SCENARIOS,
        host_state::SCENARIOS,
        engine::SCENARIOS,
        cost::SCENARIOS,
        doctor::SCENARIOS,
        real_work::SCENARIOS,
        real_work::WITH_BREAKPOINTS,
        undisturbed::SCENARIOS,
        bad_input::WITH_COOP,
        coop_probe::SCENARIOS,
        nt::SCENARIOS,
    ];
    twins(&all.concat(), RigKind::Plain, &LEFT_OUT, &ON_DEMAND)
}

/// These scenarios on another machine, without those that are left out there.
///
/// # Panics
/// Where a list names what there is not: a scenario with a new name would join each run, or leave it, unnoticed.
fn twins(all: &[Scenario], kind: RigKind, left_out: &[&str], on_demand: &[&str]) -> Vec<Scenario> {
    for listed in left_out.iter().chain(on_demand) {
        assert!(all.iter().any(|scenario| scenario.name == *listed), "there is no scenario {listed} to leave out");
    }
    let there = |scenario: &Scenario| {
        let there = scenario.on(kind);
        if on_demand.contains(&there.name) { there.on_demand() } else { there }
    };
    all.iter().filter(|scenario| !left_out.contains(&scenario.name)).map(there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_scenarios_apart() {
        let names: Vec<String> = all().iter().map(Scenario::full_name).collect();
        let different: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(names.len(), different.len());
    }
}
