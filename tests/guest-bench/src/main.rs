//! The first program of a guest, in which operations of the guest's kernel are measured. It counts by the time stamp counter,
//! which on the deterministic emulated machine counts instructions: the guest's, and those of whatever is below it.
//!
//! Prints lines to the kernel's log, the only way out that every guest has: what the counter was when the program began
//! (`guest-bench: start 1234`), a figure for each operation (`guest-bench: getpid 323`), and `guest-bench: end`; or why it
//! failed. Then it switches the machine off.

mod memory;
mod ops;
mod process;
mod rounds;

use std::fs::OpenOptions;
use std::io;
use std::io::Write;

/// What each line begins with.
const MARK: &str = "guest-bench:";

/// The kernel's log.
const LOG: &str = "/dev/kmsg";

/// The level that lines get in the kernel's log, "critical": with `quiet`, lines from 4 on are not shown.
const LEVEL: &str = "<2>";

fn main() -> io::Result<()> {
    let start = rounds::counter();
    let told = tell(format_args!("start {start}")).and_then(|()| match measure() {
        Ok(()) => tell(format_args!("end")),
        Err(error) => tell(format_args!("failed: {error}")),
    });
    // SAFETY: nothing is left to be written: the root is in memory.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    told
}

/// Measures all operations.
fn measure() -> io::Result<()> {
    for operation in ops::OPERATIONS {
        let figure = (operation.measure)()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", operation.name)))?;
        tell(format_args!("{} {figure}", operation.name))?;
    }
    Ok(())
}

/// Writes a line to the kernel's log.
fn tell(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    // One write is one message.
    OpenOptions::new().write(true).open(LOG)?.write_all(format!("{LEVEL}{MARK} {line}\n").as_bytes())
}
