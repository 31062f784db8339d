//! Where things are.

use std::path::{Path, PathBuf};

use crate::error::Result;
use covisor_guest_images::progress::Progress;

/// The checkout and the folders that the build writes to.
#[derive(Debug, Clone)]
pub struct Env {
    /// The checkout's root.
    pub root: PathBuf,
    /// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the checkout.
    pub cargo_target: PathBuf,
    /// Where everything that is not cargo's own goes: images, kernels, the driver module.
    pub out: PathBuf,
    /// Where progress is shown.
    pub progress: Progress,
}

impl Env {
    /// The environment of this checkout.
    ///
    /// # Errors
    /// When the output folder cannot be made.
    pub fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        let cargo_target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        let out = root.join("target/covisor");
        covisor_guest_images::fs::create_dir_all(&out)?;
        Ok(Self { root, cargo_target, out, progress: Progress::new() })
    }

    /// The target folder of bare-metal builds: another compiler than the user-space one, so
    /// another folder.
    #[must_use]
    pub fn bare_metal_target(&self) -> PathBuf {
        self.cargo_target.join("bare-metal")
    }
}
