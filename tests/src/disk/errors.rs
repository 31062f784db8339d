//! Errors of the host's are errors to the guest, told once, and the machine goes on.

use xtask::run::shell_word;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI};

/// Images on a file system of the host's that is full; when it is not any more, the guest goes on, and nothing is lost.
pub(super) fn full(host: &mut Host) -> Checked {
    for format in ["qcow2", "raw"] {
        full_below(host, format)?;
    }
    Ok(())
}

fn full_below(host: &mut Host, format: &str) -> Checked {
    // The guest writes until it fails, waits, and tries the same again.
    let command = "dd if=/dev/urandom of=/tmp/data bs=1M count=16 status=none
        piece() { dd if=/tmp/data of=/dev/vda bs=1M skip=$1 seek=$1 count=1 conv=fsync status=none 2>/dev/null; }
        for i in $(seq 0 15); do
            piece $i && continue
            echo failed at $i
            until piece $i; do sleep 0.2; done
            echo going on
        done
        echo 3 >/proc/sys/vm/drop_caches
        head -c 16777216 /dev/vda | cmp - /tmp/data && sha256sum </tmp/data";
    let script = format!(
        "mkdir -p /tmp/small && mount -t tmpfs -o size=20m small /tmp/small || exit
        ./covisor image create --format {format} /tmp/small/disk 32 >/dev/null && dd if=/dev/zero of=/tmp/small/filler bs=1M count=10 status=none || exit
        : >/tmp/out
        ./covisor {MINI} --disk /tmp/small/disk,format={format} --exec {} </dev/null >/tmp/out 2>/tmp/errors & pid=$!
        until grep -q failed /tmp/out || ! kill -0 $pid; do sleep 0.1; done
        rm /tmp/small/filler
        wait $pid; status=$?
        cat /tmp/out; cat /tmp/errors >&2
        [ {format} = raw ] || ./covisor image check --format {format} /tmp/small/disk >/dev/null || echo damaged
        ./covisor image convert --from {format} --to raw /tmp/small/disk /tmp/copy >/dev/null && head -c 16777216 /tmp/copy | sha256sum
        rm -f /tmp/copy; umount /tmp/small
        exit $status",
        shell_word(command),
    );
    let outcome = host.sh(&script)?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    let lines: Vec<&str> = text.lines().collect();
    let is_whole = match lines[..] {
        [failed, "going on", inside, outside] => failed.starts_with("failed at ") && inside == outside,
        _ => false,
    };
    ensure!(outcome.status == 0 && is_whole, "{format}: {}", told(&outcome));
    let told_of = errors.lines().filter(|line| line.contains("disk0: ") && line.contains("full")).count();
    ensure!(told_of == 1, "{format}: the user should be told once that the host's disk is full: {}", told(&outcome));
    Ok(())
}

/// The device of the host's with bad sectors: 2048 to 2055, and 4096 to 4103. What was written stays in the host's memory, so that only
/// what was not can show that it cannot be read.
const NULL_BLOCK: &str = "modprobe null_blk nr_devices=0 && mount -t configfs config /sys/kernel/config && \
     cd /sys/kernel/config/nullb && mkdir nullb0 && cd nullb0 && \
     echo 1 >memory_backed && echo 16 >size && echo +2048-2055 >badblocks && echo +4096-4103 >badblocks && echo 1 >power";

/// Bad sectors of a device of the host's cannot be read or written; all others can. So it is with a file that was cut short.
pub(super) fn bad_sectors(host: &mut Host) -> Checked {
    let command = "exec 2>/dev/null
        at() { dd if=$1 of=$2 bs=4k $3=$4 count=1 $5 status=none && echo done || echo failed; }
        dd if=/dev/urandom of=/tmp/data bs=4k count=1 status=none
        at /tmp/data /dev/vda seek 255 conv=fsync; at /tmp/data /dev/vda seek 256 conv=fsync; at /tmp/data /dev/vda seek 257 conv=fsync
        echo 3 >/proc/sys/vm/drop_caches
        at /dev/vda /tmp/read skip 255 iflag=direct; at /dev/vda /tmp/none skip 512 iflag=direct
        cmp /tmp/read /tmp/data && echo same
        at /dev/vdb /tmp/none skip 2047 iflag=direct
        echo cut; read line
        at /dev/vdb /tmp/none skip 1023 iflag=direct; at /dev/vdb /tmp/none skip 1024 iflag=direct";
    let script = format!(
        "({NULL_BLOCK}) || exit
        trap '' PIPE
        truncate -s 8M /tmp/raw; mkfifo /tmp/in; : >/tmp/out
        ./covisor {MINI} --disk /dev/nullb0 --disk /tmp/raw --exec {} </tmp/in >/tmp/out 2>/tmp/errors & pid=$!
        exec 3>/tmp/in
        until grep -q cut /tmp/out || ! kill -0 $pid; do sleep 0.1; done
        truncate -s 4M /tmp/raw
        echo >&3
        wait $pid; status=$?
        exec 3>&-
        cat /tmp/out; cat /tmp/errors >&2
        rmdir /sys/kernel/config/nullb/nullb0 && umount /sys/kernel/config && rmmod null_blk
        exit $status",
        shell_word(command)
    );
    let outcome = host.sh(&script)?;
    let text = outcome.stdout_text();
    let expected = "done\nfailed\ndone\ndone\nfailed\nsame\ndone\ncut\ndone\nfailed\n";
    ensure!(outcome.status == 0 && text == expected, "expected\n{expected}: {}", told(&outcome));
    for word in ["disk0: ", "disk1: "] {
        let told_of = outcome.stderr_text().lines().any(|line| line.contains(word) && line.contains("failed"));
        ensure!(told_of, "the user should be told of {word}: {}", told(&outcome));
    }
    Ok(())
}
