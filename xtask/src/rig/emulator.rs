//! A running emulator: its process, this side of its channels, and what it says. The same for QEMU and Bochs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::inspect;
use crate::error::Error;

/// How many lines of the host's console an error shows.
const TAIL_LINES: usize = 60;

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
    pub(super) fn collect(&self, mut source: impl Read + Send + 'static, show: bool) -> thread::JoinHandle<()> {
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

/// This side of a channel to the host: bytes both ways, none lost.
#[derive(Debug)]
pub(super) enum Channel {
    /// To a port of QEMU's.
    Unix(UnixStream),
    /// To a serial port of Bochs', which can do no other.
    Tcp(TcpStream),
}

impl Channel {
    /// A second handle of the same channel.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
        }
    }

    /// How long a read waits.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Ends it for all its handles.
    pub(super) fn shut_down(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An emulator that was started, with the channels to its host.
#[derive(Debug)]
pub(super) struct Emulator {
    /// The agent's port.
    pub(super) exec: Channel,
    /// The host's terminal.
    pub(super) terminal: Channel,
    /// The terminal's device in the host.
    pub(super) terminal_device: &'static str,
    /// What is typed at the console, where it and the emulator listen.
    keys: Option<UnixStream>,
    process: Process,
}

impl Emulator {
    /// An emulator whose channels are connected.
    pub(super) fn new(process: Process, exec: Channel, terminal: Channel, terminal_device: &'static str) -> Self {
        Self { exec, terminal, terminal_device, keys: None, process }
    }

    /// The same with the way to type at its console.
    pub(super) fn with_keys(self, keys: UnixStream) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// The process.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the emulator, if it still runs, and waits for the logs' ends.
    pub(super) fn stop(&mut self) {
        self.process.stop();
    }

    /// The error of an emulator that ended by itself.
    pub(super) fn died(&mut self) -> Error {
        self.process.died()
    }

    /// The error of a host that took too long over `what`, with what it is at.
    pub(super) fn late(&self, what: &str, limit: Duration) -> Error {
        let mut late = self.process.late(what, limit);
        if let (Error::RigLate { log, .. }, Some(keys)) = (&mut late, &self.keys) {
            let state = inspect::ask(keys, &self.process.console);
            log.push_str("\nwhat it is at:\n");
            log.push_str(&state.unwrap_or_else(|error| format!("it cannot be asked: {error}")));
        }
        late
    }
}

/// An emulator's process and what it and its host say; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    collectors: Vec<thread::JoinHandle<()>>,
    /// The host's console.
    pub(super) console: Log,
    /// What the emulator itself says.
    pub(super) messages: Log,
}

impl Process {
    /// Starts a command and collects what it writes to standard error, and `console`; the latter's other end is the
    /// command's, like everything that it inherits.
    pub(super) fn start(
        mut command: Command,
        console: impl Read + Send + 'static,
        show_console: bool,
    ) -> io::Result<Self> {
        let child = command.spawn()?;
        // What the command holds for the child would keep the console open.
        drop(command);
        let mut process = Self { child, collectors: Vec::new(), console: Log::default(), messages: Log::default() };
        process.collectors.push(process.console.collect(console, show_console));
        let stderr = process.child.stderr.take();
        process.collectors.extend(stderr.map(|pipe| process.messages.collect(pipe, false)));
        Ok(process)
    }

    /// Sends the emulator a signal, if it still runs.
    pub(super) fn signal(&self, signal: libc::c_int) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill(2) takes plain integers. The number is the emulator's until somebody waits for it: stop() does, at
            // the end, and has_ended(), whose callers give the machine up when it says yes.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, if it still runs, and waits for the logs' ends.
    fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for collector in self.collectors.drain(..) {
            // A collector that panicked has no more to tell.
            let _ = collector.join();
        }
    }

    /// The error of an emulator that ended by itself.
    pub(super) fn died(&mut self) -> Error {
        self.stop();
        Error::RigDied { messages: self.messages.tail(TAIL_LINES), log: self.console.tail(TAIL_LINES) }
    }

    /// The error of a host that took too long over `what`.
    pub(super) fn late(&self, what: &str, limit: Duration) -> Error {
        Error::RigLate { what: what.to_owned(), seconds: limit.as_secs(), log: self.console.tail(TAIL_LINES) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A file in memory with this content, at its beginning.
pub(super) fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the flags are the call's own.
    let fd = unsafe { libc::memfd_create(c"covisor-rig".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(content)?;
    Ok(file.into())
}

/// The name under which a process opens a descriptor that it has.
pub(super) fn descriptor_path(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Lets the child have these descriptors, under the same numbers.
pub(super) fn inherit(command: &mut Command, fds: Vec<RawFd>) {
    // SAFETY: the closure runs between fork and exec and calls nothing but fcntl(2), which is
    // async-signal-safe; the descriptors are open in the parent until it has spawned the child.
    unsafe {
        command.pre_exec(move || {
            for &fd in &fds {
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
