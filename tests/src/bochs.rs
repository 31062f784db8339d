//! The emulated machine of Bochs': what the scenarios on VT-x build on.

use covisor_guest_images::fs;
use xtask::rig::{Disk, Input, Rig, RigKind};
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Error, Result};

use crate::checked::{Checked, Failure, ensure, told, verdict};
use crate::host::{Host, on_host};

/// The scenarios about the rig on Bochs.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("bochs/host-runs-scripts", |env, _| on_host(env, RigKind::Bochs, host_runs_scripts)),
    Scenario::new("bochs/no-byte-is-lost", |env, _| on_host(env, RigKind::Bochs, no_byte_is_lost)),
    Scenario::new("bochs/kvm-loads", |env, _| on_host(env, RigKind::Bochs, kvm_loads)),
    Scenario::new("bochs/counter-counts-instructions", |env, _| {
        on_host(env, RigKind::Bochs, counter_counts_instructions)
    }),
    Scenario::new("bochs/disk-and-two-cpus", |env, _| verdict(disk_and_two_cpus(env))),
    Scenario::new("bochs/a-dead-host-is-told", |env, _| a_dead_host_is_told(env)),
];

/// Instructions beside the loop's own between the two readings of the counter, at most.
const COUNTER_OVERHEAD: u64 = 20;

fn host_runs_scripts(host: &mut Host) -> Checked {
    let outcome = host.sh("echo out; echo err >&2; exit 42")?;
    let fine = outcome.status == 42 && outcome.stdout == b"out\n" && outcome.stderr == b"err\n";
    ensure!(fine, "{}", told(&outcome));
    let killed = host.sh("kill -9 $$")?;
    ensure!(killed.status == 128 + 9, "{}", told(&killed));
    Ok(())
}

/// Both ways over the serial line, while the host's only CPU has something else to do.
fn no_byte_is_lost(host: &mut Host) -> Checked {
    // All byte values, in an order without a period that a buffer could hide.
    let data: Vec<u8> = (0..8192_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let script = "while :; do :; done & cat; status=$?; kill $!; exit $status";
    let outcome = host.sh_with(script, Input::Bytes(data.clone()))?;
    ensure!(
        outcome.status == 0 && outcome.stdout == data,
        "status {}, {} bytes of {}",
        outcome.status,
        outcome.stdout.len(),
        data.len()
    );
    Ok(())
}

/// KVM has what it takes from the CPU for the comparison with it. It leaves out the preemption timer, whose 32 bits do not last
/// for ten seconds at this counter's rate.
fn kvm_loads(host: &mut Host) -> Checked {
    let outcome = host.sh("modprobe kvm_intel || exit
        cd /sys/module/kvm_intel/parameters && cat ept unrestricted_guest vpid flexpriority
        rmmod kvm_intel kvm")?;
    ensure!(outcome.status == 0 && outcome.stdout == b"Y\n".repeat(4), "{}", told(&outcome));
    Ok(())
}

fn counter_counts_instructions(host: &mut Host) -> Checked {
    for rounds in [100_u64, 1000, 10_000] {
        let text = host.output(&format!("./host-watch counter {rounds}"))?;
        let counted: Option<u64> = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let overhead = counted.and_then(|counted| counted.checked_sub(2 * rounds));
        ensure!(overhead.is_some_and(|more| more <= COUNTER_OVERHEAD), "two instructions a round: {text}");
    }
    Ok(())
}

/// What is written to a disk that keeps it is in the file afterwards, and what is not kept is not.
fn disk_and_two_cpus(env: &Env) -> Checked {
    let folder = env.out.join("test-disks");
    let images = ["kept", "thrown-away"].map(|name| folder.join(format!("bochs-{name}-{}", std::process::id())));
    let before: Vec<u8> = (0..1 << 20_u32).map(|i: u32| i.to_le_bytes()[1]).collect();
    for image in &images {
        fs::write(image, &before).map_err(Error::from)?;
    }
    let [kept, thrown_away] = &images;
    let mut machine = Rig::of_kind(env, RigKind::Bochs)?
        .cpus(2)
        .memory_mib(256)
        .add_disk(Disk { path: kept.clone(), keep: true })
        .disk(thrown_away)
        .start()?;
    let outcome = machine.run(
        "nproc; for disk in /dev/sdb /dev/sdc; do
            echo changed | dd of=$disk bs=512 conv=notrunc,sync 2>/dev/null || exit
            head -c 8 $disk; tail -c +513 $disk | sha256sum
        done",
    )?;
    machine.shut_down()?;
    let after = images.each_ref().map(fs::read);
    for image in &images {
        fs::remove(image).map_err(Error::from)?;
    }
    let text = outcome.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        outcome.status == 0 && matches!(lines[..], ["2", "changed", one, "changed", other] if one == other),
        "{}",
        told(&outcome)
    );
    let [Ok(kept), Ok(thrown_away)] = after else {
        return Err(Failure::Seen("the disks' images are gone".to_owned()));
    };
    ensure!(kept.starts_with(b"changed\n") && kept[512..] == before[512..], "the kept disk does not have the change");
    ensure!(thrown_away == before, "the other disk was changed");
    Ok(())
}

fn a_dead_host_is_told(env: &Env) -> Result<Verdict> {
    match Rig::of_kind(env, RigKind::Bochs)?.memory_mib(256).run("echo c >/proc/sysrq-trigger") {
        Err(Error::RigDied { log, .. }) if log.contains("sysrq triggered crash") => Ok(Verdict::Pass),
        other => Ok(Verdict::Fail(format!("{other:?}"))),
    }
}
