//! Waiting for an event.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::platform::EventFd;

/// Waits until `event` is signalled, which takes the signal, or until `timeout` is over. May also return early.
pub fn wait(event: &EventFd, timeout: Option<Duration>) {
    if let Some(timeout) = timeout
        && !is_readable(event, timeout)
    {
        return;
    }
    // Blocks while the count is 0. A signal's interruption is an early return; nothing else can fail here.
    _ = event.read();
}

fn is_readable(event: &EventFd, timeout: Duration) -> bool {
    // Rounded up, so that a short time is not none.
    let milliseconds = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid `pollfd` for the whole call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    ready > 0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn test_a_signal_ends_the_wait_and_is_taken() {
        let event = EventFd::new(0).unwrap();
        event.write(1).unwrap();
        wait(&event, None);
        let start = Instant::now();
        wait(&event, Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
