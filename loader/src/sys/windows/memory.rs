//! The guest's RAM in this process: where the driver has mapped it.

use std::any::Any;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::GuestAddress;
use vm_memory::GuestMemoryError;
use vm_memory::GuestMemoryRegion;
use vm_memory::GuestMemoryRegionBytes;
use vm_memory::GuestRegionCollection;
use vm_memory::GuestUsize;
use vm_memory::MemoryRegionAddress;
use vm_memory::VolatileSlice;

/// The guest's RAM, as every device and loader of this crate sees it.
pub type GuestRam = GuestRegionCollection<Region>;

/// A part of it.
#[derive(Debug)]
pub struct Region {
    gpa: GuestAddress,
    start: NonNull<u8>,
    size: usize,
    /// As long as this lives, the memory is mapped.
    _keeper: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory belongs to the process and not to a thread, and is reached by volatile accesses only.
unsafe impl Send for Region {}
// SAFETY: the same.
unsafe impl Sync for Region {}

impl Region {
    /// `size` bytes at `start`, which are the guest's from `gpa` on. `None` when the addresses cannot be.
    ///
    /// # Safety
    /// The bytes are mapped and may be written as long as `keeper` lives.
    pub(super) unsafe fn new(
        gpa: GuestAddress,
        start: *mut u8,
        size: usize,
        keeper: Arc<dyn Any + Send + Sync>,
    ) -> Option<Self> {
        gpa.0.checked_add(size as u64)?;
        start.addr().checked_add(size)?;
        Some(Self { gpa, start: NonNull::new(start)?, size, _keeper: keeper })
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.size as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.gpa
    }

    fn bitmap(&self) {}

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let outside = || GuestMemoryError::InvalidBackendAddress;
        let offset = usize::try_from(offset.0).map_err(|_| outside())?;
        if offset.checked_add(count).is_none_or(|end| end > self.size) {
            return Err(outside());
        }
        // SAFETY: the bytes are inside of the region, which the keeper keeps mapped at least as long as the slice borrows it.
        Ok(unsafe { VolatileSlice::new(self.start.as_ptr().wrapping_add(offset), count) })
    }
}

impl GuestMemoryRegionBytes for Region {}

/// Nothing: the driver for Windows maps all of the guest's RAM for good, and never gives a part back.
///
/// # Errors
/// None.
pub fn unmap(_ram: &GuestRam, _gpa: u64, _size: u64) -> io::Result<()> {
    Ok(())
}

/// RAM for tests: zeroed memory at these addresses.
#[cfg(test)]
pub(crate) fn anonymous(ranges: &[(GuestAddress, usize)]) -> GuestRam {
    let region = |&(gpa, size): &(GuestAddress, usize)| {
        // Whole and aligned numbers, so that devices' structures are.
        let memory = Arc::new(std::sync::Mutex::new(vec![0_u64; size.div_ceil(8)]));
        let start = memory.lock().unwrap().as_mut_ptr().cast();
        // SAFETY: nobody else touches the vector, which lives as long as the region.
        unsafe { Region::new(gpa, start, size, memory) }.unwrap()
    };
    GuestRam::from_regions(ranges.iter().map(region).collect()).unwrap()
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;
    use vm_memory::GuestMemoryBackend;

    use super::*;

    #[test]
    fn test_accesses_stay_inside() {
        let ram = anonymous(&[(GuestAddress(0), 0x2000), (GuestAddress(0x10_0000), 0x1000)]);
        ram.write_slice(b"here", GuestAddress(0x10_0ffc)).unwrap();
        let mut bytes = [0; 4];
        ram.read_slice(&mut bytes, GuestAddress(0x10_0ffc)).unwrap();
        assert_eq!(&bytes, b"here");
        assert!(ram.write_slice(b"there", GuestAddress(0x10_0ffc)).is_err());
        let region = ram.find_region(GuestAddress(0)).unwrap();
        assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 1).is_err());
        assert!(region.get_slice(MemoryRegionAddress(0x1fff), 2).is_err());
    }
}
