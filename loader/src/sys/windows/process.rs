//! This process and others: what the console's window asks, users, lives.

use std::io;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::FromRawHandle;
use std::os::windows::io::OwnedHandle;
use std::os::windows::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;
use windows_sys::Win32::Foundation::FALSE;
use windows_sys::Win32::Foundation::TRUE;
use windows_sys::Win32::Foundation::WAIT_TIMEOUT;
use windows_sys::Win32::Security::CheckTokenMembership;
use windows_sys::Win32::Security::CreateWellKnownSid;
use windows_sys::Win32::Security::SECURITY_MAX_SID_SIZE;
use windows_sys::Win32::Security::WinBuiltinAdministratorsSid;
use windows_sys::Win32::System::Console::CTRL_BREAK_EVENT;
use windows_sys::Win32::System::Console::CTRL_C_EVENT;
use windows_sys::Win32::System::Console::CTRL_LOGOFF_EVENT;
use windows_sys::Win32::System::Console::CTRL_SHUTDOWN_EVENT;
use windows_sys::Win32::System::Console::SetConsoleCtrlHandler;
use windows_sys::Win32::System::Diagnostics::Debug::SEM_FAILCRITICALERRORS;
use windows_sys::Win32::System::Diagnostics::Debug::SetErrorMode;
use windows_sys::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;
use windows_sys::Win32::System::Threading::CREATE_NO_WINDOW;
use windows_sys::Win32::System::Threading::OpenProcess;
use windows_sys::Win32::System::Threading::PROCESS_SYNCHRONIZE;
use windows_sys::Win32::System::Threading::PROCESS_TERMINATE;
use windows_sys::Win32::System::Threading::TerminateProcess;
use windows_sys::Win32::System::Threading::WaitForSingleObject;
use windows_sys::core::BOOL;

use super::terminal;
use super::wide::check;
use crate::sys::Request;

/// How often to look at the window's size: the console tells of it only who reads its events.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long this process may live on after [`Request::HangUp`]: Windows ends it 5 s after the window was closed or the user logged off.
pub const HANG_UP_LIMIT: Duration = Duration::from_secs(4);
/// Exit status of a process that was ended.
const ENDED: u32 = 1;

/// Where the console's handler puts them.
static REQUESTS: Mutex<Option<Sender<Request>>> = Mutex::new(None);
/// Whether this process is a service.
static IS_SERVICE: AtomicBool = AtomicBool::new(false);

/// The requests, which do not end the process any more from the moment this was made; one thread waits for them.
#[derive(Debug)]
pub struct Requests {
    receiver: Receiver<Request>,
    size: Mutex<Option<(u16, u16)>>,
}

impl Requests {
    /// Takes the requests from now on.
    ///
    /// # Errors
    /// What the host says.
    pub fn block() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        *REQUESTS.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        // SAFETY: the handler is a function of this program that may run on any thread.
        check(unsafe { SetConsoleCtrlHandler(Some(handler), TRUE) })?;
        Ok(Self { receiver, size: Mutex::new(terminal::size()) })
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// When there can be no more.
    pub fn wait(&self) -> io::Result<Request> {
        loop {
            match self.receiver.recv_timeout(LOOK_INTERVAL) {
                Ok(request) => return Ok(request),
                Err(RecvTimeoutError::Timeout) => {
                    let size = terminal::size();
                    let before =
                        std::mem::replace(&mut *self.size.lock().unwrap_or_else(PoisonError::into_inner), size);
                    if size.is_some() && size != before {
                        return Ok(Request::Resize);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

/// Makes a request of this process's own; whether somebody takes requests yet.
pub(super) fn request(request: Request) -> bool {
    let sender = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    sender.is_some_and(|sender| sender.send(request).is_ok())
}

/// From now on this process is a service: the service manager tells it when it is to end.
pub(super) fn become_service() {
    IS_SERVICE.store(true, Ordering::Relaxed);
}

/// Runs on a thread of its own for each event.
unsafe extern "system" fn handler(event: u32) -> BOOL {
    // A service hears of every user's end.
    if matches!(event, CTRL_LOGOFF_EVENT | CTRL_SHUTDOWN_EVENT) && IS_SERVICE.load(Ordering::Relaxed) {
        return TRUE;
    }
    let is_interruption = matches!(event, CTRL_C_EVENT | CTRL_BREAK_EVENT);
    if !request(if is_interruption { Request::End } else { Request::HangUp }) {
        return FALSE;
    }
    if is_interruption {
        return TRUE;
    }
    // When a handler returns from one of the other events, Windows ends the process at once. So it does not return, and
    // the machine ends as it should within the seconds that Windows gives.
    loop {
        thread::park();
    }
}

fn open(pid: u32, access: u32) -> io::Result<OwnedHandle> {
    // SAFETY: takes numbers only.
    let handle = unsafe { OpenProcess(access, FALSE, pid) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is new and nobody else's.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Whether the process with this number lives.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    match open(pid, PROCESS_SYNCHRONIZE) {
        // SAFETY: the handle is open.
        Ok(process) => unsafe { WaitForSingleObject(process.as_raw_handle(), 0) == WAIT_TIMEOUT },
        Err(error) => error.raw_os_error() == Some(ERROR_ACCESS_DENIED.cast_signed()),
    }
}

/// Ends a process at once. Its machine goes with it.
///
/// # Errors
/// What the host says.
pub fn end(pid: u32) -> io::Result<()> {
    let process = open(pid, PROCESS_TERMINATE)?;
    // SAFETY: the handle is open and allows it.
    check(unsafe { TerminateProcess(process.as_raw_handle(), ENDED) })
}

/// Lets a process live on when the console's window goes that it is started from, and not hear that console's keys.
pub fn leave_alone(command: &mut Command) {
    command.creation_flags(CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP);
}

/// Gives a program its arguments as they are typed; it parts them itself, as programs do here.
pub fn give_arguments(command: &mut Command, arguments: &str) {
    if !arguments.is_empty() {
        command.raw_arg(arguments);
    }
}

/// Whether this process has an administrator's rights, and not only an administrator's name.
#[must_use]
pub fn is_administrator() -> bool {
    let mut sid = [0_u64; (SECURITY_MAX_SID_SIZE as usize).div_ceil(8)];
    let mut size = SECURITY_MAX_SID_SIZE;
    let mut is_member = FALSE;
    // SAFETY: the buffer is as long as is said and aligned for a SID, which is there when the second function reads it.
    unsafe {
        let sid = sid.as_mut_ptr().cast();
        CreateWellKnownSid(WinBuiltinAdministratorsSid, ptr::null_mut(), sid, &raw mut size) != FALSE
            && CheckTokenMembership(ptr::null_mut(), sid, &raw mut is_member) != FALSE
            && is_member != FALSE
    }
}

/// Prepares this process: a disk that is not ready is an error, not a window that asks for it.
pub fn prepare() {
    // SAFETY: sets a mode of the process.
    unsafe { SetErrorMode(SEM_FAILCRITICALERRORS) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_this_process_lives() {
        assert!(is_alive(std::process::id()));
        // Numbers are multiples of 4.
        assert!(!is_alive(0xffff_fff1));
    }
}
