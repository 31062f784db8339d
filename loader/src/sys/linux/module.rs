//! The driver as a kernel module: loading, unloading, finding it.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::ModuleInitFlags;
use nix::kmod::delete_module;
use nix::kmod::finit_module;
use thiserror::Error;

use crate::sys::Finding;
use crate::sys::host;

/// The module's name in the kernel.
const MODULE: &str = "covisor";
/// The module's file.
const FILE: &str = "covisor.ko";

/// Why the driver cannot be loaded or unloaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// No file.
    #[error("no driver found (looked for {}): build it, or name it by --module FILE", .0)]
    NotFound(String),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Not an administrator.
    #[error("only root may load and unload drivers: type `sudo covisor driver …`")]
    NotAdministrator,
    /// Already loaded.
    #[error(
        "a driver is loaded already: `covisor driver status` tells which; remove it first by `sudo covisor driver remove`"
    )]
    AlreadyLoaded,
    /// Not loaded.
    #[error("the driver is not loaded")]
    NotLoaded,
    /// In use.
    #[error("machines are running on the driver: end them first (`covisor ps`, `covisor stop --all`)")]
    InUse,
    /// Built for another kernel.
    #[error("{path} was built for another kernel than the running {release}: build it again for this one")]
    WrongKernel {
        /// The file.
        path: PathBuf,
        /// The running kernel.
        release: String,
    },
    /// Not a module.
    #[error("{0} is not a kernel module")]
    NotAModule(PathBuf),
    /// The kernel refuses it.
    #[error("the kernel refuses the module: {0}")]
    Refused(&'static str),
    /// Another reason.
    #[error("the kernel refuses the module: {0} (`dmesg` may say more)")]
    Kernel(io::Error),
}

/// Whether the driver is loaded.
#[must_use]
pub fn is_loaded() -> bool {
    users().is_some()
}

/// What the loaded module was built from, as the kernel's build system counts it, if the module says it.
#[must_use]
pub fn source_version() -> Option<String> {
    let text = fs::read_to_string(format!("/sys/module/{MODULE}/srcversion")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// By how many programs the driver is used, if it is loaded.
#[must_use]
pub fn users() -> Option<u32> {
    let modules = fs::read_to_string("/proc/modules").ok()?;
    let mut fields = modules
        .lines()
        .map(|line| line.split(' '))
        .find_map(|mut fields| (fields.next() == Some(MODULE)).then_some(fields))?;
    fields.nth(1)?.parse().ok()
}

/// The module's file: the one named, or the one beside this program, or the one among the kernel's own.
///
/// # Errors
/// When there is none.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ModuleError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let mut places = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(folder.join(FILE));
        places.push(folder.join("../lib/covisor").join(FILE));
    }
    places.push(Path::new("/lib/modules").join(host::kernel_release()).join("extra").join(FILE));
    match places.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => {
            let names: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
            Err(ModuleError::NotFound(names.join(", ")))
        }
    }
}

/// Loads the driver.
///
/// # Errors
/// Why not.
pub fn load(path: &Path) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    finit_module(&file, c"", ModuleInitFlags::empty()).map_err(|errno| match errno {
        Errno::EPERM if !super::process::is_administrator() => ModuleError::NotAdministrator,
        Errno::EPERM | Errno::EKEYREJECTED | Errno::ENOKEY => match host::module_refusal() {
            Some(reason) => ModuleError::Refused(reason),
            None => ModuleError::Kernel(errno.into()),
        },
        Errno::EEXIST => ModuleError::AlreadyLoaded,
        Errno::ENOEXEC if is_module(path) => {
            ModuleError::WrongKernel { path: path.to_owned(), release: host::kernel_release() }
        }
        Errno::ENOEXEC | Errno::EINVAL => ModuleError::NotAModule(path.to_owned()),
        _ => ModuleError::Kernel(errno.into()),
    })
}

/// Whether a file looks like a module (an ELF file).
fn is_module(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(&elf::abi::ELFMAGIC))
}

/// Unloads the driver.
///
/// # Errors
/// Why not.
pub fn unload() -> Result<(), ModuleError> {
    let name = CString::new(MODULE).unwrap_or_default();
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK).map_err(|errno| match errno {
        Errno::EPERM => ModuleError::NotAdministrator,
        Errno::ENOENT => ModuleError::NotLoaded,
        Errno::EBUSY | Errno::EWOULDBLOCK => ModuleError::InUse,
        _ => ModuleError::Kernel(errno.into()),
    })
}

/// Why the driver cannot be opened, as far as can be seen from outside; what it takes to load it, when it `is_missing`.
#[must_use]
pub fn findings(is_missing: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !super::process::is_administrator() {
        findings.push(Finding::new(
            false,
            "rights",
            "you are not root; loading the driver and running guests need that (sudo)",
        ));
    }
    if !is_missing {
        return findings;
    }
    findings.push(match find(None) {
        Ok(path) => {
            Finding::new(true, "module", format!("{} can be loaded by {}", path.display(), super::words::INSTALL))
        }
        Err(error) => Finding::new(false, "module", error.to_string()),
    });
    findings.push(match host::kernel_headers() {
        Some(path) => Finding::new(true, "headers", format!("the module can be built against {}", path.display())),
        None => Finding::new(
            false,
            "headers",
            format!(
                "the running kernel's headers are not installed: `sudo apt-get install linux-headers-{}` (only to build the module)",
                host::kernel_release()
            ),
        ),
    });
    if let Some(reason) = host::module_refusal() {
        findings.push(Finding::new(false, "kernel", reason));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_missing_driver_is_explained() {
        let findings = findings(true);
        assert!(findings.iter().any(|line| line.about == "module"));
        assert!(findings.iter().any(|line| line.about == "headers"));
    }
}
