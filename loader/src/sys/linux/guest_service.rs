//! Guests that are services of systemd: installing, removing, looking at them, and being one.
//!
//! A guest has a unit of its own in [`UNITS`]. systemd stops it by SIGTERM, which has the guest power off, and kills it only when that takes
//! longer than the guest may.

mod unit;

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sd_notify::NotifyState;

use super::process;
use crate::control::END_PATIENCE;
use crate::run::notice;
pub use crate::sys::service_error::ServiceError;
pub use crate::sys::service_status::ServiceStatus;
use unit::Unit;

/// Where the administrator's units are (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";
/// The program that asks systemd.
const SYSTEMCTL: &str = "systemctl";

fn at(path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    move |source| ServiceError::File { path: path.to_owned(), source }
}

/// When a service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the host.
    Auto,
    /// When somebody starts it.
    Demand,
}

/// The name of a guest's unit.
fn unit_of(machine: &str) -> String {
    format!("covisor-{machine}.service")
}

fn path_of(machine: &str) -> PathBuf {
    Path::new(UNITS).join(unit_of(machine))
}

/// Whether units can be changed here, by this user.
fn check() -> Result<(), ServiceError> {
    if !sd_notify::booted().unwrap_or(false) {
        return Err(ServiceError::NoSystemd);
    }
    if process::is_administrator() { Ok(()) } else { Err(ServiceError::NotAdministrator) }
}

/// Asks systemd, and gives what it answers.
fn systemctl(arguments: &[&str]) -> Result<String, ServiceError> {
    let output = Command::new(SYSTEMCTL).args(arguments).output().map_err(at(Path::new(SYSTEMCTL)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(ServiceError::Systemd { action: arguments.join(" "), said })
}

/// Makes the service of a machine, which runs this program with these words after `service run`; a stop may take as long as
/// `patience`.
///
/// # Errors
/// Why not.
pub fn install(machine: &str, start: Start, patience: Duration, words: &[String]) -> Result<(), ServiceError> {
    check()?;
    let program = std::env::current_exe().map_err(ServiceError::Host)?;
    let folder = std::env::current_dir().map_err(ServiceError::Host)?;
    let text = |path: PathBuf| path.into_os_string().into_string().map_err(|path| ServiceError::NoText(path.into()));
    let data_folder = std::env::var_os(super::host::DATA_FOLDER).map(|folder| text(folder.into())).transpose()?;
    let unit = Unit {
        machine,
        program: &text(program)?,
        words,
        folder: &text(folder)?,
        data_folder: data_folder.as_deref(),
        patience: patience.saturating_add(END_PATIENCE),
    };
    let path = path_of(machine);
    let mut file = match File::create_new(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(ServiceError::Exists(machine.to_owned()));
        }
        Err(error) => return Err(at(&path)(error)),
    };
    let mut configure = || {
        file.write_all(unit.to_string().as_bytes()).and_then(|()| file.sync_all()).map_err(at(&path))?;
        systemctl(&["daemon-reload"])?;
        match start {
            Start::Auto => systemctl(&["--quiet", "enable", &unit_of(machine)]).map(drop),
            Start::Demand => Ok(()),
        }
    };
    configure().inspect_err(|_| {
        // Nothing is left of what is not whole.
        let _ = fs::remove_file(&path);
    })
}

/// The text of a machine's unit, if covisor made it.
fn read(machine: &str) -> Result<String, ServiceError> {
    let path = path_of(machine);
    match fs::read_to_string(&path) {
        Ok(text) if unit::is_ours(&text) => Ok(text),
        Ok(_) => Err(ServiceError::Foreign(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ServiceError::Missing(machine.to_owned())),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Stops a machine's service in good order, if it runs, and removes it.
///
/// # Errors
/// Why not.
pub fn remove(machine: &str) -> Result<(), ServiceError> {
    read(machine)?;
    check()?;
    let (unit, path) = (unit_of(machine), path_of(machine));
    systemctl(&["--quiet", "disable", "--now", &unit])?;
    fs::remove_file(&path).map_err(at(&path))?;
    systemctl(&["daemon-reload"])?;
    // It fails where there is nothing to forget.
    let _ = systemctl(&["reset-failed", &unit]);
    Ok(())
}

/// Looks at a machine's service.
///
/// # Errors
/// Why not.
pub fn status(machine: &str) -> Result<ServiceStatus, ServiceError> {
    let text = read(machine)?;
    let service = unit_of(machine);
    let told = systemctl(&["show", "--property=ActiveState,Result,ExecMainStatus,UnitFileState", &service])?;
    Ok(told_status(service, &told, &text))
}

/// The status by what `systemctl show` says, and the unit.
fn told_status(service: String, told: &str, unit: &str) -> ServiceStatus {
    let value = |key: &str| told.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("");
    let state = match value("ActiveState") {
        "active" => "running",
        "activating" => "starting",
        "deactivating" => "stopping",
        "inactive" | "failed" => "stopped",
        _ => "unknown",
    };
    let end = match value("Result") {
        "" | "success" => None,
        "exit-code" => Some(format!("with status {}", value("ExecMainStatus"))),
        "timeout" => Some("by systemd, for it took too long".to_owned()),
        other => Some(format!("by {other}")),
    };
    ServiceStatus {
        service,
        state,
        end: end.filter(|_| state == "stopped"),
        start: match value("UnitFileState") {
            "enabled" => "with the host",
            "disabled" => "on demand",
            "masked" => "never (masked)",
            _ => "unknown",
        },
        line: unit::line(unit).unwrap_or_default().to_owned(),
    }
}

/// Is the service of a machine until its end: what `work` does, which says by the function when the guest runs, and gives its exit
/// status or what went wrong. What it says goes to the file `log`, if there is one, and relative paths begin at `folder`. The time that a stop
/// may take systemd has from the unit.
///
/// # Errors
/// When it cannot even begin.
pub fn be(
    _machine: &str,
    folder: Option<&Path>,
    log: Option<&Path>,
    _patience: Duration,
    work: impl FnOnce(&dyn Fn()) -> Result<u8, (String, u8)> + Send + 'static,
) -> Result<u8, ServiceError> {
    if let Some(folder) = folder {
        std::env::set_current_dir(folder).map_err(at(folder))?;
    }
    if let Some(log) = log {
        let file = File::options().append(true).create(true).open(log).map_err(at(log))?;
        nix::unistd::dup2_stdout(&file)
            .and_then(|()| nix::unistd::dup2_stderr(&file))
            .map_err(|error| at(log)(error.into()))?;
    }
    let on_start = || {
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            log::warn!("systemd does not hear that the guest runs: {error}");
        }
    };
    Ok(work(&on_start).unwrap_or_else(|(error, status)| {
        notice(format_args!("error: {error}"));
        status
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_what_systemd_says_is_told_in_our_words() {
        let told = |text: &str| told_status(unit_of("web"), text, "[Service]\nExecStart=\"/covisor\" \"run\"\n");
        let running = told("ActiveState=active\nResult=success\nExecMainStatus=0\nUnitFileState=enabled\n");
        assert_eq!(
            (running.service.as_str(), running.state, running.start),
            ("covisor-web.service", "running", "with the host")
        );
        assert_eq!((running.end, running.line.as_str()), (None, "\"/covisor\" \"run\""));
        let failed = told("ActiveState=failed\nResult=exit-code\nExecMainStatus=2\nUnitFileState=disabled\n");
        assert_eq!(
            (failed.state, failed.end.as_deref(), failed.start),
            ("stopped", Some("with status 2"), "on demand")
        );
        let killed = told("ActiveState=failed\nResult=timeout\nExecMainStatus=9\nUnitFileState=masked\n");
        assert_eq!(killed.end.as_deref(), Some("by systemd, for it took too long"));
        assert_eq!(told("").state, "unknown");
    }
}
