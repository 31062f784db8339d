//! What can go wrong, in the words of the line that is printed.

use std::io;

/// Why a piece of work failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The kernel refused something.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// A result is not what it should be.
    #[error("{0}")]
    Wrong(String),
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// For `map_err`.
    pub(crate) fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Refused { what, source }
    }

    /// From `errno`.
    pub(crate) fn last(what: &'static str) -> Self {
        Self::Refused { what, source: io::Error::last_os_error() }
    }
}

/// The result of a system call by the C library, which is -1 where it failed.
pub(crate) fn done<T: Into<i64> + Copy>(what: &'static str, result: T) -> Result<T> {
    if result.into() == -1 { Err(Failure::last(what)) } else { Ok(result) }
}

/// Ends the work with a message unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::error::Failure::Wrong(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;
