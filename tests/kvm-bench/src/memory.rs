//! The guest's RAM.

use std::io;
use std::ptr;
use std::ptr::NonNull;

use libc::MAP_ANONYMOUS;
use libc::MAP_FAILED;
use libc::MAP_POPULATE;
use libc::MAP_PRIVATE;
use libc::PROT_READ;
use libc::PROT_WRITE;

use crate::error::Error;

/// Memory of a fixed size, from guest-physical address 0 on.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    size: usize,
}

impl Memory {
    /// Zeroed memory, present from the start.
    pub(crate) fn new(size: usize) -> Result<Self, Error> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, PROT_READ | PROT_WRITE, flags, -1, 0) };
        if start == MAP_FAILED {
            return Err(Error::Memory(io::Error::last_os_error()));
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, size }),
            None => Err(Error::Memory(io::Error::other("mapped at address 0"))),
        }
    }

    /// Where it lies in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Copies `bytes` to a guest-physical address; false when they do not fit there.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Ok(offset) = usize::try_from(address) else { return false };
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.size) {
            return false;
        }
        // SAFETY: the target is inside of the mapping, and no vCPU runs while `self` is borrowed for writing.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len()) };
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; the VM that used it is dropped before (see `Machine`).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}
