//! How far something is that takes long.

use std::io::IsTerminal;
use std::io::Write;
use std::time::Duration;
use std::time::Instant;

/// How long something takes before how far it is is shown.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is shown anew.
const RENEWED: Duration = Duration::from_millis(200);

/// A number of bytes, also in a unit that people like.
pub(super) struct Bytes(pub(super) u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.into_iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(unit);
                write!(formatter, "{}.{} {name} ({} bytes)", tenths / 10, tenths % 10, self.0)
            }
            None => write!(formatter, "{} bytes", self.0),
        }
    }
}

/// How far something is, for who sits before a terminal.
pub(super) struct Progress {
    start: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// It begins.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), shown: None }
    }

    /// So many of all are done.
    pub(super) fn show(&mut self, done: u64, all: u64) {
        let now = Instant::now();
        let is_due = now - self.start > PATIENCE && self.shown.is_none_or(|shown| now - shown > RENEWED);
        if !is_due || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(now);
        let percent = u128::from(done) * 100 / u128::from(all.max(1));
        // Nobody to see it is no reason to stop.
        let _ = write!(std::io::stderr(), "\r{percent:3} % of {}", Bytes(all));
    }

    /// This is being done, in words.
    pub(super) fn say(&mut self, words: &str) {
        /// What fits the line of any terminal.
        const WIDTH: usize = 78;
        let now = Instant::now();
        let is_due = now - self.start > PATIENCE && self.shown.is_none_or(|shown| now - shown > RENEWED);
        if !is_due || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(now);
        let line: String = words.chars().map(|c| if c.is_control() { '?' } else { c }).take(WIDTH).collect();
        let _ = write!(std::io::stderr(), "\r{line:WIDTH$}");
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(std::io::stderr(), "\r{:78}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_sizes_are_told_so_that_people_read_them() {
        assert_eq!(Bytes(512).to_string(), "512 bytes");
        assert_eq!(Bytes(1 << 20).to_string(), "1.0 MiB (1048576 bytes)");
        assert_eq!(Bytes(20 << 30).to_string(), "20.0 GiB (21474836480 bytes)");
    }
}
