//! Events: what doorbells and devices signal, and workers wait for.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// An event that stays signalled until a wait takes the signal.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// An event that is not signalled.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn new() -> io::Result<Self> {
        EventFd::new(0).map(Self)
    }

    /// Another handle of the same event.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Signals it.
    pub fn signal(&self) {
        // An event's count cannot come near its limit, which alone makes this fail.
        _ = self.0.write(1);
    }

    /// Waits until it is signalled, which takes the signal, or until `timeout` is over; says which. May also return early.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        if let Some(timeout) = timeout
            && !self.is_readable(timeout)
        {
            return false;
        }
        // Blocks while the count is 0. A signal's interruption is an early return; nothing else can fail here.
        self.0.read().is_ok()
    }

    /// How the driver knows the event.
    #[must_use]
    pub fn handle(&self) -> i64 {
        self.0.as_raw_fd().into()
    }

    /// Its descriptor, which is readable while it is signalled.
    #[must_use]
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn is_readable(&self, timeout: Duration) -> bool {
        // Rounded up, so that a short time is not none.
        let milliseconds = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid `pollfd` for the whole call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        ready > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn test_a_signal_ends_the_wait_and_is_taken() {
        let event = Event::new().unwrap();
        event.signal();
        assert!(event.wait(None));
        let start = Instant::now();
        assert!(!event.wait(Some(Duration::from_millis(20))));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
