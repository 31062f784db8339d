//! One running command.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use crate::port::set_nonblocking;

/// How much standard input waits for the command at most; beyond it the host waits.
pub(crate) const STDIN_LIMIT: usize = 256 * 1024;

/// The environment that commands start with, where the agent's own lacks it.
const DEFAULT_ENVIRONMENT: [(&str, &str); 3] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("TERM", "dumb")];

/// A command in a process group of its own, with pipes for its input and output.
#[derive(Debug)]
pub(crate) struct Job {
    child: Child,
    /// Becomes readable when the child ends.
    pub(crate) pidfd: OwnedFd,
    /// Open until the command closes it or the host says that the input ends.
    pub(crate) stdin: Option<ChildStdin>,
    stdin_pending: VecDeque<u8>,
    stdin_ends: bool,
    /// Open until end of file.
    pub(crate) stdout: Option<File>,
    /// Open until end of file.
    pub(crate) stderr: Option<File>,
}

/// What reading from a pipe gave.
pub(crate) enum PipeRead {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// End of file.
    End,
}

impl Job {
    /// Starts `/bin/sh -c command`.
    pub(crate) fn start(command: &str) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", command])
            .current_dir(if std::path::Path::new("/root").is_dir() { "/root" } else { "/" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for (key, value) in DEFAULT_ENVIRONMENT {
            if std::env::var_os(key).is_none() {
                shell.env(key, value);
            }
        }
        let mut child = shell.spawn()?;
        let pidfd = pidfd_open(child.id())?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let stderr = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        for fd in [
            stdin.as_ref().map(AsRawFd::as_raw_fd),
            stdout.as_ref().map(AsRawFd::as_raw_fd),
            stderr.as_ref().map(AsRawFd::as_raw_fd),
        ]
        .into_iter()
        .flatten()
        {
            set_nonblocking(fd, true)?;
        }
        Ok(Self { child, pidfd, stdin, stdin_pending: VecDeque::new(), stdin_ends: false, stdout, stderr })
    }

    /// Takes standard input from the host; what the command does not want any more is dropped.
    pub(crate) fn give_stdin(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() {
            self.stdin_pending.extend(bytes);
        }
    }

    /// The host's standard input ends.
    pub(crate) fn end_stdin(&mut self) {
        self.stdin_ends = true;
    }

    /// Whether more standard input may come from the host now.
    pub(crate) fn has_room_for_stdin(&self) -> bool {
        self.stdin_pending.len() < STDIN_LIMIT
    }

    /// Whether the command's standard input has something to be told.
    pub(crate) fn wants_to_write_stdin(&self) -> bool {
        self.stdin.is_some() && (!self.stdin_pending.is_empty() || self.stdin_ends)
    }

    /// Passes on as much standard input as the command takes now.
    pub(crate) fn pump_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        while !self.stdin_pending.is_empty() {
            match stdin.write(self.stdin_pending.as_slices().0) {
                Ok(written) => drop(self.stdin_pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The command closed its standard input.
                    self.stdin_pending = VecDeque::new();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.stdin_ends {
            self.stdin = None;
        }
    }

    /// Whether the command has ended, and how.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends the command and everything that it started in its process group.
    pub(crate) fn kill(mut self) {
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill(2) takes plain integers. The child is not yet waited for, so its number,
            // which is the group's, is still its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        // It is killed: waiting cannot take long, and how it ended does not matter.
        let _ = self.child.wait();
    }
}

/// Reads from a pipe that does not block.
pub(crate) fn read_pipe(pipe: &mut File, buffer: &mut [u8]) -> PipeRead {
    loop {
        return match pipe.read(buffer) {
            Ok(0) => PipeRead::End,
            Ok(count) => PipeRead::Bytes(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => PipeRead::Nothing,
            Err(_) => PipeRead::End,
        };
    }
}

/// The status that the host gets: the exit code, or 128 + the signal's number.
pub(crate) fn status_number(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// A descriptor that becomes readable when the process ends (Linux 5.3).
fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_the_code_or_128_and_the_signal() {
        assert_eq!(status_number(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(status_number(ExitStatus::from_raw(libc::SIGKILL)), 137);
    }
}
