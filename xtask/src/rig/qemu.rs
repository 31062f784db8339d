//! QEMU's command line and process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use covisor_exec_protocol::PORT_NAME;
use covisor_guest_images::command::die_with_parent;
use covisor_guest_images::initramfs::overlay;

use super::Rig;
use crate::error::{Error, Result};

const QEMU: &str = "qemu-system-x86_64";

/// What every host kernel gets: console on the log, and a panic ends the machine.
const CMDLINE: &str = "console=ttyS0 panic=-1 loglevel=5";

/// Text that a thread collects.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// All of it so far.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).replace('\r', "")
    }

    /// Its last lines, and all from a kernel's panic on, without QEMU's usual words about CPU features that it does not
    /// emulate.
    pub(super) fn tail(&self, lines: usize) -> String {
        tail(&self.text(), lines)
    }

    /// Collects all that comes from `source`, showing it on standard error if told to.
    fn collect(&self, mut source: impl Read + Send + 'static, show: bool) -> thread::JoinHandle<()> {
        let log = self.0.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                log.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
                if show {
                    // Nobody reads: the log still has it.
                    let _ = io::stderr().write_all(&buffer[..count]);
                }
            }
        })
    }
}

/// [`Log::tail`]. A panic's cause is its first line, and the call trace that follows may be longer than `lines`.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|line| !line.contains("TCG doesn't support requested feature")).collect();
    let last = all.len().saturating_sub(lines);
    let panic = all.iter().position(|line| line.contains("Kernel panic")).unwrap_or(last);
    all[last.min(panic)..].join("\n")
}

/// A running QEMU and this side of its channels.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    collectors: Vec<thread::JoinHandle<()>>,
    /// The agent's port.
    pub(super) exec: UnixStream,
    /// The host's terminal, hvc0.
    pub(super) terminal: UnixStream,
    /// The host's console.
    pub(super) console: Log,
    /// What QEMU itself says.
    pub(super) messages: Log,
}

impl Qemu {
    /// Starts QEMU.
    pub(super) fn start(rig: &Rig) -> Result<Self> {
        let start = |source| Error::StartQemu { source };
        let mut initrd = rig.host.initramfs(&rig.agent)?;
        initrd.extend(overlay(&rig.files)?);
        let initrd = memory_file(&initrd).map_err(start)?;
        let (exec, exec_far) = UnixStream::pair().map_err(start)?;
        let (terminal, terminal_far) = UnixStream::pair().map_err(start)?;

        let mut command = Command::new(QEMU);
        command
            .args(arguments(rig))
            .arg("-initrd")
            .arg(format!("/proc/self/fd/{}", initrd.as_raw_fd()))
            .args(["-chardev", &format!("socket,id=exec,fd={}", exec_far.as_raw_fd())])
            .args(["-device", &format!("virtserialport,chardev=exec,name={PORT_NAME}")])
            .args(["-chardev", &format!("socket,id=terminal,fd={}", terminal_far.as_raw_fd())])
            .args(["-device", "virtconsole,chardev=terminal"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        inherit(&mut command, [initrd.as_raw_fd(), exec_far.as_raw_fd(), terminal_far.as_raw_fd()]);
        let mut child = command.spawn().map_err(start)?;

        let (console, messages) = (Log::default(), Log::default());
        let mut collectors = Vec::new();
        collectors.extend(child.stdout.take().map(|pipe| console.collect(pipe, rig.show_log)));
        collectors.extend(child.stderr.take().map(|pipe| messages.collect(pipe, false)));
        Ok(Self { child, collectors, exec, terminal, console, messages })
    }

    /// Sends QEMU a signal, if it still runs.
    pub(super) fn signal(&self, signal: libc::c_int) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill(2) takes plain integers. The number is QEMU's at least until somebody waits for it, which only
            // stop() does.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Ends QEMU, if it still runs, and waits for the logs' ends.
    pub(super) fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for collector in self.collectors.drain(..) {
            // A collector that panicked has no more to tell.
            let _ = collector.join();
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop();
    }
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
        "-serial",
        "stdio",
        "-monitor",
        "none",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]
    .map(String::from)
    .into();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-cpu", &rig.cpu, "-smp", &rig.cpus.to_string(), "-m", &rig.memory_mib.to_string()]);
    if rig.icount {
        add(&["-icount", "shift=0,sleep=off"]);
    }
    add(&["-kernel", &rig.host.kernel.vmlinuz.to_string_lossy()]);
    add(&["-append", &format!("{CMDLINE}{}", rig.cmdline)]);
    for (index, disk) in rig.disks.iter().enumerate() {
        // A comma in a value is written twice.
        let path = disk.path.to_string_lossy().replace(',', ",,");
        let snapshot = if disk.keep { "off" } else { "on" };
        add(&["-drive", &format!("file={path},if=none,id=disk{index},format=raw,cache=unsafe,snapshot={snapshot}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    arguments
}

/// A file in memory with this content, at its beginning.
fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the flags are the call's own.
    let fd = unsafe { libc::memfd_create(c"initrd".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content)?;
    Ok(file.into())
}

/// Lets the child have these descriptors, under the same numbers.
fn inherit<const N: usize>(command: &mut Command, fds: [RawFd; N]) {
    // SAFETY: the closure runs between fork and exec and calls nothing but fcntl(2), which is
    // async-signal-safe; the descriptors are open in the parent until it has spawned the child.
    unsafe {
        command.pre_exec(move || {
            for fd in fds {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_no_later_than_the_panic() {
        let early: Vec<String> = (0..10).map(|i| format!("line {i}")).collect();
        let text = early.join("\n");
        assert_eq!(tail(&text, 2), "line 8\nline 9");
        assert_eq!(tail(&text, 20), text);
        let panic = format!("{text}\nKernel panic - not syncing: why\n{text}");
        assert_eq!(tail(&panic, 2), format!("Kernel panic - not syncing: why\n{text}"));
        assert_eq!(tail(&panic, 12), format!("line 9\nKernel panic - not syncing: why\n{text}"));
    }

    #[test]
    fn the_tail_leaves_out_what_qemu_always_says() {
        assert_eq!(tail("a\nwarning: TCG doesn't support requested feature: x\nb", 2), "a\nb");
    }
}
