//! The `mini` guest: an initramfs with busybox, the agent and a few modules.
//!
//! It is not compressed: unpacking costs the kernel more than copying the few megabytes does.

use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::error::Result;
use crate::fs;
use crate::kernel::Kernel;
use crate::modules::add_modules;

/// Where Debian's package busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// The modules for covisor's devices. The last three are for the power button: ACPI's, or a keyboard's, and who wants to hear of it.
pub const GUEST_MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "ext4",
    "button",
    "virtio_input",
    "evdev",
];

/// The modules that are there for whoever loads them: a CD's file system, and that of shared folders.
pub const CARRIED_MODULES: [&str; 3] = ["isofs", "virtio_balloon", "virtiofs"];

/// What `busybox init` runs to bring the system up.
const RC: &str = include_str!("initramfs/rc");

/// What `udhcpc` runs to set an adapter's address.
const UDHCPC: &str = include_str!("initramfs/udhcpc");

/// What `acpid` runs when the power button is pressed.
const POWER_BUTTON: &[u8] = b"#!/bin/sh\nexec /bin/busybox poweroff\n";

/// What `busybox init` runs and when, apart from the console's shell.
const INITTAB: &str = include_str!("initramfs/inittab");

/// The line of the inittab that runs a login shell on whatever `/dev/console` is.
const CONSOLE_SHELL: &str = "::respawn:/bin/busybox cttyhack sh -l\n";

/// What an initramfs holds.
#[derive(Debug)]
pub struct Initramfs<'a> {
    /// The kernel whose modules go in.
    pub kernel: &'a Kernel,
    /// The modules to load at start, in this order.
    pub load: &'a [&'a str],
    /// Modules that are there for `modprobe`.
    pub carry: &'a [&'a str],
    /// The agent's program.
    pub agent: &'a Path,
    /// Whether a login shell runs on the console.
    pub console_shell: bool,
    /// The host name.
    pub hostname: &'a str,
}

impl Initramfs<'_> {
    /// Builds the archive.
    ///
    /// # Errors
    /// When a file cannot be read or the kernel lacks a module.
    pub fn build(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        for directory in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "root",
            "mnt",
            "sbin",
            "usr/bin",
            "usr/sbin",
            "etc",
            "etc/udhcpc",
            "etc/acpi",
            "etc/acpi/PWRF",
        ] {
            archive.directory(directory);
        }
        // The kernel opens it for init before anything is mounted.
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("bin/busybox", 0o755, &fs::read(BUSYBOX)?)?;
        archive.symlink("bin/sh", "busybox")?;
        archive.symlink("init", "bin/busybox")?;
        archive.file("sbin/covisor-agent", 0o755, &fs::read(self.agent)?)?;
        archive.file("etc/rc", 0o755, RC.as_bytes())?;
        archive.file("etc/udhcpc/default.script", 0o755, UDHCPC.as_bytes())?;
        archive.file("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON)?;
        let shell = if self.console_shell { CONSOLE_SHELL } else { "" };
        archive.file("etc/inittab", 0o644, format!("{INITTAB}{shell}").as_bytes())?;
        archive.file("etc/hostname", 0o644, format!("{}\n", self.hostname).as_bytes())?;
        archive.file("etc/modules", 0o644, self.modules_to_load().as_bytes())?;
        archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n")?;
        archive.file("etc/group", 0o644, b"root:x:0:\n")?;
        let modules: Vec<&str> = self.load.iter().chain(self.carry).copied().collect();
        add_modules(&mut archive, self.kernel, &modules)?;
        Ok(archive.finish())
    }

    /// The modules' names on one line; empty where there are no modules to load.
    fn modules_to_load(&self) -> String {
        match self.kernel.modules {
            Some(_) => format!("{}\n", self.load.join(" ")),
            None => String::new(),
        }
    }
}

/// An archive of further files, to be put after another: where each comes from and its name
/// inside. The files' modes are kept.
///
/// # Errors
/// When a file cannot be read.
pub fn overlay(files: &[(PathBuf, String)]) -> Result<Vec<u8>> {
    use std::os::unix::fs::PermissionsExt;
    let mut archive = Archive::new();
    for (from, name) in files {
        let mode = from.metadata().map_err(crate::Error::file("read", from))?.permissions().mode();
        archive.file(name.trim_start_matches('/'), mode, &fs::read(from)?)?;
    }
    Ok(archive.finish())
}
