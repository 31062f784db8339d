//! The driver as a service: installing, removing, finding it.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use thiserror::Error;
use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;
use windows_sys::Win32::Foundation::ERROR_INVALID_SERVICE_CONTROL;
use windows_sys::Win32::Foundation::ERROR_SERVICE_ALREADY_RUNNING;
use windows_sys::Win32::Foundation::ERROR_SERVICE_CANNOT_ACCEPT_CTRL;
use windows_sys::Win32::Foundation::ERROR_SERVICE_DOES_NOT_EXIST;
use windows_sys::Win32::Foundation::ERROR_SERVICE_EXISTS;
use windows_sys::Win32::Foundation::ERROR_SERVICE_NOT_ACTIVE;
use windows_sys::Win32::System::Services::SERVICE_ALL_ACCESS;
use windows_sys::Win32::System::Services::SERVICE_DEMAND_START;
use windows_sys::Win32::System::Services::SERVICE_KERNEL_DRIVER;
use windows_sys::Win32::System::Services::SERVICE_QUERY_STATUS;
use windows_sys::Win32::System::Services::SERVICE_RUNNING;
use windows_sys::Win32::System::Services::SERVICE_STOPPED;

use super::control;
use super::host;
use super::service::Manager;
use super::service::NewService;
use super::service::Service;
use super::words;
use crate::control::Request;
use crate::control::to_line;
use crate::sys::Finding;
use crate::sys::nt::conditions;
use crate::sys::nt::refusals;

/// The service's name.
pub(super) const SERVICE: &str = "covisor";
/// How lists of drivers show it.
const TITLE: &str = "covisor: runs Linux beside Windows";
/// The driver's file.
const FILE: &str = "covisor.sys";
/// How long the driver may take to stop, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the driver cannot be installed or removed.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// No file.
    #[error("no driver found (looked for {0}): put covisor.sys there, or name it by --module FILE")]
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
    #[error(
        "only administrators may install and remove drivers: open the command prompt by \"Run as administrator\" and type it again"
    )]
    NotAdministrator,
    /// Already loaded.
    #[error(
        "the driver is loaded already: `covisor driver status` tells which; remove it first by `covisor driver remove`"
    )]
    AlreadyLoaded,
    /// Not loaded.
    #[error("the driver is not installed")]
    NotLoaded,
    /// In use.
    #[error("machines are running on the driver: end them first (`covisor ps`, `covisor stop --all`)")]
    InUse,
    /// Something has it open.
    #[error("the driver waits for the last program that has it open: end that program, or restart")]
    Stopping,
    /// Windows does not start it, and it is known why.
    #[error("Windows does not load {path}: {reason} (error {code})")]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
        /// Its number.
        code: i32,
    },
    /// Another reason.
    #[error("Windows does not do it: {0}")]
    Host(io::Error),
}

pub(super) fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code.cast_signed())
}

fn refusal(error: io::Error) -> ModuleError {
    match error {
        error if is(&error, ERROR_ACCESS_DENIED) => ModuleError::NotAdministrator,
        error if is(&error, ERROR_SERVICE_DOES_NOT_EXIST) => ModuleError::NotLoaded,
        error => ModuleError::Host(error),
    }
}

/// Whether the driver is loaded.
#[must_use]
pub fn is_loaded() -> bool {
    is_running(SERVICE)
}

/// Whether a service runs.
pub(super) fn is_running(name: &str) -> bool {
    let state = Manager::open(false).and_then(|manager| manager.service(name, SERVICE_QUERY_STATUS)?.state());
    state.is_ok_and(|state| state == SERVICE_RUNNING)
}

/// What the loaded driver was built from: Windows does not say.
#[must_use]
pub fn source_version() -> Option<String> {
    None
}

/// By how many programs the driver is used: Windows does not count them.
#[must_use]
pub fn users() -> Option<u32> {
    None
}

/// The driver's file: the one named, or the one beside this program.
///
/// # Errors
/// When there is none.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ModuleError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let program = std::env::current_exe().map_err(ModuleError::Host)?;
    let path = program.with_file_name(FILE);
    if path.exists() { Ok(path) } else { Err(ModuleError::NotFound(path.display().to_string())) }
}

/// Installs the driver and starts it.
///
/// # Errors
/// Why not.
pub fn load(path: &Path) -> Result<(), ModuleError> {
    let path = std::path::absolute(path).map_err(ModuleError::Host)?;
    std::fs::metadata(&path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
    let manager = Manager::open(true).map_err(refusal)?;
    let new = NewService {
        name: SERVICE,
        title: TITLE,
        kind: SERVICE_KERNEL_DRIVER,
        start: SERVICE_DEMAND_START,
        line: path.as_os_str(),
        needs: None,
    };
    let (service, is_new) = match manager.create(&new) {
        Ok(service) => (service, true),
        Err(error) if is(&error, ERROR_SERVICE_EXISTS) => {
            let service = manager.service(SERVICE, SERVICE_ALL_ACCESS).map_err(refusal)?;
            if service.state().is_ok_and(|state| state == SERVICE_RUNNING) {
                return Err(ModuleError::AlreadyLoaded);
            }
            service.set_file(&path).map_err(refusal)?;
            (service, false)
        }
        Err(error) => return Err(not_started(error, &path)),
    };
    service.start().map_err(|error| {
        if is_new {
            // Nothing is left of a driver that does not start.
            _ = service.delete();
        }
        not_started(error, &path)
    })
}

fn not_started(error: io::Error, path: &Path) -> ModuleError {
    if is(&error, ERROR_SERVICE_ALREADY_RUNNING) {
        return ModuleError::AlreadyLoaded;
    }
    let code = error.raw_os_error();
    match (refusals::of_start(code), code) {
        (Some(reason), Some(code)) => ModuleError::Refused { path: path.to_owned(), reason, code },
        _ => refusal(error),
    }
}

/// Stops the driver and removes it.
///
/// # Errors
/// Why not.
pub fn unload() -> Result<(), ModuleError> {
    let manager = Manager::open(false).map_err(refusal)?;
    let service = manager.service(SERVICE, SERVICE_ALL_ACCESS).map_err(refusal)?;
    let runs = |path: &PathBuf| control::ask(path, &to_line(&Request::Status)).is_ok();
    if control::sockets(&control::folder()).iter().any(runs) {
        return Err(ModuleError::InUse);
    }
    match service.stop() {
        Ok(()) => wait_for_end(&service)?,
        Err(error) if is(&error, ERROR_SERVICE_NOT_ACTIVE) => {}
        Err(error) if is(&error, ERROR_INVALID_SERVICE_CONTROL) || is(&error, ERROR_SERVICE_CANNOT_ACCEPT_CTRL) => {
            return Err(ModuleError::Stopping);
        }
        Err(error) => return Err(refusal(error)),
    }
    service.delete().map_err(refusal)
}

fn wait_for_end(service: &Service) -> Result<(), ModuleError> {
    let deadline = Instant::now() + PATIENCE;
    while service.state().map_err(refusal)? != SERVICE_STOPPED {
        if Instant::now() >= deadline {
            return Err(ModuleError::Stopping);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What of this Windows is in covisor's way, as far as can be seen from outside; also what it takes to load the driver, when
/// it `is_missing`.
#[must_use]
pub fn findings(is_missing: bool) -> Vec<Finding> {
    let mut findings = conditions::findings(&host::facts(), !is_missing);
    if is_missing {
        findings.push(match find(None) {
            Ok(path) => Finding::new(true, "file", format!("{} can be loaded by {}", path.display(), words::INSTALL)),
            Err(error) => Finding::new(false, "file", error.to_string()),
        });
    }
    findings
}
