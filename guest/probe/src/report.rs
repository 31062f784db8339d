//! Results, in the four kinds of XTF: success, failure (the machine is wrong), error (the check could not do its work) and
//! skip (the machine does not have what is checked).

use core::fmt;
use core::fmt::Write as _;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

/// Longest text of a result.
const TEXT: usize = 200;

/// A text of bounded length.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    bytes: [u8; TEXT],
    length: usize,
}

impl Text {
    const EMPTY: Self = Self { bytes: [0; TEXT], length: 0 };

    fn as_str(&self) -> &str {
        self.bytes
            .get(..self.length)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or("(text cut inside a character)")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let slot = self.bytes.get_mut(self.length).ok_or(fmt::Error)?;
            *slot = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// A check's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine does what it should.
    Success,
    /// It does not.
    Failure,
    /// The check could not be carried out.
    Error,
    /// The machine does not have what is checked.
    Skip,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Skip => "skip",
        })
    }
}

/// Whether the CPU below is QEMU's own, some of whose departures from the manual nobody above it can mend.
static EMULATED_CPU: AtomicBool = AtomicBool::new(false);

/// Says that the CPU below is QEMU's own (`cpu=tcg` on the command line).
pub fn set_emulated_cpu(emulated: bool) {
    EMULATED_CPU.store(emulated, Relaxed);
}

/// Whether it is ([`set_emulated_cpu`]).
#[must_use]
pub fn is_cpu_emulated() -> bool {
    EMULATED_CPU.load(Relaxed)
}

/// Whether the hypervisor is not covisor but one that checks are held against.
static REFERENCE: AtomicBool = AtomicBool::new(false);

/// Says that the hypervisor is not covisor.
pub fn set_reference(reference: bool) {
    REFERENCE.store(reference, Relaxed);
}

/// What a check reports to.
#[derive(Debug)]
pub struct Report {
    outcome: Outcome,
    text: Text,
    more: u32,
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// A check that has not said anything: a success.
    #[must_use]
    pub const fn new() -> Self {
        Self { outcome: Outcome::Success, text: Text::EMPTY, more: 0 }
    }

    fn set(&mut self, outcome: Outcome, text: fmt::Arguments<'_>) {
        if matches!(self.outcome, Outcome::Failure | Outcome::Error) {
            self.more += 1;
            return;
        }
        self.outcome = outcome;
        self.text = Text::EMPTY;
        // A text that is too long is cut.
        let _ = self.text.write_fmt(text);
    }

    /// The machine is wrong. The first text is kept, further ones are counted.
    pub fn fail(&mut self, text: fmt::Arguments<'_>) {
        self.set(Outcome::Failure, text);
    }

    /// The check cannot go on.
    pub fn error(&mut self, text: fmt::Arguments<'_>) {
        self.set(Outcome::Error, text);
    }

    /// The machine does not have it.
    pub fn skip(&mut self, text: fmt::Arguments<'_>) {
        self.set(Outcome::Skip, text);
    }

    /// Something worth knowing about a success.
    pub fn note(&mut self, text: fmt::Arguments<'_>) {
        if self.outcome == Outcome::Success {
            self.text = Text::EMPTY;
            // A text that is too long is cut.
            let _ = self.text.write_fmt(text);
        }
    }

    /// Fails unless `holds`.
    pub fn expect(&mut self, holds: bool, text: fmt::Arguments<'_>) {
        if !holds {
            self.fail(text);
        }
    }

    /// Fails unless `holds`; only a note where QEMU's own CPU is known to do it wrong below any hypervisor.
    pub fn expect_of_cpu(&mut self, holds: bool, text: fmt::Arguments<'_>) {
        if !holds && is_cpu_emulated() {
            self.note(format_args!("(QEMU's CPU) {text}"));
        } else {
            self.expect(holds, text);
        }
    }

    /// Fails unless `holds`; only a note where the hypervisor is not covisor, and may have other ways.
    pub fn expect_of_covisor(&mut self, holds: bool, text: fmt::Arguments<'_>) {
        if !holds && REFERENCE.load(Relaxed) {
            self.note(format_args!("(not covisor) {text}"));
        } else {
            self.expect(holds, text);
        }
    }

    /// What came out.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.outcome)?;
        if self.text.length > 0 {
            write!(f, " {}", self.text.as_str())?;
        }
        if self.more > 0 {
            write!(f, " (and {} more)", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn test_the_first_failure_stays_and_the_rest_is_counted() {
        let mut report = Report::new();
        report.fail(format_args!("a"));
        report.fail(format_args!("b"));
        report.skip(format_args!("c"));
        assert_eq!(report.to_string(), "failure a (and 2 more)");
    }

    #[test]
    fn test_a_long_text_is_cut() {
        let mut report = Report::new();
        report.error(format_args!("{:>300}", 1));
        assert_eq!(report.to_string().len(), "error ".len() + TEXT);
    }
}
