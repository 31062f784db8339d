//! `NTSTATUS`: what NT's functions return, and what a call on the device ends with.

use covisor_core::device::CallError;

/// A status of NT's ([MS-ERREF] 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct NtStatus(pub i32);

impl NtStatus {
    /// Done; or a wait ended because the event is set.
    pub const SUCCESS: Self = Self(0);
    /// An APC for the waiting thread ended the wait.
    pub const USER_APC: Self = Self(0xc0);
    /// An alert of the waiting thread ended the wait.
    pub const ALERTED: Self = Self(0x101);

    /// `ERROR_BUSY`. A warning by its number: Win32 takes it for a failure, as all that is not a success.
    pub const DEVICE_BUSY: Self = Self::numbered(0x8000_0011);
    /// `ERROR_BAD_LENGTH`.
    pub const INFO_LENGTH_MISMATCH: Self = Self::numbered(0xc000_0004);
    /// `ERROR_INVALID_PARAMETER`.
    pub const INVALID_PARAMETER: Self = Self::numbered(0xc000_000d);
    /// `ERROR_INVALID_FUNCTION`.
    pub const INVALID_DEVICE_REQUEST: Self = Self::numbered(0xc000_0010);
    /// `ERROR_NOT_ENOUGH_MEMORY`.
    pub const NO_MEMORY: Self = Self::numbered(0xc000_0017);
    /// `ERROR_ACCESS_DENIED`.
    pub const ACCESS_DENIED: Self = Self::numbered(0xc000_0022);
    /// `ERROR_ALREADY_EXISTS`.
    pub const OBJECT_NAME_COLLISION: Self = Self::numbered(0xc000_0035);
    /// `ERROR_REVISION_MISMATCH`.
    pub const REVISION_MISMATCH: Self = Self::numbered(0xc000_0059);
    /// `ERROR_NOT_READY`.
    pub const DEVICE_NOT_READY: Self = Self::numbered(0xc000_00a3);
    /// `ERROR_NOT_SUPPORTED`.
    pub const NOT_SUPPORTED: Self = Self::numbered(0xc000_00bb);
    /// `ERROR_OPERATION_ABORTED`.
    pub const CANCELLED: Self = Self::numbered(0xc000_0120);
    /// `ERROR_NOT_FOUND`.
    pub const NOT_FOUND: Self = Self::numbered(0xc000_0225);

    #[expect(clippy::cast_possible_wrap, reason = "NTSTATUS is signed, and its numbers are written unsigned")]
    const fn numbered(number: u32) -> Self {
        Self(number as i32)
    }
}

impl From<CallError> for NtStatus {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Invalid => Self::INVALID_PARAMETER,
            CallError::NoMemory => Self::NO_MEMORY,
            CallError::Busy => Self::DEVICE_BUSY,
            CallError::Interrupted => Self::CANCELLED,
            CallError::NoEngine => Self::NOT_SUPPORTED,
            CallError::Version => Self::REVISION_MISMATCH,
            CallError::NotFound => Self::NOT_FOUND,
            CallError::Exists => Self::OBJECT_NAME_COLLISION,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRORS: [CallError; 8] = [
        CallError::Invalid,
        CallError::NoMemory,
        CallError::Busy,
        CallError::Interrupted,
        CallError::NoEngine,
        CallError::Version,
        CallError::NotFound,
        CallError::Exists,
    ];

    #[test]
    fn test_every_error_is_a_failure_and_none_is_another_s() {
        for (index, error) in ERRORS.into_iter().enumerate() {
            let status = NtStatus::from(error);
            assert!(status.0 < 0, "{error}");
            assert!(ERRORS[..index].iter().all(|other| NtStatus::from(*other) != status), "{error}");
        }
    }

    /// The numbers that a loader of another build sees.
    #[test]
    fn test_the_table() {
        let numbers = ERRORS.map(|error| NtStatus::from(error).0.cast_unsigned());
        assert_eq!(
            numbers,
            [0xc000_000d, 0xc000_0017, 0x8000_0011, 0xc000_0120, 0xc000_00bb, 0xc000_0059, 0xc000_0225, 0xc000_0035]
        );
    }
}
