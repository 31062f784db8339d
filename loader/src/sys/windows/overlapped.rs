//! Input and output on handles that several threads use at once. NT lets one call at a time onto a handle that was not
//! opened for overlapped calls, so that a `RUN` would keep everything else from the machine.

use std::io;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::BorrowedHandle;
use std::os::windows::io::OwnedHandle;
use std::time::Duration;

use windows_sys::Win32::Foundation::ERROR_IO_PENDING;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::IO::CancelIo;
use windows_sys::Win32::System::IO::GetOverlappedResult;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::WaitForSingleObject;
use windows_sys::core::BOOL;

use super::event;
use super::wide::milliseconds;

thread_local! {
    /// What this thread's calls signal when they are done: one at a time, so one is enough.
    static DONE: io::Result<OwnedHandle> = event::create(true);
}

/// Starts a call by `start` and waits for its end, if it is not over at once; gives the bytes that it moved.
///
/// # Errors
/// The call's, or [`io::ErrorKind::TimedOut`].
///
/// # Safety
/// `start` makes one call on the handle that it is given with the structure that it is given, whose answer it returns, and
/// what that call reads or writes is there until this function returns.
pub(super) unsafe fn call(
    handle: BorrowedHandle<'_>,
    timeout: Option<Duration>,
    start: impl FnOnce(HANDLE, *mut OVERLAPPED) -> BOOL,
) -> io::Result<usize> {
    let handle = handle.as_raw_handle();
    DONE.with(|done| {
        let done = match done {
            Ok(done) => done.as_raw_handle(),
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        let mut overlapped = OVERLAPPED { hEvent: done, ..OVERLAPPED::default() };
        if start(handle, &raw mut overlapped) != 0 {
            return Ok(overlapped.InternalHigh);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(ERROR_IO_PENDING.cast_signed()) {
            return Err(error);
        }
        // SAFETY: the event is open.
        let in_time = unsafe { WaitForSingleObject(done, milliseconds(timeout)) } == WAIT_OBJECT_0;
        if !in_time {
            // SAFETY: the handle is open. What was cancelled still ends, below.
            unsafe { CancelIo(handle) };
        }
        let mut count = 0;
        // SAFETY: the call with this structure was started right above; waiting for it here keeps the structure there
        // until it is over.
        if unsafe { GetOverlappedResult(handle, &raw const overlapped, &raw mut count, 1) } != 0 {
            return Ok(count as usize);
        }
        Err(if in_time { io::Error::last_os_error() } else { io::ErrorKind::TimedOut.into() })
    })
}
