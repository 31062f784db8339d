//! Calls to the driver: device controls.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsHandle;
use std::os::windows::io::BorrowedHandle;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use covisor_abi::Call;
use covisor_abi::DEVICE_PATH_NT;
use vm_memory::GuestAddress;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OVERLAPPED;
use windows_sys::Win32::System::IO::DeviceIoControl;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::memory::Region;
use super::overlapped;
use crate::sys::CallRefusal;
use crate::sys::OpenRefusal;
use crate::sys::nt::refusals;

/// Where the driver's device is.
pub const DEVICE_PATH: &str = DEVICE_PATH_NT;

/// What an error of [`Transport::open`] means.
#[must_use]
pub fn open_refusal(error: &io::Error) -> OpenRefusal {
    refusals::of_open(error.raw_os_error())
}

/// What an error of [`Transport::call`] means.
#[must_use]
pub fn call_refusal(error: &io::Error) -> CallRefusal {
    refusals::of_call(error.raw_os_error())
}

/// An open handle of the driver.
#[derive(Debug)]
pub struct Transport {
    device: Arc<File>,
}

impl Transport {
    /// Opens the driver's device.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(path)?;
        Ok(Self { device: Arc::new(device) })
    }

    /// Makes one call.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When `value` is not the structure of `call`, which is an error of the calling code.
    #[inline]
    pub fn call<T: FromBytes + IntoBytes + Immutable>(&self, call: Call, value: &mut T) -> io::Result<()> {
        assert_eq!(size_of::<T>(), call.size());
        let bytes = value.as_mut_bytes();
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let buffer = bytes.as_mut_ptr();
        // SAFETY: the structure is there until the call is over, as long as it is told, and any bytes that the driver leaves
        // there make a `T` (FromBytes). NT copies in and out (METHOD_BUFFERED), so that the buffers may be the same.
        let moved = unsafe {
            overlapped::call(self.device.as_handle(), None, |device, state| {
                let (input, output) = (buffer.cast_const().cast(), buffer.cast());
                DeviceIoControl(device, call.nt_code(), input, size, output, size, ptr::null_mut(), state)
            })
        };
        moved.map(drop)
    }

    /// The guest memory at `gpa` that the driver has mapped here at `address`. It stays mapped as long as the handle is open,
    /// which it is at least as long as the result lives.
    ///
    /// # Errors
    /// When the address cannot be.
    pub fn map(&self, gpa: u64, address: u64, size: usize) -> io::Result<Region> {
        let address = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidData)?;
        let start = ptr::with_exposed_provenance_mut(address);
        // SAFETY: so says the driver, whose handshake told that it is ours.
        let region = unsafe { Region::new(GuestAddress(gpa), start, size, Arc::clone(&self.device) as _) };
        region.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// For what only tests of the driver ask of a handle.
impl AsHandle for Transport {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.device.as_handle()
    }
}

#[cfg(test)]
mod tests {
    use covisor_abi::Handshake;

    use super::*;

    #[test]
    fn test_a_missing_device_is_none() {
        let error = Transport::open(Path::new(r"\\.\covisor-is-not-there")).unwrap_err();
        assert_eq!(open_refusal(&error), OpenRefusal::NoDevice);
    }

    #[test]
    fn test_a_device_of_another_kind_refuses_the_call() {
        let transport = Transport::open(Path::new("NUL")).unwrap();
        assert!(transport.call(Call::Handshake, &mut Handshake::default()).is_err());
    }
}
