//! What NT knows of a file: `FILE_ALL_INFORMATION` ([MS-FSCC] 2.4).

use super::kind;
use super::kind::Kind;
use super::metadata::Metadata;
use super::number;
use super::times;
use super::u32_at;
use crate::share::Attributes;
use crate::share::Mapping;
use crate::share::Owner;

/// Where what is. The name at the end is of no use here.
const ACCESSED: usize = 8;
const MODIFIED: usize = 16;
const CHANGED: usize = 24;
const ATTRIBUTES: usize = 32;
const ALLOCATED: usize = 40;
const END_OF_FILE: usize = 48;
const LINKS: usize = 56;
const DELETE_PENDING: usize = 60;
const FILE_ID: usize = 64;
const EA_SIZE: usize = 72;

/// Permissions of what nobody has set any for, as [`crate::sys`] has them for all files of a Windows host: all may read and run
/// it. Who may write is decided by Windows.
const PERMISSIONS: u32 = 0o755;
const WRITE: u32 = 0o222;
/// Permissions of symbolic links (symlink(7)).
const OF_LINKS: u32 = 0o777;
/// Bytes of a block in stat(2).
const BLOCK: u64 = 512;
/// Bytes that are best read at once: a page.
const BLOCK_SIZE: u32 = 4096;

/// A file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) struct Stat {
    /// What tells it from all others of the volume.
    pub(in crate::sys) id: u64,
    /// Its attributes.
    pub(in crate::sys) attributes: u32,
    /// Bytes of its extended attributes, as the file system counts them.
    pub(in crate::sys) ea_size: u32,
    /// Bytes.
    pub(in crate::sys) size: u64,
    allocated: u64,
    links: u32,
    accessed: i64,
    modified: i64,
    changed: i64,
}

impl Stat {
    /// Bytes that NT fills, at the least, in whole words.
    pub(in crate::sys) const WORDS: usize = 13;

    /// What NT says.
    pub(in crate::sys) fn decode(bytes: &[u8]) -> Option<Self> {
        let time = |at| number(bytes, at).map(i64::from_le_bytes);
        let size = |at| number(bytes, at).map(|size| u64::try_from(i64::from_le_bytes(size)).unwrap_or(0));
        // One that has lost its last name, but is open.
        let is_going = *bytes.get(DELETE_PENDING)? != 0;
        Some(Self {
            id: number(bytes, FILE_ID).map(u64::from_le_bytes)?,
            attributes: u32_at(bytes, ATTRIBUTES)?,
            ea_size: u32_at(bytes, EA_SIZE)?,
            size: size(END_OF_FILE)?,
            allocated: size(ALLOCATED)?,
            links: if is_going { 0 } else { u32_at(bytes, LINKS)? },
            accessed: time(ACCESSED)?,
            modified: time(MODIFIED)?,
            changed: time(CHANGED)?,
        })
    }

    /// What the guest sees of it.
    pub(in crate::sys) fn shown(&self, kind: Kind, metadata: Metadata, mapping: &Mapping) -> Attributes {
        let kept = metadata.mode.unwrap_or(PERMISSIONS) & 0o7777;
        let permissions = match kind {
            Kind::Link => OF_LINKS,
            // Of a folder the attribute means that it looks special in Explorer.
            Kind::File if self.attributes & kind::READ_ONLY != 0 => kept & !WRITE,
            _ => kept,
        };
        // A reparse point is no data of the guest's.
        let size = if kind == Kind::File { self.size } else { 0 };
        Attributes {
            inode: self.id,
            size,
            blocks: self.allocated.div_ceil(BLOCK),
            accessed: times::to_linux(self.accessed),
            modified: times::to_linux(self.modified),
            changed: times::to_linux(self.changed),
            mode: kind.mode() | permissions,
            links: self.links,
            owner: Owner {
                uid: mapping.uid.or(metadata.uid).unwrap_or(0),
                gid: mapping.gid.or(metadata.gid).unwrap_or(0),
            },
            device: 0,
            block_size: BLOCK_SIZE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(attributes: u32, going: u8) -> Vec<u8> {
        let mut bytes = vec![0; 8 * Stat::WORDS];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(ACCESSED, &116_444_736_010_000_000_i64.to_le_bytes());
        put(MODIFIED, &116_444_736_020_000_000_i64.to_le_bytes());
        put(CHANGED, &116_444_736_030_000_001_i64.to_le_bytes());
        put(ATTRIBUTES, &attributes.to_le_bytes());
        put(ALLOCATED, &4097_i64.to_le_bytes());
        put(END_OF_FILE, &700_i64.to_le_bytes());
        put(LINKS, &3_u32.to_le_bytes());
        put(DELETE_PENDING, &[going]);
        put(FILE_ID, &0x1234_5678_9abc_u64.to_le_bytes());
        bytes
    }

    #[test]
    fn test_a_file_is_shown_as_it_is_kept() {
        let stat = Stat::decode(&bytes(kind::NORMAL, 0)).unwrap();
        let nobody = stat.shown(Kind::File, Metadata::default(), &Mapping::default());
        assert_eq!((nobody.inode, nobody.size, nobody.blocks, nobody.links), (0x1234_5678_9abc, 700, 9, 3));
        assert_eq!((nobody.accessed, nobody.modified, nobody.changed), ((1, 0), (2, 0), (3, 100)));
        assert_eq!((nobody.mode, nobody.owner), (0o100_755, Owner::default()));
        let kept = Metadata { uid: Some(1), gid: Some(2), mode: Some(0o040_640) };
        let shown = stat.shown(Kind::File, kept, &Mapping::default());
        assert_eq!((shown.mode, shown.owner), (0o100_640, Owner { uid: 1, gid: 2 }), "the type is Windows' to tell");
        let mapping = Mapping { uid: Some(1000), gid: None, suid: false };
        assert_eq!(stat.shown(Kind::File, kept, &mapping).owner, Owner { uid: 1000, gid: 2 });
        assert_eq!(stat.shown(Kind::Folder, Metadata::default(), &mapping).mode, 0o040_755);
        let link = stat.shown(Kind::Link, kept, &mapping);
        assert_eq!((link.mode, link.size), (0o120_777, 0));
    }

    #[test]
    fn test_what_windows_does_not_write_nobody_writes() {
        let stat = Stat::decode(&bytes(kind::READ_ONLY, 1)).unwrap();
        let shown = stat.shown(Kind::File, Metadata::default(), &Mapping::default());
        assert_eq!((shown.mode, shown.links), (0o100_555, 0));
        assert_eq!(stat.shown(Kind::Folder, Metadata::default(), &Mapping::default()).mode, 0o040_755);
        assert_eq!(Stat::decode(&bytes(0, 0)[..EA_SIZE]), None);
    }
}
