//! This process and others: signals, users, memory.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// What the host may ask of this process at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Interrupted from the keyboard, or told to end.
    End,
    /// The terminal went away.
    HangUp,
    /// The terminal has another size.
    Resize,
}

/// The requests, blocked for all threads from the moment this was made; one thread waits for them.
#[derive(Debug)]
pub struct Requests {
    signals: SigSet,
}

impl Requests {
    /// Blocks the signals in this thread, and so in all that it starts from now on.
    ///
    /// # Errors
    /// What the host says.
    pub fn block() -> io::Result<Self> {
        let signals: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect();
        signals.thread_block()?;
        Ok(Self { signals })
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// What the host says.
    pub fn wait(&self) -> io::Result<Request> {
        loop {
            return match self.signals.wait() {
                Ok(Signal::SIGWINCH) => Ok(Request::Resize),
                Ok(Signal::SIGHUP) => Ok(Request::HangUp),
                Ok(_) => Ok(Request::End),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// Whether the process with this number lives.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// Ends a process at once. Its machine goes with it.
///
/// # Errors
/// What the host says.
pub fn end(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// Whether this process has an administrator's rights.
#[must_use]
pub fn is_administrator() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Keeps the memory of a program with many small threads small: glibc otherwise gives each a heap of its own.
pub fn limit_heaps() {
    // SAFETY: sets a parameter of the allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
