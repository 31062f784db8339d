//! A line of `covisor doctor`.

use serde::Serialize;

/// Something about this machine, and whether it is as covisor needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// It is.
    pub good: bool,
    /// What it is about, in a word.
    pub about: &'static str,
    /// What was found, and what to do if it is not good.
    pub text: String,
}

impl Finding {
    /// A finding.
    pub fn new(good: bool, about: &'static str, text: impl Into<String>) -> Self {
        Self { good, about, text: text.into() }
    }
}
