//! Running machines: the list of them, ending them, and the driver beneath them; and the host's registers beside them.

use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, PROBE, on_host, on_own_host};

/// The scenarios about running machines.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("lifecycle/driver-in-use-stays", |env, kind| on_host(env, kind, driver_in_use_stays)),
    Scenario::new("lifecycle/ps-and-stop", |env, kind| on_host(env, kind, ps_and_stop)),
    Scenario::new("lifecycle/name-is-taken", |env, kind| on_host(env, kind, name_is_taken)),
    Scenario::new("lifecycle/two-machines-at-once", |env, kind| on_host(env, kind, two_machines_at_once)),
    Scenario::new("host-state/registers-stay", |env, kind| on_own_host(env, kind, Ok, registers_stay)),
    Scenario::new("host-state/registers-stay-on-two-cpus", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), registers_stay)
    }),
    Scenario::new("host-state/nmis-reach-the-host", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), nmis_reach_the_host)
    }),
    Scenario::new("host-state/msrs-stay", |env, kind| on_host(env, kind, msrs_stay)),
];

/// A machine in the background that goes on until it is ended; the script goes on when it runs. Its process is `$pid`.
fn endless(name: &str) -> String {
    format!(
        "./covisor {PROBE} --append test=idle --name {name} </dev/null >/tmp/{name} 2>/tmp/{name}.errors & pid=$!
        until grep -q 'goes ahead' /tmp/{name}; do kill -0 $pid || exit; sleep 0.02; done\n"
    )
}

fn driver_in_use_stays(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "{}rmmod covisor; echo \"rmmod's status $?\"
        ./covisor driver remove; echo \"remove's status $?\"
        ./covisor driver status
        kill $pid; wait $pid; ./covisor driver remove && ./covisor driver install --module covisor.ko",
        endless("one")
    ))?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    ensure!(
        outcome.status == 0
            && text.contains("rmmod's status 1")
            && text.contains("remove's status 2")
            && text.lines().any(|line| line.split_whitespace().eq(["users", "1"]))
            && errors.contains("covisor: error: machines are running on the driver"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

fn ps_and_stop(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "{}./covisor ps --json; ./covisor ps
        ./covisor stop one --timeout 1; echo \"stop's status $?\"
        ./covisor ps | grep ^one
        ./covisor stop one --force; echo \"forced stop's status $?\"
        wait $pid; echo \"its status $?\"; cat /tmp/one.errors >&2; ./covisor ps | wc -l",
        endless("one")
    ))?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    let engine = host.engine();
    let listed = |state: &str| {
        text.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], ["one", _, is, by, "64", _, _] if is == state && by == engine)
        })
    };
    ensure!(
        text.starts_with(r#"{"name":"one","pid":"#)
            && listed("running")
            && text.contains("stop's status 1")
            && errors.contains("covisor: error: one did not power off within 1 s")
            && listed("stopping")
            && text.contains("forced stop's status 0\nits status 130\n1\n")
            && errors.contains("covisor: error: the machine was ended by `covisor stop`"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

fn name_is_taken(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "{}./covisor {PROBE} --name one </dev/null; echo \"status $?\"; kill $pid; wait $pid",
        endless("one")
    ))?;
    ensure!(
        outcome.stdout == b"status 1\n"
            && outcome.stderr_text().contains("covisor: error: a machine named one runs already"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// One boots Linux while the other, which has to stand back, floods the driver with exits; each ends as it should.
fn two_machines_at_once(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "sh -c 'renice -n 10 -p $$ >/dev/null; exec ./covisor {PROBE} --append test=exit-flood --name flood' \
            </dev/null >/tmp/flood 2>/tmp/flood.errors & pid=$!
        ./covisor {MINI} --exec 'dmesg | grep -c .; sha256sum /bin/busybox' </dev/null
        ./covisor ps --json | grep -c flood
        kill $pid; wait $pid; echo \"its status $?\""
    ))?;
    let alone = host.output("sha256sum /bin/busybox")?;
    let text = outcome.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        matches!(lines[..], [messages, sum, "1", "its status 130"] if messages != "0" && sum == alone.trim_end()),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// A program's vector, control, segment and debug registers, while Linux boots and the probe does its worst on its CPU.
fn registers_stay(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "taskset 1 ./host-watch registers >/tmp/registers & watch=$!
        taskset 1 ./covisor {MINI} --exec 'sha256sum /bin/busybox; dmesg | tail -n 1' </dev/null >/dev/null || exit
        for test in all clock-anywhere random-cr random-msr random-user-code; do
            taskset 1 ./covisor {PROBE} --append \"cpu=$CPU test=$test\" --timeout 3 </dev/null >/dev/null 2>&1
        done
        kill $watch; wait $watch; status=$?; cat /tmp/registers; exit $status"
    ))?;
    let text = outcome.stdout_text();
    let rounds: Option<u32> =
        text.strip_prefix("registers: ").and_then(|rest| rest.strip_suffix(" rounds, 0 changes\n")?.parse().ok());
    ensure!(outcome.status == 0 && rounds.is_some_and(|rounds| rounds > 20), "{}", told(&outcome));
    Ok(())
}

/// NMIs of the host that come while a guest has the CPU, sent by the other one for backtraces.
fn nmis_reach_the_host(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "echo 1 >/proc/sys/kernel/sysrq; dmesg -n 1
        taskset 2 ./covisor {PROBE} --append test=exit-flood </dev/null >/tmp/out 2>&1 & pid=$!
        until grep -q 'goes ahead' /tmp/out; do kill -0 $pid || exit; sleep 0.02; done
        for i in 1 2 3 4 5; do taskset 1 sh -c 'echo l >/proc/sysrq-trigger'; sleep 0.02; done
        kill $pid; wait $pid; echo \"its status $?\"; dmesg -c | grep -c 'NMI backtrace for cpu 1'"
    ))?;
    ensure!(outcome.stdout == b"its status 130\n5\n", "{}", told(&outcome));
    Ok(())
}

/// The host kernel's own registers, read before, while a machine runs, and afterwards.
fn msrs_stay(host: &mut Host) -> Checked {
    // STAR, LSTAR, CSTAR, SFMASK, TSC_AUX, SYSENTER_CS, _ESP and _EIP, PAT, DEBUGCTL.
    let read = "for msr in c0000081 c0000082 c0000083 c0000084 c0000103 174 175 176 277 1d9; do
            echo $msr $(dd if=/dev/cpu/0/msr bs=8 count=1 iflag=skip_bytes skip=$((0x$msr)) 2>/dev/null | xxd -p)
        done; echo";
    let outcome = host.sh(&format!(
        "read_all() {{ {read}
        }}
        read_all
        taskset 1 ./covisor {MINI} --exec 'echo ready; while :; do :; done' </dev/null >/tmp/out 2>/dev/null & pid=$!
        until grep -q ready /tmp/out; do kill -0 $pid || exit; sleep 0.1; done
        read_all; kill $pid; wait $pid; read_all"
    ))?;
    let text = outcome.stdout_text();
    let readings: Vec<&str> = text.split("\n\n").map(str::trim).filter(|reading| !reading.is_empty()).collect();
    ensure!(
        matches!(readings[..], [before, during, after] if before.lines().count() == 10 && before == during && before == after),
        "{}",
        told(&outcome)
    );
    Ok(())
}
