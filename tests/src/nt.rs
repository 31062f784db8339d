//! The driver for Windows, the file that users get, runs guests: on the emulated machines, loaded by a module that has for it what it
//! takes of NT's kernel (`tests/nt-kernel`). So the engines are tried as they are compiled for NT, with its calling convention, and the
//! port with real interrupts, CPUs and physical pages. What NT itself does, that module does as its documentation says; whether a
//! Windows does the same, only a Windows tells.

use covisor_probe::hostile::ALL;
use xtask::rig::{Rig, RigKind};
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, windows};

use crate::checked::{Checked, ensure, told, verdict};
use crate::conformance::conformance;
use crate::host::{DriverFile, Host, MINI, rig};
use crate::hostile::{self, every_check, every_check_on_several_cpus};

/// The scenarios about the driver for Windows.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("nt/runs-guests", |env, kind| on_nt(env, kind, ONE_CPU, NT_10, runs_guests)),
    Scenario::new("nt/runs-guests-on-two-cpus", |env, kind| {
        on_nt(
            env,
            kind,
            |rig| rig.cpus(2),
            NT_10,
            |host| {
                every_check_on_several_cpus(host)?;
                runs_linux(host)
            },
        )
    }),
    Scenario::new("nt/runs-guests-on-5.2", |env, kind| on_nt(env, kind, ONE_CPU, NT_5_2, runs_guests)),
];

/// The device's calls and the probe's attacks, whose guests are machines without an operating system, which the engine `coop` has not.
pub(crate) const OF_MACHINES: &[Scenario] = &[
    Scenario::new("nt/conformance", |env, kind| on_nt(env, kind, ONE_CPU, NT_10, conformance)),
    Scenario::new("nt/every-attack", |env, kind| on_nt(env, kind, ONE_CPU, NT_10, every_attack)).on_demand(),
    Scenario::new("nt/every-attack-on-5.2", |env, kind| on_nt(env, kind, ONE_CPU, NT_5_2, every_attack)).on_demand(),
];

/// Windows 10's NT, and that of Windows XP for x64: without all that the driver has a way round.
const NT_10: DriverFile = DriverFile::Nt(1000);
const NT_5_2: DriverFile = DriverFile::Nt(502);

/// A machine that counts instructions.
const ONE_CPU: fn(Rig) -> Rig = |rig| rig.count_instructions(true);

/// Tries a scenario on a host of its own with the driver for Windows, and checks afterwards that the host is as it was, and can do without.
fn on_nt(
    env: &Env,
    kind: RigKind,
    shape: impl FnOnce(Rig) -> Rig,
    nt: DriverFile,
    scenario: impl FnOnce(&mut Host) -> Checked,
) -> Result<Verdict> {
    let start = || -> Checked<Host> {
        let rig = rig(env, kind)?;
        let rig = windows::driver_in_linux(env, rig)?;
        // Old ones have a page of theirs at an address that must be free.
        let rig = rig.cmdline("nokaslr");
        Host::start_with(shape(rig), kind, nt)
    };
    verdict(start().and_then(|mut host| {
        scenario(&mut host)?;
        host.check_clean()?;
        host.output("rmmod nt_kernel || exit; dmesg -c -r | grep '^<[0-4]>' && exit 1; true").map(drop)
    }))
}

/// All of the probe's attacks, each while a program on the same CPU wants its turn.
fn every_attack(host: &mut Host) -> Checked {
    ALL.iter().try_for_each(|mode| hostile::attack(host, ALL, mode.name, hostile::SECONDS, "").map(drop))
}

/// The probe's checks, then Linux.
fn runs_guests(host: &mut Host) -> Checked {
    every_check(host)?;
    runs_linux(host)
}

/// Linux, with a disk, while the machine is about to sleep again and again.
fn runs_linux(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "truncate -s 8M /tmp/disk
        ./covisor {MINI} --disk /tmp/disk --name one </dev/null >/tmp/one 2>/tmp/errors & pid=$!
        until ./covisor exec one true 2>/dev/null; do kill -0 $pid || {{ cat /tmp/one /tmp/errors >&2; exit 40; }}; sleep 0.1; done
        rmmod nt_kernel 2>/dev/null; echo \"rmmod $?\"
        ./covisor exec one 'head -c 4194304 /dev/urandom >/tmp/a; for i in 1 2 3; do cat /tmp/a >/dev/vda; sync
            echo 3 >/proc/sys/vm/drop_caches; head -c 4194304 /dev/vda | cmp - /tmp/a || exit; done; echo done' >/tmp/done & work=$!
        for i in 1 2 3 4 5; do
            echo 1 >/sys/module/nt_kernel/parameters/sleep; sleep 0.2; echo 0 >/sys/module/nt_kernel/parameters/sleep; sleep 0.2
        done
        wait $work; echo \"work $?\"; cat /tmp/done
        ./covisor stop one; echo \"stop $?\"; wait $pid; echo \"status $?\"
        cat /tmp/errors >&2"
    ))?;
    ensure!(outcome.stdout == b"rmmod 1\nwork 0\ndone\nstop 0\nstatus 0\n", "{}", told(&outcome));
    Ok(())
}
