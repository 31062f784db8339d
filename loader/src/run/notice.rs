//! What covisor itself says to the user, on standard error.

use std::fmt;
use std::io::Write;

use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

use crate::sys::terminal;

/// Says one line to the user, also while the terminal is raw.
pub fn notice(message: impl fmt::Display) {
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    // Nobody to read it is no reason to stop.
    let _ = std::io::stderr().write_all(format!("covisor: {message}{end}").as_bytes());
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase().replace("warn", "warning");
            notice(format_args!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Shows warnings from anywhere in the program, and with `verbose` more.
pub fn install_logger(verbose: bool) {
    log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Warn });
    // A second call, as in tests, changes only the level.
    let _ = log::set_logger(&Logger);
}
