//! Images that can only be read: where in their files what a disk holds is.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::BlockBackend;
use super::Run;
use super::SECTOR;
use super::buffers::Pieces;
use super::buffers::copy_in;
use super::buffers::fill_with_zeroes;
use super::buffers::total;
use super::medium::Medium;

/// Where bytes of a disk are.
#[derive(Debug)]
pub(super) enum Place {
    /// In a file, from this byte on.
    At(Arc<dyn Medium>, u64),
    /// Nowhere: they read zero.
    Zero,
    /// Here, as they had to be unpacked.
    Bytes(Vec<u8>),
}

/// A format's tables.
pub(super) trait Layout: fmt::Debug + Send {
    /// Bytes of the disk, a multiple of a sector's.
    fn size(&self) -> u64;

    /// Where the byte at `offset`, which the disk has, is, and how many from it on, up to `length`, lie there one after another:
    /// at least one.
    ///
    /// # Errors
    /// The tables are wrong, or the host's.
    fn place(&mut self, offset: u64, length: u64) -> io::Result<(Place, u64)>;
}

/// A disk by its tables.
#[derive(Debug)]
pub(super) struct ReadOnly<L>(pub(super) L);

impl<L: Layout> BlockBackend for ReadOnly<L> {
    fn sectors(&self) -> u64 {
        self.0.size() / SECTOR
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&mut self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut pieces = Pieces::new(buffers);
        while pieces.left() > 0 {
            let (place, length) = self.0.place(offset, pieces.left())?;
            let part = pieces.take(length);
            match place {
                Place::At(medium, at) => medium.read_at(at, &part)?,
                Place::Zero => fill_with_zeroes(&part),
                Place::Bytes(bytes) => copy_in(&part, &bytes),
            }
            offset += total(&part);
        }
        Ok(())
    }

    fn write_at(&mut self, _offset: u64, _buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&mut self, _offset: u64, _length: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn run(&mut self, offset: u64, length: u64) -> io::Result<Run> {
        let (place, length) = self.0.place(offset, length)?;
        Ok(Run { length, zeroes: matches!(place, Place::Zero) })
    }
}
