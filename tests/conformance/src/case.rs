//! A case, and how it says what is not as it should be.

use std::io;

use covisor_abi::Call;

use crate::refusal::Refusal;

/// One thing that holds for every driver.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name, as `area/what-holds`.
    pub(crate) name: &'static str,
    /// What it shows, in a sentence.
    pub(crate) shows: &'static str,
    /// Tries it.
    pub(crate) run: fn() -> Checked,
}

/// What a step of a case gives: what was seen, where it was not what should be.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Ends the case with what was seen unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(format!($($seen)+));
        }
    };
}
pub(crate) use ensure;

/// A call that must succeed.
pub(crate) fn done<T>(what: impl std::fmt::Display, result: io::Result<T>) -> Checked<T> {
    result.map_err(|error| format!("{what} was refused: {error}"))
}

/// A call that must be refused just so.
pub(crate) fn refused<T>(what: impl std::fmt::Display, result: io::Result<T>, refusal: Refusal) -> Checked {
    refused_as(what, result, &[refusal])
}

/// A call that must be refused in one of these ways.
pub(crate) fn refused_as<T>(what: impl std::fmt::Display, result: io::Result<T>, refusals: &[Refusal]) -> Checked {
    match result {
        Ok(_) => Err(format!("{what} was done, and not refused as {refusals:?}")),
        Err(error) if refusals.iter().any(|refusal| refusal.is(&error)) => Ok(()),
        Err(error) => Err(format!("{what} was refused, but not as {refusals:?}: {error}")),
    }
}

/// All calls but the handshake.
pub(crate) fn all_but_handshake() -> impl Iterator<Item = Call> {
    Call::ALL.into_iter().filter(|&call| call != Call::Handshake)
}
