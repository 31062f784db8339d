//! The bytes that an image is made of: a file or a device of the host, or memory.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use vm_memory::VolatileSlice;

use super::Run;
use super::buffers::fill_with_zeroes;
use super::buffers::total;
use super::buffers::write_zero_bytes;
use crate::platform::lock;
use crate::sys::disk;
use crate::sys::disk::OpenError;
use crate::sys::transfer;

/// Bytes at positions. It grows when something is written behind its end, if it can.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Its size in bytes.
    ///
    /// # Errors
    /// The host's.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffers` from byte `offset` on.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::UnexpectedEof`] where it ends before.
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Stores `buffers` from byte `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Makes it this large; what is new reads zeroes.
    ///
    /// # Errors
    /// The host's.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Returns when all that was written lasts over a crash of the host.
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> io::Result<()>;

    /// Gives the storage of a range back; it reads zeroes afterwards.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::Unsupported`] where it cannot.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read zeroes, and keeps its storage.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::Unsupported`] where it cannot.
    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()>;

    /// How far what begins at `offset` is of one kind, up to `length` bytes.
    ///
    /// # Errors
    /// The host's.
    fn run(&self, _offset: u64, length: u64) -> io::Result<Run> {
        Ok(Run { length, zeroes: false })
    }
}

impl dyn Medium + '_ {
    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// As [`Medium::read_at`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, &[VolatileSlice::from(bytes)])
    }

    /// Fills `buffers` from `offset` on, with zeroes where there is nothing any more.
    ///
    /// # Errors
    /// The host's.
    pub fn read_padded(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let there = self.size()?.saturating_sub(offset);
        let wanted = total(buffers);
        if wanted <= there {
            return self.read_at(offset, buffers);
        }
        let mut pieces = super::buffers::Pieces::new(buffers);
        let front = pieces.take(there);
        if there > 0 {
            self.read_at(offset, &front)?;
        }
        fill_with_zeroes(&pieces.take(wanted - there));
        Ok(())
    }

    /// Stores `bytes` from `offset` on.
    ///
    /// # Errors
    /// As [`Medium::write_at`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A slice of volatile memory is made of what can be written. It is not, so a copy serves.
        let mut copy = bytes.to_vec();
        self.write_at(offset, &[VolatileSlice::from(copy.as_mut_slice())])
    }

    /// Makes a range read zeroes by the best way that there is; with `unmap` its storage may be given back.
    ///
    /// # Errors
    /// The host's.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            let result = self.punch_hole(offset, length);
            if !is_unsupported(&result) {
                return result;
            }
        }
        let result = self.zero_range(offset, length);
        if is_unsupported(&result) {
            write_zero_bytes(offset, length, |offset, zeroes| self.write_at(offset, zeroes))
        } else {
            result
        }
    }
}

/// Whether something failed because there is no such thing here.
pub(super) fn is_unsupported<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::Unsupported)
}

/// A file or a device of the host.
#[derive(Debug)]
pub struct HostMedium {
    file: File,
    /// The size of what is no file, and does not change.
    fixed: Option<u64>,
}

impl HostMedium {
    /// Opens and locks it: nobody else can write it meanwhile, and nobody else read it when it can be written.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let (file, size) = disk::open(path, read_only)?;
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Ok(Self { file, fixed: (!is_file).then_some(size) })
    }

    /// Makes a file that is not there yet.
    ///
    /// # Errors
    /// The host's.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { file: disk::create(path)?, fixed: None })
    }
}

impl Medium for HostMedium {
    fn size(&self) -> io::Result<u64> {
        self.fixed.map_or_else(|| self.file.metadata().map(|metadata| metadata.len()), Ok)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        transfer::read_at(&self.file, offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        transfer::write_at(&self.file, offset, buffers)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        match self.fixed {
            None => self.file.set_len(size),
            Some(fixed) if size <= fixed => Ok(()),
            Some(_) => Err(io::Error::new(io::ErrorKind::StorageFull, "the device ends here")),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        disk::punch_hole(&self.file, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        disk::zero_range(&self.file, offset, length)
    }

    fn run(&self, offset: u64, length: u64) -> io::Result<Run> {
        match self.fixed {
            None => disk::run(&self.file, offset, length),
            Some(_) => Ok(Run { length, zeroes: false }),
        }
    }
}

/// Memory, for tests and fuzzing.
#[derive(Debug)]
pub struct MemoryMedium {
    bytes: Mutex<Vec<u8>>,
    limit: usize,
}

impl MemoryMedium {
    /// These bytes, which may become `limit` at most.
    #[must_use]
    pub fn new(bytes: Vec<u8>, limit: usize) -> Self {
        Self { bytes: Mutex::new(bytes), limit }
    }

    /// A copy of what it holds.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    fn grow(&self, bytes: &mut Vec<u8>, end: u64) -> io::Result<()> {
        let end = usize::try_from(end).ok().filter(|end| *end <= self.limit).ok_or(io::ErrorKind::StorageFull)?;
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        Ok(())
    }
}

impl Medium for MemoryMedium {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.bytes).len() as u64)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let bytes = lock(&self.bytes);
        let mut rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        for buffer in buffers {
            let (part, after) = rest.split_at_checked(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from(part);
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        let end = offset.checked_add(total(buffers)).ok_or(io::ErrorKind::StorageFull)?;
        self.grow(&mut bytes, end)?;
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::StorageFull)?;
        let mut rest = &mut bytes[start..];
        for buffer in buffers {
            let (part, after) = rest.split_at_mut(buffer.len());
            buffer.copy_to(part);
            rest = after;
        }
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        self.grow(&mut bytes, size)?;
        bytes.truncate(usize::try_from(size).map_err(|_| io::ErrorKind::StorageFull)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let range = place(offset)..place(offset.saturating_add(length));
        bytes[range].fill(0);
        Ok(())
    }

    fn zero_range(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A medium that fails at times, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Faulty {
    below: std::sync::Arc<MemoryMedium>,
    /// For each operation to come whether it fails; later ones do not.
    fails: Mutex<std::vec::IntoIter<bool>>,
}

#[cfg(test)]
impl Faulty {
    /// `below`, of whose operations these fail.
    pub(super) fn new(below: std::sync::Arc<MemoryMedium>, fails: Vec<bool>) -> Self {
        Self { below, fails: Mutex::new(fails.into_iter()) }
    }

    fn attempt(&self) -> io::Result<()> {
        if lock(&self.fails).next() == Some(true) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
impl Medium for Faulty {
    fn size(&self) -> io::Result<u64> {
        self.below.size()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.attempt()?;
        self.below.read_at(offset, buffers)
    }

    /// What fails has got half of the way.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let result = self.attempt();
        if result.is_err() {
            let front = super::buffers::Pieces::new(buffers).take(total(buffers) / 2);
            self.below.write_at(offset, &front)?;
        }
        result?;
        self.below.write_at(offset, buffers)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.attempt()?;
        self.below.set_size(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.attempt()
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.attempt()?;
        self.below.punch_hole(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.below.zero_range(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn test_what_is_behind_the_end_reads_zero_and_grows_when_written() {
        let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new(vec![7; 10], 100));
        let mut bytes = [1; 8];
        medium.read_padded(6, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
        assert_eq!(bytes, [7, 7, 7, 7, 0, 0, 0, 0]);
        assert_eq!(medium.read(6, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        medium.write(20, b"abc").unwrap();
        assert_eq!(medium.size().unwrap(), 23);
        medium.write_zeroes(21, 1, true).unwrap();
        let mut end = [9; 5];
        medium.read(18, &mut end).unwrap();
        assert_eq!(&end, b"\0\0a\0c");
        assert!(medium.write(99, b"ab").is_err());
        assert!(medium.write(u64::MAX, b"ab").is_err());
    }
}
