//! The service control manager, as far as a driver and guests need it.

use std::ffi::OsStr;
use std::ffi::c_void;
use std::io;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::TRUE;
use windows_sys::Win32::System::Services::ChangeServiceConfig2W;
use windows_sys::Win32::System::Services::ChangeServiceConfigW;
use windows_sys::Win32::System::Services::CloseServiceHandle;
use windows_sys::Win32::System::Services::ControlService;
use windows_sys::Win32::System::Services::CreateServiceW;
use windows_sys::Win32::System::Services::DeleteService;
use windows_sys::Win32::System::Services::OpenSCManagerW;
use windows_sys::Win32::System::Services::OpenServiceW;
use windows_sys::Win32::System::Services::QUERY_SERVICE_CONFIGW;
use windows_sys::Win32::System::Services::QueryServiceConfigW;
use windows_sys::Win32::System::Services::QueryServiceStatus;
use windows_sys::Win32::System::Services::SC_HANDLE;
use windows_sys::Win32::System::Services::SC_MANAGER_CONNECT;
use windows_sys::Win32::System::Services::SC_MANAGER_CREATE_SERVICE;
use windows_sys::Win32::System::Services::SERVICE_ALL_ACCESS;
use windows_sys::Win32::System::Services::SERVICE_CONFIG_DELAYED_AUTO_START_INFO;
use windows_sys::Win32::System::Services::SERVICE_CONFIG_DESCRIPTION;
use windows_sys::Win32::System::Services::SERVICE_CONFIG_PRESHUTDOWN_INFO;
use windows_sys::Win32::System::Services::SERVICE_CONTROL_STOP;
use windows_sys::Win32::System::Services::SERVICE_DELAYED_AUTO_START_INFO;
use windows_sys::Win32::System::Services::SERVICE_DEMAND_START;
use windows_sys::Win32::System::Services::SERVICE_DESCRIPTIONW;
use windows_sys::Win32::System::Services::SERVICE_ERROR_NORMAL;
use windows_sys::Win32::System::Services::SERVICE_KERNEL_DRIVER;
use windows_sys::Win32::System::Services::SERVICE_PRESHUTDOWN_INFO;
use windows_sys::Win32::System::Services::SERVICE_STATUS;
use windows_sys::Win32::System::Services::StartServiceW;

use super::wide::check;
use super::wide::from_wide;
use super::wide::milliseconds;
use super::wide::wide;

/// A handle of the manager or of a service.
struct Handle(SC_HANDLE);

impl Handle {
    fn own(handle: SC_HANDLE) -> io::Result<Self> {
        if handle.is_null() { Err(io::Error::last_os_error()) } else { Ok(Self(handle)) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and open.
        unsafe { CloseServiceHandle(self.0) };
    }
}

/// The service manager of this machine.
pub(super) struct Manager(Handle);

impl Manager {
    /// To look at services, and with `changes` to make them.
    pub(super) fn open(changes: bool) -> io::Result<Self> {
        let access = SC_MANAGER_CONNECT | if changes { SC_MANAGER_CREATE_SERVICE } else { 0 };
        // SAFETY: null means this machine and its services.
        Handle::own(unsafe { OpenSCManagerW(ptr::null(), ptr::null(), access) }).map(Self)
    }

    /// The service of this name, with these rights.
    pub(super) fn service(&self, name: &str, access: u32) -> io::Result<Service> {
        let name = wide(name);
        // SAFETY: the handle is open, and the name ends with a zero.
        Handle::own(unsafe { OpenServiceW(self.0.0, name.as_ptr(), access) }).map(Service)
    }

    /// Makes a service, and gives it with all rights.
    pub(super) fn create(&self, new: &NewService<'_>) -> io::Result<Service> {
        let (name, title, line) = (wide(new.name), wide(new.title), wide(new.line));
        // A list, which ends with an empty text.
        let needs = new.needs.map(|service| wide(format!("{service}\0")));
        // SAFETY: the handle is open, and the texts end with a zero, the list with two; null stands for what there is none of.
        let service = unsafe {
            CreateServiceW(
                self.0.0,
                name.as_ptr(),
                title.as_ptr(),
                SERVICE_ALL_ACCESS,
                new.kind,
                new.start,
                SERVICE_ERROR_NORMAL,
                line.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                needs.as_ref().map_or(ptr::null(), |needs| needs.as_ptr()),
                ptr::null(),
                ptr::null(),
            )
        };
        Handle::own(service).map(Service)
    }
}

/// A service that is to be made; a program's runs as the system.
pub(super) struct NewService<'a> {
    pub(super) name: &'a str,
    /// How lists show it.
    pub(super) title: &'a str,
    /// What it is, as `SERVICE_KERNEL_DRIVER`.
    pub(super) kind: u32,
    /// When it starts, as `SERVICE_AUTO_START`.
    pub(super) start: u32,
    /// The driver's file, or the program's command line.
    pub(super) line: &'a OsStr,
    /// The service that must run before it.
    pub(super) needs: Option<&'a str>,
}

/// A service.
pub(super) struct Service(Handle);

impl Service {
    /// Gives a driver's service another file.
    pub(super) fn set_file(&self, file: &Path) -> io::Result<()> {
        let file = wide(file);
        // SAFETY: the handle is open, and the text ends with a zero; null leaves alone.
        check(unsafe {
            ChangeServiceConfigW(
                self.0.0,
                SERVICE_KERNEL_DRIVER,
                SERVICE_DEMAND_START,
                SERVICE_ERROR_NORMAL,
                file.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
            )
        })
    }

    pub(super) fn start(&self) -> io::Result<()> {
        // SAFETY: the handle is open, and there are no arguments.
        check(unsafe { StartServiceW(self.0.0, 0, ptr::null()) })
    }

    /// Asks it to stop.
    pub(super) fn stop(&self) -> io::Result<()> {
        let mut status = SERVICE_STATUS::default();
        // SAFETY: the handle is open, and the pointer is to a variable.
        check(unsafe { ControlService(self.0.0, SERVICE_CONTROL_STOP, &raw mut status) })
    }

    /// Removes it, once it has stopped and nobody has it open.
    pub(super) fn delete(&self) -> io::Result<()> {
        // SAFETY: the handle is open.
        check(unsafe { DeleteService(self.0.0) })
    }

    /// Its state, as `SERVICE_RUNNING`.
    pub(super) fn state(&self) -> io::Result<u32> {
        self.status().map(|status| status.dwCurrentState)
    }

    /// Its state and more.
    pub(super) fn status(&self) -> io::Result<SERVICE_STATUS> {
        let mut status = SERVICE_STATUS::default();
        // SAFETY: the handle is open, and the pointer is to a variable.
        check(unsafe { QueryServiceStatus(self.0.0, &raw mut status) })?;
        Ok(status)
    }

    /// When it starts, as `SERVICE_AUTO_START`, and its command line.
    pub(super) fn line(&self) -> io::Result<(u32, String)> {
        // The most that there can be (`QueryServiceConfigW`), aligned for the structure at its begin.
        const WORDS: usize = 1024;
        let mut buffer = [0_u64; WORDS];
        let size = u32::try_from(size_of_val(&buffer)).unwrap_or(0);
        let mut needed = 0;
        // SAFETY: the handle is open, and the buffer is as long as is said.
        check(unsafe { QueryServiceConfigW(self.0.0, buffer.as_mut_ptr().cast(), size, &raw mut needed) })?;
        // SAFETY: the structure is at the begin, and its texts, which end with a zero, in the buffer.
        unsafe {
            let config = &*buffer.as_ptr().cast::<QUERY_SERVICE_CONFIGW>();
            Ok((config.dwStartType, from_wide(config.lpBinaryPathName)))
        }
    }

    /// Says in the lists what it is for.
    pub(super) fn describe(&self, text: &str) -> io::Result<()> {
        let mut text = wide(text);
        let description = SERVICE_DESCRIPTIONW { lpDescription: text.as_mut_ptr() };
        // SAFETY: the structure is the one that goes with the number, and the text ends with a zero.
        unsafe { self.configure(SERVICE_CONFIG_DESCRIPTION, (&raw const description).cast()) }
    }

    /// Has a service that starts with Windows wait until others have.
    pub(super) fn delay_start(&self) -> io::Result<()> {
        let delayed = SERVICE_DELAYED_AUTO_START_INFO { fDelayedAutostart: TRUE };
        // SAFETY: the structure is the one that goes with the number.
        unsafe { self.configure(SERVICE_CONFIG_DELAYED_AUTO_START_INFO, (&raw const delayed).cast()) }
    }

    /// How long a shutdown of Windows waits for it.
    pub(super) fn set_preshutdown_time(&self, time: Duration) -> io::Result<()> {
        let info = SERVICE_PRESHUTDOWN_INFO { dwPreshutdownTimeout: milliseconds(Some(time)) };
        // SAFETY: the structure is the one that goes with the number.
        unsafe { self.configure(SERVICE_CONFIG_PRESHUTDOWN_INFO, (&raw const info).cast()) }
    }

    /// # Safety
    /// `info` is to the structure for `level`.
    unsafe fn configure(&self, level: u32, info: *const c_void) -> io::Result<()> {
        // SAFETY: the handle is open, and the caller vouches for the structure.
        check(unsafe { ChangeServiceConfig2W(self.0.0, level, info) })
    }
}
