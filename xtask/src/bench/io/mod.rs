//! `bench io`: what a MiB over the network, and to and from a disk, takes of the host's CPU, on covisor and on QEMU with KVM, in the
//! same host on the same emulated machine.
//!
//! The guest is the same on both: Debian 12's cloud kernel with one CPU, and an initramfs with iperf3 and fio. It does what it is told
//! at its serial port. The count is that of all instructions that the host's CPU executes meanwhile: the guest's, the hypervisor's, the
//! monitor's, the host kernel's, and those of iperf3's other end, which runs in the host.

mod programs;

use std::time::Duration;

use covisor_guest_images::fs;
use covisor_guest_images::initramfs::{GUEST_MODULES, Initramfs, overlay};

use super::BenchError;
use super::figure::{COVISOR_SVM, Figure, QEMU_KVM};
use crate::env::Env;
use crate::error::Result;
use crate::rig::{Input, Rig, RigKind};
use crate::run::shell_word;
use crate::{build, images, run, setup};

/// What the host does for a system.
const HOST_SCRIPT: &str = include_str!("host.sh");
/// What the guest does.
const GUEST_SCRIPT: &str = include_str!("guest.sh");
/// What the guest starts: its devices' modules, and then the script.
const GUEST_INITTAB: &str = "::sysinit:/etc/rc\nttyS0::once:/bin/busybox sh /etc/bench\n";
/// The module that the guest needs beside those of every guest.
const NETWORK_MODULE: &str = "virtio_net";

/// Where things are in the host.
const PROGRAM: &str = "/covisor/covisor";
const MODULE: &str = "/covisor/covisor.ko";
const KERNEL: &str = "/covisor/vmlinuz";
const INITRD: &str = "/covisor/io.cpio";
const RAW: &str = "/tmp/disk.raw";
/// A qcow2 image all of whose clusters are allocated, and one that has none.
const FULL: &str = "/tmp/full.qcow2";
const EMPTY: &str = "/tmp/empty.qcow2";

/// The guest's memory, and what the host has besides: both carry the programs with their libraries in memory, and the host the disks.
const GUEST_MEMORY_MIB: u32 = 384;
const HOST_MEMORY_MIB: u32 = 1792;

/// What the guest kernel gets everywhere.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// The host script's status for a guest that got stuck, and how often KVM is tried. Guests of KVM get stuck now and then: the CPU
/// that QEMU 7.2 emulates may deliver an interrupt twice that KVM injects once (see `svm/src/offer.rs`), and the second time to a kernel
/// that has its interrupts off.
const STUCK: i32 = 75;
const ATTEMPTS: u32 = 8;
/// How long an attempt may take by the wall clock.
const PATIENCE: Duration = Duration::from_secs(1800);

/// QEMU, with what it reads besides its libraries.
const QEMU: &str = "qemu-system-x86_64";
const QEMU_FILES: [&str; 3] =
    ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin"];

/// Makes KVM ready. It may spin for a while before it lets the CPU sleep; that is no work, and off here.
const KVM: &str = "modprobe kvm_amd && echo 0 >/sys/module/kvm/parameters/halt_poll_ns";

/// Something to measure.
#[derive(Debug)]
struct Operation {
    name: &'static str,
    /// What the guest runs: `{size}` stands for how many MiB, `{at}` for the MiB of the disk where they begin, and `{fio}` for [`FIO`].
    command: &'static str,
    /// MiB in a first pass and in a second. The figure is of the difference, so that what a pass takes besides is not in it.
    sizes: [u64; 2],
}

/// How fio begins: each request goes by itself to the device.
const FIO: &str = "fio --name=io --direct=1 --ioengine=libaio --thread --gtod_reduce=1";

/// A lot for what goes in large pieces, less for what goes in small ones, and something between for the network.
const LARGE: [u64; 2] = [8, 104];
const SMALL: [u64; 2] = [1, 17];
const STREAM: [u64; 2] = [8, 40];

const fn operation(name: &'static str, command: &'static str, sizes: [u64; 2]) -> Operation {
    Operation { name, command, sizes }
}

const OPERATIONS: [Operation; 11] = [
    operation("tcp-send", "iperf3 -c 10.0.2.2 -i 0 -n {size}M", STREAM),
    operation("tcp-receive", "iperf3 -c 10.0.2.2 -i 0 -n {size}M -R", STREAM),
    operation("raw-write", "{fio} --filename=/dev/vda --rw=write --bs=1M --offset={at}M --size={size}M", LARGE),
    operation("raw-read", "{fio} --filename=/dev/vda --rw=read --bs=1M --offset={at}M --size={size}M", LARGE),
    operation(
        "raw-randwrite",
        "{fio} --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=32 --io_size={size}M",
        SMALL,
    ),
    operation("raw-randread", "{fio} --filename=/dev/vda --rw=randread --bs=4k --iodepth=32 --io_size={size}M", SMALL),
    operation("qcow2-fill", "{fio} --filename=/dev/vdc --rw=write --bs=1M --offset={at}M --size={size}M", LARGE),
    operation("qcow2-write", "{fio} --filename=/dev/vdb --rw=write --bs=1M --offset={at}M --size={size}M", LARGE),
    operation("qcow2-read", "{fio} --filename=/dev/vdb --rw=read --bs=1M --offset={at}M --size={size}M", LARGE),
    operation(
        "qcow2-randwrite",
        "{fio} --filename=/dev/vdb --rw=randwrite --bs=4k --iodepth=32 --io_size={size}M",
        SMALL,
    ),
    operation(
        "qcow2-randread",
        "{fio} --filename=/dev/vdb --rw=randread --bs=4k --iodepth=32 --io_size={size}M",
        SMALL,
    ),
];

/// MiB of each disk: both passes of an operation.
const DISK_MIB: u64 = LARGE[0] + LARGE[1];

impl Operation {
    /// The two lines that have the host script do it.
    fn lines(&self) -> String {
        let Self { name, command, sizes } = self;
        let mut at = 0;
        let mut lines = String::new();
        for size in sizes {
            let command = command.replace("{fio}", FIO).replace("{size}", &size.to_string());
            let command = command.replace("{at}", &at.to_string());
            lines.push_str(&format!("{name} {size} {command}\n"));
            at += size;
        }
        lines
    }

    /// Its figure, from what the host script counted.
    fn figure(&self, system: &'static str, output: &str) -> Result<Figure> {
        let counted = |size| output.lines().find_map(|line| counted(line, self.name, size));
        let [first, second] = self.sizes;
        let difference = counted(first).zip(counted(second)).and_then(|(first, second)| second.checked_sub(first));
        let Some(difference) = difference else {
            let what = format!("{} on {system}", self.name);
            return Err(BenchError::NoFigure { what, output: output.to_owned() }.into());
        };
        let instructions = difference / (second - first);
        Ok(Figure { bench: "io", op: self.name.to_owned(), system, instructions })
    }
}

/// The instructions in a line of the host script's, if it is about this.
fn counted(line: &str, name: &str, size: u64) -> Option<u64> {
    let rest = line.strip_prefix("counted ")?.strip_prefix(name)?.strip_prefix(' ')?;
    let (of, rest) = rest.split_once(' ')?;
    let (instructions, _sleeps) = rest.split_once(' ')?;
    (of.parse() == Ok(size)).then(|| instructions.parse().ok())?
}

/// A system to measure.
struct System {
    name: &'static str,
    /// What makes the host ready for it.
    prepare: String,
    /// What runs the guest.
    monitor: Vec<String>,
    /// How often it is tried where the guest gets stuck.
    attempts: u32,
}

/// Measures both systems, or the one of them that is named, on a machine with this CPU: all operations, or those whose name contains a
/// word.
pub(super) fn run(env: &Env, cpu: &str, only: Option<&str>, filter: Option<&str>) -> Result<Vec<Figure>> {
    setup::ensure_for_io(env)?;
    let operations: Vec<&Operation> =
        OPERATIONS.iter().filter(|operation| filter.is_none_or(|filter| operation.name.contains(filter))).collect();
    let rig = rig(env, cpu)?;
    let mut figures = Vec::new();
    for system in [
        System {
            name: COVISOR_SVM,
            prepare: format!("{PROGRAM} driver install --module {MODULE}"),
            monitor: covisor(),
            attempts: 1,
        },
        System { name: QEMU_KVM, prepare: KVM.to_owned(), monitor: qemu(), attempts: ATTEMPTS },
    ] {
        if only.is_none_or(|only| only == system.name) {
            figures.extend(system.measure(env, &rig, &operations)?);
        }
    }
    Ok(figures)
}

impl System {
    /// Measures it, beginning again with what is left where the guest got stuck.
    fn measure(&self, env: &Env, rig: &Rig, operations: &[&Operation]) -> Result<Vec<Figure>> {
        let mut output = String::new();
        for attempt in 1..=self.attempts {
            let left: Vec<&Operation> =
                operations.iter().copied().filter(|operation| operation.figure(self.name, &output).is_err()).collect();
            if left.is_empty() {
                break;
            }
            let step = env.progress.step(format!("measuring {}, attempt {attempt}", self.name));
            self.attempt(rig.clone(), &left, &mut output)?;
            step.done();
        }
        operations.iter().map(|operation| operation.figure(self.name, &output)).collect()
    }

    /// Measures operations on a machine of their own, and appends what the host script says of each.
    fn attempt(&self, rig: Rig, operations: &[&Operation], output: &mut String) -> Result<()> {
        let mut machine = rig.start()?;
        let disk = DISK_MIB << 20;
        let disks = format!(
            "yes | head -c {disk} >{RAW} && {PROGRAM} image convert {RAW} {FULL} && {PROGRAM} image create {EMPTY} {DISK_MIB}M"
        );
        let words: Vec<String> = self.monitor.iter().map(|word| shell_word(word)).collect();
        let script = format!(
            "iperf3 -s -D && {{ {} && {disks}; }} >&2 || exit\nset -- {}\n{HOST_SCRIPT}",
            self.prepare,
            words.join(" ")
        );
        let lines: String = operations.iter().map(|operation| operation.lines()).collect();
        let mut errors = String::new();
        let status = machine.stream(
            &script,
            Input::Bytes(lines.into_bytes()),
            PATIENCE,
            |bytes| output.push_str(&String::from_utf8_lossy(bytes)),
            |bytes| errors.push_str(&String::from_utf8_lossy(bytes)),
        )?;
        if status != 0 && (status != STUCK || self.attempts == 1) {
            return Err(BenchError::Script { what: self.name, status, output: format!("{output}{errors}") }.into());
        }
        machine.shut_down()?;
        Ok(())
    }
}

/// A host with both monitors, the guest, and iperf3's other end.
fn rig(env: &Env, cpu: &str) -> Result<Rig> {
    let kernel = images::default_kernel(env)?;
    let dir = env.out.join("bench/io");
    fs::write(dir.join("inittab"), GUEST_INITTAB)?;
    fs::write(dir.join("guest.sh"), GUEST_SCRIPT)?;
    let agent = build::agent(env)?;
    let mut load = GUEST_MODULES.to_vec();
    load.push(NETWORK_MODULE);
    let mut initrd =
        Initramfs { kernel: &kernel, load: &load, carry: &[], agent: &agent, console_shell: false, hostname: "io" }
            .build()?;
    let mut files = programs::with_libraries(&["iperf3", "fio"])?;
    files.push((dir.join("inittab"), "/etc/inittab".to_owned()));
    files.push((dir.join("guest.sh"), "/etc/bench".to_owned()));
    initrd.extend(overlay(&files)?);
    fs::write(dir.join("io.cpio"), initrd)?;

    let mut rig = run::covisor_rig(env, RigKind::Qemu)?
        .cpu(cpu)
        .count_instructions(true)
        .memory_mib(GUEST_MEMORY_MIB + HOST_MEMORY_MIB)
        .file(&kernel.vmlinuz, KERNEL)
        .file(dir.join("io.cpio"), INITRD);
    for (from, name) in programs::with_libraries(&["iperf3", QEMU])? {
        rig = rig.file(from, name);
    }
    for file in QEMU_FILES {
        rig = rig.file(file, file);
    }
    Ok(rig)
}

/// How covisor runs the guest.
fn covisor() -> Vec<String> {
    let mut words = Words::new(&[PROGRAM, "run", "--engine", "svm", "--kernel", KERNEL, "--initrd", INITRD]);
    words.add(&["--mem", &GUEST_MEMORY_MIB.to_string(), "--console", "serial", "--no-reboot", "--append", CMDLINE]);
    words.add(&["--net", "nat", "--disk", RAW, "--disk", FULL, "--disk", EMPTY]);
    words.0
}

/// How QEMU does: with its usual cache mode, the one that covisor has, too.
fn qemu() -> Vec<String> {
    let mut words = Words::new(&[QEMU, "-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "1"]);
    words.add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    words.add(&["-m", &GUEST_MEMORY_MIB.to_string(), "-kernel", KERNEL, "-initrd", INITRD, "-append", CMDLINE]);
    words.add(&["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    for (id, file, format) in [("raw", RAW, "raw"), ("full", FULL, "qcow2"), ("empty", EMPTY, "qcow2")] {
        words.add(&["-drive", &format!("file={file},if=none,id={id},format={format},cache=writeback")]);
        words.add(&["-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    words.0
}

/// The words of a command.
struct Words(Vec<String>);

impl Words {
    fn new(words: &[&str]) -> Self {
        let mut new = Self(Vec::new());
        new.add(words);
        new
    }

    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|&word| word.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_done_twice_one_behind_the_other() {
        let lines = operation("write", "{fio} {at} {size} {size}", [2, 5]).lines();
        assert_eq!(lines, format!("write 2 {FIO} 0 2 2\nwrite 5 {FIO} 2 5 5\n"));
    }

    #[test]
    fn a_figure_is_the_difference_for_a_mib() {
        let output = "counted write 2 1000 3\ncounted write 5 1600 7\ncounted writes 5 9999 7\n";
        let write = operation("write", "", [2, 5]);
        assert_eq!(write.figure(COVISOR_SVM, output).unwrap().instructions, 200);
        assert!(operation("read", "", [2, 5]).figure(COVISOR_SVM, output).is_err());
        assert!(write.figure(COVISOR_SVM, "counted write 2 1000 3\ncounted write 5 600 7\n").is_err());
    }

    #[test]
    fn both_passes_are_on_the_disk() {
        for Operation { name, sizes, .. } in OPERATIONS {
            assert!(sizes[0] < sizes[1] && sizes.iter().sum::<u64>() <= DISK_MIB, "{name}");
        }
    }
}
