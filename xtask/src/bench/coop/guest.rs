//! What the program that measures in the guest says (`tests/guest-bench`).

use crate::bench::BenchError;
use crate::bench::figure::Figure;

/// What its lines begin with, behind whatever the console puts before.
const MARK: &str = "guest-bench:";

/// The operation that the program does not measure itself.
const BOOT: &str = "boot";

/// What it said so far.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The counter when the program began.
    start: Option<u64>,
    /// Operations and their figures.
    operations: Vec<(String, u64)>,
    /// Why it did not measure everything.
    failure: Option<String>,
    /// All lines, for errors.
    output: String,
}

impl Measured {
    /// Takes a line; says whether it is the program's last.
    pub(super) fn hear(&mut self, line: &str) -> bool {
        self.output.push_str(line);
        self.output.push('\n');
        let Some((_, words)) = line.split_once(MARK) else { return false };
        let (word, rest) = words.trim().split_once(' ').unwrap_or((words.trim(), ""));
        match (word, rest.parse()) {
            ("end", _) => return true,
            ("failed:", _) => {
                self.failure = Some(rest.to_owned());
                return true;
            }
            ("start", Ok(number)) => self.start = Some(number),
            (operation, Ok(number)) => self.operations.push((operation.to_owned(), number)),
            (_, Err(_)) => {}
        }
        false
    }

    /// The figures, with `boot` from this counter on.
    pub(super) fn figures(self, system: &'static str, boot_from: u64) -> Result<Vec<Figure>, BenchError> {
        if let Some(reason) = self.failure {
            return Err(BenchError::Guest { system, reason });
        }
        let boot = self.start.and_then(|start| start.checked_sub(boot_from));
        match boot {
            Some(boot) if !self.operations.is_empty() => {
                let operations = std::iter::once((BOOT.to_owned(), boot)).chain(self.operations);
                Ok(operations.map(|(op, instructions)| Figure { bench: "coop", op, system, instructions }).collect())
            }
            _ => Err(BenchError::NoFigure { what: system.to_owned(), output: self.output }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::BARE;

    fn measured(lines: &[&str]) -> (Measured, bool) {
        let mut measured = Measured::default();
        let ended = lines.iter().any(|line| measured.hear(line));
        (measured, ended)
    }

    #[test]
    fn figures_are_found_between_what_the_kernel_says() {
        let (found, ended) = measured(&[
            "[    0.162506] ACPI BIOS Error (bug): A valid RSDP was not found",
            "[    1.598371] guest-bench: start 150\r",
            "[    1.605533] guest-bench: getpid 321",
            "[    2.178322] guest-bench: end",
        ]);
        assert!(ended);
        let figures = found.figures(BARE, 50).unwrap();
        let figures: Vec<(&str, u64)> =
            figures.iter().map(|figure| (figure.op.as_str(), figure.instructions)).collect();
        assert_eq!(figures, [("boot", 100), ("getpid", 321)]);
    }

    #[test]
    fn a_failure_is_passed_on() {
        let (found, ended) = measured(&["guest-bench: start 1", "guest-bench: failed: getpid: no", "guest-bench: end"]);
        assert!(ended);
        assert!(found.figures(BARE, 0).unwrap_err().to_string().contains("getpid: no"));
    }

    #[test]
    fn nothing_measured_and_a_counter_that_goes_back_are_errors() {
        assert!(!measured(&["guest-bench: start 5", "guest-bench: getpid many"]).1);
        assert!(measured(&["guest-bench: start 5"]).0.figures(BARE, 0).is_err());
        assert!(measured(&["guest-bench: start 5", "guest-bench: getpid 3"]).0.figures(BARE, 6).is_err());
    }
}
