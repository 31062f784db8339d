//! The header of a qcow2 image (QEMU's docs/interop/qcow2.rst), parsed and checked before anything is done by it.

use std::io;

use bitflags::bitflags;
use thiserror::Error;
use vm_memory::VolatileSlice;

use crate::disk::SECTOR;
use crate::disk::medium::Medium;

/// What an image begins with.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header of version 2.
const SIZE_2: usize = 72;
/// Bytes of the header of version 3 at least.
const SIZE_3: usize = 104;
/// The number of bits of a cluster's size: 512 bytes to 2 MiB, which is as far as QEMU goes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Most entries of a table that leads to others: 32 MiB, as with QEMU.
const MOST_L1_ENTRIES: u64 = 4 << 20;
/// Most bytes of the table of refcount blocks, as with QEMU.
pub(super) const MOST_REFCOUNT_TABLE: u64 = 8 << 20;
/// Most snapshots, as with QEMU.
const MOST_SNAPSHOTS: u32 = 65536;
/// Longest name of a backing file, by the format.
const LONGEST_NAME: u32 = 1023;
/// Bits of a refcount, as a power of two, at most.
const MOST_REFCOUNT_ORDER: u32 = 6;
/// The same where the header does not say it.
const REFCOUNT_ORDER_2: u32 = 4;
/// Where the incompatible features are.
pub(super) const INCOMPATIBLE_AT: u64 = 72;
/// Where offset and size of the refcount table are.
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
/// Where the method of compression is, in headers that are long enough.
const COMPRESSION_AT: usize = 104;

bitflags! {
    /// Features without which an image cannot be used.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// Refcounts may be too low: whoever wrote last did not come to its end.
        const DIRTY = 1 << 0;
        /// Somebody found it damaged.
        const CORRUPT = 1 << 1;
        /// Data is in another file.
        const DATA_FILE = 1 << 2;
        /// Clusters are compressed by another method than deflate.
        const COMPRESSION = 1 << 3;
        /// L2 entries tell of parts of clusters.
        const EXTENDED_L2 = 1 << 4;
        const _ = !0;
    }
}

/// Kinds of header extensions.
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
}

/// What is wrong with a qcow2 image.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    /// The host does not let it be read.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// Not one.
    #[error("it is no qcow2 image; if it is a raw one, say so by `format=raw`")]
    Magic,
    /// It ends in its header.
    #[error("it is cut off: a qcow2 image has a header of {0} bytes at least")]
    Short(usize),
    /// A version that there is not.
    #[error("it is of version {0} of qcow2; the versions 2 and 3 can be used")]
    Version(u32),
    /// A cluster's size that there is not.
    #[error("its header is damaged: a cluster has 2^{0} bytes, where 2^9 to 2^21 are possible")]
    ClusterBits(u32),
    /// It has no bytes.
    #[error("the disk in it is empty")]
    Empty,
    /// The disk is no whole sectors.
    #[error("the disk in it has {0} bytes, which is not a multiple of 512")]
    PartialSector(u64),
    /// The disk is larger than the format can have.
    #[error("the disk in it would have {size} bytes, which clusters of {cluster} bytes are too small for")]
    TooLarge {
        /// The disk's bytes.
        size: u64,
        /// A cluster's.
        cluster: u64,
    },
    /// A table that the header leads to is not where one can be, or has not a size that it can have.
    #[error("its header is damaged: {0}")]
    Table(&'static str),
    /// It is encrypted.
    #[error("it is encrypted, which is not supported: decrypt it by `qemu-img convert`")]
    Encrypted,
    /// It was marked as damaged.
    #[error("it is marked as damaged: look at it by `covisor image check`, or use it read-only")]
    Corrupt,
    /// A feature that is not supported.
    #[error("it {0}, which is not supported: `qemu-img convert -O qcow2` makes an image that can be used")]
    Feature(&'static str),
    /// A feature that nobody knew.
    #[error("it has the incompatible feature {0}, which is not known here")]
    UnknownFeature(u32),
    /// The name of the backing file is none.
    #[error("its header is damaged: the name of its backing file is not in its first cluster, too long, or no text")]
    BackingName,
    /// It has a refcount or an entry in a table that cannot be.
    #[error("it is damaged ({0}); `covisor image check` tells more")]
    Damaged(String),
}

/// What an image is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The name in the image, to be taken from the image's folder.
    pub name: String,
    /// What it says of the format.
    pub format: Option<String>,
}

/// A header whose tables lie in the file and have possible sizes.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Bits of a cluster's size.
    pub cluster_bits: u32,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Its entries.
    pub l1_entries: u64,
    /// Where the table of refcount blocks is.
    pub refcount_table: u64,
    /// Its clusters.
    pub refcount_table_clusters: u64,
    /// Bits of a refcount, as a power of two.
    pub refcount_order: u32,
    /// Snapshots.
    pub snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Features.
    pub incompatible: Incompatible,
    /// It has bitmaps, whose clusters only QEMU counts.
    pub has_bitmaps: bool,
    /// What it is based on.
    pub backing: Option<Backing>,
}

/// Numbers of a header, which are big-endian.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        u32::from_be_bytes(bytes)
    }

    fn double(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }
}

impl Header {
    /// Reads and checks the header of `medium`.
    ///
    /// # Errors
    /// It is not one by which an image can be used.
    pub fn read(medium: &dyn Medium) -> Result<Self, Qcow2Error> {
        let file_size = medium.size()?;
        if file_size < SIZE_2 as u64 {
            let mut start = [0; 4];
            medium.read_padded(0, &[VolatileSlice::from(&mut start[..])])?;
            return Err(if u32::from_be_bytes(start) == MAGIC { Qcow2Error::Short(SIZE_2) } else { Qcow2Error::Magic });
        }
        let mut bytes = vec![0; SIZE_3 + 8];
        medium.read_padded(0, &[VolatileSlice::from(bytes.as_mut_slice())])?;
        let fields = Fields(&bytes);
        if fields.word(0) != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        let version = fields.word(4);
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = fields.word(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::ClusterBits(cluster_bits));
        }
        if version == 3 && file_size < SIZE_3 as u64 {
            return Err(Qcow2Error::Short(SIZE_3));
        }
        if fields.word(32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let mut first = vec![0; 1 << cluster_bits];
        medium.read_padded(0, &[VolatileSlice::from(first.as_mut_slice())])?;
        let (incompatible, refcount_order, length) = match version {
            2 => (Incompatible::empty(), REFCOUNT_ORDER_2, SIZE_2),
            _ => version_3(&Fields(&first))?,
        };
        let (backing_format, has_bitmaps) = extensions(&first, length)?;
        let backing = backing_name(&first)?.map(|name| Backing { name, format: backing_format });
        let header = Self {
            version,
            size: fields.double(24),
            cluster_bits,
            l1_offset: fields.double(40),
            l1_entries: fields.word(36).into(),
            refcount_table: fields.double(48),
            refcount_table_clusters: fields.word(56).into(),
            refcount_order,
            snapshots: fields.word(60),
            snapshots_offset: fields.double(64),
            incompatible,
            has_bitmaps,
            backing,
        };
        header.check(file_size)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    #[must_use]
    pub const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table, which has a cluster.
    #[must_use]
    pub const fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Refcounts in a block of them, which has a cluster.
    #[must_use]
    pub const fn refcounts_in_block(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    fn check(&self, file_size: u64) -> Result<(), Qcow2Error> {
        let cluster = self.cluster();
        if self.size == 0 {
            return Err(Qcow2Error::Empty);
        }
        if !self.size.is_multiple_of(SECTOR) {
            return Err(Qcow2Error::PartialSector(self.size));
        }
        let needed = self.size.div_ceil(cluster * self.l2_entries());
        if needed > MOST_L1_ENTRIES {
            return Err(Qcow2Error::TooLarge { size: self.size, cluster });
        }
        if self.l1_entries < needed || self.l1_entries > MOST_L1_ENTRIES {
            return Err(Qcow2Error::Table("its L1 table is too small or too large for the disk"));
        }
        // The last cluster may be cut off.
        let end = file_size.next_multiple_of(cluster);
        let lies_in = |offset: u64, bytes: u64| {
            offset != 0 && offset.is_multiple_of(cluster) && offset.checked_add(bytes).is_some_and(|last| last <= end)
        };
        if !lies_in(self.l1_offset, self.l1_entries * 8) {
            return Err(Qcow2Error::Table("its L1 table does not lie in the file, at a cluster's begin"));
        }
        let table = self.refcount_table_clusters * cluster;
        if table == 0 || table > MOST_REFCOUNT_TABLE.max(cluster) {
            return Err(Qcow2Error::Table("its table of refcounts is too small or too large"));
        }
        if !lies_in(self.refcount_table, table) {
            return Err(Qcow2Error::Table("its table of refcounts does not lie in the file, at a cluster's begin"));
        }
        if self.snapshots > MOST_SNAPSHOTS || self.snapshots > 0 && !lies_in(self.snapshots_offset, 1) {
            return Err(Qcow2Error::Table("its table of snapshots does not lie in the file, or has too many"));
        }
        Ok(())
    }
}

/// What only version 3 says: features, the order of refcounts, and the header's length.
fn version_3(fields: &Fields<'_>) -> Result<(Incompatible, u32, usize), Qcow2Error> {
    let incompatible = Incompatible::from_bits_retain(fields.double(72));
    let length = usize::try_from(fields.word(100)).unwrap_or(usize::MAX);
    if length < SIZE_3 || !length.is_multiple_of(8) || length > fields.0.len() {
        return Err(Qcow2Error::Table("its own length is not possible"));
    }
    if incompatible.contains(Incompatible::DATA_FILE) {
        return Err(Qcow2Error::Feature("keeps its data in another file"));
    }
    if incompatible.contains(Incompatible::EXTENDED_L2) {
        return Err(Qcow2Error::Feature("has clusters in parts (extended_l2)"));
    }
    if incompatible.contains(Incompatible::COMPRESSION) {
        let method = fields.0.get(COMPRESSION_AT).filter(|_| length > COMPRESSION_AT).copied();
        return Err(Qcow2Error::Feature(match method {
            Some(1) => "is compressed by zstd",
            _ => "is compressed by another method than deflate",
        }));
    }
    let known = Incompatible::DIRTY | Incompatible::CORRUPT;
    let unknown = incompatible.bits() & !known.bits();
    if unknown != 0 {
        return Err(Qcow2Error::UnknownFeature(unknown.trailing_zeros()));
    }
    let order = fields.word(96);
    if order > MOST_REFCOUNT_ORDER {
        return Err(Qcow2Error::Table("a refcount has more than 64 bits"));
    }
    Ok((incompatible, order, length))
}

/// What the header's extensions say: the backing file's format, and whether there are bitmaps.
fn extensions(first: &[u8], mut at: usize) -> Result<(Option<String>, bool), Qcow2Error> {
    let (mut format, mut has_bitmaps) = (None, false);
    let fields = Fields(first);
    // A backing file's name follows at once where a header has no room for an end.
    let name = usize::try_from(fields.double(8)).unwrap_or(usize::MAX);
    let end = if name == 0 { first.len() } else { name.min(first.len()) };
    while at + 8 <= end {
        let (kind, length) = (fields.word(at), fields.word(at + 4) as usize);
        if kind == extension::END {
            break;
        }
        let data = first.get(at + 8..at + 8 + length).filter(|_| at + 8 + length <= end);
        let data = data.ok_or(Qcow2Error::Table("an extension of it does not end in the first cluster"))?;
        match kind {
            extension::BACKING_FORMAT => format = Some(String::from_utf8_lossy(data).into_owned()),
            extension::BITMAPS => has_bitmaps = true,
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok((format, has_bitmaps))
}

fn backing_name(first: &[u8]) -> Result<Option<String>, Qcow2Error> {
    let fields = Fields(first);
    let (offset, length) = (fields.double(8), fields.word(16));
    if offset == 0 {
        return Ok(None);
    }
    if length > LONGEST_NAME {
        return Err(Qcow2Error::BackingName);
    }
    let bytes = usize::try_from(offset).ok().and_then(|start| first.get(start..)?.get(..length as usize));
    let name = bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()).ok_or(Qcow2Error::BackingName)?;
    if name.contains('\0') {
        return Err(Qcow2Error::BackingName);
    }
    // QEMU takes an empty name as none.
    Ok(Some(name).filter(|name| !name.is_empty()))
}
