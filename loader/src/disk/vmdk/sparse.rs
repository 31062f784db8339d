//! Sparse extents ("Hosted Sparse Extents"): a header, a directory of tables, tables of grains.

use std::io;
use std::io::Read;
use std::sync::Arc;

use flate2::read::ZlibDecoder;
use vm_memory::VolatileSlice;

use super::LARGEST;
use super::LONGEST_DESCRIPTOR;
use super::VmdkError;
use crate::disk::SECTOR;
use crate::disk::layout::Place;
use crate::disk::medium::Medium;

/// What an extent begins with.
pub(super) const MAGIC: &[u8; 4] = b"KDMV";
/// Bytes of the header.
const HEADER_SIZE: usize = 512;
/// The directory's place when it is in a footer, at the file's end, in its last but one sector.
const IN_FOOTER: u64 = u64::MAX;
const FOOTER_FROM_END: u64 = 1024;
/// Entries of a grain table.
const TABLE_ENTRIES: u32 = 512;
/// Sectors of a grain: a power of two.
const GRAINS: std::ops::RangeInclusive<u64> = 1..=4096;
/// What a header has where conversions of line ends would be seen.
const LINE_ENDS: &[u8] = b"\n \r\n";
/// Flags.
mod flag {
    /// [`LINE_ENDS`](super::LINE_ENDS) are there.
    pub(super) const LINE_ENDS: u32 = 1 << 0;
    /// An entry of 1 is a grain of zeroes.
    pub(super) const ZERO_GRAINS: u32 = 1 << 2;
    /// Grains are compressed.
    pub(super) const COMPRESSED: u32 = 1 << 16;
}
/// Compression by deflate.
const DEFLATE: u16 = 1;
/// What precedes a compressed grain: its first sector, and its bytes.
const MARKER_SIZE: u64 = 12;

/// A sparse extent.
#[derive(Debug)]
pub(super) struct Sparse {
    medium: Arc<dyn Medium>,
    file_size: u64,
    flags: u32,
    size: u64,
    /// Bytes of a grain.
    grain: u64,
    descriptor: (u64, u64),
    /// Where the directory is.
    directory: u64,
    /// The table that was used last, by its number.
    table: Option<(u64, Vec<u8>)>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default())
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default())
}

fn sectors(count: u64) -> Result<u64, VmdkError> {
    count
        .checked_mul(SECTOR)
        .filter(|bytes| *bytes <= LARGEST)
        .ok_or(VmdkError::Value("its header has impossible sizes"))
}

impl Sparse {
    /// Reads and checks the header.
    pub(super) fn new(medium: Arc<dyn Medium>) -> Result<Self, VmdkError> {
        let file_size = medium.size()?;
        if file_size < HEADER_SIZE as u64 {
            return Err(VmdkError::Short);
        }
        let mut header = vec![0; HEADER_SIZE];
        medium.read(0, &mut header)?;
        if double(&header, 56) == IN_FOOTER {
            let at = file_size.checked_sub(FOOTER_FROM_END).ok_or(VmdkError::Short)?;
            medium.read(at, &mut header)?;
        }
        if !header.starts_with(MAGIC) {
            return Err(VmdkError::Signature);
        }
        let (version, flags) = (word(&header, 4), word(&header, 8));
        if !(1..=3).contains(&version) {
            return Err(VmdkError::Version(version));
        }
        if flags & flag::LINE_ENDS != 0 && header[73..77] != *LINE_ENDS {
            return Err(VmdkError::Text);
        }
        let grain = double(&header, 20);
        if !GRAINS.contains(&grain) || !grain.is_power_of_two() {
            return Err(VmdkError::Value("its grains are not of a size that they can have"));
        }
        if word(&header, 44) != TABLE_ENTRIES {
            return Err(VmdkError::Value("its grain tables are not of the size that they have"));
        }
        let compression = u16::from_le_bytes([header[77], header[78]]);
        if flags & flag::COMPRESSED != 0 && compression != DEFLATE {
            return Err(VmdkError::Value("it is compressed by an unknown method"));
        }
        let size = sectors(double(&header, 12))?;
        let descriptor = (sectors(double(&header, 28))?, sectors(double(&header, 36))?);
        let directory = sectors(double(&header, 56))?;
        let grain = grain * SECTOR;
        let tables = size.div_ceil(grain * u64::from(TABLE_ENTRIES));
        if directory == 0 || directory + tables * 4 > file_size {
            return Err(VmdkError::Value("its grain directory does not lie in the file"));
        }
        Ok(Self { medium, file_size, flags, size, grain, descriptor, directory, table: None })
    }

    /// Bytes of the disk that are here.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor inside, if there is one.
    pub(super) fn descriptor(&self) -> Result<Option<Vec<u8>>, VmdkError> {
        let (offset, length) = self.descriptor;
        if offset == 0 || length == 0 {
            return Ok(None);
        }
        if length > LONGEST_DESCRIPTOR || offset + length > self.file_size {
            return Err(VmdkError::Value("its descriptor does not lie in the file"));
        }
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        self.medium.read(offset, &mut text)?;
        Ok(Some(text))
    }

    /// The grain table with this number; `false` if it is not there.
    fn load_table(&mut self, number: u64) -> io::Result<bool> {
        if self.table.as_ref().is_some_and(|(loaded, _)| *loaded == number) {
            return Ok(true);
        }
        let mut entry = [0; 4];
        self.medium.read_at(self.directory + number * 4, &[VolatileSlice::from(&mut entry[..])])?;
        let at = u64::from(u32::from_le_bytes(entry)) * SECTOR;
        if at == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; TABLE_ENTRIES as usize * 4];
        self.medium.read_at(at, &[VolatileSlice::from(bytes.as_mut_slice())]).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("a grain table of it does not lie in the file"),
            _ => error,
        })?;
        self.table = Some((number, bytes));
        Ok(true)
    }

    /// As [`Layout::place`](crate::disk::layout::Layout::place).
    pub(super) fn place(&mut self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let (number, within) = (offset / self.grain, offset % self.grain);
        let entries = u64::from(TABLE_ENTRIES);
        if !self.load_table(number / entries)? {
            let covered = self.grain * entries;
            return Ok((Place::Zero, length.min(covered - offset % covered)));
        }
        let index = usize::try_from(number % entries).unwrap_or(0);
        let entry = self.table.as_ref().map_or(0, |(_, table)| word(table, index * 4));
        let length = length.min(self.grain - within);
        if entry == 0 || entry == 1 && self.flags & flag::ZERO_GRAINS != 0 {
            return Ok((Place::Zero, length));
        }
        let at = u64::from(entry) * SECTOR;
        if self.flags & flag::COMPRESSED != 0 {
            return Ok((Place::Bytes(self.unpack(at, within, length)?), length));
        }
        if at + within + length > self.file_size {
            return Err(damaged("a grain of it does not lie in the file"));
        }
        Ok((Place::At(Arc::clone(&self.medium), at + within), length))
    }

    /// Bytes of the compressed grain at `at`.
    fn unpack(&self, at: u64, within: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut marker = [0; 12];
        self.medium.read_padded(at, &[VolatileSlice::from(&mut marker[..])])?;
        let packed_size = u64::from(word(&marker, 8));
        // Deflate makes nothing much larger.
        if packed_size > 2 * self.grain + SECTOR || at + MARKER_SIZE + packed_size > self.file_size {
            return Err(damaged("a compressed grain of it does not lie in the file"));
        }
        let mut packed = vec![0; usize::try_from(packed_size).map_err(|_| io::ErrorKind::InvalidData)?];
        self.medium.read_at(at + MARKER_SIZE, &[VolatileSlice::from(packed.as_mut_slice())])?;
        let mut unpacked = Vec::new();
        ZlibDecoder::new(packed.as_slice())
            .take(self.grain)
            .read_to_end(&mut unpacked)
            .map_err(|_| damaged("a compressed grain of it cannot be unpacked"))?;
        // The last grain of a disk may be cut.
        unpacked.resize(usize::try_from(self.grain).map_err(|_| io::ErrorKind::InvalidData)?, 0);
        let range = usize::try_from(within).ok().zip(usize::try_from(within + length).ok());
        let bytes = range.and_then(|(start, end)| unpacked.get(start..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, VmdkError::Value(what))
}
