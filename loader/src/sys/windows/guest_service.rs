//! Guests that are services of Windows: installing, removing, looking at them, and being one.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;
use windows_sys::Win32::Foundation::ERROR_FAILED_SERVICE_CONTROLLER_CONNECT;
use windows_sys::Win32::Foundation::ERROR_SERVICE_DOES_NOT_EXIST;
use windows_sys::Win32::Foundation::ERROR_SERVICE_EXISTS;
use windows_sys::Win32::Foundation::ERROR_SERVICE_MARKED_FOR_DELETE;
use windows_sys::Win32::Foundation::ERROR_SERVICE_NOT_ACTIVE;
use windows_sys::Win32::Foundation::ERROR_SERVICE_SPECIFIC_ERROR;
use windows_sys::Win32::System::Services::SERVICE_ALL_ACCESS;
use windows_sys::Win32::System::Services::SERVICE_AUTO_START;
use windows_sys::Win32::System::Services::SERVICE_DEMAND_START;
use windows_sys::Win32::System::Services::SERVICE_DISABLED;
use windows_sys::Win32::System::Services::SERVICE_QUERY_CONFIG;
use windows_sys::Win32::System::Services::SERVICE_QUERY_STATUS;
use windows_sys::Win32::System::Services::SERVICE_RUNNING;
use windows_sys::Win32::System::Services::SERVICE_START_PENDING;
use windows_sys::Win32::System::Services::SERVICE_STATUS;
use windows_sys::Win32::System::Services::SERVICE_STOP_PENDING;
use windows_sys::Win32::System::Services::SERVICE_STOPPED;
use windows_sys::Win32::System::Services::SERVICE_WIN32_OWN_PROCESS;

use super::event_log;
use super::module;
use super::module::is;
use super::service::Manager;
use super::service::NewService;
use super::service::Service;
use super::service_process;
use crate::control::END_PATIENCE;
use crate::run::describe;
use crate::run::notice;
use crate::sys::nt::guest_service::is_ours;
use crate::sys::nt::guest_service::line;
use crate::sys::nt::guest_service::service_of;
pub use crate::sys::service_error::ServiceError;
pub use crate::sys::service_status::ServiceStatus;

/// What the services' lists say of each.
const DESCRIPTION: &str = "A Linux that runs beside Windows";
/// How often to look whether a service has stopped.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a service that stops may say nothing.
const SILENCE: Duration = Duration::from_secs(20);

fn refusal(machine: &str, error: io::Error) -> ServiceError {
    match error {
        error if is(&error, ERROR_ACCESS_DENIED) => ServiceError::NotAdministrator,
        error if is(&error, ERROR_SERVICE_DOES_NOT_EXIST) => ServiceError::Missing(machine.to_owned()),
        error if is(&error, ERROR_SERVICE_EXISTS) => ServiceError::Exists(machine.to_owned()),
        error if is(&error, ERROR_SERVICE_MARKED_FOR_DELETE) => ServiceError::Going,
        error => ServiceError::Windows(error),
    }
}

/// When a service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With Windows.
    Auto,
    /// A while after Windows.
    Delayed,
    /// When somebody starts it.
    Demand,
    /// Not at all.
    Disabled,
}

impl Start {
    const fn number(self) -> u32 {
        match self {
            Self::Auto | Self::Delayed => SERVICE_AUTO_START,
            Self::Demand => SERVICE_DEMAND_START,
            Self::Disabled => SERVICE_DISABLED,
        }
    }
}

/// Makes the service of a machine, which runs this program with these words after `service run`; a stop may take as long as
/// `patience`.
///
/// # Errors
/// Why not.
pub fn install(machine: &str, start: Start, patience: Duration, words: &[String]) -> Result<(), ServiceError> {
    let refused = |error| refusal(machine, error);
    let program = std::env::current_exe().map_err(refused)?;
    let program = program.to_str().ok_or_else(|| ServiceError::NoText(program.clone()))?;
    let line = line(program, words.iter().map(String::as_str)).map_err(ServiceError::Line)?;
    let name = service_of(machine);
    let manager = Manager::open(true).map_err(refused)?;
    let service = manager
        .create(&NewService {
            name: &name,
            title: &format!("covisor guest {machine}"),
            kind: SERVICE_WIN32_OWN_PROCESS,
            start: start.number(),
            line: line.as_ref(),
            // The driver is started before it.
            needs: Some(module::SERVICE),
        })
        .map_err(refused)?;
    let configure = || {
        service.describe(DESCRIPTION)?;
        event_log::add_source(&name)
    };
    configure().map_err(|error| {
        // Nothing is left of what is not whole.
        _ = service.delete();
        refused(error)
    })?;
    // An NT before Windows Vista knows neither of these, and the service does without.
    if start == Start::Delayed && service.delay_start().is_err() {
        notice("this Windows delays no services: it starts the guest together with the others");
    }
    if let Err(error) = service.set_preshutdown_time(patience + END_PATIENCE) {
        log::debug!("the time before a shutdown cannot be set: {error}");
    }
    Ok(())
}

/// A machine's service, with these rights, if covisor made it.
fn open(machine: &str, access: u32) -> Result<Service, ServiceError> {
    let refused = |error| refusal(machine, error);
    let name = service_of(machine);
    let manager = Manager::open(false).map_err(refused)?;
    let service = manager.service(&name, access).map_err(refused)?;
    if is_ours(&service.line().map_err(refused)?.1) {
        Ok(service)
    } else {
        Err(ServiceError::Foreign(format!("the service {name}")))
    }
}

/// Stops a machine's service in good order, if it runs, and removes it.
///
/// # Errors
/// Why not.
pub fn remove(machine: &str) -> Result<(), ServiceError> {
    let refused = |error| refusal(machine, error);
    let service = open(machine, SERVICE_ALL_ACCESS)?;
    match service.stop() {
        Ok(()) => wait_for_end(machine, &service)?,
        Err(error) if is(&error, ERROR_SERVICE_NOT_ACTIVE) => {}
        // It stops already, or it does not listen yet.
        Err(_) => wait_for_end(machine, &service)?,
    }
    service.delete().map_err(refused)?;
    event_log::remove_source(&service_of(machine)).map_err(refused)
}

fn wait_for_end(machine: &str, service: &Service) -> Result<(), ServiceError> {
    let mut heard = (Instant::now(), 0);
    loop {
        let status = service.status().map_err(|error| refusal(machine, error))?;
        if status.dwCurrentState == SERVICE_STOPPED {
            return Ok(());
        }
        if status.dwCheckPoint != heard.1 {
            heard = (Instant::now(), status.dwCheckPoint);
        } else if heard.0.elapsed() > SILENCE {
            return Err(ServiceError::Stuck(machine.to_owned()));
        }
        thread::sleep(INTERVAL);
    }
}

/// Looks at a machine's service.
///
/// # Errors
/// Why not.
pub fn status(machine: &str) -> Result<ServiceStatus, ServiceError> {
    let service = open(machine, SERVICE_QUERY_STATUS | SERVICE_QUERY_CONFIG)?;
    let refused = |error| refusal(machine, error);
    let status = service.status().map_err(refused)?;
    let (start, line) = service.line().map_err(refused)?;
    Ok(ServiceStatus {
        service: service_of(machine),
        state: match status.dwCurrentState {
            SERVICE_RUNNING => "running",
            SERVICE_START_PENDING => "starting",
            SERVICE_STOP_PENDING => "stopping",
            SERVICE_STOPPED => "stopped",
            _ => "unknown",
        },
        end: (status.dwCurrentState == SERVICE_STOPPED).then(|| end(&status)).flatten(),
        start: match start {
            SERVICE_AUTO_START => "with Windows",
            SERVICE_DEMAND_START => "on demand",
            SERVICE_DISABLED => "never (disabled)",
            _ => "unknown",
        },
        line,
    })
}

/// How a stopped service ended.
fn end(status: &SERVICE_STATUS) -> Option<String> {
    match status.dwWin32ExitCode {
        0 => None,
        ERROR_SERVICE_SPECIFIC_ERROR => Some(format!("with status {}", status.dwServiceSpecificExitCode)),
        code => Some(io::Error::from_raw_os_error(code.cast_signed()).to_string()),
    }
}

/// Is the service of a machine until its end: what `work` does, which says by the function when the guest runs, and gives its exit
/// status or what went wrong. What it says goes to the file `log`, if there is one, and relative paths begin at `folder`.
///
/// # Errors
/// In a process that the service manager did not start.
pub fn be(
    machine: &str,
    folder: Option<&Path>,
    log: Option<&Path>,
    patience: Duration,
    work: impl FnOnce(&dyn Fn()) -> Result<u8, (String, u8)> + Send + 'static,
) -> Result<u8, ServiceError> {
    let (folder, log) = (folder.map(Path::to_owned), log.map(Path::to_owned));
    let prepared = move |on_start: &dyn Fn()| {
        let failed = |path: &Path, error: io::Error| (format!("{}: {}", path.display(), describe(&error)), 1);
        if let Some(folder) = folder {
            std::env::set_current_dir(&folder).map_err(|error| failed(&folder, error))?;
        }
        if let Some(log) = log {
            service_process::write_output_to(&log).map_err(|error| failed(&log, error))?;
        }
        work(on_start)
    };
    service_process::be(&service_of(machine), patience, Box::new(prepared)).map(|()| 0).map_err(|error| {
        if is(&error, ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
            ServiceError::NotAService
        } else {
            ServiceError::Windows(error)
        }
    })
}
