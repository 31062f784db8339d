//! A guest that attacks: each mode of the probe guest is one attack (`guest/probe/src/hostile.rs` has what it does).
//!
//! Whatever the guest does, it ends for a reason that is told in words, or it goes on until its time is over; meanwhile a
//! program on the same CPU of the host gets its turn.

use covisor_probe::hostile::{self, End};
use xtask::rig::Outcome;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, PROBE, on_host};

/// Seconds that a guest has which goes on for ever, in the test machine's time: a second is 10⁹ instructions.
const SECONDS: f32 = 0.3;

/// The exit status of `--timeout`.
const TIMED_OUT: i32 = 124;

/// The exit status when the guest was ended or crashed.
const GUEST_ENDED: i32 = 3;

/// By how many microseconds a program beside the guest, which sleeps for 10 ms again and again, may wake too late. Most of
/// it is the host's own doing: its scheduler shares the CPU between equals by ticks of 4 ms.
const LONGEST_SLEEP_US: u32 = 20_000;

/// One scenario for each attack.
macro_rules! attacks {
    ($($name:literal,)+) => {
        /// The scenarios about hostile guests.
        pub(crate) const SCENARIOS: &[Scenario] = &[
            Scenario::new("probe/every-check", |env, kind| on_host(env, kind, every_check)),
            Scenario::new("hostile/ctrl-c-ends-a-loop", |env, kind| on_host(env, kind, ctrl_c_ends_a_loop)),
            $(Scenario::new(concat!("hostile/", $name), |env, kind| on_host(env, kind, |host| attack(host, $name))),)+
        ];
    };
}

attacks! {
    "triple-fault",
    "halt-forever",
    "jump-to-mmio",
    "jump-to-apic",
    "page-table-in-mmio",
    "page-table-beyond",
    "idt-in-mmio",
    "stack-in-mmio",
    "vector-on-mmio",
    "split-mmio",
    "cli-loop",
    "sti-loop",
    "pause-loop",
    "idle",
    "ac-loop",
    "db-loop",
    "exit-flood",
    "port-flood",
    "mmio-flood",
    "console-flood",
    "apic-flood",
    "nmi-flood",
    "timer-flood",
    "nmi-iret",
    "mov-ss-flood",
    "entry-state",
    "gif-off",
    "vmx-on",
    "init-self",
    "clock-anywhere",
    "random-msr",
    "random-cr",
    "random-port",
    "random-mmio",
    "random-code",
    "random-user-code",
}

/// The probe with a command line, on the host's first CPU.
fn probe(append: &str) -> String {
    format!("taskset 1 ./covisor {PROBE} --append \"cpu=$CPU {append}\" </dev/null")
}

/// Every check of the probe: the CPU that the guest sees is the one in the manual.
fn every_check(host: &mut Host) -> Checked {
    let outcome = host.sh(&probe("test=all"))?;
    let text = outcome.stdout_text();
    let wrong: Vec<&str> = text.lines().filter(|line| line.contains(": failure") || line.contains(": error")).collect();
    let sum = text.lines().rev().find(|line| line.contains(" success, ")).unwrap_or("there is no sum");
    ensure!(
        outcome.status == 0 && sum.contains(" 0 failure, 0 error"),
        "{sum}\n{}\n{}",
        wrong.join("\n"),
        told(&outcome)
    );
    Ok(())
}

/// Lets the probe attack while a program on the same CPU sleeps for 10 ms again and again.
fn attack(host: &mut Host, name: &str) -> Checked {
    let Some(mode) = hostile::find(name) else {
        ensure!(false, "the probe has no mode {name}");
        return Ok(());
    };
    let script = format!(
        "taskset 1 ./host-watch ticks 10000 >/tmp/ticks & ticks=$!\n\
         {} --timeout {SECONDS}\n\
         status=$?; kill $ticks; wait $ticks; cat /tmp/ticks >&2; exit $status",
        probe(&format!("test={name}"))
    );
    let outcome = host.sh(&script)?;
    check_end(mode.end, name, &outcome)
}

/// Checks how the guest ended, and that the program beside it had its turns.
fn check_end(end: End, name: &str, outcome: &Outcome) -> Checked {
    let stderr = outcome.stderr_text();
    let went_ahead = outcome.stdout_text().contains(&format!("probe: {name}: goes ahead"));
    ensure!(went_ahead, "the guest did not begin: {}", told(outcome));
    let ended = outcome.status == GUEST_ENDED && has_reason(&stderr);
    let timed_out = outcome.status == TIMED_OUT && stderr.contains("covisor: error: the time of --timeout is over");
    let came_back = outcome.status == 0 && outcome.stdout_text().contains(&format!("probe: {name}: came back"));
    // A guest that does things at random may end itself, or switch itself off.
    let by_chance = name.starts_with("random-") && (ended || outcome.status == 0);
    let as_it_should = match end {
        End::Ends => ended,
        End::GoesOn => timed_out || by_chance,
        End::ComesBack => came_back,
    };
    ensure!(as_it_should, "the guest should have come to {end:?}: {}", told(outcome));
    let late = late_by(&stderr);
    ensure!(
        late.is_some_and(|late| late <= LONGEST_SLEEP_US),
        "a program on the same CPU of the host did not get its turn within {LONGEST_SLEEP_US} us: {}",
        told(outcome)
    );
    Ok(())
}

/// Whether covisor told in a sentence why the guest ended: no bare number, no debug output.
fn has_reason(stderr: &str) -> bool {
    let reasons =
        ["the guest was ended: ", "the guest shut down by a triple fault", "the guest halted with interrupts off"];
    let error = stderr.lines().find_map(|line| line.strip_prefix("covisor: error: ")).unwrap_or_default();
    reasons.iter().any(|reason| error.starts_with(reason))
}

/// By how much the longest of the watching program's sleeps was too long, in microseconds, from the line that it prints.
pub(crate) fn late_by(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("ticks: "))?;
    line.rsplit_once("at most ")?.1.strip_suffix(" us")?.parse().ok()
}

/// Ctrl-C ends a guest that never gives the CPU up.
fn ctrl_c_ends_a_loop(host: &mut Host) -> Checked {
    let script = format!("{} & sleep 1; kill -INT $(pidof covisor); wait $!", probe("test=cli-loop"));
    let outcome = host.sh(&script)?;
    let told_so = outcome.stderr_text().contains("covisor: error: the machine was ended by a signal");
    ensure!(outcome.status == 130 && told_so, "{}", told(&outcome));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_of_the_probe_is_a_scenario() {
        for mode in hostile::ALL {
            let name = format!("hostile/{}", mode.name);
            assert!(SCENARIOS.iter().any(|scenario| scenario.name == name), "{name}");
        }
    }

    #[test]
    fn a_reason_is_a_sentence() {
        assert!(has_reason("covisor: engine svm: x\ncovisor: error: the guest was ended: it jumped\n"));
        assert!(!has_reason("covisor: error: 7\n"));
        assert!(!has_reason("the guest was ended: x"));
    }

    #[test]
    fn the_watching_programs_line_is_read() {
        assert_eq!(late_by("x\nticks: 90, late by at most 512 us\n"), Some(512));
        assert_eq!(late_by("ticks: none"), None);
    }
}
