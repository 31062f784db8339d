//! Builds the Linux host driver, `covisor.ko`.

use std::path::{Path, PathBuf};

use crate::env::Env;
use crate::error::{Error, Result};

/// Builds the driver for the kernel whose headers are at `kernel_headers_dir` (a folder such as
/// `/usr/src/linux-headers-6.1.0-56-cloud-amd64`) and returns the path of the `covisor.ko`.
///
/// # Errors
/// When a build step fails.
pub fn build_linux_module(env: &Env, kernel_headers_dir: &Path) -> Result<PathBuf> {
    let _ = (env, kernel_headers_dir);
    Err(Error::NotBuilt("the Linux driver"))
}
