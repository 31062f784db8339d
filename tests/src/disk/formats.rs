//! Every kind of disk in a guest.

use std::path::{Path, PathBuf};

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use xtask::rig::{Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::Verdict;
use xtask::{Env, Error, Result, setup};

use super::tools;
use crate::checked::{Checked, ensure, told};
use crate::debian::with_libraries;
use crate::host::{Host, MINI, in_folder, on_own_host};

/// A guest makes a file system on a new qcow2 image and resets; what it wrote is there afterwards, and for the next machine.
pub(super) fn file_system(host: &mut Host) -> Checked {
    // A shell is on the console. It echoes what it gets, so that what is waited for is no part of it.
    let script = format!(
        r#"
        cd /tmp && rm -f keys && mkfifo keys
        wait_for() {{
            for i in $(seq 1200); do
                [ "$(grep -o "$1" out | wc -l)" -ge "$2" ] && return
                sleep 0.1
            done
            echo "no $1 number $2" >&2
        }}
        : >out
        (cd /covisor && ./covisor image create /tmp/disk.qcow2 64 && exec ./covisor {MINI} --disk /tmp/disk.qcow2) <keys >out & pid=$!
        exec 3>keys
        wait_for '[~/] # ' 1
        echo 'mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && dmesg >/mnt/log && sha256sum </mnt/log >/mnt/sum && umount /mnt && reboot -f' >&3
        wait_for '[~/] # ' 2
        echo 'mount -t ext4 /dev/vda /mnt; sha256sum </mnt/log | cmp - /mnt/sum && echo sa''me; umount /mnt; poweroff -f' >&3
        wait $pid
        status=$?
        cat out
        exit $status
        "#
    );
    let outcome = host.sh(&script)?;
    ensure!(outcome.status == 0 && outcome.stdout_text().contains("same"), "{}", told(&outcome));
    let checked = host.covisor("image check /tmp/disk.qcow2")?;
    ensure!(checked.status == 0, "{}", told(&checked));
    let command = "mount -t ext4 /dev/vda /mnt && sha256sum </mnt/log | cmp - /mnt/sum && wc -l </mnt/log";
    let outcome =
        host.sh(&format!("./covisor {MINI} --disk /tmp/disk.qcow2,ro --exec {} </dev/null", shell_word(command)))?;
    let lines = outcome.stdout_text().trim().parse().unwrap_or(0);
    ensure!(outcome.status == 0 && lines > 100, "{}", told(&outcome));
    host.output("rm /tmp/disk.qcow2").map(drop)
}

/// What is on the disks that are only read.
const WORDS: &str = "what is on the disk, again and again\n";
/// Its size, in bytes.
const SIZE: usize = 3 << 20;

/// Disks of all formats and a few of the host's block devices, in one guest.
pub(super) fn all_in_one_guest(env: &Env, kind: RigKind) -> Result<Verdict> {
    on_own_host(env, kind, |rig| with_images(env, kind, rig), all)
}

fn with_images(env: &Env, kind: RigKind, rig: Rig) -> Checked<Rig> {
    setup::ensure_for_images(env)?;
    let folder = env.out.join("images-test").join(format!("guest-{}", kind.engine()));
    fs::remove(&folder).map_err(Error::from)?;
    fs::create_dir_all(&folder).map_err(Error::from)?;
    let text: Vec<u8> = WORDS.bytes().cycle().take(SIZE).collect();
    fs::write(folder.join("disk.raw"), text).map_err(Error::from)?;
    let image = |format: &str, name: &str, options: &str| {
        Cmd::new("qemu-img")
            .args(["convert", "-O", format, "-o", options, "disk.raw", name])
            .dir(&folder)
            .output()
            .map_err(Error::from)
    };
    image("vhdx", "disk.vhdx", "subformat=dynamic,log_size=1M,block_size=1M")?;
    image("vmdk", "disk.vmdk", "subformat=streamOptimized")?;
    fs::create_dir_all(folder.join("cd")).map_err(Error::from)?;
    fs::write(folder.join("cd/file"), WORDS).map_err(Error::from)?;
    let cd = ["-quiet", "-R", "-o", "disk.iso", "cd"];
    Cmd::new("genisoimage").args(cd).dir(&folder).output().map_err(Error::from)?;
    let mut rig = tools::add(env, kind, rig.memory_mib(1536))?;
    for name in ["disk.raw", "disk.vhdx", "disk.vmdk", "disk.iso"] {
        rig = rig.file(folder.join(name), in_folder(name));
    }
    for file in with_libraries("e2fsck")? {
        let name = name_of(&file);
        rig = rig.file(file, name);
    }
    Ok(rig)
}

fn name_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn all(host: &mut Host) -> Checked {
    // The first three can be written; the last two are the host's block devices.
    let disks = "--disk /tmp/fs.qcow2 --disk /tmp/raw --disk /dev/loop0 --disk disk.vhdx,ro --disk disk.vmdk,ro --disk disk.iso,ro \
                 --disk ${DISK}1,ro";
    host.output(
        "./covisor image create /tmp/fs.qcow2 64 && truncate -s 8M /tmp/raw /tmp/looped && modprobe loop && \
         losetup /dev/loop0 /tmp/looped",
    )?;
    let tools = tools::enter("/dev/vdg");
    let command = format!(
        "exec 2>&1; modprobe isofs
        mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && dmesg >/mnt/log && sync
        for disk in vdb vdc; do dd if=/dev/urandom of=/dev/$disk bs=64k count=32 conv=fsync status=none; done
        sha256sum /dev/vdb /dev/vdc
        for disk in vdd vde; do head -c {SIZE} /dev/$disk | sha256sum; done
        mkdir /cd && mount -t iso9660 -o ro /dev/vdf /cd && cat /cd/file
        for disk in vdd vde vdf vdg; do
            cat /sys/block/$disk/ro; dd if=/dev/zero of=/dev/$disk bs=512 count=1 conv=fsync status=none 2>/dev/null && echo written
        done
        {tools} && chroot /tools fio --version
        umount /mnt"
    );
    let outcome = host.sh(&format!("exec ./covisor {MINI} {disks} --exec {} </dev/null", shell_word(&command)))?;
    let text = outcome.stdout_text();
    let sums = host.output(
        "sha256sum </tmp/raw | sed 's|-|/dev/vdb|'; sha256sum </dev/loop0 | sed 's|-|/dev/vdc|'; sha256sum <disk.raw; \
         sha256sum <disk.raw",
    )?;
    let expected = format!("{sums}{WORDS}1\n1\n1\n1\nfio-");
    ensure!(outcome.status == 0 && text.starts_with(&expected), "expected {expected}: {}", told(&outcome));
    let program = with_libraries("e2fsck")?.pop().unwrap_or_else(|| PathBuf::from("e2fsck"));
    host.output(&format!(
        "sync; losetup -d /dev/loop0; ./covisor image check /tmp/fs.qcow2 && \
         ./covisor image convert /tmp/fs.qcow2 /tmp/fs.raw && {} -f -n /tmp/fs.raw",
        program.display()
    ))?;
    for (name, word) in [("disk.vhdx", "a vhdx image can only be read"), ("disk.vmdk", "a vmdk image can only be read")]
    {
        let outcome = host.covisor(&format!("{MINI} --disk {name} --exec true"))?;
        ensure!(outcome.status == 1 && outcome.stderr_text().contains(word), "{name}: {}", told(&outcome));
    }
    Ok(())
}
