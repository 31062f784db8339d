//! Hyper-V's format, VHDX ([MS-VHDX]): read only.
//!
//! Two headers with checksums, of which the newer that is whole counts (2.2.2); two copies of a table of regions (2.2.3); the
//! region with metadata (2.6), which says how large disk and blocks are; and the region with the block allocation table (2.5),
//! which says where each block lies. A disk that was not closed in good order has a log (2.3), which only its own system may
//! replay: it is refused. So are differencing disks (2.7).

mod parse;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use self::parse::Geometry;
use super::BlockBackend;
use super::SECTOR;
use super::layout::Layout;
use super::layout::Place;
use super::layout::ReadOnly;
use super::medium::Medium;

/// What is wrong with a VHDX image.
#[derive(Debug, Error)]
pub enum VhdxError {
    /// The host does not let it be read.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// Not one.
    #[error("it is no VHDX image; if it is a raw one, say so by `format=raw`")]
    Signature,
    /// Neither header is whole.
    #[error("it is damaged: neither of its two headers is whole")]
    NoHeader,
    /// A version that there is not.
    #[error("it is of version {0} of VHDX; only version 1 is known")]
    Version(u16),
    /// It was not closed.
    #[error(
        "it was not closed in good order and has a log to be replayed: attach it once in Windows, or repair it by \
         `qemu-img check -r all`"
    )]
    Log,
    /// Neither table of regions is whole.
    #[error("it is damaged: neither of its two region tables is whole")]
    NoRegions,
    /// A region or an item that it has to have is not there.
    #[error("it is damaged: it has no {0}")]
    Missing(&'static str),
    /// It needs what is not known.
    #[error("it needs a {0} that is not known here")]
    UnknownRequired(&'static str),
    /// A region or item lies where none can.
    #[error("it is damaged: its {0} does not lie where it can")]
    Place(&'static str),
    /// A value that cannot be.
    #[error("it is damaged: {0}")]
    Value(&'static str),
    /// It is based on another.
    #[error("it is a differencing disk, which is not supported: merge it with its parent in Hyper-V")]
    Parent,
}

pub use parse::checksum;

/// States of a payload block (2.5.1.1).
mod state {
    pub(super) const NOT_PRESENT: u64 = 0;
    pub(super) const UNDEFINED: u64 = 1;
    pub(super) const ZERO: u64 = 2;
    pub(super) const UNMAPPED: u64 = 3;
    pub(super) const FULLY_PRESENT: u64 = 6;
}

/// The bits of an entry with the state (2.5.1).
const STATE: u64 = 7;
/// The bits of an entry with the place in the file, in MiB, which are those of the place in bytes (2.5.1).
const PLACE: u64 = !0xf_ffff;
/// Entries of the table that are kept.
const KEPT: usize = 512;
/// Sectors that a bitmap block of 1 MiB has bits for (2.5.1.2).
const SECTORS_IN_CHUNK: u64 = 1 << 23;

/// What an image holds.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of a sector, as its guest has seen them.
    pub sector: u32,
}

/// Reads and checks headers and tables.
///
/// # Errors
/// It is not an image that can be used.
pub fn info(medium: &dyn Medium) -> Result<Info, VhdxError> {
    let geometry = parse::geometry(medium)?;
    Ok(Info { size: geometry.size, block: geometry.block, sector: geometry.sector })
}

/// The disk in an image.
///
/// # Errors
/// It is not an image that can be used.
pub fn open(medium: Arc<dyn Medium>) -> Result<Box<dyn BlockBackend>, VhdxError> {
    let geometry = parse::geometry(medium.as_ref())?;
    Ok(Box::new(ReadOnly(Blocks { medium, geometry, kept: None })))
}

/// The block allocation table.
#[derive(Debug)]
struct Blocks {
    medium: Arc<dyn Medium>,
    geometry: Geometry,
    /// Entries from a number on, as they were read last.
    kept: Option<(u64, Vec<u8>)>,
}

impl Blocks {
    /// Entry `index` of the table, of which the geometry says that it is there.
    fn entry(&mut self, index: u64) -> io::Result<u64> {
        let first = index - index % KEPT as u64;
        let kept = match self.kept.take() {
            Some(kept) if kept.0 == first => kept,
            _ => {
                let mut bytes = vec![0; KEPT * 8];
                let at = self.geometry.table + first * 8;
                self.medium.read_padded(at, &[vm_memory::VolatileSlice::from(bytes.as_mut_slice())])?;
                (first, bytes)
            }
        };
        let start = usize::try_from(index - first).unwrap_or(0) * 8;
        let value = kept.1[start..start + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.kept = Some(kept);
        Ok(value)
    }
}

impl Layout for Blocks {
    fn size(&self) -> u64 {
        self.geometry.size - self.geometry.size % SECTOR
    }

    fn place(&mut self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let Geometry { block, sector, .. } = self.geometry;
        let (number, within) = (offset / block, offset % block);
        let length = length.min(block - within);
        // After each chunk of blocks comes an entry for a bitmap (2.5).
        let chunk = SECTORS_IN_CHUNK * u64::from(sector) / block;
        let entry = self.entry(number + number / chunk)?;
        let place = match entry & STATE {
            state::NOT_PRESENT | state::UNDEFINED | state::ZERO | state::UNMAPPED => Place::Zero,
            state::FULLY_PRESENT => {
                let at = entry & PLACE;
                let end = at.checked_add(block).filter(|end| at > 0 && *end <= self.geometry.file_size);
                if end.is_none() {
                    return Err(damaged("a block of it does not lie in the file"));
                }
                Place::At(Arc::clone(&self.medium), at + within)
            }
            _ => return Err(damaged("a block of it is in a state that it cannot be in")),
        };
        Ok((place, length))
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, VhdxError::Value(what))
}

#[cfg(test)]
pub(super) mod tests;
