//! The host's memory: it comes to a guest that touches its own, and goes back.

use xtask::images;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::debian::debian_rig;
use crate::host::{Host, MINI, on_own_host};

/// The scenarios about memory.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("memory/what-a-guest-frees-comes-back", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.memory_mib(2048)), what_a_guest_frees_comes_back)
    }),
    Scenario::new("memory/the-host-has-none-left", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.memory_mib(640)), the_host_has_none_left)
    }),
    Scenario::new("memory/ten-idle-debians", |env, kind| {
        let rig = |rig| Ok(debian_rig(rig, &images::debian(env)?, "6.1.", "-cloud-amd64")?.memory_mib(4096));
        on_own_host(env, kind, rig, ten_idle_debians)
    }),
    Scenario::new("memory/ten-idle-guests", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.memory_mib(2048)), ten_idle_guests)
    }),
];

/// Functions for the host's scripts: its own free memory and a guest's part of it, in MiB.
const FUNCTIONS: &str = r#"
free() { sync; echo 3 >/proc/sys/vm/drop_caches; awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }
used() { ./covisor memory $1 | sed 's/.*of which \([0-9]*\) .*/\1/'; }
# Waits until a test of the shell's holds, for up to 30 s.
until_that() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 300 ] || { echo "never: $1"; ./covisor ps; free; exit 40; }; sleep 0.1; done; }
# What a guest uses of its memory, of so many MiB: all that its kernel does not have free.
uses() { echo $(($2 - $(./covisor exec $1 'awk "/^MemFree/ { print int(\$2 / 1024) }" /proc/meminfo'))); }
# A guest's part when it does not change any more: what is freed is reported two seconds later.
settled() { a=0; until [ $a = $(used $1) ]; do a=$(used $1); sleep 3; done; echo $a; }
"#;

/// A guest fills 512 MiB and frees it; then it is asked to make do with less, and its memory is touched again.
fn what_a_guest_frees_comes_back(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        r#"{FUNCTIONS}
        before=$(free)
        ./covisor {MINI} --mem 1024 --name one </dev/null >/tmp/one 2>/tmp/one.errors & pid=$!
        until_that './covisor exec one "modprobe virtio_balloon" 2>/dev/null'
        idle=$(settled one)
        use=$(uses one 1024)
        ./covisor exec one 'mount -t tmpfs -o size=600m none /mnt; dd if=/dev/urandom of=/mnt/a bs=1M count=8 2>/dev/null
            for n in $(seq 64); do cat /mnt/a; done >/mnt/b; md5sum /mnt/a >/mnt/sum; md5sum -c /mnt/sum' || exit 41
        full=$(used one)
        # Than it used, not than it had: of that some may not have been reported yet, and was filled.
        [ $full -ge $((use + 512)) ] || {{ echo "use $use, idle $idle, full $full"; exit 42; }}
        taken=$((before - $(free)))
        # The host counts memory by tens of MiB.
        [ $taken -ge $((full - 64)) ] || {{ echo "full $full, taken $taken"; exit 43; }}
        ./covisor exec one 'rm /mnt/b; md5sum -c /mnt/sum' || exit 44
        until_that "[ \$(used one) -le $((idle + 60)) ]"
        echo "idle $idle, full $full, after $(used one); the host has $((before - $(free))) less than before, and had $taken less"
        until_that "[ \$((before - \$(free))) -le $((idle + 64)) ]"
        # The guest has as much as before, and the host gets none of it wrong.
        ./covisor exec one 'for n in $(seq 16); do cat /mnt/a; done >/mnt/b; for n in $(seq 16); do cat /mnt/a; done | cmp - /mnt/b' || exit 45
        ./covisor exec one 'rm /mnt/b'
        ./covisor memory one 300 || exit 46
        until_that './covisor exec one "grep MemFree /proc/meminfo" | awk "{{ exit \$2 >= 310000 }}"'
        ./covisor memory one 1025; echo "status $?"
        ./covisor memory one 1024
        until_that './covisor exec one "grep MemFree /proc/meminfo" | awk "{{ exit \$2 <= 700000 }}"'
        ./covisor exec one 'md5sum -c /mnt/sum; poweroff -f' >/dev/null 2>&1
        wait $pid; echo "status $?"
        "#
    ))?;
    let text = outcome.stdout_text();
    ensure!(
        outcome.status == 0
            && text.ends_with("status 1\nstatus 0\n")
            && outcome.stderr_text().contains("the guest has 1024 MiB: it can be given 1 to as many"),
        "{}",
        told(&outcome)
    );
    println!("{}", text.lines().find(|line| line.starts_with("idle")).unwrap_or_default());
    Ok(())
}

/// Two guests that begin to use memory when the host has none left: one by its own programs, and one by what its disk brings. Each ends
/// with the reason, and the host's programs live.
fn the_host_has_none_left(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        r#"{FUNCTIONS}
        truncate -s 400M /tmp/disk
        mkdir /tmp/hog && mount -t tmpfs -o size=600m none /tmp/hog
        attempt() {{
            ./covisor {MINI} --mem 300 --disk /tmp/disk --name short </dev/null >/tmp/out 2>/tmp/errors & pid=$!
            until_that './covisor exec short true 2>/dev/null'
            sleep 600 & bystander=$!
            dd if=/dev/zero of=/tmp/hog/most bs=1M count=$(($(free) - 60)) 2>/dev/null || exit 41
            while [ $(free) -gt 40 ]; do dd if=/dev/zero bs=1M count=4 2>/dev/null >>/tmp/hog/rest || exit 41; done
            ./covisor exec short "$1" >/tmp/exec 2>&1
            wait $pid; echo "status $?"
            rm /tmp/hog/*
            kill $bystander || exit 42
            grep -c 'the host has no memory left for RAM that the guest has begun to use' /tmp/errors || {{ cat /tmp/errors /tmp/exec; free; exit 43; }}
        }}
        attempt 'mount -t tmpfs -o size=280m none /mnt; cat /dev/zero >/mnt/a; sleep 60'
        attempt 'cat /dev/vda >/dev/null; sleep 60'
        umount /tmp/hog && rmdir /tmp/hog
        "#
    ))?;
    ensure!(outcome.status == 0 && outcome.stdout_text() == "status 3\n1\nstatus 3\n1\n", "{}", told(&outcome));
    Ok(())
}

/// Ten guests of 256 MiB that do nothing: together they have at most a fifth more than they use. What covisor needs for itself has a bar
/// of its own (`cost/memory-of-the-loader`).
fn ten_idle_guests(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        r#"{FUNCTIONS}
        before=$(free)
        pids=
        for n in 0 1 2 3 4 5 6 7 8 9; do
            ./covisor {MINI} --mem 256 --name guest$n </dev/null >/tmp/$n 2>&1 & pids="$pids $!"
            until_that "./covisor exec guest$n 'modprobe virtio_balloon' 2>/dev/null"
        done
        use=0
        for n in 0 1 2 3 4 5 6 7 8 9; do
            use=$((use + $(uses guest$n 256)))
        done
        given=0
        for n in 0 1 2 3 4 5 6 7 8 9; do given=$((given + $(settled guest$n))); done
        echo "ten guests use $use MiB of their memory, and have $given MiB of the host's; in all, the host has $((before - $(free))) MiB less"
        [ $given -le $((use + use / 5)) ] || {{ ./covisor ps; exit 41; }}
        kill $pids; wait
        "#
    ))?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    println!("{}", outcome.stdout_text().trim_end());
    Ok(())
}

/// The same with Debian, each on an image based on the one disk; here all that the host has less counts.
fn ten_idle_debians(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        r#"{FUNCTIONS}
        mkdir /tmp/disks
        ./covisor image convert $DISK /tmp/disks/base.qcow2 >/dev/null || exit 49
        before=$(($(free) + $(du -sm /tmp/disks | cut -f1)))
        for n in 0 1 2 3 4 5 6 7 8 9; do
            ./covisor image create --backing base.qcow2 /tmp/disks/$n.qcow2 >/dev/null || exit 50
            ./covisor run --engine $ENGINE --kernel debian-kernel --initrd debian-initrd --disk /tmp/disks/$n.qcow2 --mem 256 \
                --append 'console=tty0 console=hvc0 root=/dev/vda ro' --name guest$n </dev/null >/tmp/$n 2>&1 & pid=$!
            until ./covisor exec guest$n 'systemctl is-system-running --wait' 2>/dev/null; do
                kill -0 $pid || {{ cat /tmp/$n >&2; exit 52; }}; sleep 1
            done
        done
        use=0; given=0
        for n in 0 1 2 3 4 5 6 7 8 9; do
            use=$((use + $(uses guest$n 256)))
            given=$((given + $(settled guest$n)))
        done
        taken=$((before - $(free) - $(du -sm /tmp/disks | cut -f1)))
        echo "ten guests use $use MiB of their memory, and have $given MiB of the host's; in all, the host has $taken MiB less"
        ./covisor stop --all --timeout 120 || exit 51
        wait
        [ $taken -le $((use + use / 5)) ] || exit 41
        "#
    ))?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    println!("{}", outcome.stdout_text().trim_end());
    Ok(())
}
