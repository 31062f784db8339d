//! What Win32's error numbers mean to us (`winerror.h`).

use crate::sys::CallRefusal;
use crate::sys::OpenRefusal;

/// Why the device cannot be opened.
pub(in crate::sys) fn of_open(error: Option<i32>) -> OpenRefusal {
    match error {
        // FILE_NOT_FOUND, PATH_NOT_FOUND, DEV_NOT_EXIST.
        Some(2 | 3 | 55) => OpenRefusal::NoDevice,
        // ACCESS_DENIED.
        Some(5) => OpenRefusal::NotAllowed,
        _ => OpenRefusal::Other,
    }
}

/// Why a call fails. The driver's numbers are NT's; these are what Win32 makes of them.
pub(in crate::sys) fn of_call(error: Option<i32>) -> CallRefusal {
    match error {
        // INVALID_FUNCTION.
        Some(1) => CallRefusal::NotOurs,
        // NOT_ENOUGH_MEMORY, NO_SYSTEM_RESOURCES.
        Some(8 | 1450) => CallRefusal::NoMemory,
        // NOT_SUPPORTED.
        Some(50) => CallRefusal::NoEngine,
        // OPERATION_ABORTED.
        Some(995) => CallRefusal::Interrupted,
        _ => CallRefusal::Other,
    }
}

/// Why the driver's service does not start, with what to do, where more can be said than Windows says.
pub(in crate::sys) fn of_start(error: Option<i32>) -> Option<&'static str> {
    Some(match error? {
        // FILE_NOT_FOUND, PATH_NOT_FOUND.
        2 | 3 => "Windows does not find the file: keep covisor.sys on a local disk, and install it from there",
        // BAD_EXE_FORMAT, INVALID_IMAGE_HASH's kin of a damaged file.
        193 | 1392 => "the file is not a driver for this Windows: take covisor.sys of the same release as covisor.exe",
        // PROC_NOT_FOUND.
        127 => "the driver asks for something that this Windows does not have: take the covisor.sys of a newer release",
        // INVALID_IMAGE_HASH.
        577 => {
            "Windows takes signed drivers only, and this one is not: allow test-signed drivers by `bcdedit /set testsigning \
             on`, sign covisor.sys with a test certificate, switch Secure Boot off in the firmware if it is on, and restart"
        }
        // SERVICE_DISABLED.
        1058 => "the driver's service is disabled: type `sc config covisor start= demand`",
        // SERVICE_MARKED_FOR_DELETE.
        1072 => "the driver that was here before is still being removed: close programs that show services, or restart",
        // DRIVER_BLOCKED.
        1275 => {
            "Windows has blocked this driver: memory integrity (Core isolation in Windows Security) or the list of blocked \
             drivers forbids it; switch memory integrity off, and restart"
        }
        // SYSTEM_INTEGRITY_POLICY_VIOLATION.
        4551 => "a code integrity policy (App Control) forbids this driver: an administrator must allow it there",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_drivers_numbers_have_their_meanings() {
        assert_eq!(of_open(Some(2)), OpenRefusal::NoDevice);
        assert_eq!(of_open(Some(5)), OpenRefusal::NotAllowed);
        assert_eq!(of_open(None), OpenRefusal::Other);
        assert_eq!(of_call(Some(1)), CallRefusal::NotOurs);
        assert_eq!(of_call(Some(50)), CallRefusal::NoEngine);
        assert_eq!(of_call(Some(8)), CallRefusal::NoMemory);
        assert_eq!(of_call(Some(995)), CallRefusal::Interrupted);
        assert_eq!(of_call(Some(87)), CallRefusal::Other);
    }

    #[test]
    fn test_a_driver_that_does_not_start_is_told_of_with_a_remedy() {
        assert!(of_start(Some(577)).unwrap().contains("bcdedit /set testsigning on"));
        assert!(of_start(Some(1275)).unwrap().contains("memory integrity"));
        assert_eq!(of_start(Some(31)), None);
        assert_eq!(of_start(None), None);
    }
}
