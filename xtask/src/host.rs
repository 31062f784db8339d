//! The rig's host operating system: Debian 12's cloud kernel, the one whose headers are installed
//! here, so that the driver that is built with them loads into it.

use std::path::{Path, PathBuf};

use covisor_guest_images::fs;
use covisor_guest_images::initramfs::Initramfs;
use covisor_guest_images::kernel::{Kernel, KernelStore};

use crate::env::Env;
use crate::error::{Error, Result};

/// Where Debian's packages put kernel headers.
const HEADERS_PARENT: &str = "/usr/src";
const HEADERS_PREFIX: &str = "linux-headers-";
const FLAVOUR: &str = "-cloud-amd64";

/// The host's kernel and the headers that belong to it.
#[derive(Debug, Clone)]
pub struct HostKernel {
    /// The kernel.
    pub kernel: Kernel,
    /// Its headers, to build the driver with.
    pub headers: PathBuf,
}

impl HostKernel {
    /// Finds the installed headers and fetches their kernel.
    ///
    /// # Errors
    /// When no headers are installed or their kernel cannot be fetched.
    pub fn find(env: &Env) -> Result<Self> {
        let (version, headers) = installed_headers()?;
        let kernel = env.kernels().of_version(&version)?;
        Ok(Self { kernel, headers })
    }

    /// The host's initramfs: busybox, the agent and modules, to be loaded at the start or by scripts.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn initramfs(&self, agent: &Path, load: &[&str], carry: &[&str]) -> Result<Vec<u8>> {
        let initramfs = Initramfs { kernel: &self.kernel, load, carry, agent, console_shell: false, hostname: "host" };
        Ok(initramfs.build()?)
    }
}

impl Env {
    /// The kernels that were fetched.
    #[must_use]
    pub fn kernels(&self) -> KernelStore {
        KernelStore::new(self.out.join("kernels"), self.progress)
    }
}

/// The newest installed cloud kernel headers: the version and the folder.
fn installed_headers() -> Result<(String, PathBuf)> {
    fs::list(HEADERS_PARENT)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|path| {
            let version = path.file_name()?.to_str()?.strip_prefix(HEADERS_PREFIX)?.to_owned();
            (version.ends_with(FLAVOUR) && path.join("Makefile").exists()).then_some((version, path))
        })
        .max_by_key(|(version, _)| numbers(version))
        .ok_or(Error::NoHeaders)
}

/// The numbers in a version, for comparing: 6.1.0-9 is older than 6.1.0-10.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("6.1.0-9-cloud-amd64") < numbers("6.1.0-10-cloud-amd64"));
    }
}
