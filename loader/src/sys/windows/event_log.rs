//! Windows' log of events, in which administrators look for what a service has to say.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::ERROR_FILE_NOT_FOUND;
use windows_sys::Win32::Foundation::ERROR_SUCCESS;
use windows_sys::Win32::System::EventLog::DeregisterEventSource;
use windows_sys::Win32::System::EventLog::EVENTLOG_ERROR_TYPE;
use windows_sys::Win32::System::EventLog::RegisterEventSourceW;
use windows_sys::Win32::System::EventLog::ReportEventW;
use windows_sys::Win32::System::Registry::HKEY;
use windows_sys::Win32::System::Registry::HKEY_LOCAL_MACHINE;
use windows_sys::Win32::System::Registry::KEY_SET_VALUE;
use windows_sys::Win32::System::Registry::REG_DWORD;
use windows_sys::Win32::System::Registry::REG_EXPAND_SZ;
use windows_sys::Win32::System::Registry::REG_OPTION_NON_VOLATILE;
use windows_sys::Win32::System::Registry::RegCloseKey;
use windows_sys::Win32::System::Registry::RegCreateKeyExW;
use windows_sys::Win32::System::Registry::RegDeleteKeyW;
use windows_sys::Win32::System::Registry::RegSetValueExW;

use super::wide::wide;

/// Where the sources of the log for programs are listed.
const SOURCES: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application";
/// A file of Windows' own whose messages are all the text that comes with the event: those numbered 1 to 1000.
const MESSAGES: &str = r"%SystemRoot%\System32\EventCreate.exe";
/// The number of ours.
const EVENT: u32 = 1;

fn result(answer: u32) -> io::Result<()> {
    if answer == ERROR_SUCCESS { Ok(()) } else { Err(io::Error::from_raw_os_error(answer.cast_signed())) }
}

/// Makes a source of events, so that they are shown as they were said.
pub(super) fn add_source(source: &str) -> io::Result<()> {
    let path = wide(format!(r"{SOURCES}\{source}"));
    let mut key: HKEY = ptr::null_mut();
    // SAFETY: the text ends with a zero, the pointer is to a variable, and null is allowed for what is optional.
    result(unsafe {
        RegCreateKeyExW(
            HKEY_LOCAL_MACHINE,
            path.as_ptr(),
            0,
            ptr::null(),
            REG_OPTION_NON_VOLATILE,
            KEY_SET_VALUE,
            ptr::null(),
            &raw mut key,
            ptr::null_mut(),
        )
    })?;
    let file: Vec<u8> = wide(MESSAGES).into_iter().flat_map(u16::to_ne_bytes).collect();
    let set = set_value(key, "EventMessageFile", REG_EXPAND_SZ, &file)
        .and_then(|()| set_value(key, "TypesSupported", REG_DWORD, &u32::from(EVENTLOG_ERROR_TYPE).to_ne_bytes()));
    // SAFETY: the key is open, and done with.
    unsafe { RegCloseKey(key) };
    set
}

fn set_value(key: HKEY, name: &str, kind: u32, value: &[u8]) -> io::Result<()> {
    let name = wide(name);
    let length = u32::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the key is open, the name ends with a zero, and the value is as long as is said.
    result(unsafe { RegSetValueExW(key, name.as_ptr(), 0, kind, value.as_ptr(), length) })
}

/// Takes a source away, if it is there.
pub(super) fn remove_source(source: &str) -> io::Result<()> {
    let path = wide(format!(r"{SOURCES}\{source}"));
    // SAFETY: the text ends with a zero.
    match unsafe { RegDeleteKeyW(HKEY_LOCAL_MACHINE, path.as_ptr()) } {
        ERROR_FILE_NOT_FOUND => Ok(()),
        answer => result(answer),
    }
}

/// Writes an event, of an error.
pub(super) fn report(source: &str, text: &str) -> io::Result<()> {
    let (source, text) = (wide(source), wide(text));
    // SAFETY: null is this machine, and the text ends with a zero.
    let log = unsafe { RegisterEventSourceW(ptr::null(), source.as_ptr()) };
    if log.is_null() {
        return Err(io::Error::last_os_error());
    }
    let texts = [text.as_ptr()];
    // SAFETY: the log is open; there is one text, which ends with a zero, and no data; then the log is done with.
    unsafe {
        let done = ReportEventW(log, EVENTLOG_ERROR_TYPE, 0, EVENT, ptr::null_mut(), 1, 0, texts.as_ptr(), ptr::null());
        let error = io::Error::last_os_error();
        DeregisterEventSource(log);
        if done == 0 { Err(error) } else { Ok(()) }
    }
}
