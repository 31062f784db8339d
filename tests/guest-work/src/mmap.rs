//! Mappings of memory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::slice;

use crate::error::Failure;
use crate::error::Result;
use crate::error::done;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Words of a page.
pub(crate) const WORDS: usize = PAGE / 8;

/// A mapping that can be read and written, and ends with this value.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u64,
    words: usize,
}

impl Mapping {
    /// Memory of this process alone, all zeros.
    pub(crate) fn private(bytes: usize) -> Result<Self> {
        Self::new(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Memory in the lowest 2 GiB, which can be executed, too.
    pub(crate) fn low(bytes: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let mapping = Self::new(bytes, flags, -1)?;
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: the range is the mapping's.
        done("mprotect", unsafe { libc::mprotect(mapping.start.cast(), bytes, all) })?;
        Ok(mapping)
    }

    /// Memory that children share.
    pub(crate) fn shared(bytes: usize) -> Result<Self> {
        Self::new(bytes, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// A file's beginning; `shared`: what is written goes to the file.
    pub(crate) fn file(file: &File, bytes: usize, shared: bool) -> Result<Self> {
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        Self::new(bytes, flags, file.as_raw_fd())
    }

    fn new(bytes: usize, flags: i32, file: i32) -> Result<Self> {
        // SAFETY: a new range, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0) };
        if start == libc::MAP_FAILED {
            Err(Failure::last("mmap"))
        } else {
            Ok(Self { start: start.cast(), words: bytes / 8 })
        }
    }

    /// Its first address.
    pub(crate) fn address(&self) -> usize {
        self.start.expose_provenance()
    }

    /// Its words.
    pub(crate) fn words(&mut self) -> &mut [u64] {
        // SAFETY: the mapping is that long, is ours as long as the value lives, and any bytes are words. Other processes that share
        // it are not about the same words at the same time.
        unsafe { slice::from_raw_parts_mut(self.start, self.words) }
    }

    /// Writes what is to go to a file, and waits until it is there.
    pub(crate) fn write_back(&self) -> Result<()> {
        // SAFETY: the range is the mapping's.
        done("msync", unsafe { libc::msync(self.start.cast(), self.words * 8, libc::MS_SYNC) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start.cast(), self.words * 8) };
    }
}
