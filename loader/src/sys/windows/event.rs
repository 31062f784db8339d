//! Events: what doorbells and devices signal, and workers wait for.

use std::io;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::FromRawHandle;
use std::os::windows::io::OwnedHandle;
use std::os::windows::io::RawHandle;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::Threading::CreateEventW;
use windows_sys::Win32::System::Threading::SetEvent;
use windows_sys::Win32::System::Threading::WaitForSingleObject;

use super::wide::milliseconds;

/// An event that stays signalled until a wait takes the signal.
#[derive(Debug)]
pub struct Event(OwnedHandle);

impl Event {
    /// An event that is not signalled.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn new() -> io::Result<Self> {
        create(false).map(Self)
    }

    /// Another handle of the same event.
    ///
    /// # Errors
    /// When the host has none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Signals it.
    pub fn signal(&self) {
        // SAFETY: the handle is an event's and open. With both there is nothing that could fail.
        unsafe { SetEvent(self.0.as_raw_handle()) };
    }

    /// Waits until it is signalled, which takes the signal, or until `timeout` is over; says which. May also return early.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // SAFETY: the handle is open.
        unsafe { WaitForSingleObject(self.0.as_raw_handle(), milliseconds(timeout)) == WAIT_OBJECT_0 }
    }

    /// How the driver knows the event.
    #[must_use]
    pub fn handle(&self) -> i64 {
        self.0.as_raw_handle().expose_provenance().cast_signed() as i64
    }

    /// The handle to wait for it with others.
    pub(super) fn as_raw_handle(&self) -> RawHandle {
        self.0.as_raw_handle()
    }
}

/// A new event, which each wait resets, or none does (`stays`).
pub(super) fn create(stays: bool) -> io::Result<OwnedHandle> {
    // SAFETY: no pointer is given but null, which each may be.
    let handle = unsafe { CreateEventW(ptr::null(), stays.into(), 0, ptr::null()) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is new and nobody else's.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn test_a_signal_ends_the_wait_and_is_taken() {
        let event = Event::new().unwrap();
        event.try_clone().unwrap().signal();
        assert!(event.wait(None));
        let start = Instant::now();
        assert!(!event.wait(Some(Duration::from_millis(20))));
        assert!(start.elapsed() >= Duration::from_millis(15));
    }
}
