//! The emulated machine itself: what the other scenarios build on.

use std::time::Duration;

use xtask::rig::{CPU_PLAIN, Input, Rig};
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Error, Result};

/// The scenarios about the rig.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("rig/host-runs-scripts", |env, _| host_runs_scripts(env)),
    Scenario::new("rig/bytes-pass-unchanged", |env, _| bytes_pass_unchanged(env)),
    Scenario::new("rig/kvm-loads-where-the-cpu-has-svm", |env, _| kvm_loads(env)),
    Scenario::new("rig/no-svm-without-it", |env, _| no_svm(env)),
    Scenario::new("rig/sleeping-is-free-where-instructions-count", |env, _| sleeping_is_free(env)),
    Scenario::new("rig/a-dead-host-is-told", |env, _| a_dead_host_is_told(env)),
    Scenario::new("rig/a-slow-script-is-told", |env, _| a_slow_script_is_told(env)),
];

fn host_runs_scripts(env: &Env) -> Result<Verdict> {
    let mut machine = Rig::new(env)?.memory_mib(256).start()?;
    let outcome = machine.run("echo out; echo err >&2; exit 42")?;
    let fine = outcome.status == 42 && outcome.stdout == b"out\n" && outcome.stderr == b"err\n";
    if !fine {
        return Ok(Verdict::Fail(format!("{outcome:?}")));
    }
    let killed = machine.run("kill -9 $$")?;
    Ok(Verdict::check(killed.status == 128 + 9, || format!("{killed:?}")))
}

fn bytes_pass_unchanged(env: &Env) -> Result<Verdict> {
    // All byte values, in an order without a period that a buffer could hide.
    let data: Vec<u8> = (0..1_000_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut machine = Rig::new(env)?.memory_mib(256).start()?;
    let outcome = machine.run_with("cat", Input::Bytes(data.clone()))?;
    Ok(Verdict::check(outcome.status == 0 && outcome.stdout == data, || {
        format!("status {}, {} bytes of {}", outcome.status, outcome.stdout.len(), data.len())
    }))
}

fn kvm_loads(env: &Env) -> Result<Verdict> {
    let outcome = Rig::new(env)?.memory_mib(256).run("modprobe kvm_amd && cat /sys/module/kvm_amd/parameters/npt")?;
    Ok(Verdict::check(outcome.status == 0 && matches!(outcome.stdout_text().trim(), "1" | "Y"), || {
        format!("{outcome:?}")
    }))
}

fn no_svm(env: &Env) -> Result<Verdict> {
    let outcome = Rig::new(env)?.cpu(CPU_PLAIN).memory_mib(256).run("grep -cw svm /proc/cpuinfo")?;
    Ok(Verdict::check(outcome.stdout_text().trim() == "0", || format!("{outcome:?}")))
}

fn sleeping_is_free(env: &Env) -> Result<Verdict> {
    // Sleeping takes no wall-clock time there.
    let script = "a=$(cut -d' ' -f1 /proc/uptime); sleep 100; b=$(cut -d' ' -f1 /proc/uptime); echo ${a%.*} ${b%.*}";
    let outcome =
        Rig::new(env)?.memory_mib(256).count_instructions(true).timeout(Duration::from_secs(60)).run(script)?;
    let text = outcome.stdout_text();
    let times: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok(Verdict::check(matches!(times[..], [a, b] if (99..=102).contains(&(b - a))), || text))
}

fn a_dead_host_is_told(env: &Env) -> Result<Verdict> {
    match Rig::new(env)?.memory_mib(256).run("echo c >/proc/sysrq-trigger") {
        Err(Error::RigDied { log, .. }) if log.contains("sysrq triggered crash") => Ok(Verdict::Pass),
        other => Ok(Verdict::Fail(format!("{other:?}"))),
    }
}

fn a_slow_script_is_told(env: &Env) -> Result<Verdict> {
    // Where a program of the host's hangs is told as well, and what the CPU is at.
    let words = ["task:sleep ", "hrtimer_nanosleep", "CR3=", "dumping local APIC state"];
    match Rig::new(env)?.memory_mib(256).timeout(Duration::from_secs(2)).run("sleep 1000") {
        Err(Error::RigLate { what, log, .. })
            if what == "sleep 1000" && words.iter().all(|word| log.contains(word)) =>
        {
            Ok(Verdict::Pass)
        }
        other => Ok(Verdict::Fail(format!("{other:?}"))),
    }
}
