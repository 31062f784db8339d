//! Loaders killed while their guests write: what a guest had flushed is on the disk, and the disk is in order.
//!
//! The guest has two disks. On one it writes records (`guest-work`), whose flushes it tells; on the other there is a file system
//! with a journal, on which fio writes files, each of which is flushed before it is told. The next guest looks at both first. Every
//! second machine's images are raw ones, the others' qcow2.

use xtask::rig::{Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::Verdict;
use xtask::{Env, Result, work};

use super::tools;
use crate::checked::{Checked, Failure, ensure, told};
use crate::debian::with_libraries;
use crate::dies_cleanly::{Random, SEED, seed};
use crate::host::{Host, MINI, in_folder, on_own_host};

/// The images' sizes, in MiB.
const RECORDS_MIB: u32 = 24;
const FILES_MIB: u32 = 48;
/// How long a guest works at most before it is killed, in milliseconds.
const MOST_MILLISECONDS: u64 = 1200;
/// A shell's status of a program that SIGKILL ended.
const KILLED: i32 = 128 + 9;
/// Files of fio's that stay; older ones are removed.
const FILES_KEPT: u64 = 3;
/// Whether the guest has begun to write, and whether it has flushed a record and a file.
const BEGUN: &str = "grep -q checked /tmp/out";
const FLUSHED: &str = "grep -q '^flushed ' /tmp/out && grep -q '^file ' /tmp/out";
/// What fio does to a file, and the same to check it.
const FIO: &str = "chroot /tools fio --size=512k --bs=4k --rw=randwrite --ioengine=psync --thread --fallocate=none --verify=crc32c \
                   --verify_state_save=0 --output=/dev/null";

/// Kills `kills` loaders.
pub(super) fn scenario(env: &Env, kind: RigKind, kills: u32) -> Result<Verdict> {
    on_own_host(env, kind, |rig| with_tools(env, kind, rig), |host| killed(host, kills))
}

fn with_tools(env: &Env, kind: RigKind, rig: Rig) -> Checked<Rig> {
    let rig = rig.memory_mib(1536).count_instructions(true).file(work::program(env)?, in_folder("guest-work"));
    let mut rig = tools::add(env, kind, rig)?;
    for program in ["e2fsck", "mkfs.ext4", "qemu-img"] {
        for file in with_libraries(program)? {
            let name = file.to_string_lossy().into_owned();
            rig = rig.file(file, name);
        }
    }
    Ok(rig)
}

fn killed(host: &mut Host, kills: u32) -> Checked {
    let seed = seed();
    killed_by(host, kills, Random(seed)).map_err(|failure| match failure {
        Failure::Seen(what) => Failure::Seen(format!("{what}\n({SEED}={seed} repeats the same moments)")),
        other => other,
    })
}

/// A pair of images, and what a guest has flushed to it.
struct Images {
    format: &'static str,
    /// The last operation of the records.
    records: u64,
    /// The last file.
    files: u64,
}

impl Images {
    /// Makes the images, with the file system.
    fn make(host: &mut Host, format: &'static str) -> Checked<Self> {
        host.output(&format!(
            "truncate -s {FILES_MIB}M /tmp/new && {} -q /tmp/new && \
             ./covisor image convert --from raw --to {format} /tmp/new /tmp/files.{format} && rm /tmp/new && \
             ./covisor image create --format {format} /tmp/records.{format} {RECORDS_MIB}",
            installed("mkfs.ext4")?
        ))?;
        Ok(Self { format, records: 0, files: 0 })
    }

    /// What a guest does first: it checks what was flushed.
    fn check(&self) -> String {
        let Self { records, files, .. } = self;
        let first = files.saturating_sub(FILES_KEPT - 1).max(1);
        let each = if *files == 0 { String::new() } else { format!("$(seq {first} {files})") };
        format!(
            "exec 2>&1; cat >/tmp/work; chmod +x /tmp/work; {} || exit
            mount -t ext4 /dev/vdb /mnt && mount --bind /mnt /tools/mnt || exit
            /tmp/work check-records /dev/vda {records} || exit
            for i in {each}; do
                {FIO} --name=file$i --filename=/mnt/$i --verify_only --verify_fatal=1 || {{ echo file $i is damaged; exit 1; }}
            done
            echo checked",
            tools::enter("/dev/vdc")
        )
    }

    /// Runs `command` after the check.
    fn run(&self, command: &str) -> String {
        let format = self.format;
        format!(
            "./covisor {MINI} --mem 192 --disk /tmp/records.{format} --disk /tmp/files.{format} --disk ${{DISK}}1,ro --exec {} \
             <guest-work >/tmp/out 2>/tmp/errors",
            shell_word(&format!("{}\n{command}", self.check()))
        )
    }

    /// Lets a guest check and write, and kills its loader so many milliseconds after this holds, a test of the shell's.
    fn kill(&mut self, host: &mut Host, after: &str, milliseconds: u64) -> Checked {
        let next = self.files + 1;
        let command = format!(
            "/tmp/work write-records /dev/vda {} &
            i={next}
            while :; do
                {FIO} --name=file$i --filename=/mnt/$i --do_verify=0 --end_fsync=1 || {{ echo fio failed; exit 1; }}
                sync; echo file $i; rm -f /mnt/$((i - {FILES_KEPT})); i=$((i + 1))
            done",
            self.records + 1
        );
        let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
        let script = format!(
            ": >/tmp/out
            {} & pid=$!
            until {after} || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
            sleep {seconds}.{rest:03}
            kill -9 $pid; wait $pid; status=$?
            cat /tmp/out; cat /tmp/errors >&2
            exit $status",
            self.run(&command)
        );
        let outcome = host.sh(&script)?;
        let text = outcome.stdout_text();
        ensure!(outcome.status == KILLED && text.contains("checked"), "{}: {}", self.format, told(&outcome));
        // The last line may be cut off.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let number = |word| line.strip_prefix(word).and_then(|rest: &str| rest.parse().ok());
            self.records = number("flushed ").unwrap_or(self.records);
            self.files = number("file ").unwrap_or(self.files);
        }
        self.referee(host)
    }

    /// Of a qcow2 image whose machine was killed, nothing may be damaged; space may be lost until somebody counts.
    fn referee(&self, host: &mut Host) -> Checked {
        /// `qemu-img check`: space is lost.
        const LEAKS: i32 = 3;
        if self.format != "qcow2" {
            return Ok(());
        }
        let program = installed("qemu-img")?;
        for name in ["records", "files"] {
            let outcome = host.sh(&format!("{program} check /tmp/{name}.qcow2"))?;
            ensure!(matches!(outcome.status, 0 | LEAKS), "qemu-img check of {name}: {}", told(&outcome));
        }
        Ok(())
    }

    /// A last guest checks and powers off; then all is in order.
    fn end(&self, host: &mut Host) -> Checked {
        let Self { format, records, .. } = self;
        let outcome = host
            .sh(&format!("{}; status=$?; cat /tmp/out; cat /tmp/errors >&2; exit $status", self.run("umount /mnt")))?;
        ensure!(outcome.status == 0 && outcome.stdout_text().contains("checked"), "{}", told(&outcome));
        let (fsck, qemu_img) = (installed("e2fsck")?, installed("qemu-img")?);
        host.output(&format!(
            "set -e
            for name in records files; do
                # A raw image has no tables.
                [ {format} = raw ] || ./covisor image check /tmp/$name.{format}
                [ {format} = raw ] || {qemu_img} check -q /tmp/$name.{format}
                rm -f /tmp/copy
                ./covisor image convert --from {format} --to raw /tmp/$name.{format} /tmp/copy
                [ $name = files ] || ./guest-work check-records /tmp/copy {records}
                [ $name = records ] || {fsck} -f -n /tmp/copy
            done
            rm /tmp/copy"
        ))
        .map(drop)
    }
}

/// Where a program is, here and on the emulated machine.
fn installed(program: &str) -> Checked<String> {
    Ok(with_libraries(program)?.pop().unwrap_or_default().to_string_lossy().into_owned())
}

fn killed_by(host: &mut Host, kills: u32, mut random: Random) -> Checked {
    let mut images = [Images::make(host, "qcow2")?, Images::make(host, "raw")?];
    for kill in 0..kills {
        let of_this = &mut images[usize::try_from(kill).unwrap_or(0) % 2];
        // All the others may come before anything is flushed.
        let after = if kill == 0 { FLUSHED } else { BEGUN };
        of_this.kill(host, after, random.below(MOST_MILLISECONDS))?;
    }
    let written: Vec<_> = images.iter().map(|images| (images.records, images.files)).collect();
    ensure!(written.iter().any(|&(records, files)| records > 0 && files > 0), "nothing was flushed: {written:?}");
    images.iter().try_for_each(|images| images.end(host))?;
    // It forgets the sockets of those that are gone.
    host.output("./covisor ps").map(drop)
}
