//! The host's own state: registers, tables and interrupts are as if no guest ran beside it.

use std::time::Duration;

use xtask::rig::{Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, driver};

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, PROBE, in_folder, on_own_host};

/// The scenarios about the host's state.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("host-state/registers-stay", |env, kind| on_own_host(env, kind, Ok, registers_stay)),
    Scenario::new("host-state/registers-stay-on-two-cpus", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), registers_stay)
    }),
    Scenario::new("host-state/nmis-reach-the-host", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), |host| nmis_reach_the_host(host, &busy()))
    }),
    Scenario::new("host-state/nmis-reach-the-host-while-the-guest-idles", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), |host| nmis_reach_the_host(host, &idle()))
    }),
    Scenario::new("host-state/every-nmi-is-seen", |env, kind| watched(env, kind, |rig| rig.cpus(2), every_nmi_is_seen)),
    Scenario::new("host-state/the-kernels-own-stays", |env, kind| {
        watched(env, kind, |rig| rig, |host| the_kernels_own_stays(host, host.engine()))
    }),
    Scenario::new("host-state/the-kernels-own-stays-on-two-cpus", |env, kind| {
        watched(env, kind, |rig| rig.cpus(2), |host| the_kernels_own_stays(host, host.engine()))
    }),
    Scenario::new("host-state/40-guests-on-two-cpus", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), many_guests)
    })
    .on_demand(),
];

/// What QEMU's CPU with AMD-V makes hard.
pub(crate) const ON_QEMU: Scenario = Scenario::new("host-state/timers-go-on-for-5-minutes", |env, kind| {
    on_own_host(env, kind, |rig| Ok(rig.timeout(Duration::from_secs(600))), timers_go_on)
})
.on_demand();

/// The same with engine `coop` on machines whose CPU has virtualization, too. Bochs' has what QEMU does not emulate, process-context
/// identifiers, and its Linux uses them to isolate its page tables.
pub(crate) const COOP_THERE: Scenario = Scenario::new("host-state/the-kernels-own-stays-beside-coop", |env, kind| {
    watched(env, kind, |rig| rig, |host| the_kernels_own_stays(host, "coop"))
});

/// Tries a scenario on a host with the module that tells the state of its CPUs.
fn watched(
    env: &Env,
    kind: RigKind,
    shape: impl FnOnce(Rig) -> Rig,
    scenario: impl FnOnce(&mut Host) -> Checked,
) -> Result<Verdict> {
    on_own_host(
        env,
        kind,
        |rig| {
            let module = driver::build_c_module(env, &rig.host().headers, "tests/host-state", "host_state")?;
            Ok(shape(rig).file(module, in_folder("host_state.ko")))
        },
        |host| {
            scenario(host)?;
            host.output("rmmod host_state")?;
            Ok(())
        },
    )
}

/// A program's vector, control, segment and debug registers, while Linux boots and the probe does its worst on its CPU.
fn registers_stay(host: &mut Host) -> Checked {
    let worst = match host.engine() {
        "coop" => {
            "iret-anything segment-bases gates debug-at-monitor debug-status db-loop random-msr random-user-code random"
        }
        _ => "clock-anywhere random-cr random-msr random-user-code",
    };
    let outcome = host.sh(&format!(
        "taskset -c $FIRST ./host-watch registers >/tmp/registers & watch=$!
        taskset -c $FIRST ./covisor {MINI} --exec 'sha256sum /bin/busybox; dmesg | tail -n 1' </dev/null >/dev/null ||
            {{ status=$?; echo 'the guest failed' >&2; kill $watch; exit $status; }}
        for test in all {worst}; do
            taskset -c $FIRST ./covisor {PROBE} --append \"cpu=$CPU test=$test\" --timeout 3 </dev/null >/dev/null 2>&1
        done
        kill $watch; wait $watch; status=$?; cat /tmp/registers; exit $status"
    ))?;
    let text = outcome.stdout_text();
    let rounds: Option<u32> =
        text.strip_prefix("registers: ").and_then(|rest| rest.strip_suffix(" rounds, 0 changes\n")?.parse().ok());
    ensure!(outcome.status == 0 && rounds.is_some_and(|rounds| rounds > 20), "{}", told(&outcome));
    Ok(())
}

/// A guest that leaves the CPU all the time.
fn busy() -> String {
    format!("{PROBE} --append test=exit-flood")
}

/// A guest that does nothing; its first line says that it is there.
fn idle() -> String {
    format!("{MINI} --exec {}", shell_word("echo goes ahead; sleep 10000"))
}

/// NMIs of the host that come while a guest has the CPU or waits on it, sent by the other one for backtraces.
fn nmis_reach_the_host(host: &mut Host, guest: &str) -> Checked {
    let outcome = host.sh(&format!(
        "echo 1 >/proc/sys/kernel/sysrq; dmesg -n 1
        taskset -c $LAST ./covisor {guest} </dev/null >/tmp/out 2>&1 & pid=$!
        until grep -q 'goes ahead' /tmp/out; do kill -0 $pid || exit; sleep 0.02; done
        for i in 1 2 3 4 5; do taskset -c $FIRST sh -c 'echo l >/proc/sysrq-trigger'; sleep 0.02; done
        kill $pid; wait $pid; echo \"its status $?\"; dmesg -c | grep -c \"NMI backtrace for cpu $LAST\""
    ))?;
    ensure!(outcome.stdout == b"its status 130\n5\n", "{}", told(&outcome));
    Ok(())
}

/// How many NMIs each CPU is sent beside each of the busy guests.
const NMIS: u32 = 1000;

/// While a guest is busy on one CPU and another one idles on the other, each CPU is sent NMIs by the other one at random moments. The
/// first busy guest runs programs, the second leaves the CPU all the time. An NMI is sent when the one before was seen, so that
/// none hides that another was lost.
fn every_nmi_is_seen(host: &mut Host) -> Checked {
    let programs = shell_word("echo goes ahead; while :; do sha256sum /bin/busybox | cut -c 1-8 >/tmp/sum; done");
    let outcome = host.sh(&format!(
        r#"
        insmod host_state.ko || exit
        start() {{
            cpu=$1 out=$2; shift 2; : >$out
            taskset -c $cpu ./covisor "$@" </dev/null >$out 2>&1 & pid=$!
            until grep -q 'goes ahead' $out; do kill -0 $pid || exit; sleep 0.02; done
        }}
        start $LAST /tmp/idle {idle} --mem 128; idle=$pid
        send_beside() {{
            start $FIRST /tmp/busy "$@"
            taskset -c $LAST sh -c "echo $FIRST {NMIS} >/proc/host_nmis"
            taskset -c $FIRST sh -c "echo $LAST {NMIS} >/proc/host_nmis"
            kill $pid; wait $pid; echo "the busy guest's status $?"
        }}
        send_beside {MINI} --mem 128 --exec {programs}
        send_beside {busy}
        kill $idle; wait $idle; echo "the idle guest's status $?"
        grep sent /proc/host_nmis | grep -v ' 0 sent'
        grep -v sent /proc/host_nmis | sort | uniq -c | sort -rn | head -n 30 >&2
        "#,
        idle = idle(),
        busy = busy(),
    ))?;
    let all = 2 * NMIS;
    let (first, last) = host.cpus();
    let expected = format!(
        "the busy guest's status 130\nthe busy guest's status 130\nthe idle guest's status 130\n\
         CPU {first}: {all} sent, {all} seen\nCPU {last}: {all} sent, {all} seen\n"
    );
    ensure!(outcome.stdout_text() == expected, "{}", told(&outcome));

    // Those that came while the busy guest had the CPU: the host gets them in the driver.
    let places = outcome.stderr_text();
    let on_busy =
        |place: &str| places_of(&places, |line| line.starts_with(&format!("CPU {first} in ")) && line.contains(place));
    let in_driver = on_busy("[covisor]");
    ensure!(in_driver > NMIS, "of {all} only {in_driver} came while a guest was busy: {}", told(&outcome));
    if host.engine() == "coop" {
        // In ring 3, and else in the monitor, on the way there or on the way back.
        let in_guest = on_busy("covisor_coop_raise ");
        ensure!(
            in_guest > NMIS / 10 && in_driver - in_guest > NMIS / 10,
            "{in_guest} in the guest: {}",
            told(&outcome)
        );
    }
    Ok(())
}

/// How often the lines for which this holds are there, in what `uniq -c` prints.
fn places_of(counted: &str, holds: impl Fn(&str) -> bool) -> u32 {
    let parts = counted.lines().filter_map(|line| line.trim_start().split_once(' '));
    parts.filter(|(_, line)| holds(line)).filter_map(|(count, _)| count.parse::<u32>().ok()).sum()
}

/// What Linux never changes of a CPU's state, or has the same for each read by the same program: control registers, MSRs, the
/// tables of descriptors and their registers, the task state, the debug registers of a breakpoint that is set for the whole CPU.
/// Read before; while a guest boots, computes, moves from CPU to CPU and waits; and afterwards.
fn the_kernels_own_stays(host: &mut Host, engine: &str) -> Checked {
    let guest = shell_word("echo computes; timeout 4 sh -c 'while :; do :; done'; echo waits; sleep 10000");
    let outcome = host.sh(&format!(
        r#"
        ENGINE={engine}
        insmod host_state.ko || exit
        cpus=$(seq $FIRST $LAST)
        read_all() {{
            for cpu in $cpus; do taskset -c $cpu cat /proc/host_state | sed "s/^/$cpu /"; done
        }}
        readings=0
        compare() {{
            read_all >/tmp/now
            awk -v when="$1" '{{ name = $2 " of CPU " $1; $1 = $2 = "" }}
                NR == FNR {{ was[name] = $0; next }}
                was[name] != $0 {{ print "while the guest " when ", " name " was" was[name] " and is" $0 }}' /tmp/before /tmp/now
            readings=$((readings + 1))
        }}
        start_watch() {{ taskset -c $FIRST ./host-watch registers --for-the-cpu >/tmp/registers & watch=$!; }}
        # It has been seen to end here by itself, which no guest can be the cause of: none was there yet.
        tries=1
        start_watch
        until read_all >/tmp/before && grep -q ' DR[0-3] ' /tmp/before; do
            if ! kill -0 $watch 2>/dev/null; then
                wait $watch
                ended=$?
                [ $tries -lt 3 ] || {{ echo "host-watch ended with $ended" >&2; cat /tmp/registers >&2; exit 1; }}
                tries=$((tries + 1))
                start_watch
            fi
            sleep 0.1
        done

        : >/tmp/out
        ./covisor {MINI} --exec {guest} </dev/null >/tmp/out 2>/tmp/errors & pid=$!
        goes_on() {{
            ! kill -0 $pid 2>/dev/null || return 0
            wait $pid
            echo "the guest ended with $? before it $1" >&2
            cat /tmp/out /tmp/errors >&2
            dmesg | tail -n 30 >&2
            exit 1
        }}
        until grep -q computes /tmp/out; do goes_on computes; compare boots; sleep 0.2; done
        for round in 1 2 3; do
            for cpu in $cpus; do
                for task in /proc/$pid/task/*; do taskset -pc $cpu ${{task##*/}} >/dev/null; done
                compare computes
                sleep 0.1
            done
        done
        until grep -q waits /tmp/out; do goes_on waits; sleep 0.1; done
        for round in 1 2 3; do compare waits; sleep 0.1; done
        kill $pid; wait $pid
        compare 'is gone'

        kill $watch; wait $watch || {{ echo "host-watch ended with $?" >&2; exit 1; }}
        [ $readings -gt 9 ] && grep -q ' 0 changes$' /tmp/registers || cat /tmp/registers >&2
        wc -l </tmp/before >&2
        "#
    ))?;
    let stderr = outcome.stderr_text();
    let rows: Option<u32> = stderr.trim().parse().ok();
    ensure!(
        outcome.status == 0 && outcome.stdout.is_empty() && rows.is_some_and(|rows| rows > 300),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// Guests boot one after another beside a program that is busy with breakpoints, and each runs a command. What goes wrong between
/// CPUs only now and then, on an emulated machine as well as in an engine, does here.
fn many_guests(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        r#"
        taskset -c $FIRST ./host-watch registers --for-the-cpu >/tmp/registers & watch=$!
        for guest in $(seq 1 40); do
            ./covisor {MINI} --exec true </dev/null >/tmp/out 2>/tmp/errors ||
                {{ echo "guest $guest ended with $?"; cat /tmp/out /tmp/errors; exit 1; }}
        done
        kill $watch; wait $watch
        "#
    ))?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    Ok(())
}

/// A guest has interrupts as often as it can, each by a timer of the host's, whose clock is this machine's: an interrupt of the host's
/// that gets lost is its last one where it goes on from timer to timer.
fn timers_go_on(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "for round in $(seq 60); do
            ./covisor {PROBE} --append \"cpu=$CPU test=timer-flood\" --timeout 5 </dev/null >/dev/null 2>&1
            [ $? = 124 ] || exit
        done"
    ))?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted() {
        let counted = "   1156 CPU 0 in run [covisor]\n     77 CPU 0 in idle\n      3 CPU 0 in other [covisor]\n";
        assert_eq!(places_of(counted, |line| line.contains("[covisor]")), 1159);
        assert_eq!(places_of("no count", |_| true), 0);
    }
}
