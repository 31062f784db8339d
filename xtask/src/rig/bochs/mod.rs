//! Bochs: its configuration and its start.
//!
//! Bochs counts instructions by itself: with one CPU the time stamp counter goes on by one with each, whatever its clock
//! says, and while the CPU sleeps the time to the next timer is skipped.

mod boot_disk;
mod tree;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use covisor_guest_images::command::die_with_parent;
use covisor_guest_images::error::Error as BuildError;
use covisor_guest_images::fs;
use covisor_guest_images::initramfs::overlay;

use self::tree::Tree;
use super::emulator::{Channel, Emulator, Process, descriptor_path, inherit, memory_file};
use super::{Disk, Rig};
use crate::env::Env;
use crate::error::{Error, Result};

/// Instructions in a second of the machine's time: as many as in QEMU's machines where they count instructions, so that every
/// time that a test allows holds for both.
pub(super) const INSTRUCTIONS_PER_SECOND: u32 = 1_000_000_000;

/// What every host kernel gets: console on the log, the agent on the second serial port; a panic ends the machine, since
/// Bochs ends at a triple fault. The cryptography's self-tests take as many instructions as the rest of the boot.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=triple loglevel=5 cryptomgr.notests COVISOR_PORT=/dev/ttyS1";

/// What the host needs to see Bochs' disks. Without one it does without: loading them takes a third of the boot.
const LOADED_MODULES: [&str; 2] = ["ata_piix", "sd_mod"];

/// What scripts in the host may load: KVM to compare with, and MSR access to look at the CPU.
const CARRIED_MODULES: [&str; 3] = ["kvm_intel", "msr", "loop"];

/// The terminal's device in the host: the third serial port.
const TERMINAL: &str = "/dev/ttyS2";

/// The most disks beside the one that it boots from: two channels have two each.
const MAX_DISKS: usize = 3;

/// Bochs can have no more memory of this machine's; beyond it, it would swap into a file.
const MAX_MEMORY_MIB: u32 = 2048;

/// How long Bochs may take until it has connected its serial ports, with a busy machine in mind.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// What goes into a machine beside the rig's own settings.
#[derive(Debug, Clone)]
pub(super) struct Bochs {
    tree: Tree,
    boot_sector: Vec<u8>,
}

impl Bochs {
    /// Builds Bochs, if it is not there yet.
    pub(super) fn find(env: &Env) -> Result<Self> {
        Ok(Self { tree: Tree::find(env)?, boot_sector: boot_disk::boot_sector(env)? })
    }

    /// Starts Bochs.
    pub(super) fn start(&self, rig: &Rig) -> Result<Emulator> {
        let start = |source| Error::StartBochs { source };
        if rig.disks.len() > MAX_DISKS {
            return Err(Error::TooMuch { what: "disks", limit: MAX_DISKS as u64, wanted: rig.disks.len() as u64 });
        }
        if rig.memory_mib > MAX_MEMORY_MIB {
            let (limit, wanted) = (MAX_MEMORY_MIB.into(), rig.memory_mib.into());
            return Err(Error::TooMuch { what: "MiB of memory", limit, wanted });
        }
        let mut files = vec![memory_file(&self.boot_disk(rig)?).map_err(start)?];
        for disk in &rig.disks {
            files.push(open_disk(disk)?);
        }
        let (console, console_far) = io::pipe().map_err(start)?;
        let console_far = OwnedFd::from(console_far);
        let (exec, exec_address) = listen().map_err(start)?;
        let (terminal, terminal_address) = listen().map_err(start)?;

        let ports = [
            format!("mode=file, dev={}", descriptor_path(&console_far)),
            format!("mode=socket-client, dev={exec_address}"),
            format!("mode=socket-client, dev={terminal_address}"),
        ];
        let configuration = self.configuration(rig, &files, &ports);
        let configuration = memory_file(configuration.as_bytes()).map_err(start)?;

        let mut command = self.tree.command();
        command
            .args(["-q", "-f", &descriptor_path(&configuration)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        let inherited = files.iter().chain([&console_far, &configuration]).map(AsRawFd::as_raw_fd).collect();
        inherit(&mut command, inherited);
        let mut process = Process::start(command, console, rig.show_log).map_err(start)?;
        // The console's end shows that Bochs has ended: it shall have the only one.
        drop(console_far);
        let exec = accept(&exec, &mut process)?;
        let terminal = accept(&terminal, &mut process)?;
        Ok(Emulator::new(process, exec, terminal, TERMINAL))
    }

    fn boot_disk(&self, rig: &Rig) -> Result<Vec<u8>> {
        let loaded: &[&str] = if rig.disks.is_empty() { &[] } else { &LOADED_MODULES };
        let mut initramfs = rig.host.initramfs(&rig.agent, loaded, &CARRIED_MODULES)?;
        initramfs.extend(overlay(&rig.files)?);
        let kernel = fs::read(&rig.host.kernel.vmlinuz)?;
        let cmdline = format!("{CMDLINE}{}", rig.cmdline);
        boot_disk::build(&self.boot_sector, &kernel, &initramfs, &cmdline, rig.memory_mib)
    }

    /// Bochs' configuration. The first of the files is the disk that it boots from.
    fn configuration(&self, rig: &Rig, files: &[OwnedFd], ports: &[String]) -> String {
        let Rig { cpu, cpus, memory_mib, .. } = rig;
        let mut lines = vec![
            "plugin_ctrl: speaker=0, parallel=0, biosdev=0".to_owned(),
            "config_interface: textconfig".to_owned(),
            "display_library: nogui".to_owned(),
            format!("cpu: model={cpu}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0"),
            format!("memory: guest={memory_mib}, host={memory_mib}"),
            format!("romimage: file=\"{}\", options=fastboot", self.tree.bios().display()),
            format!("vgaromimage: file=\"{}\"", self.tree.vga_bios().display()),
            "clock: sync=none, time0=utc".to_owned(),
            "boot: disk".to_owned(),
            "log: /proc/self/fd/2".to_owned(),
            "panic: action=fatal".to_owned(),
            "error: action=ignore".to_owned(),
            "info: action=ignore".to_owned(),
        ];
        for (index, file) in files.iter().enumerate() {
            let position = format!("ata{}-{}", index / 2, if index % 2 == 0 { "master" } else { "slave" });
            let keeps = index.checked_sub(1).is_none_or(|disk| rig.disks[disk].keep);
            let mode = if keeps {
                "flat".to_owned()
            } else {
                format!("volatile, journal=\"{}\"", std::env::temp_dir().join("covisor-bochs").display())
            };
            lines.push(format!("{position}: type=disk, path={}, mode={mode}", descriptor_path(file)));
        }
        for (index, port) in ports.iter().enumerate() {
            lines.push(format!("com{}: enabled=1, {port}", index + 1));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

/// Opens a disk's image for Bochs, whose configuration cannot name every file.
fn open_disk(disk: &Disk) -> Result<OwnedFd> {
    let open = |path: &Path| -> io::Result<File> { OpenOptions::new().read(true).write(disk.keep).open(path) };
    Ok(open(&disk.path).map_err(BuildError::file("open", &disk.path))?.into())
}

/// A socket of this machine's for one of Bochs' serial ports.
fn listen() -> io::Result<(TcpListener, std::net::SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Waits until Bochs has connected a serial port.
fn accept(listener: &TcpListener, process: &mut Process) -> Result<Channel> {
    let start = |source| Error::StartBochs { source };
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(start)?;
                return Ok(Channel::Tcp(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(start(error)),
        }
        if process.has_ended() {
            return Err(process.died());
        }
        if Instant::now() > deadline {
            return Err(process.late("start Bochs", CONNECT_TIMEOUT));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
