//! Processes.

use std::io;

/// A child of this process. One that is not waited for ends with the machine.
pub(crate) struct Child(libc::pid_t);

/// Starts a child that ends with the status that `work` gives.
pub(crate) fn fork(work: impl FnOnce() -> u8) -> io::Result<Child> {
    // SAFETY: this process has one thread, so that the child has all that its parent had, no lock of another thread's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = work();
            // SAFETY: ends the process at once; what the parent would do at its end is not for the child.
            unsafe { libc::_exit(status.into()) }
        }
        pid => Ok(Child(pid)),
    }
}

impl Child {
    /// Waits until it has ended, and checks that it did well.
    pub(crate) fn wait(self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: the status is a live value.
        if unsafe { libc::waitpid(self.0, &raw mut status, 0) } != self.0 {
            return Err(io::Error::last_os_error());
        }
        if status == 0 { Ok(()) } else { Err(io::Error::other(format!("a child ended with wait status {status:#x}"))) }
    }
}
