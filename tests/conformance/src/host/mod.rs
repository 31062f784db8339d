//! What the loader's transport does not offer, for it has no use for it: calls that are wrong as a whole, the end of a call from
//! outside, the close of a handle in use. Behind the same names on each host.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(windows)]
pub(crate) use windows::*;

use std::io;

use crate::refusal::Refusal;

/// A call that must be refused, and how it was answered.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// What was tried.
    pub(crate) what: String,
    /// How it was answered.
    pub(crate) answer: io::Result<()>,
    /// How it should be: one of these.
    pub(crate) refusals: &'static [Refusal],
}
