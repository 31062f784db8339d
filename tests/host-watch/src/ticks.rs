//! Whether a sleeping program wakes in time.

use std::io;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

use crate::last_error;
use crate::run_first;

/// Sleeps for `period` again and again until SIGTERM.
pub(crate) fn watch(period: Duration, first: bool) -> io::Result<()> {
    let terminate = blocked(libc::SIGTERM)?;
    if first {
        run_first()?;
    }
    let (mut longest, mut count) = (Duration::ZERO, 0_u64);
    loop {
        let start = Instant::now();
        if comes(&terminate, period)? {
            break;
        }
        longest = longest.max(start.elapsed().saturating_sub(period));
        count += 1;
    }
    println!("ticks: {count}, late by at most {} us", longest.as_micros());
    Ok(())
}

/// A set of one signal, which no longer interrupts this program.
pub(crate) fn blocked(signal: libc::c_int) -> io::Result<libc::sigset_t> {
    // SAFETY: the set is initialized by sigemptyset(3) before anything else reads it, and outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) != 0 {
            return last_error();
        }
        Ok(set)
    }
}

/// Whether a signal of the set comes within `patience`.
pub(crate) fn comes(set: &libc::sigset_t, patience: Duration) -> io::Result<bool> {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: the pointers are to live values.
    if unsafe { libc::sigtimedwait(set, ptr::null_mut(), &raw const timeout) } > 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(false),
        error => Err(error),
    }
}
