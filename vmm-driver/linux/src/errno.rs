//! Error numbers (Linux `uapi/asm-generic/errno-base.h` and `errno.h`), negative, as the kernel's functions return them.

use core::ffi::c_int;

use covisor_core::device::CallError;

pub(crate) const ENOENT: c_int = -2;
pub(crate) const EINTR: c_int = -4;
pub(crate) const ENOMEM: c_int = -12;
pub(crate) const EBUSY: c_int = -16;
pub(crate) const EEXIST: c_int = -17;
pub(crate) const ENODEV: c_int = -19;
pub(crate) const EINVAL: c_int = -22;
pub(crate) const ENOTTY: c_int = -25;
pub(crate) const EPROTO: c_int = -71;

/// What a failed call returns.
pub(crate) fn of_call(error: CallError) -> c_int {
    match error {
        CallError::Invalid => EINVAL,
        CallError::NoMemory => ENOMEM,
        CallError::Busy => EBUSY,
        CallError::Interrupted => EINTR,
        CallError::NoEngine => ENODEV,
        CallError::Version => EPROTO,
        CallError::NotFound => ENOENT,
        CallError::Exists => EEXIST,
    }
}
