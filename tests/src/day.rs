//! A day with covisor: a guest of packages is made, used and removed.
//!
//! It is made on this machine, by the same program as runs it on the emulated machine: that is a driver's business in nothing, and the emulated
//! machine would take an hour for it. What the guest installs later waits in a folder that the emulated machine serves as a mirror does.

use std::path::{Path, PathBuf};

use covisor_guest_images::apt::{self, Apt};
use covisor_guest_images::command::{Cmd, find_program};
use covisor_guest_images::fs;
use xtask::rig::RigKind;
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, build};

use crate::checked::{Checked, Failure, ensure, told};
use crate::host::{Host, on_own_host};

/// The scenario; making the guest alone takes minutes.
pub(crate) const SCENARIOS: &[Scenario] = &[Scenario::new("lifecycle/a-day-with-it", a_day).on_demand()];

/// The release that the guest is of.
const RELEASE: &str = "bookworm";

/// What the guest installs.
const PACKAGES: [&str; 2] = ["tcc", "libc6-dev"];

/// The guest's disk, and that of the emulated machine, which has the guest's and the packages.
const SIZE: &str = "2G";
const HOST_SIZE: &str = "4G";

/// The host's memory: the guest's, and its own.
const HOST_MEMORY_MIB: u32 = 1280;

/// How much less memory the host may have afterwards, in KiB: what its kernel keeps of all that was done.
const MOST_LESS_KIB: u64 = 48 << 10;

fn a_day(env: &Env, kind: RigKind) -> Result<Verdict> {
    let work = env.out.join("day").join(kind.engine());
    let tried = on_own_host(
        env,
        kind,
        |rig| Ok(rig.memory_mib(HOST_MEMORY_MIB).count_instructions(true).disk(host_disk(env, kind, &work)?)),
        a_day_on,
    );
    fs::remove(&work)?;
    tried
}

/// A disk with a guest, and with packages for it.
fn host_disk(env: &Env, kind: RigKind, work: &Path) -> Checked<PathBuf> {
    fs::remove(work).map_err(xtask::Error::from)?;
    let content = work.join("content");
    let packages = content.join("packages");
    fs::create_dir_all(&packages).map_err(xtask::Error::from)?;
    fetch(env, work, &packages)?;
    create(env, kind, &content)?;
    let disk = work.join("disk.img");
    let program = find_program("mke2fs").unwrap_or_else(|| "mke2fs".into());
    let make = Cmd::new(program).args(["-q", "-t", "ext4", "-d"]).arg(&content).arg(&disk).arg(HOST_SIZE);
    make.output().map_err(xtask::Error::from)?;
    fs::remove(&content).map_err(xtask::Error::from)?;
    Ok(disk)
}

/// Makes the guest, of packages.
fn create(env: &Env, kind: RigKind, data: &Path) -> Checked {
    let step = env.progress.step("making a Debian of packages");
    let agent = build::agent(env)?;
    let options = format!("--engine {} --net nat --share /tmp/shared,tag=shared", kind.engine());
    let outcome = Cmd::new(build::loader(env)?)
        .args(["create", "day", "--from", &format!("debian:{RELEASE}"), "--size", SIZE, "--agent"])
        .arg(agent)
        .args(options.split(' '))
        .env("COVISOR_DATA_DIR", data)
        // It is there on the emulated machine, too.
        .dir("/tmp")
        .output()
        .map_err(xtask::Error::from)?;
    ensure!(outcome.is_empty(), "`covisor create` says something of what went well: {outcome}");
    step.done();
    Ok(())
}

/// Fetches packages, with a list of them as apt reads it.
fn fetch(env: &Env, work: &Path, into: &Path) -> Checked {
    let step = env.progress.step("fetching packages for a guest to install");
    let lists = work.join("apt");
    let sources = apt::machine_sources(RELEASE).map_err(xtask::Error::from)?;
    let apt = Apt::new(&lists, &sources).map_err(xtask::Error::from)?;
    apt.update(&step).map_err(xtask::Error::from)?;
    let mut list = String::new();
    for (number, deb) in
        apt.download_with_dependencies(&PACKAGES, &step).map_err(xtask::Error::from)?.into_iter().enumerate()
    {
        let name = format!("{number}.deb");
        let control = Cmd::new("dpkg-deb").arg("-f").arg(&deb).output().map_err(xtask::Error::from)?;
        let sum = Cmd::new("sha256sum").arg(&deb).output().map_err(xtask::Error::from)?;
        let sum = sum.split(' ').next().unwrap_or_default();
        let size = fs::read(&deb).map_err(xtask::Error::from)?.len();
        list.push_str(&format!("{}\nFilename: ./{name}\nSize: {size}\nSHA256: {sum}\n\n", control.trim_end()));
        fs::copy(&deb, into.join(name)).map_err(xtask::Error::from)?;
    }
    fs::write(into.join("Packages"), list).map_err(xtask::Error::from)?;
    fs::remove(&lists).map_err(xtask::Error::from)?;
    step.done();
    Ok(())
}

/// What the guest is to install and build: its first day's work.
const INSTALL_AND_BUILD: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive
mount -t virtiofs shared /mnt
rm /etc/apt/sources.list.d/*
echo "deb [trusted=yes] http://10.0.2.2:8000/ ./" >/etc/apt/sources.list.d/day.list
apt-get -q update >&2
apt-get -q -y --no-install-recommends install tcc libc6-dev >&2
cd /mnt
tcc -Wall -o sum sum.c -lm
./sum
echo kept >/root/kept
"#;

/// The program.
const SOURCE: &str = r#"#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    for (long i = 1; i <= 1000000; i++) sum += 1.0 / ((double)i * i);
    printf("%.9f\n", sqrt(6 * sum));
    return 0;
}
"#;

/// The day. Each line that the script writes is one of [`SEEN`].
const DAY: &str = r#"
exec 2>&1
mkdir -p /var/lib/covisor && modprobe ext4 && mount -t ext4 $DISK /var/lib/covisor || exit 20
available() { echo 3 >/proc/sys/vm/drop_caches; sleep 1; awk '/^MemAvailable/ { print "available", $2 }' /proc/meminfo; }
state() { ./covisor list | awk '/^day/ { print $2 }'; }
httpd -p 127.0.0.1:8000 -h /var/lib/covisor/packages
available
mkdir /tmp/shared; cp /tmp/sum.c /tmp/shared/
state
./covisor start day || exit 21
state
./covisor exec day --wait 900 'systemctl is-system-running --wait; cat /etc/hostname; findmnt -n -o FSTYPE /'
./covisor exec day -- sh -c "$(cat /tmp/install)" 2>/tmp/install.log || tail -n 20 /tmp/install.log
test -x /tmp/shared/sum && echo built
mkfifo /tmp/keys
./covisor console day --lines 0 </tmp/keys >/tmp/first & viewer=$!
exec 5>/tmp/keys
echo 'echo first $((40 + 2))' >&5
until grep -q 'first 42' /tmp/first; do kill -0 $viewer || exit 22; sleep 0.2; done
kill -INT $viewer; wait $viewer; echo "detached $?"
exec 5>&-
echo 'echo second $((40 + 2))' | ./covisor console day --lines 50 >/tmp/second
echo "attached $(grep -c 'first 42' /tmp/second) $(grep -c 'second 42' /tmp/second)"
./covisor stop day --timeout 600; echo "stopped $?"
until [ "$(state)" != running ]; do sleep 0.2; done; state
./covisor start day || exit 23
./covisor exec day --wait 900 'cat /root/kept; mount -t virtiofs shared /mnt && /mnt/sum'
./covisor stop day --timeout 600; echo "stopped $?"
until [ "$(state)" != running ]; do sleep 0.2; done
./covisor remove day; echo "removed $?"
./covisor list | wc -l
ls -A /var/lib/covisor/guests | wc -l
kill $(pidof httpd)
rm -r /tmp/shared /tmp/keys
available
umount /var/lib/covisor; echo "unmounted $?"
"#;

/// What is seen of the day.
const SEEN: [&str; 18] = [
    "stopped",
    "running",
    "running",
    "day",
    "ext4",
    "3.141591699",
    "built",
    "detached 0",
    "attached 1 1",
    "stopped 0",
    "stopped",
    "kept",
    "3.141591699",
    "stopped 0",
    "removed 0",
    "1",
    "0",
    "unmounted 0",
];

fn a_day_on(host: &mut Host) -> Checked {
    let script =
        format!("cat >/tmp/sum.c <<'END'\n{SOURCE}END\ncat >/tmp/install <<'END'\n{INSTALL_AND_BUILD}END\n{DAY}");
    let outcome = host.sh(&script)?;
    let text = outcome.stdout_text();
    let (memory, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("available "));
    ensure!(outcome.status == 0 && lines == SEEN, "{}", told(&outcome));
    let kib = |line: &&str| line.split(' ').nth(1)?.parse::<u64>().ok();
    let [Some(before), Some(after)] = [memory.first().and_then(kib), memory.last().and_then(kib)] else {
        return Err(Failure::Seen(format!("the host's memory is not told: {}", told(&outcome))));
    };
    ensure!(before <= after + MOST_LESS_KIB, "the host had {before} KiB available before and {after} KiB after");
    Ok(())
}
