//! Headers, regions and metadata ([MS-VHDX] 2.2 and 2.6).

use crc::CRC_32_ISCSI;
use crc::Crc;
use vm_memory::VolatileSlice;

use super::SECTORS_IN_CHUNK;
use super::VhdxError;
use crate::disk::SECTOR;
use crate::disk::medium::Medium;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a file begins with (2.2.1).
const FILE_SIGNATURE: &[u8] = b"vhdxfile";
/// Where the headers are (2.2).
const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Bytes of a header (2.2.2).
const HEADER_SIZE: usize = 4096;
/// Where the region tables are (2.2).
const REGION_TABLES: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a region table (2.2.3).
const REGION_TABLE_SIZE: usize = 64 << 10;
/// Where regions can begin: behind the headers' mebibyte (2.2).
const FIRST_REGION: u64 = MIB;
/// Most entries of a region or metadata table (2.2.3.1, 2.6.1.1).
const MOST_ENTRIES: usize = 2047;
/// Bytes of each of them.
const ENTRY_SIZE: usize = 32;
/// Bytes of the metadata table; items lie behind it (2.6.1).
const METADATA_TABLE_SIZE: u64 = 64 * KIB;
/// Blocks' sizes (2.6.2.1).
const BLOCKS: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;
/// The largest disk (2.6.2.2).
const LARGEST: u64 = 64 << 40;
/// The flag of regions and metadata items that have to be understood (2.2.3.2, 2.6.1.2).
const REGION_REQUIRED: u32 = 1;
const ITEM_REQUIRED: u32 = 1 << 2;
/// The flag of a disk with a parent (2.6.2.1).
const HAS_PARENT: u32 = 1 << 1;

/// A GUID as it is in a file: its first three parts little-endian.
const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// Regions (2.2.3.2).
const BLOCK_TABLE: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
/// Metadata items (2.6.2).
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
const DISK_ID: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
const PARENT: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);

/// What reading needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of a block.
    pub(super) block: u64,
    /// Bytes of a logical sector.
    pub(super) sector: u32,
    /// Where the block allocation table is; it has all entries that `size` takes.
    pub(super) table: u64,
    /// Bytes of the file.
    pub(super) file_size: u64,
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

/// The checksum of a structure (2.2.2), in which its own field, from byte 4 on, counts as zero. A shorter one has none: 0.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    let (Some(signature), Some(rest)) = (bytes.get(..4), bytes.get(8..)) else { return 0 };
    let mut digest = CRC.digest();
    digest.update(signature);
    digest.update(&[0; 4]);
    digest.update(rest);
    digest.finalize()
}

/// A structure of this size and signature, if its checksum is right.
fn structure(medium: &dyn Medium, at: u64, size: usize, signature: &[u8]) -> Result<Option<Vec<u8>>, VhdxError> {
    let mut bytes = vec![0; size];
    medium.read_padded(at, &[VolatileSlice::from(bytes.as_mut_slice())])?;
    let is_whole = bytes.starts_with(signature) && word(&bytes, 4) == checksum(&bytes);
    Ok(is_whole.then_some(bytes))
}

/// Reads and checks all of it.
pub(super) fn geometry(medium: &dyn Medium) -> Result<Geometry, VhdxError> {
    let file_size = medium.size()?;
    let mut start = [0; FILE_SIGNATURE.len()];
    medium.read_padded(0, &[VolatileSlice::from(&mut start[..])])?;
    if start != FILE_SIGNATURE {
        return Err(VhdxError::Signature);
    }
    check_header(medium)?;
    let (table, metadata) = regions(medium, file_size)?;
    let (size, block, sector) = items(medium, metadata)?;
    let payload = size.div_ceil(block);
    let chunk = SECTORS_IN_CHUNK * u64::from(sector) / block;
    let entries = payload + (payload - 1) / chunk;
    if entries * 8 > table.length {
        return Err(VhdxError::Value("its block allocation table is too small for the disk"));
    }
    Ok(Geometry { size, block, sector, table: table.offset, file_size })
}

/// The header that counts: the whole one with the higher number (2.2.2.1).
fn check_header(medium: &dyn Medium) -> Result<(), VhdxError> {
    let mut current: Option<Vec<u8>> = None;
    for at in HEADERS {
        if let Some(header) = structure(medium, at, HEADER_SIZE, b"head")?
            && current.as_ref().is_none_or(|current| double(current, 8) < double(&header, 8))
        {
            current = Some(header);
        }
    }
    let header = current.ok_or(VhdxError::NoHeader)?;
    let version = u16::from_le_bytes(bytes_at(&header, 66));
    if version != 1 {
        return Err(VhdxError::Version(version));
    }
    // The GUID of the log is zero where there is none to be replayed (2.2.2).
    if bytes_at::<16>(&header, 48) != [0; 16] {
        return Err(VhdxError::Log);
    }
    Ok(())
}

/// A region.
#[derive(Clone, Copy)]
struct Region {
    offset: u64,
    length: u64,
}

impl Region {
    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.length && other.offset < self.offset + self.length
    }
}

/// The regions of the block allocation table and of the metadata.
fn regions(medium: &dyn Medium, file_size: u64) -> Result<(Region, Region), VhdxError> {
    let mut table = None;
    for at in REGION_TABLES {
        table = structure(medium, at, REGION_TABLE_SIZE, b"regi")?;
        if table.is_some() {
            break;
        }
    }
    let table = table.ok_or(VhdxError::NoRegions)?;
    let count = word(&table, 8) as usize;
    if count > MOST_ENTRIES {
        return Err(VhdxError::Value("its region table has more entries than there is room for"));
    }
    let (mut blocks, mut metadata) = (None, None);
    for entry in table[16..].chunks_exact(ENTRY_SIZE).take(count) {
        let slot = match bytes_at::<16>(entry, 0) {
            BLOCK_TABLE => &mut blocks,
            METADATA => &mut metadata,
            _ if word(entry, 28) & REGION_REQUIRED != 0 => return Err(VhdxError::UnknownRequired("region")),
            _ => continue,
        };
        let region = Region { offset: double(entry, 16), length: word(entry, 24).into() };
        let end = region.offset.checked_add(region.length);
        let lies_well = region.offset >= FIRST_REGION
            && region.offset.is_multiple_of(MIB)
            && region.length > 0
            && region.length.is_multiple_of(MIB)
            && end.is_some_and(|end| end <= file_size);
        if !lies_well || slot.replace(region).is_some() {
            return Err(VhdxError::Place("region table or a region"));
        }
    }
    let blocks = blocks.ok_or(VhdxError::Missing("block allocation table"))?;
    let metadata = metadata.ok_or(VhdxError::Missing("metadata"))?;
    if blocks.overlaps(&metadata) {
        return Err(VhdxError::Place("metadata"));
    }
    Ok((blocks, metadata))
}

/// The disk's size, a block's and a logical sector's.
fn items(medium: &dyn Medium, region: Region) -> Result<(u64, u64, u32), VhdxError> {
    let mut table = vec![0; usize::try_from(METADATA_TABLE_SIZE).unwrap_or(0)];
    medium.read(region.offset, &mut table)?;
    if !table.starts_with(b"metadata") {
        return Err(VhdxError::Missing("metadata table"));
    }
    let count = usize::from(u16::from_le_bytes(bytes_at(&table, 10)));
    if count > MOST_ENTRIES {
        return Err(VhdxError::Value("its metadata table has more entries than there is room for"));
    }
    let (mut parameters, mut size, mut sector) = (None, None, None);
    for entry in table[32..].chunks_exact(ENTRY_SIZE).take(count) {
        let (slot, length) = match bytes_at::<16>(entry, 0) {
            FILE_PARAMETERS => (&mut parameters, 8),
            DISK_SIZE => (&mut size, 8),
            LOGICAL_SECTOR => (&mut sector, 4),
            DISK_ID | PHYSICAL_SECTOR | PARENT => continue,
            _ if word(entry, 24) & ITEM_REQUIRED != 0 => return Err(VhdxError::UnknownRequired("metadata item")),
            _ => continue,
        };
        let (offset, has) = (u64::from(word(entry, 16)), word(entry, 20));
        if has != length || offset < METADATA_TABLE_SIZE || offset + u64::from(has) > region.length {
            return Err(VhdxError::Place("metadata"));
        }
        let mut value = [0; 8];
        medium.read(region.offset + offset, &mut value[..usize::try_from(length).unwrap_or(0)])?;
        *slot = Some(value);
    }
    let parameters = parameters.ok_or(VhdxError::Missing("file parameters"))?;
    let size = u64::from_le_bytes(size.ok_or(VhdxError::Missing("disk size"))?);
    let sector = word(&sector.ok_or(VhdxError::Missing("logical sector size"))?, 0);
    let (block, flags) = (u64::from(word(&parameters, 0)), word(&parameters, 4));
    if flags & HAS_PARENT != 0 {
        return Err(VhdxError::Parent);
    }
    if !block.is_power_of_two() || !BLOCKS.contains(&block) {
        return Err(VhdxError::Value("its blocks are not of a size that they can have"));
    }
    if ![SECTOR, 4096].contains(&sector.into()) {
        return Err(VhdxError::Value("its sectors have neither 512 nor 4096 bytes"));
    }
    if size == 0 || size > LARGEST || !size.is_multiple_of(sector.into()) {
        return Err(VhdxError::Value("its disk is empty, larger than 64 TiB, or no whole sectors"));
    }
    Ok((size, block, sector))
}
