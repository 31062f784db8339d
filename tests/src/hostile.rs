//! A guest that attacks: each mode of the probe guest is one attack (`guest/probe/src/hostile.rs` has what it does).
//!
//! Whatever the guest does, it ends for a reason that is told in words, or it goes on until its time is over; meanwhile a
//! program on the same CPU of the host gets its turn.

use covisor_probe::hostile::{self, End, Mode};
use xtask::rig::Outcome;
use xtask::scenario::Scenario;

use crate::checked::{Checked, Failure, ensure, told};
use crate::host::{Host, PROBE, on_host, on_own_host};

/// Seconds that a guest has which goes on for ever, in the emulated machine's time: a second is 10⁹ instructions.
pub(crate) const SECONDS: f32 = 0.3;

/// What the probe says of an attack that did not fail. What an attack wrote to the console may stand before it.
const BROKE_THROUGH: &str = "probe: broke through: ";

/// How the line begins by which covisor tells why it ended a guest.
const ENDED: &str = "covisor: error: the guest was ended: ";

/// What that line has where the reason is an error of covisor's own (`covisor_abi::KillReason`): whatever a guest does, it must not
/// come to that.
const ERRORS_OF_COVISOR: [&str; 2] = ["which is an error in covisor", "the driver's page tables"];

/// The exit status of `--timeout`.
pub(crate) const TIMED_OUT: i32 = 124;

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
            Scenario::new("probe/interrupts-come-once", |env, kind| {
                on_own_host(env, kind, |rig| Ok(rig.cpus(2)), interrupts_come_once)
            }),
            BUSY_HOST,
            Scenario::new("hostile/ctrl-c-ends-a-loop", |env, kind| on_host(env, kind, ctrl_c_ends_a_loop)),
            $(Scenario::new(concat!("hostile/", $name), |env, kind| {
                on_host(env, kind, |host| attack(host, hostile::ALL, $name, SECONDS, "").map(drop))
            }),)+
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
pub(crate) fn probe(append: &str) -> String {
    format!("taskset -c $FIRST ./covisor {PROBE} --append \"cpu=$CPU {append}\" </dev/null")
}

/// An interrupt comes once also where the machine's other CPU has work of its own: an emulator that runs both by turns leaves the
/// guest's at any instruction then.
fn interrupts_come_once(host: &mut Host) -> Checked {
    const ROUNDS: usize = 20;
    let outcome = host.sh(&format!(
        "taskset -c $LAST ./host-watch stress 1 >/dev/null & busy=$!
        for round in $(seq {ROUNDS}); do {} || {{ status=$?; kill $busy; exit $status; }}; done
        kill $busy; wait $busy",
        probe("test=timer-once")
    ))?;
    let right = outcome.stdout_text().matches("timer-once: success").count();
    ensure!(outcome.status == 0 && right == ROUNDS, "{}", told(&outcome));
    Ok(())
}

/// The probe's checks where time goes on while others have the CPU: no check may take it for granted that it is never waited for.
pub(crate) const BUSY_HOST: Scenario = Scenario::new("probe/every-check-on-a-busy-host", |env, kind| {
    on_own_host(env, kind, |rig| Ok(rig.cpus(2)), every_check_on_a_busy_host)
})
.on_demand();

/// See there.
fn every_check_on_a_busy_host(host: &mut Host) -> Checked {
    const ROUNDS: u32 = 10;
    let status = host
        .sh("for cpu in $FIRST $LAST; do taskset -c $cpu ./host-watch stress 1 >/dev/null 2>&1 </dev/null & done")?
        .status;
    ensure!(status == 0, "the host's own programs did not start");
    (0..ROUNDS).try_for_each(|_| every_check_on_several_cpus(host))
}

/// Every check of the probe: the CPU that the guest sees is the one in the manual.
pub(crate) fn every_check(host: &mut Host) -> Checked {
    let (wrong, outcome) = wrong_checks(host)?;
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), told(&outcome));
    Ok(())
}

/// The same where an emulator emulates several CPUs. QEMU with AMD-V loses an interrupt there now and then that a guest is offered, until
/// the guest leaves the CPU for another reason: its VMRUN notes it in a word that other CPUs change meanwhile (`interrupt_request |=`
/// in `target/i386/tcg/sysemu/svm_helper.c`, QEMU 7.2). So with `svm` what was wrong is tried again by itself, and only what is wrong
/// each time is an error.
pub(crate) fn every_check_on_several_cpus(host: &mut Host) -> Checked {
    /// How often a check is tried again.
    const TRIES: usize = 2;
    if host.engine() != "svm" {
        return every_check(host);
    }
    let (wrong, outcome) = wrong_checks(host)?;
    for line in wrong {
        let name = line.split(": ").nth(1).unwrap_or_default();
        let success = format!("probe: {name}: success");
        let mut again = Vec::new();
        while again.len() < TRIES {
            let outcome = host.sh(&probe(&format!("test={name}")))?;
            if outcome.stdout_text().contains(&success) {
                break;
            }
            again.push(told(&outcome));
        }
        ensure!(again.len() < TRIES, "{line}\n{}\nagain: {}", told(&outcome), again.join("\nagain: "));
    }
    Ok(())
}

/// Runs every check, to the last one; gives the probe's lines about those that are wrong.
fn wrong_checks(host: &mut Host) -> Checked<(Vec<String>, Outcome)> {
    let outcome = host.sh(&probe("test=all"))?;
    let text = outcome.stdout_text();
    let is_wrong = |line: &&str| line.contains(": failure") || line.contains(": error");
    let wrong: Vec<String> = text.lines().filter(is_wrong).map(String::from).collect();
    let sum = text.lines().rev().find(|line| line.contains(" success, "));
    let right = sum.is_some_and(|sum| sum.contains(" 0 failure, 0 error"));
    // Both the sum and the status have to say what the lines do.
    ensure!(
        sum.is_some() && right == wrong.is_empty() && right == (outcome.status == 0),
        "{}\n{}",
        sum.unwrap_or("there is no sum"),
        told(&outcome)
    );
    Ok((wrong, outcome))
}

/// Lets the probe attack while a program on the same CPU sleeps for 10 ms again and again. A guest that goes on for ever does so for
/// so many seconds. `options` are covisor's.
pub(crate) fn attack(host: &mut Host, modes: &[Mode], name: &str, seconds: f32, options: &str) -> Checked<Outcome> {
    let mode = modes.iter().find(|mode| mode.name == name);
    let mode = mode.ok_or_else(|| Failure::Seen(format!("the probe has no mode {name}")))?;
    let script = format!(
        "taskset -c $FIRST ./host-watch ticks 10000 >/tmp/ticks & ticks=$!\n\
         {} --timeout {seconds} {options}\n\
         status=$?; kill $ticks; wait $ticks; cat /tmp/ticks >&2; exit $status",
        probe(&format!("test={name}"))
    );
    let outcome = host.sh(&script)?;
    check_end(mode.end, name, &outcome)?;
    Ok(outcome)
}

/// Checks how the guest ended, and that the program beside it had its turns.
fn check_end(end: End, name: &str, outcome: &Outcome) -> Checked {
    let stderr = outcome.stderr_text();
    let went_ahead = outcome.stdout_text().contains(&format!("probe: {name}: goes ahead"));
    ensure!(went_ahead, "the guest did not begin: {}", told(outcome));
    let ended = has_ended(outcome);
    let timed_out = outcome.status == TIMED_OUT && stderr.contains("covisor: error: the time of --timeout is over");
    let came_back = outcome.status == 0 && outcome.stdout_text().contains(&format!("probe: {name}: came back"));
    // A guest that does things at random may end itself, or switch itself off.
    let by_chance = name.starts_with("random") && (ended || outcome.status == 0);
    // Where QEMU's CPU raises #DB within #DB, a guest on engine `coop` cannot go on.
    let by_the_cpu = ended && stderr.contains("the CPU raised a debug exception within another one");
    let as_it_should = match end {
        End::Ends => ended,
        End::GoesOn => timed_out || by_chance || by_the_cpu,
        End::ComesBack => came_back,
    };
    ensure!(as_it_should, "the guest should have come to {end:?}: {}", told(outcome));
    ensure!(!has_broken_through(outcome), "the guest got what it must not have: {}", told(outcome));
    let late = late_by(&stderr);
    ensure!(
        late.is_some_and(|late| late <= LONGEST_SLEEP_US),
        "a program on the same CPU of the host did not get its turn within {LONGEST_SLEEP_US} us: {}",
        told(outcome)
    );
    Ok(())
}

/// Whether the guest was ended, and why was told.
pub(crate) fn has_ended(outcome: &Outcome) -> bool {
    outcome.status == GUEST_ENDED && has_reason(&outcome.stderr_text())
}

/// Whether the guest got what it must not have: the probe says so, or an error of covisor's ended the guest.
pub(crate) fn has_broken_through(outcome: &Outcome) -> bool {
    let says_so = outcome.stdout_text().contains(BROKE_THROUGH);
    let is_error = |reason: &str| ERRORS_OF_COVISOR.iter().any(|words| reason.contains(words));
    says_so || outcome.stderr_text().lines().filter_map(|line| line.strip_prefix(ENDED)).any(is_error)
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
pub(crate) fn ctrl_c_ends_a_loop(host: &mut Host) -> Checked {
    let script = format!("{} & sleep 1; kill -INT $(pidof covisor); wait $!", probe("test=cli-loop"));
    let outcome = host.sh(&script)?;
    let told_so = outcome.stderr_text().contains("covisor: error: the machine was ended by a signal");
    ensure!(outcome.status == 130 && told_so, "{}", told(&outcome));
    Ok(())
}

#[cfg(test)]
mod tests {
    use covisor_abi::KillReason;

    use super::*;

    #[test]
    fn every_attack_of_the_probe_is_a_scenario() {
        for mode in hostile::ALL {
            let name = format!("hostile/{}", mode.name);
            assert!(SCENARIOS.iter().any(|scenario| scenario.name == name), "{name}");
        }
    }

    #[test]
    fn covisors_own_errors_are_not_just_the_guests_end() {
        let ended = |reason: KillReason| Outcome {
            status: GUEST_ENDED,
            stdout: b"probe: random: goes ahead\n".to_vec(),
            stderr: format!(
                "covisor: engine coop: x\n{ENDED}{} (its instruction pointer is 0x20)\n",
                reason.with_detail(4)
            )
            .into_bytes(),
            host_log: String::new(),
        };
        for reason in [KillReason::ForeignPage, KillReason::MonitorFault, KillReason::NestedTables] {
            assert!(has_ended(&ended(reason)) && has_broken_through(&ended(reason)), "{reason:?}");
        }
        for reason in [KillReason::GuestCrashed, KillReason::BadKernelStack, KillReason::PageTableOutsideRam] {
            assert!(has_ended(&ended(reason)) && !has_broken_through(&ended(reason)), "{reason:?}");
        }
        for text in ["probe: broke through: x\n", "probe: x: goes ahead\n\0\0probe: broke through: x\n"] {
            assert!(has_broken_through(&Outcome { stdout: text.into(), ..ended(KillReason::GuestCrashed) }), "{text}");
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
