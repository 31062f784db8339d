//! The probe guest on engine `coop`, on the machine that has nothing else: the checks and the attacks of a paravirtual guest
//! (`guest/probe/src/checks/paravirtual`, `guest/probe/src/hostile/paravirtual`).

use std::time::Duration;
use std::time::Instant;

use covisor_probe::hostile::End;
use covisor_probe::hostile::paravirtual::ALL;
use xtask::rig::Outcome;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, on_host, on_own_host};
use crate::hostile;

/// Seconds that an attack has, in the emulated machine's time.
const SECONDS: f32 = 3.0;

/// Seconds that a guest has which goes on for ever.
const ENDLESS_SECONDS: f32 = 0.3;

/// One scenario for each attack.
macro_rules! attacks {
    ($($name:literal,)+) => {
        /// The scenarios about the probe on this engine.
        pub(crate) const SCENARIOS: &[Scenario] = &[
            Scenario::new("probe/every-check", |env, kind| on_host(env, kind, hostile::every_check)),
            hostile::BUSY_HOST,
            Scenario::new("hostile/ctrl-c-ends-a-loop", |env, kind| on_host(env, kind, hostile::ctrl_c_ends_a_loop)),
            $(Scenario::new(concat!("hostile/", $name), |env, kind| on_host(env, kind, |host| attack(host, $name))),)+
            Scenario::new("hostile/random-for-ten-minutes", |env, kind| {
                on_own_host(env, kind, |rig| Ok(rig.timeout(RANDOM_TIMEOUT)), random_for_ten_minutes)
            })
            .on_demand(),
        ];
    };
}

attacks! {
    "table-writable",
    "superpages",
    "self-linear",
    "flag-tricks",
    "cache-attributes",
    "exotic-table-store",
    "stale-tlb",
    "pinned-update",
    "frames-not-owned",
    "tables-not-owned",
    "roots-not-owned",
    "monitor-slots",
    "monitor-slots-user",
    "user-reads-monitor",
    "two-levels",
    "root-as-leaf",
    "deep-loops",
    "pin-many",
    "unpin-live",
    "shadow-flood",
    "iret-anything",
    "iret-without-user-root",
    "handlers-at-monitor",
    "handlers-nowhere",
    "failsafe-loop",
    "failed-return-without-handlers",
    "stack-at-monitor",
    "stack-in-table",
    "kernel-stack-at-monitor",
    "syscall-without-callback",
    "segment-bases",
    "gates",
    "gates-behind",
    "debug-at-monitor",
    "db-loop",
    "debug-status",
    "endless-counts",
    "multicall-itself",
    "memory-op-overflow",
    "event-ports",
    "records-anywhere",
    "event-storm",
    "timer-storm",
    "hypercall-flood",
    "crash",
    "triple-fault",
    "cli-loop",
    "idle",
    "exit-flood",
    "port-flood",
    "mmio-flood",
    "console-flood",
    "random-port",
    "random-msr",
    "random-code",
    "random-user-code",
    "random",
}

/// Lets the guest have the tables checked that the monitor made for it.
const CHECKS: &str = "--test-page-tables";

/// Lets the probe attack. One that comes back had the monitor's tables checked, in the middle of it and at its end.
fn attack(host: &mut Host, name: &str) -> Checked {
    let ends = |end| ALL.iter().any(|mode| mode.name == name && mode.end == end);
    let seconds = if ends(End::GoesOn) { ENDLESS_SECONDS } else { SECONDS };
    let outcome = hostile::attack(host, ALL, name, seconds, CHECKS)?;
    ensure!(!ends(End::ComesBack) || was_checked(&outcome, name), "the tables were not checked: {}", told(&outcome));
    Ok(())
}

/// Whether the probe says that tables were checked. What an attack wrote to the console may stand before it.
fn was_checked(outcome: &Outcome, name: &str) -> bool {
    let words = format!("probe: {name}: the hypervisor's tables were checked ");
    let text = outcome.stdout_text();
    let mut times = text.lines().filter_map(|line| line.split_once(&*words)?.1.strip_suffix(" times")?.parse().ok());
    times.any(|times: u32| times > 0)
}

/// How long guests with random input run, all in all.
const RANDOM_TOTAL: Duration = Duration::from_secs(600);
/// How long each of them may.
const RANDOM_SECONDS: u64 = 60;
/// Seconds after which a guest is ended that waits for what never comes, which is its own affair.
const RANDOM_PATIENCE: u64 = 90;
/// How long a script may take, with a busy machine in mind.
const RANDOM_TIMEOUT: Duration = Duration::from_secs(600);

/// Guests with random input, each with other numbers. One that ends before its time is followed by the next; those that do not tell how
/// often tables were checked.
fn random_for_ten_minutes(host: &mut Host) -> Checked {
    let begin = Instant::now();
    let (mut seed, mut whole) = (1, 0);
    while begin.elapsed() < RANDOM_TOTAL {
        let command = hostile::probe(&format!("test=random seed={seed} seconds={RANDOM_SECONDS}"));
        let outcome = host.sh(&format!("{command} {CHECKS} --timeout {RANDOM_PATIENCE}"))?;
        let came_back = outcome.status == 0
            && outcome.stdout_text().contains("probe: random: came back")
            && was_checked(&outcome, "random");
        ensure!(
            (came_back || hostile::has_ended(&outcome) || outcome.status == hostile::TIMED_OUT)
                && !hostile::has_broken_through(&outcome),
            "seed {seed}: {}",
            told(&outcome)
        );
        seed += 1;
        whole += u32::from(came_back);
    }
    ensure!(whole > 0, "none of {} guests came to its end, so none tells that tables were checked", seed - 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_of_a_paravirtual_probe_is_a_scenario() {
        for mode in ALL {
            let name = format!("hostile/{}", mode.name);
            assert!(SCENARIOS.iter().any(|scenario| scenario.name == name), "{name}");
        }
    }

    #[test]
    fn tables_were_checked_if_the_probe_says_how_often() {
        let says = |text: &str| {
            let outcome = Outcome { status: 0, stdout: text.into(), stderr: Vec::new(), host_log: String::new() };
            was_checked(&outcome, "pin-many")
        };
        assert!(says("x\nprobe: pin-many: the hypervisor's tables were checked 12 times\n"));
        assert!(says("\0\0probe: pin-many: the hypervisor's tables were checked 1 times\n"));
        assert!(!says("probe: pin-many: the hypervisor's tables were checked 0 times\n"));
        assert!(!says("probe: random: the hypervisor's tables were checked 12 times\n"));
        assert!(!says("probe: pin-many: the hypervisor does not check its tables, so nobody did\n"));
    }
}
