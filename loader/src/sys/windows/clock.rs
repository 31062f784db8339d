//! Hearing that the host's clock was set, or that the host slept: a program without a window has to look.

use std::io;
use std::thread;
use std::time::Duration;

use crate::sys::nt::clock::Look;

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Tells of each time that the host's clock jumps.
#[derive(Debug)]
pub struct Jumps {
    last: Look,
}

impl Jumps {
    /// Tells of all from now on.
    ///
    /// # Errors
    /// None on this host.
    pub fn new() -> io::Result<Self> {
        Ok(Self { last: Look::now() })
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// None on this host.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            thread::sleep(LOOK_INTERVAL);
            let now = Look::now();
            if now.is_after_a_jump(&std::mem::replace(&mut self.last, now)) {
                return Ok(());
            }
        }
    }
}
