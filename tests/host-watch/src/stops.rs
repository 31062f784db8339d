//! How soon a process that runs a guest obeys a signal: SIGSTOP, which is done when every thread of it has stopped.

use std::io;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::last_error;
use crate::run_first;

/// How long the process runs between two stops: odd, so as not to fall in step with the host's clock.
const BETWEEN: Duration = Duration::from_micros(3_300);

/// Runs a program, stops it `count` times, and ends it.
pub(crate) fn watch(program: &[String], count: u32, after: Duration) -> io::Result<()> {
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(name).args(arguments).stdin(Stdio::null()).spawn()?;
    let stopped = libc::pid_t::try_from(child.id()).map_err(io::Error::other).and_then(|pid| {
        thread::sleep(after);
        // Only from here on: the child is not to run first.
        run_first()?;
        longest_stop(pid, count)
    });
    // It may have ended by itself, and is then only waited for.
    let _ = libc::pid_t::try_from(child.id()).map(|pid| send(pid, libc::SIGTERM));
    child.wait()?;
    println!("stops: {count}, done after at most {} us", stopped?.as_micros());
    Ok(())
}

/// How long the longest of `count` stops took until all threads stood.
fn longest_stop(pid: libc::pid_t, count: u32) -> io::Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        let start = Instant::now();
        send(pid, libc::SIGSTOP)?;
        let mut status = 0;
        // SAFETY: the pointer is to a live number.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) } != pid {
            return last_error();
        }
        longest = longest.max(start.elapsed());
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other("the process ended instead of stopping"));
        }
        send(pid, libc::SIGCONT)?;
        thread::sleep(BETWEEN);
    }
    Ok(longest)
}

fn send(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill(2) takes plain integers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    last_error()
}
