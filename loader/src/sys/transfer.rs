//! The data of a disk on its way from and to guest memory.

use std::fs::File;
use std::io;

use vm_memory::VolatileSlice;

use super::disk;

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into memory.
    FromFile,
    /// Out of it.
    ToFile,
}

/// Reads all of `buffers` from `offset` on.
///
/// # Errors
///
/// The system's; the file ends before.
pub fn read_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    disk::transfer(file, offset, buffers, Direction::FromFile)
}

/// Writes all of `buffers` from `offset` on.
///
/// # Errors
///
/// The system's.
pub fn write_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
    disk::transfer(file, offset, buffers, Direction::ToFile)
}
