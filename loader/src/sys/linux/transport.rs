//! Calls to the driver: ioctls on its device, and its memory by `mmap`.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::path::Path;

use covisor_abi::Call;
use covisor_abi::DEVICE_PATH_LINUX;
use vm_memory::GuestAddress;
use vm_memory::mmap::MmapRegionBuilder;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::scarce;
use crate::sys::CallRefusal;
use crate::sys::OpenRefusal;
use crate::sys::memory::Region;

/// Where the driver's device is.
pub const DEVICE_PATH: &str = DEVICE_PATH_LINUX;

/// What an error of [`Transport::open`] means.
#[must_use]
pub fn open_refusal(error: &io::Error) -> OpenRefusal {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => OpenRefusal::NoDevice,
        Some(libc::EACCES | libc::EPERM) => OpenRefusal::NotAllowed,
        _ => OpenRefusal::Other,
    }
}

/// What an error of [`Transport::call`] means.
#[must_use]
pub fn call_refusal(error: &io::Error) -> CallRefusal {
    match error.raw_os_error() {
        Some(libc::ENOTTY) => CallRefusal::NotOurs,
        Some(libc::ENODEV) => CallRefusal::NoEngine,
        Some(libc::ENOMEM) => CallRefusal::NoMemory,
        // By a signal.
        Some(libc::EINTR) => CallRefusal::Interrupted,
        _ => CallRefusal::Other,
    }
}

/// An open handle of the driver.
#[derive(Debug)]
pub struct Transport {
    device: File,
}

impl Transport {
    /// Opens the driver's device.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { device })
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
        let number = libc::c_ulong::from(call.linux_number());
        // SAFETY: the ioctl number states the structure's size, which the assert compares with `T`'s, and any bytes
        // that the driver leaves there make a `T` (FromBytes). A device that is not covisor's does not know the number.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), number, std::ptr::from_mut(value)) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Maps guest memory at `gpa` that the driver has made available at `offset`. The mapping goes when the result is dropped.
    ///
    /// # Errors
    /// What the host says.
    pub fn map(&self, gpa: u64, offset: u64, size: usize) -> io::Result<Region> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidData)?;
        // First only addresses, owned by the region, which unmaps them when dropped; then the driver's memory there.
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| match error {
                vm_memory::mmap::MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other),
            })?;
        // SAFETY: MAP_FIXED replaces exactly the pages that `region` has just reserved and that nobody knows of yet.
        let address = unsafe {
            libc::mmap(
                region.as_ptr().cast(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                self.device.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        scarce::mapped(address.cast(), size, gpa.saturating_add(size as u64));
        Region::new(region, GuestAddress(gpa)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// For what only tests of the driver ask of a handle.
impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use covisor_abi::Handshake;

    use super::*;

    #[test]
    fn test_a_device_of_another_kind_refuses_the_call() {
        let transport = Transport::open(Path::new("/dev/null")).unwrap();
        let error = transport.call(Call::Handshake, &mut Handshake::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn test_a_mapping_shows_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        std::os::unix::fs::FileExt::write_at(file.as_file(), b"here", 4096).unwrap();
        let transport = Transport::open(file.path()).unwrap();
        let region = transport.map(0, 4096, 4096).unwrap();
        // SAFETY: the region has 4096 bytes.
        let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr(), 4) };
        assert_eq!(bytes, b"here");
    }
}
