//! This process and others: signals, users, memory.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::sys::Request;

/// How long this process may live on after [`Request::HangUp`]: as it likes.
pub const HANG_UP_LIMIT: Duration = Duration::MAX;

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

/// Lets a process live on when the terminal goes that it is started from, and not hear that terminal's keys.
pub fn leave_alone(command: &mut Command) {
    command.process_group(0);
}

/// Gives a program its arguments as they are typed: white space parts them, double quotes hold them together.
pub fn give_arguments(command: &mut Command, arguments: &str) {
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in arguments.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            _ if character.is_ascii_whitespace() && !quoted => {
                command.args(word.take());
            }
            _ => word.get_or_insert_default().push(character),
        }
    }
    command.args(word);
}

/// Whether this process has an administrator's rights.
#[must_use]
pub fn is_administrator() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Prepares this process, before it has threads: keeps the memory of a program with many small ones small, for glibc
/// otherwise gives each a heap of its own.
pub fn prepare() {
    // SAFETY: sets a parameter of the allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_arguments_are_parted_as_they_are_typed() {
        let words = |text: &str| {
            let mut command = Command::new("x");
            give_arguments(&mut command, text);
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(":0 -clipboard  -ac "), [":0", "-clipboard", "-ac"]);
        assert_eq!(words(r#""a b" c"d e" """#), ["a b", "cd e", ""]);
        assert_eq!(words(""), [""; 0]);
    }
}
