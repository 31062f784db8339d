//! A loader that dies at any moment, and machines made and ended again and again: nothing of them stays in the host.

use std::hash::{BuildHasher, RandomState};

use xtask::rig::RigKind;
use xtask::run::shell_word;
use xtask::scenario::Scenario;

use crate::checked::{Checked, Failure, ensure, told};
use crate::host::{Host, MINI, PROBE, on_host, on_own_host};

/// The scenarios about what machines leave behind.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dies-cleanly/200-machines-one-after-another", |env, kind| on_host(env, kind, many_machines)),
    Scenario::new("dies-cleanly/killed-50-times", |env, kind| {
        on_host(env, kind, |host| killed(host, EARLY_KILLS, WORKING_KILLS))
    }),
    Scenario::new("dies-cleanly/killed-on-two-cpus", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpus(2)), |host| killed(host, two_cpu_kills(kind), 0))
    }),
];

/// As many kills as there is time for on a slow emulated machine.
pub(crate) const FEWER: Scenario = Scenario::new("dies-cleanly/killed-12-times", |env, kind| {
    on_host(env, kind, |host| killed(host, FEWER_EARLY_KILLS, FEWER_WORKING_KILLS))
});

/// How many machines run one after another.
const MACHINES: u32 = 200;

/// How many loaders are killed between their start and the time when their guest is up: while the machine is being made,
/// and while the kernel boots.
const EARLY_KILLS: u32 = 35;
/// How many are killed while the guest reads and writes its disk.
const WORKING_KILLS: u32 = 15;
/// The same for [`FEWER`].
const FEWER_EARLY_KILLS: u32 = 9;
/// The same.
const FEWER_WORKING_KILLS: u32 = 3;

/// How many are killed on two CPUs, from the one on which the guest does not run.
const fn two_cpu_kills(kind: RigKind) -> u32 {
    match kind {
        RigKind::Qemu | RigKind::Plain => 12,
        RigKind::Bochs => 4,
    }
}

/// A shell's status of a program that SIGKILL ended.
const KILLED: i32 = 128 + 9;

/// By how many KiB the host's available memory may be less afterwards. The kernel keeps freed memory in its allocators' caches,
/// and counts it as used; a machine that were not freed would be tens of MiB, and ten pages that each of 50 did not free would
/// be seen, too.
const MEMORY_TOLERANCE_KIB: u64 = 2048;

/// The memory of machines here, in MiB.
const GUEST_MIB: u32 = 96;

/// What the guest does: reads and writes its disk without an end.
const WORK: &str = "echo at work; while :; do \
                    dd if=/dev/urandom of=/dev/vda bs=32k count=16 conv=fsync; dd if=/dev/vda of=/dev/null bs=32k count=64; \
                    done 2>/dev/null";

/// Tells the host's available memory in KiB, with what the kernel can free at once freed, and with the pages in each CPU's lists
/// of free ones, which it does not count: with two CPUs, some MiB are now in the one's list and now in none.
const AVAILABLE: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; sleep 1; echo 3 >/proc/sys/vm/drop_caches; \
                         awk '/^MemAvailable:/ { sum += $2 } / count:/ { sum += $2 * 4 } END { print sum }' \
                             /proc/meminfo /proc/zoneinfo";

fn available(host: &mut Host) -> Checked<u64> {
    let text = host.output(AVAILABLE)?;
    text.trim().parse().map_err(|_| Failure::Seen(format!("the host's available memory is {text:?}")))
}

/// How often the host's available memory is looked at before it is too little.
const LOOKS: u32 = 10;

/// Checks that the host has as much memory as before, and can do without the driver.
fn nothing_is_left(host: &mut Host, before: u64) -> Checked {
    let mut after = available(host)?;
    // Some is freed by threads of the kernel's; what was lost does not come back.
    for _ in 1..LOOKS {
        if after + MEMORY_TOLERANCE_KIB >= before {
            break;
        }
        after = available(host)?;
    }
    ensure!(
        after + MEMORY_TOLERANCE_KIB >= before,
        "the host had {before} KiB of memory available before and has {after} KiB afterwards"
    );
    host.check_clean()?;
    host.output("rmmod covisor && ./covisor driver install --module covisor.ko")?;
    Ok(())
}

/// Machines made, run to their end, and made again.
fn many_machines(host: &mut Host) -> Checked {
    let script = |count| {
        format!("for i in $(seq {count}); do ./covisor {PROBE} --append test=entry </dev/null >/dev/null || exit; done")
    };
    // What the kernel sets up once is not counted.
    host.output(&script(5))?;
    let before = available(host)?;
    host.output(&script(MACHINES))?;
    nothing_is_left(host, before)
}

/// Loaders killed at random moments.
fn killed(host: &mut Host, early: u32, working: u32) -> Checked {
    let seed = seed();
    killed_by(host, early, working, Random(seed)).map_err(|failure| match failure {
        Failure::Seen(what) => Failure::Seen(format!("{what}\n({SEED}={seed} repeats the same moments)")),
        other => other,
    })
}

fn killed_by(host: &mut Host, early: u32, working: u32, mut random: Random) -> Checked {
    host.output("head -c 1048576 /dev/urandom >/tmp/disk")?;
    // The first one lets the kernel set up what it sets up once, and tells how long a guest takes to be at work.
    let boot = killed_at(host, Moment::AtWork(0))?;
    let before = available(host)?;
    for _ in 0..early {
        // As many in the first hundredth of that time as in the rest of its first tenth, and as in the nine that follow.
        let part = [boot / 100, boot / 10, boot][usize::try_from(random.below(3)).unwrap_or(0)];
        killed_at(host, Moment::Started(random.below(part)))?;
    }
    for _ in 0..working {
        killed_at(host, Moment::AtWork(random.below(300)))?;
    }
    let listed = host.output("rm /tmp/disk; ./covisor ps | wc -l")?;
    ensure!(listed == "1\n", "`covisor ps` still lists {listed} lines");
    nothing_is_left(host, before)
}

/// When a loader is killed, in milliseconds.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After its start.
    Started(u64),
    /// After the guest has begun to read and write its disk.
    AtWork(u64),
}

/// Runs a machine and kills its loader; says how many milliseconds it lived.
fn killed_at(host: &mut Host, moment: Moment) -> Checked<u64> {
    let (wait, milliseconds) = match moment {
        Moment::Started(milliseconds) => ("", milliseconds),
        Moment::AtWork(milliseconds) => {
            ("until grep -q work /tmp/out; do kill -0 $pid || break; sleep 0.02; done", milliseconds)
        }
    };
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let script = format!(
        "# In its first second the host's uptime begins with zeroes, which would make it octal.
        now() {{ cut -d' ' -f1 /proc/uptime | tr -d . | sed 's/^0*//'; }}
        : >/tmp/out; start=$(now)
        ./covisor {MINI} --mem {GUEST_MIB} --disk /tmp/disk --exec {} </dev/null >/tmp/out 2>/tmp/errors & pid=$!
        {wait}
        sleep {seconds}.{rest:03}
        kill -9 $pid; wait $pid; status=$?
        echo $(($(now) - start)) $(grep '^covisor ' /proc/modules | cut -d' ' -f3)
        cat /tmp/errors >&2
        exit $status",
        shell_word(WORK)
    );
    let outcome = host.sh(&script)?;
    let text = outcome.stdout_text();
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [centiseconds, users] = numbers[..] else {
        return Err(Failure::Seen(format!("killed at {moment:?}: {}", told(&outcome))));
    };
    ensure!(outcome.status == KILLED, "killed at {moment:?}, it had ended already: {}", told(&outcome));
    ensure!(users == 0, "killed at {moment:?}, it is gone and the driver has {users} users");
    Ok(centiseconds * 10)
}

/// The variable that sets the random moments.
pub(crate) const SEED: &str = "COVISOR_TEST_SEED";

/// What the random moments come from: another number in each run.
pub(crate) fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| RandomState::new().hash_one(0))
}

/// SplitMix64: random enough to pick moments.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number below `limit`, or 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(limit).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_stay_below_their_limit_and_differ() {
        let mut random = Random(1);
        let numbers: std::collections::HashSet<u64> = (0..100).map(|_| random.below(1000)).collect();
        assert!(numbers.len() > 80 && numbers.iter().all(|&number| number < 1000));
        assert_eq!(random.below(0), 0);
    }
}
