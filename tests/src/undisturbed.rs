//! The host beside a busy guest: its timers are on time, its work gets done, its disk works, and its kernel has nothing to complain of.
//! With one CPU the machine counts instructions, so that a microsecond is a thousand of them. QEMU's with two cannot do that, so how
//! late wake-ups are there depends on this machine, and is not judged.

use xtask::rig::RigKind;
use xtask::run::shell_word;
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, work};

use crate::checked::{Checked, Failure, ensure, told};
use crate::host::{Host, MINI, empty_disk, in_folder, on_own_host};

/// The scenarios about the undisturbed host.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("undisturbed/host-under-stress", |env, kind| undisturbed(env, kind, 1)),
    Scenario::new("undisturbed/host-under-stress-on-two-cpus", |env, kind| undisturbed(env, kind, 2)),
];

/// Microseconds that a guest may add to what 99 % of the host's wake-ups do not exceed.
const BAR_US: u32 = 100;

/// Wake-ups, a millisecond from one to the next.
const WAKE_UPS: u32 = 3000;

/// Bytes of a disk.
const DISK_SIZE: &str = "32M";

/// The guest's work: processes, mappings, its disk, and a loop that never ends.
const GUEST: &str = "cat >/tmp/work; chmod 755 /tmp/work; echo ready
    while /tmp/work forks 20 && /tmp/work mappings 200 && /tmp/work executions 2; do :; done >/tmp/out 2>&1 &
    while dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync && echo 1 >/proc/sys/vm/drop_caches &&
        dd if=/dev/vda of=/dev/null bs=64k count=64; do :; done >/dev/null 2>&1 &
    while :; do :; done";

/// What is measured, with the host's own stress and its disk at work beside it: on the last CPU, where the guest is, too. Prints the
/// timer's interrupts of that CPU, the wake-ups, and what was done meanwhile.
const MEASURE: &str = r#"
measure() {
    ./host-watch stress $(nproc) >/tmp/stress & stress=$!
    while dd if=/tmp/data of=$DISK bs=64k conv=fsync && echo 3 >/proc/sys/vm/drop_caches &&
        head -c 2097152 $DISK | cmp - /tmp/data; do
        echo one
    done >/tmp/rounds 2>/tmp/errors & rounds=$!
    interrupts() { awk '/^ *LOC:/ { print $(NF - 3) }' /proc/interrupts; }
    before=$(interrupts)
    taskset -c $LAST ./host-watch latency 1000 $WAKE_UPS || exit
    echo "interrupts: $(($(interrupts) - before))"
    kill $stress; wait $stress || exit; cat /tmp/stress
    # Where the machine does not count instructions, one may take longer than all the wake-ups.
    until grep -q one /tmp/rounds || ! kill -0 $rounds; do sleep 0.1; done
    kill -0 $rounds || { cat /tmp/errors; exit 1; }
    kill $rounds; wait $rounds; echo "disk: $(grep -c one /tmp/rounds)"
}
"#;

/// What was measured.
#[derive(Debug, PartialEq, Eq)]
struct Measured {
    /// Microseconds that 99 % of the wake-ups do not exceed.
    most_us: u32,
    /// Wake-ups that came after the next one's time.
    missed: u32,
    /// The timer's interrupts.
    interrupts: u32,
    /// Rounds over the disk.
    disk: u32,
}

impl Measured {
    /// Reads what `measure` prints.
    fn parse(text: &str) -> Option<Self> {
        let after = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        let latency = after("latency: ")?;
        let part = |start: &str, end: &str| -> Option<u32> {
            latency.split(", ").find_map(|part| part.strip_prefix(start)?.strip_suffix(end)?.trim().parse().ok())
        };
        Some(Self {
            most_us: part("99 %", "us")?,
            missed: part("", "missed")?,
            interrupts: after("interrupts: ")?.parse().ok()?,
            disk: after("disk: ")?.parse().ok()?,
        })
    }
}

fn undisturbed(env: &Env, kind: RigKind, cpus: u32) -> Result<Verdict> {
    on_own_host(
        env,
        kind,
        |rig| {
            let program = work::program(env)?;
            let rig = rig.count_instructions(cpus == 1).cpus(cpus).file(program, in_folder("guest-work"));
            let disk = |name| empty_disk(env, &format!("{name}-{}-{cpus}", kind.name()), DISK_SIZE);
            Ok(rig.disk(disk("host")?).disk(disk("guest")?))
        },
        |host| beside_a_guest(host, cpus),
    )
}

/// Measures without a guest and beside one.
fn beside_a_guest(host: &mut Host, cpus: u32) -> Checked {
    let guest = shell_word(GUEST);
    let outcome = host.sh(&format!(
        "WAKE_UPS={WAKE_UPS}{MEASURE}
        dd if=/dev/urandom of=/tmp/data bs=64k count=32 2>/dev/null
        measure
        echo 'beside a guest'
        taskset -c $LAST ./covisor {MINI} --mem 128 --disk ${{DISK%a}}b --exec {guest} <guest-work >/tmp/ready 2>/tmp/guest & pid=$!
        until grep -q ready /tmp/ready; do kill -0 $pid || {{ cat /tmp/guest >&2; exit 1; }}; sleep 0.1; done
        measure
        kill $pid; wait $pid; echo \"the guest's status $?\"
        dmesg -r | grep '^<[0-4]>'; true"
    ))?;
    let text = outcome.stdout_text();
    let measured = text
        .split_once("beside a guest")
        .and_then(|(alone, beside)| Some((Measured::parse(alone)?, Measured::parse(beside)?)));
    let Some((alone, beside)) = measured.filter(|_| outcome.status == 0) else {
        return Err(Failure::Seen(told(&outcome)));
    };
    for Measured { interrupts, missed, disk, .. } in [&alone, &beside] {
        // Who comes too late for a point of time does not sleep until it, and has no interrupt of it.
        ensure!(*interrupts + *missed >= WAKE_UPS && *disk > 0, "interrupts were lost: {}", told(&outcome));
    }
    if cpus == 1 {
        ensure!(
            beside.most_us <= alone.most_us + BAR_US && alone.missed + beside.missed == 0,
            "the guest adds more than {BAR_US} us to the host's wake-ups: {}",
            told(&outcome)
        );
        // No warning of the kernel's, not even one about time, is harmless where time is counted.
        ensure!(text.ends_with("the guest's status 130\n"), "{}", told(&outcome));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_read() {
        let text = "latency: 3000 wake-ups, 50 % within 12 us, 99 % 40 us, 99.9 % 55 us, all 61 us, 0 missed\n\
                    interrupts: 3100\nstress: faults 1, pipes 2\ndisk: 7\n";
        let right = Measured { most_us: 40, missed: 0, interrupts: 3100, disk: 7 };
        assert_eq!(Measured::parse(text), Some(right));
        assert_eq!(Measured::parse("latency: none"), None);
    }
}
