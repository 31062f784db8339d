//! How a scenario says that something is not as it should be.

use thiserror::Error;
use xtask::rig::Outcome;
use xtask::scenario::Verdict;

/// How much of a text a message shows.
const SHOWN: usize = 4000;

/// Why a scenario does not hold.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Something else was seen than was expected.
    #[error("{0}")]
    Seen(String),
    /// The emulated machine or the build failed.
    #[error(transparent)]
    Rig(#[from] xtask::Error),
}

/// What a step of a scenario gives.
pub(crate) type Checked<T = ()> = Result<T, Failure>;

/// Ends the scenario with a message unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::checked::Failure::Seen(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// A scenario's verdict from its steps.
pub(crate) fn verdict(checked: Checked) -> xtask::Result<Verdict> {
    match checked {
        Ok(()) => Ok(Verdict::Pass),
        Err(Failure::Seen(what)) => Ok(Verdict::Fail(what)),
        Err(Failure::Rig(error)) => Err(error),
    }
}

/// What a script did, for a message.
pub(crate) fn told(outcome: &Outcome) -> String {
    format!(
        "it ended with status {}\nstandard output:\n{}\nstandard error:\n{}",
        outcome.status,
        end_of(&outcome.stdout_text()),
        end_of(&outcome.stderr_text()),
    )
}

/// The end of a text that may be long.
fn end_of(text: &str) -> &str {
    let start = text.len().saturating_sub(SHOWN);
    let start = (start..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_its_beginning() {
        assert_eq!(end_of("short"), "short");
        let long = format!("{}end", "é".repeat(SHOWN));
        let shown = end_of(&long);
        assert!(shown.len() <= SHOWN && shown.ends_with("éend"));
    }
}
