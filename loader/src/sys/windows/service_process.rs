//! Being a service: what this process tells Windows' service manager, and what that tells it.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::io::IntoRawHandle;
use std::path::Path;
use std::ptr;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use windows_sys::Win32::Foundation::ERROR_CALL_NOT_IMPLEMENTED;
use windows_sys::Win32::Foundation::ERROR_SERVICE_SPECIFIC_ERROR;
use windows_sys::Win32::Foundation::NO_ERROR;
use windows_sys::Win32::System::Console::STD_ERROR_HANDLE;
use windows_sys::Win32::System::Console::STD_OUTPUT_HANDLE;
use windows_sys::Win32::System::Console::SetStdHandle;
use windows_sys::Win32::System::Services::RegisterServiceCtrlHandlerExW;
use windows_sys::Win32::System::Services::SERVICE_ACCEPT_PRESHUTDOWN;
use windows_sys::Win32::System::Services::SERVICE_ACCEPT_SHUTDOWN;
use windows_sys::Win32::System::Services::SERVICE_ACCEPT_STOP;
use windows_sys::Win32::System::Services::SERVICE_CONTROL_INTERROGATE;
use windows_sys::Win32::System::Services::SERVICE_CONTROL_PRESHUTDOWN;
use windows_sys::Win32::System::Services::SERVICE_CONTROL_SHUTDOWN;
use windows_sys::Win32::System::Services::SERVICE_CONTROL_STOP;
use windows_sys::Win32::System::Services::SERVICE_RUNNING;
use windows_sys::Win32::System::Services::SERVICE_START_PENDING;
use windows_sys::Win32::System::Services::SERVICE_STATUS;
use windows_sys::Win32::System::Services::SERVICE_STATUS_HANDLE;
use windows_sys::Win32::System::Services::SERVICE_STOP_PENDING;
use windows_sys::Win32::System::Services::SERVICE_STOPPED;
use windows_sys::Win32::System::Services::SERVICE_TABLE_ENTRYW;
use windows_sys::Win32::System::Services::SERVICE_WIN32_OWN_PROCESS;
use windows_sys::Win32::System::Services::SetServiceStatus;
use windows_sys::Win32::System::Services::StartServiceCtrlDispatcherW;

use super::event_log;
use super::process;
use super::wide::check;
use super::wide::wide;
use crate::control::END_PATIENCE;
use crate::run::notice;
use crate::sys::Request;

/// How long the start may take until the guest runs: its kernel is read and unpacked in this time.
const START_TIME: Duration = Duration::from_secs(60);
/// How often a stop is looked after, and told of to the service manager.
const TICK: Duration = Duration::from_secs(1);
/// Within this time the next of these is promised.
const NEXT_TICK: Duration = Duration::from_secs(10);
/// The exit status of a process that even then does not end.
const STUCK: u8 = 3;

/// What a service does: it says by the function when it runs, and gives its exit status or what went wrong.
pub(super) type Work = Box<dyn FnOnce(&dyn Fn()) -> Result<u8, (String, u8)> + Send>;

/// The service that this process is.
struct ServiceProcess {
    name: String,
    /// How long a stop may take.
    patience: Duration,
    work: Mutex<Option<Work>>,
    reports: Mutex<Option<Reports>>,
}

static SERVICE: OnceLock<ServiceProcess> = OnceLock::new();

/// Is the service of this name until its end. Returns at once, with an error, in a process that the service manager did not start.
pub(super) fn be(name: &str, patience: Duration, work: Work) -> io::Result<()> {
    let service =
        ServiceProcess { name: name.to_owned(), patience, work: Mutex::new(Some(work)), reports: Mutex::new(None) };
    SERVICE.set(service).map_err(|_| io::ErrorKind::AlreadyExists)?;
    process::become_service();
    let mut name = wide(name);
    let table = [
        SERVICE_TABLE_ENTRYW { lpServiceName: name.as_mut_ptr(), lpServiceProc: Some(service_main) },
        SERVICE_TABLE_ENTRYW::default(),
    ];
    // SAFETY: the table ends with an empty entry, and it and the name are there until the call returns.
    check(unsafe { StartServiceCtrlDispatcherW(table.as_ptr()) })
}

/// Has all that this process says written at the end of a file.
pub(super) fn write_output_to(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    // Both stay open as long as the process.
    let (output, error) = (file.try_clone()?.into_raw_handle(), file.into_raw_handle());
    // SAFETY: the handles are open, and nobody closes them.
    unsafe {
        check(SetStdHandle(STD_OUTPUT_HANDLE, output))?;
        check(SetStdHandle(STD_ERROR_HANDLE, error))
    }
}

/// The service manager calls it on a thread of its own when the service starts.
unsafe extern "system" fn service_main(_count: u32, _arguments: *mut *mut u16) {
    let Some(service) = SERVICE.get() else { return };
    let name = wide(&service.name);
    // SAFETY: the name ends with a zero, and the handler is a function of this program that needs no context.
    let handle = unsafe { RegisterServiceCtrlHandlerExW(name.as_ptr(), Some(on_control), ptr::null()) };
    if handle.is_null() {
        // Then nothing can be told to the service manager, which ends the process by itself.
        return;
    }
    *lock(&service.reports) = Some(Reports::new(handle));
    service.report(Reports::starting);
    let work = lock(&service.work).take();
    let on_start = || {
        service.report(Reports::running);
    };
    let outcome = work.map_or(Ok(0), |work| work(&on_start));
    let status = outcome.unwrap_or_else(|(error, status)| {
        notice(format_args!("error: {error}"));
        service.tell(&error);
        status
    });
    service.report(|reports| reports.stopped(status));
}

/// The service manager calls it when it wants something. It must be quick.
unsafe extern "system" fn on_control(control: u32, _event: u32, _data: *mut c_void, _context: *mut c_void) -> u32 {
    match control {
        SERVICE_CONTROL_STOP | SERVICE_CONTROL_SHUTDOWN | SERVICE_CONTROL_PRESHUTDOWN => {
            if let Some(service) = SERVICE.get()
                && service.report(Reports::stopping) == Some(true)
            {
                thread::spawn(|| service.stop());
            }
            NO_ERROR
        }
        SERVICE_CONTROL_INTERROGATE => NO_ERROR,
        _ => ERROR_CALL_NOT_IMPLEMENTED,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ServiceProcess {
    fn report<T>(&self, report: impl FnOnce(&mut Reports) -> T) -> Option<T> {
        lock(&self.reports).as_mut().map(report)
    }

    /// Writes an error to Windows' log. When that cannot be, there is nobody to tell.
    fn tell(&self, text: &str) {
        let _ = event_log::report(&self.name, text);
    }

    /// Stops the guest. The process ends while this goes on, when the guest has.
    fn stop(&self) {
        let begin = Instant::now();
        let mut was_told = false;
        while begin.elapsed() < self.patience + END_PATIENCE {
            // Before the guest is being made nobody takes it yet. A second one would end the guest at once.
            was_told = was_told || process::request(Request::End);
            self.report(Reports::still_stopping);
            thread::sleep(TICK);
        }
        self.tell("the guest cannot be ended: its process is ended");
        self.report(|reports| reports.stopped(STUCK));
        std::process::exit(STUCK.into());
    }
}

/// What the service manager was told last.
struct Reports {
    /// [`SERVICE_STATUS_HANDLE`], which any thread may use.
    handle: usize,
    status: SERVICE_STATUS,
}

impl Reports {
    fn new(handle: SERVICE_STATUS_HANDLE) -> Self {
        let status = SERVICE_STATUS { dwServiceType: SERVICE_WIN32_OWN_PROCESS, ..SERVICE_STATUS::default() };
        Self { handle: handle.expose_provenance(), status }
    }

    fn starting(&mut self) {
        self.pending(SERVICE_START_PENDING, START_TIME);
    }

    fn running(&mut self) {
        // A stop may have begun before.
        if self.status.dwCurrentState == SERVICE_START_PENDING {
            self.status.dwCurrentState = SERVICE_RUNNING;
            self.status.dwControlsAccepted = SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_SHUTDOWN | SERVICE_ACCEPT_PRESHUTDOWN;
            (self.status.dwCheckPoint, self.status.dwWaitHint) = (0, 0);
            if self.send().is_err() {
                // An NT before Windows Vista does not know what comes before a shutdown.
                self.status.dwControlsAccepted &= !SERVICE_ACCEPT_PRESHUTDOWN;
                let _ = self.send();
            }
        }
    }

    /// A stop begins; whether none had begun.
    fn stopping(&mut self) -> bool {
        let begins = !matches!(self.status.dwCurrentState, SERVICE_STOP_PENDING | SERVICE_STOPPED);
        if begins {
            self.pending(SERVICE_STOP_PENDING, NEXT_TICK);
        }
        begins
    }

    fn still_stopping(&mut self) {
        if self.status.dwCurrentState == SERVICE_STOP_PENDING {
            self.pending(SERVICE_STOP_PENDING, NEXT_TICK);
        }
    }

    fn stopped(&mut self, status: u8) {
        self.status.dwCurrentState = SERVICE_STOPPED;
        self.status.dwControlsAccepted = 0;
        (self.status.dwCheckPoint, self.status.dwWaitHint) = (0, 0);
        (self.status.dwWin32ExitCode, self.status.dwServiceSpecificExitCode) = match status {
            0 => (NO_ERROR, 0),
            status => (ERROR_SERVICE_SPECIFIC_ERROR, status.into()),
        };
        let _ = self.send();
    }

    /// In a state that lasts, but not for longer than `hint` without a word.
    fn pending(&mut self, state: u32, hint: Duration) {
        self.status.dwCheckPoint = if self.status.dwCurrentState == state { self.status.dwCheckPoint + 1 } else { 1 };
        self.status.dwCurrentState = state;
        self.status.dwControlsAccepted = 0;
        self.status.dwWaitHint = u32::try_from(hint.as_millis()).unwrap_or(u32::MAX);
        let _ = self.send();
    }

    /// The service manager that does not hear of a state finds out by itself, so that errors end here.
    fn send(&self) -> io::Result<()> {
        // SAFETY: the handle is what the service manager gave, which needs no closing; the structure is complete.
        check(unsafe { SetServiceStatus(ptr::with_exposed_provenance_mut(self.handle), &raw const self.status) })
    }
}
