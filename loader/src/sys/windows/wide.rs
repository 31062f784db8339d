//! Text and answers as Win32 has them.

use std::ffi::OsStr;
use std::io;
use std::os::windows::ffi::OsStrExt;

use windows_sys::core::BOOL;

/// UTF-16 with a zero at its end.
pub(super) fn wide(text: impl AsRef<OsStr>) -> Vec<u16> {
    text.as_ref().encode_wide().chain([0]).collect()
}

/// The text at a pointer; what is no text in it is replaced.
///
/// # Safety
/// It is null or to UTF-16 with a zero at its end.
pub(super) unsafe fn from_wide(text: *const u16) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    let length = (0..).take_while(|&at| unsafe { *text.add(at) } != 0).count();
    // SAFETY: just counted.
    String::from_utf16_lossy(unsafe { std::slice::from_raw_parts(text, length) })
}

/// An answer of Win32, with its error if it is no.
pub(super) fn check(answer: BOOL) -> io::Result<()> {
    if answer == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A number of milliseconds, rounded up, so that a short time is not none; `None` is for ever.
pub(super) fn milliseconds(time: Option<std::time::Duration>) -> u32 {
    match time {
        None => u32::MAX,
        // The largest number means for ever.
        Some(time) => u32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX).min(u32::MAX - 1),
    }
}
