//! Hearing that the host's clock was set, or that the host slept.

use std::io;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::ClockId;
use nix::sys::timerfd::Expiration;
use nix::sys::timerfd::TimerFd;
use nix::sys::timerfd::TimerFlags;
use nix::sys::timerfd::TimerSetTimeFlags;

/// Tells of each time that the host's clock jumps.
#[derive(Debug)]
pub struct Jumps {
    /// For a time that never comes. The kernel cancels it when the clock jumps (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`), also when
    /// the host wakes from sleep.
    timer: TimerFd,
}

impl Jumps {
    /// Tells of all from now on.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        timer.set(Expiration::OneShot(TimeSpec::new(i64::MAX, 0)), flags)?;
        Ok(Self { timer })
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// What the host says.
    pub fn wait(&mut self) -> io::Result<()> {
        Ok(self.timer.wait()?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::PollFd;
    use nix::poll::PollFlags;
    use nix::poll::PollTimeout;
    use nix::poll::poll;

    use super::*;

    #[test]
    fn test_a_clock_that_ticks_is_no_jump() {
        let jumps = Jumps::new().unwrap();
        let mut fds = [PollFd::new(jumps.timer.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(50_u8)).unwrap(), 0);
    }
}
