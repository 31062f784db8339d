//! What a block device asks of where its data is.

use std::fmt;
use std::io;

use vm_memory::VolatileSlice;

use super::SECTOR;

/// Storage of a fixed number of sectors. The device asks only for ranges inside it.
pub trait BlockBackend: fmt::Debug + Send {
    /// Its size.
    fn sectors(&self) -> u64;

    /// Whether the guest must not write it.
    fn is_read_only(&self) -> bool;

    /// Fills `buffers` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Stores `buffers` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Returns when all that was written lasts over a crash of the host.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn flush(&mut self) -> io::Result<()>;

    /// The guest does not need a range's data any more.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read zeroes; with `unmap` its storage may be given back.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;

    /// Sectors that a discard has to cover, from a multiple of them on, to give storage back.
    fn discard_alignment(&self) -> u32 {
        1
    }

    /// How far what begins at `offset` is of one kind, up to `length` bytes. Never 0 bytes of more than none.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn run(&mut self, _offset: u64, length: u64) -> io::Result<Run> {
        Ok(Run { length, zeroes: false })
    }
}

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub length: u64,
    /// That they read zero is known without reading them.
    pub zeroes: bool,
}

/// A disk in memory, for tests and fuzzing.
#[derive(Debug)]
pub struct MemoryBackend {
    data: Vec<u8>,
    read_only: bool,
    /// Times that [`BlockBackend::flush`] was called.
    pub flushes: usize,
}

impl MemoryBackend {
    /// A disk with this content, as far as it is whole sectors.
    #[must_use]
    pub fn new(mut data: Vec<u8>, read_only: bool) -> Self {
        data.truncate(data.len() - data.len() % 512);
        Self { data, read_only, flushes: 0 }
    }

    /// The content.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    fn range(&mut self, offset: u64, length: u64) -> io::Result<&mut [u8]> {
        let end = offset.checked_add(length).and_then(|end| usize::try_from(end).ok());
        let start = usize::try_from(offset).ok();
        start
            .zip(end)
            .and_then(|(start, end)| self.data.get_mut(start..end))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl BlockBackend for MemoryBackend {
    fn sectors(&self) -> u64 {
        self.data.len() as u64 / SECTOR
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        for buffer in buffers {
            buffer.copy_from(self.range(offset, buffer.len() as u64)?);
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        for buffer in buffers {
            buffer.copy_to(self.range(offset, buffer.len() as u64)?);
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.range(offset, length).map(|_| ())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        self.range(offset, length)?.fill(0);
        Ok(())
    }
}
