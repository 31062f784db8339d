//! QEMU's command line.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use covisor_exec_protocol::PORT_NAME;
use covisor_guest_images::command::die_with_parent;
use covisor_guest_images::initramfs::overlay;

use super::Rig;
use super::emulator::{Channel, Emulator, Process, descriptor_path, inherit, memory_file};
use crate::error::{Error, Result};

const QEMU: &str = "qemu-system-x86_64";

/// What every host kernel gets: console on the log, a panic ends the machine, a timer that is late because this machine is busy
/// counts as one that works, and the console's keys that ask the kernel for its state are served.
const CMDLINE: &str = "console=ttyS0 panic=-1 loglevel=5 no_timer_check sysrq_always_enabled";

/// Keeps programs away from the first CPU, unless they ask for it (see [`Rig::first_cpu`]).
const SPARE_CPU: &str = " isolcpus=0";

/// What the host needs to see QEMU's devices.
const LOADED_MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_rng"];

/// What scripts in the host may load: KVM to compare with, MSR access to look at the CPU, networks, and block devices without a
/// disk.
const CARRIED_MODULES: [&str; 6] = ["kvm_amd", "msr", "loop", "tun", "bridge", "null_blk"];

/// The terminal's device in the host.
const TERMINAL: &str = "/dev/hvc0";

/// Starts QEMU.
pub(super) fn start(rig: &Rig) -> Result<Emulator> {
    let start = |source| Error::StartQemu { source };
    let mut initrd = rig.host.initramfs(&rig.agent, &LOADED_MODULES, &CARRIED_MODULES)?;
    initrd.extend(overlay(&rig.files)?);
    let initrd = memory_file(&initrd).map_err(start)?;
    let (console, console_far) = UnixStream::pair().map_err(start)?;
    let keys = console.try_clone().map_err(start)?;
    let (exec, exec_far) = UnixStream::pair().map_err(start)?;
    let (terminal, terminal_far) = UnixStream::pair().map_err(start)?;

    let mut command = Command::new(QEMU);
    command
        .args(arguments(rig))
        .args(["-initrd", &descriptor_path(&initrd)])
        .args(["-chardev", &format!("socket,id=exec,fd={}", exec_far.as_raw_fd())])
        .args(["-device", &format!("virtserialport,chardev=exec,name={PORT_NAME}")])
        .args(["-chardev", &format!("socket,id=terminal,fd={}", terminal_far.as_raw_fd())])
        .args(["-device", "virtconsole,chardev=terminal"])
        .args(["-chardev", &format!("socket,id=console,mux=on,fd={}", console_far.as_raw_fd())])
        .args(["-serial", "chardev:console", "-mon", "chardev=console,mode=readline"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let inherited = [initrd.as_raw_fd(), exec_far.as_raw_fd(), terminal_far.as_raw_fd(), console_far.as_raw_fd()];
    inherit(&mut command, inherited.into());
    let process = Process::start(command, console, rig.show_log).map_err(start)?;
    // The console's end shows that QEMU has ended: it shall have the only one.
    drop(console_far);
    Ok(Emulator::new(process, Channel::Unix(exec), Channel::Unix(terminal), TERMINAL).with_keys(keys))
}

/// The arguments that need no descriptors.
fn arguments(rig: &Rig) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "-machine",
        "q35,accel=tcg",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-no-user-config",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]
    .map(String::from)
    .into();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-cpu", &rig.cpu, "-smp", &(rig.last_cpu() + 1).to_string(), "-m", &rig.memory_mib.to_string()]);
    if rig.icount {
        add(&["-icount", "shift=0,sleep=off"]);
    }
    add(&["-kernel", &rig.host.kernel.vmlinuz.to_string_lossy()]);
    let spare = if rig.first_cpu() == 0 { "" } else { SPARE_CPU };
    add(&["-append", &format!("{CMDLINE}{spare}{}", rig.cmdline)]);
    for (index, disk) in rig.disks.iter().enumerate() {
        // A comma in a value is written twice.
        let path = disk.path.to_string_lossy().replace(',', ",,");
        let snapshot = if disk.keep { "off" } else { "on" };
        add(&["-drive", &format!("file={path},if=none,id=disk{index},format=raw,cache=unsafe,snapshot={snapshot}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    arguments
}
