//! Anonymous memory.

use std::io;
use std::ptr::NonNull;

/// A private anonymous mapping; it ends when this is dropped.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

/// Bytes in a page.
const PAGE: usize = 4096;

impl Mapping {
    /// A mapping of so many pages, none of which is there before it is written to.
    pub(crate) fn of_pages(pages: u32) -> io::Result<Self> {
        Self::new(usize::try_from(pages).map_err(io::Error::other)? * PAGE, 0)
    }

    /// A mapping whose pages are there at once.
    pub(crate) fn populated(length: usize) -> io::Result<Self> {
        Self::new(length, libc::MAP_POPULATE)
    }

    fn new(length: usize, flags: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: asks for new memory where the kernel likes: nothing that is there changes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(place) if start != libc::MAP_FAILED => Ok(Self { start: place, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes a byte to each page, one after the other.
    pub(crate) fn write_to_each_page(&self) {
        for offset in (0..self.length).step_by(PAGE) {
            // SAFETY: the byte lies in the mapping, which is writable and ours alone. Volatile: nobody reads it.
            unsafe { self.start.as_ptr().add(offset).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pages_of_a_mapping_can_be_written() {
        Mapping::of_pages(3).unwrap().write_to_each_page();
        Mapping::populated(2 * PAGE).unwrap().write_to_each_page();
    }

    #[test]
    fn a_mapping_that_cannot_be_is_an_error() {
        assert!(Mapping::of_pages(0).is_err());
    }
}
