//! The guest's RAM in this process.

use std::io;

use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;

/// The guest's RAM, as every device and loader of this crate sees it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// A part of it.
pub type Region = vm_memory::GuestRegionMmap<()>;

/// Lets go of the pages of RAM in this range that this process has mapped; they come again where they are touched.
///
/// # Errors
/// The range is not RAM of one region, or the host's own.
pub fn unmap(ram: &GuestRam, gpa: u64, size: u64) -> io::Result<()> {
    let bytes = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let slice = ram.get_slice(GuestAddress(gpa), bytes).map_err(io::Error::other)?;
    // SAFETY: the range is a part of the mapping that `ram` keeps. Its memory is reached by volatile accesses only, which find the
    // guest's memory again, or zeros.
    match unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// RAM for tests: zeroed memory at these addresses.
#[cfg(test)]
pub(crate) fn anonymous(ranges: &[(vm_memory::GuestAddress, usize)]) -> GuestRam {
    GuestRam::from_ranges(ranges).unwrap()
}
