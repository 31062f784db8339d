//! Running machines: the list of them, ending them, and the driver beneath them.

use xtask::Env;
use xtask::rig::{Disk, RigKind};
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told, verdict};
use crate::host::{Host, MINI, PROBE, empty_disk, on_host, rig};

/// The scenarios about running machines.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("lifecycle/driver-in-use-stays", |env, kind| on_host(env, kind, driver_in_use_stays)),
    Scenario::new("lifecycle/ps-and-stop", |env, kind| on_host(env, kind, ps_and_stop)),
    Scenario::new("lifecycle/a-signal-powers-off", |env, kind| on_host(env, kind, a_signal_powers_off)),
    Scenario::new("lifecycle/a-guest-that-stays-is-ended", |env, kind| on_host(env, kind, a_guest_that_stays_is_ended))
        .on_demand(),
    Scenario::new("lifecycle/clock-follows-the-host", |env, kind| on_host(env, kind, clock_follows_the_host)),
    Scenario::new("lifecycle/console-and-logs", |env, kind| on_host(env, kind, console_and_logs)),
    Scenario::new("lifecycle/exec-in-a-running-guest", |env, kind| on_host(env, kind, exec_in_a_running_guest)),
    Scenario::new("lifecycle/guests-with-names", |env, kind| on_host(env, kind, guests_with_names)),
    Scenario::new("lifecycle/name-is-taken", |env, kind| on_host(env, kind, name_is_taken)),
    Scenario::new("lifecycle/two-machines-at-once", |env, kind| on_host(env, kind, two_machines_at_once)),
];

/// What asks the loader alone, whatever the engine.
pub(crate) const ON_ONE_ENGINE: &[Scenario] =
    &[Scenario::new("lifecycle/host-goes-down", |env, kind| verdict(host_goes_down(env, kind))).on_demand()];

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
            matches!(words[..], ["one", _, is, by, "64", _, _, _] if is == state && by == engine)
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

/// A guest in the background whose agent answers. Its process is `$pid`, and what it says is in `/tmp/errors`.
fn started(options: &str) -> String {
    format!(
        "./covisor {MINI} --name one {options} </dev/null >/tmp/one 2>/tmp/errors & pid=$!
        until ./covisor exec one true 2>/dev/null; do kill -0 $pid || exit; sleep 0.1; done\n"
    )
}

/// Waits for its end.
const ENDED: &str = "wait $pid; echo \"status $?\"; cat /tmp/errors >&2\n";

/// Keeps it from acting on the power button.
const STAYS: &str = "./covisor exec one 'rm /etc/acpi/PWRF/*'\n";

/// A signal has the guest power off. One that cannot hear is ended at once.
fn a_signal_powers_off(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "{}kill $pid\n{ENDED}{}kill $pid; wait $pid; echo \"status $?\"",
        started(""),
        endless("deaf")
    ))?;
    ensure!(
        outcome.stdout == b"status 0\nstatus 130\n"
            && outcome.stderr_text().contains("covisor: asked the guest to power off; a second signal"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// Where the guest does not power off, the time ends it, or a second signal.
fn a_guest_that_stays_is_ended(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "{}{STAYS}kill -HUP $pid; kill -HUP $pid; begin=$(cut -d. -f1 /proc/uptime)
        {ENDED}[ $(($(cut -d. -f1 /proc/uptime) - begin)) -ge 2 ] && echo patient
        {}{STAYS}kill $pid; until grep -q asked /tmp/errors; do sleep 0.1; done; kill -INT $pid\n{ENDED}",
        started("--stop-timeout 3"),
        started("")
    ))?;
    let errors = outcome.stderr_text();
    ensure!(
        outcome.stdout == b"status 130\npatient\nstatus 130\n"
            && errors.contains("covisor: error: the guest did not power off within 3 s, and was ended")
            && errors.contains("covisor: error: the machine was ended by a signal\n"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// The guest's clock is the host's at the start, and follows when that is set, forward and back.
fn clock_follows_the_host(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "./covisor {MINI} --name one </dev/null >/tmp/one 2>/tmp/one.errors & pid=$!
        until ./covisor exec one true 2>/dev/null; do kill -0 $pid || exit; sleep 0.1; done
        is_near() {{ by=$(($(./covisor exec one date +%s) - $(date +%s))); [ ${{by#-}} -le 2 ]; }}
        comes_near() {{ for i in $(seq 50); do is_near && echo $1 && return; sleep 0.1; done; echo \"$1: by $by s\"; }}
        step() {{ date -s @$(($(date +%s) + $1)) >/dev/null; }}
        is_near && echo start; step 3600; comes_near forward; step -7200; comes_near back; step 3600; comes_near again
        kill $pid; wait $pid; cat /tmp/one.errors >&2"
    ))?;
    ensure!(
        outcome.stdout == b"start\nforward\nback\nagain\n" && !outcome.stderr_text().contains("warning"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// A guest's console, left alone by who started it: several look at it, one types; the last of them sees the end.
fn console_and_logs(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "./covisor {MINI} --name one </dev/null >/tmp/one 2>/tmp/one.errors & pid=$!
        until grep -qs '# ' /tmp/one; do kill -0 $pid || exit; sleep 0.1; done
        ./covisor logs one --follow >/tmp/followed & follower=$!
        echo 'echo first $((40 + 2))' | ./covisor console one --lines 0
        head -c 20000 /dev/zero | tr '\\0' x >/tmp/long
        (printf 'cat >/dev/null <<EOF\n'; fold -w 100 /tmp/long; printf '\nEOF\necho second $?\n') | ./covisor console one --lines 0 \
            | grep -c '^second 0'
        ./covisor logs one --lines 3 | grep -c 'second 0'
        ./covisor console nobody </dev/null; echo \"status $?\"
        echo 'poweroff -f' | ./covisor console one --lines 0 >/dev/null; echo \"status $?\"
        wait $follower; echo \"status $?\"; wait $pid; echo \"status $?\"
        grep -c '^first 42' /tmp/followed; cmp /tmp/one /tmp/followed && echo the same"
    ))?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    ensure!(
        text.contains("first 42")
            && text.ends_with("1\n1\nstatus 1\nstatus 0\nstatus 0\nstatus 0\n1\nthe same\n")
            && errors.contains("no machine nobody runs")
            && outcome.status == 0,
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// Commands in a guest that runs, one after another: streams, status, words, a second at once, an end by Ctrl-C, a guest that leaves.
fn exec_in_a_running_guest(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "./covisor {MINI} --name one </dev/null >/tmp/one 2>/tmp/one.errors & pid=$!
        until ./covisor ps | grep -q ^one; do kill -0 $pid || exit; sleep 0.1; done
        ./covisor exec one 'echo out; echo err >&2; exit 7' 2>/tmp/err; echo \"status $?\"; cat /tmp/err
        ./covisor exec one -- printf '%s|' 'a  b' '$HOME' \"it's\"; echo
        head -c 400000 /dev/urandom >/tmp/bytes
        ./covisor exec one -- cat </tmp/bytes | cmp - /tmp/bytes && echo the same
        chmod 751 /tmp/bytes; ./covisor cp /tmp/bytes one:/root/; ./covisor exec one 'stat -c \"%s %a\" /root/bytes; chmod 640 /root/bytes'
        ./covisor cp one:/root/bytes /tmp/back && cmp /tmp/back /tmp/bytes && stat -c %a /tmp/back
        ./covisor cp one:/nothing /tmp/back 2>/dev/null; echo \"status $?\"; ls /tmp | grep -c part
        ./covisor exec one 'echo begun; exec sleep 1000' >/tmp/begun & sleeper=$!
        until grep -qs begun /tmp/begun; do sleep 0.1; done
        ./covisor exec one true 2>/tmp/err; echo \"status $?\"; grep -c 'another command' /tmp/err
        kill -INT $sleeper; wait $sleeper; echo \"status $?\"
        ./covisor exec one 'ps | grep -c [s]leep'
        ./covisor exec one 'yes | head -c 3000000' | wc -c
        ./covisor exec one 'poweroff -f; sleep 100' 2>/tmp/err; echo \"status $?\"; cat /tmp/err
        wait $pid; echo \"status $?\""
    ))?;
    let expected = "out\nstatus 7\nerr\na  b|$HOME|it's|\nthe same\n400000 751\n640\nstatus 3\n0\nstatus 3\n1\nstatus 137\n0\n3000000\nstatus 3\n\
                    covisor: error: the machine ended before the command did\nstatus 0\n";
    ensure!(outcome.stdout_text() == expected && outcome.status == 0, "{}", told(&outcome));
    Ok(())
}

/// A guest that is made, started, asked, stopped, started, killed, started and removed: its own disk has what it wrote, and nothing is left.
fn guests_with_names(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "state() {{ ./covisor list | awk '/^web/ {{ print $2 }}'; }}
        truncate -s 8M /tmp/base.img
        ./covisor create web --from /tmp/base.img {arguments} || exit; state
        ./covisor start web || exit; state
        ./covisor exec web 'echo kept >/dev/vda && sync && echo written'
        ./covisor start web 2>/dev/null; echo \"again $?\"; ./covisor remove web 2>/dev/null; echo \"remove $?\"
        ./covisor exec web 'poweroff -f; sleep 100' 2>/dev/null; until [ \"$(state)\" = stopped ]; do sleep 0.1; done; state
        ./covisor start web && ./covisor exec web 'head -c 4 /dev/vda'
        kill -9 $(./covisor ps --json | sed -n 's/.*\"name\":\"web\",\"pid\":\\([0-9]*\\).*/\\1/p')
        until [ \"$(state)\" = crashed ]; do sleep 0.1; done; state
        told() {{ grep -c '^covisor: web was ended when its process [0-9]* was killed; it had run since 20'; }}
        ./covisor list 2>&1 | told; ./covisor start web 2>&1 | told; ./covisor exec web 'head -c 4 /dev/vda'
        ./covisor stop web --force; ./covisor remove web; echo \"remove $?\"
        ./covisor list | wc -l; ls /var/lib/covisor/guests | wc -l; rm /tmp/base.img",
        arguments = &MINI["run ".len()..]
    ))?;
    let expected = "stopped\nrunning\nwritten\nagain 1\nremove 1\nstopped\nkeptcrashed\n1\n1\nkeptremove 0\n1\n0\n";
    ensure!(outcome.stdout_text() == expected && outcome.status == 0, "{}", told(&outcome));
    Ok(())
}

/// A host goes down while a guest runs that is kept. When it is up again, that is said, and the guest starts.
fn host_goes_down(env: &Env, kind: RigKind) -> Checked {
    let path = empty_disk(env, "kept-guests", "64M")?;
    let start = || {
        let rig = rig(env, kind)?.count_instructions(true).add_disk(Disk { path: path.clone(), keep: true });
        Host::start(rig, kind)
    };
    let mut host = start()?;
    // The disk gets what lasts as it is while the guest runs.
    host.output(&format!(
        "./covisor create web {arguments} && ./covisor start web && ./covisor exec web true && tar c -C / var/lib/covisor >$DISK && sync",
        arguments = &MINI["run ".len()..]
    ))?;
    drop(host);
    let outcome = start()?.sh(
        "tar x -C / <$DISK; ./covisor list; ./covisor start web && ./covisor exec web 'echo up' && ./covisor list >/dev/null
        ./covisor stop web && ./covisor remove web",
    )?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    ensure!(
        outcome.status == 0
            && text.lines().any(|line| line.starts_with("web ") && line.contains(" crashed "))
            && text.ends_with("up\n")
            && errors.matches("covisor: web was ended when the host restarted, which was up again at 20").count() == 2,
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
