//! Builds the probe guest.

use std::path::PathBuf;

use crate::env::Env;
use crate::error::{Error, Result};

/// Builds the probe guest and returns the path of its kernel image.
///
/// # Errors
/// When a build step fails.
pub fn build_probe(env: &Env) -> Result<PathBuf> {
    let _ = env;
    Err(Error::NotBuilt("the probe guest"))
}
