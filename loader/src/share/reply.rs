//! Answers to FUSE's messages.

use std::mem::size_of;

use fuse_abi::linux as fuse;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::Attributes;
use super::DirectoryEntry;
use super::Entry;
use super::Statistics;

/// Bytes before everything else of an answer.
pub(super) const HEADER: usize = size_of::<fuse::fuse_out_header>();
/// Bytes before an entry's name, of a folder's entries without and with what the files are.
const DIRENT: usize = 24;
const ENTRY: usize = size_of::<fuse::fuse_entry_out>();
/// Entries of a folder begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Seconds for which the guest may believe what it was told: then it sees what the host has changed.
const VALID: u64 = 1;

/// Adds `value` to an answer.
pub(super) fn put<T: IntoBytes + Immutable>(reply: &mut Vec<u8>, value: &T) {
    reply.extend_from_slice(value.as_bytes());
}

/// Puts the header, for which there is room at the front, before what is there.
pub(super) fn finish(reply: &mut [u8], unique: u64, error: i32) {
    let length = u32::try_from(reply.len()).unwrap_or(u32::MAX);
    let header = fuse::fuse_out_header { len: length, error, unique };
    reply[..HEADER].copy_from_slice(header.as_bytes());
}

fn attr(attributes: &Attributes) -> fuse::fuse_attr {
    fuse::fuse_attr {
        ino: attributes.inode,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.accessed.0.cast_unsigned(),
        mtime: attributes.modified.0.cast_unsigned(),
        ctime: attributes.changed.0.cast_unsigned(),
        atimensec: attributes.accessed.1,
        mtimensec: attributes.modified.1,
        ctimensec: attributes.changed.1,
        mode: attributes.mode,
        nlink: attributes.links,
        uid: attributes.owner.uid,
        gid: attributes.owner.gid,
        rdev: attributes.device,
        blksize: attributes.block_size,
        flags: 0,
    }
}

pub(super) fn attributes(attributes: &Attributes) -> fuse::fuse_attr_out {
    fuse::fuse_attr_out { attr_valid: VALID, attr_valid_nsec: 0, dummy: 0, attr: attr(attributes) }
}

pub(super) fn entry(entry: &Entry) -> fuse::fuse_entry_out {
    fuse::fuse_entry_out {
        nodeid: entry.node,
        // Numbers of nodes are never given again.
        generation: 0,
        entry_valid: VALID,
        attr_valid: VALID,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr(&entry.attributes),
    }
}

pub(super) fn opened(handle: u64) -> fuse::fuse_open_out {
    fuse::fuse_open_out { fh: handle, open_flags: 0, backing_id: 0 }
}

pub(super) fn statistics(of: &Statistics) -> fuse::fuse_statfs_out {
    fuse::fuse_statfs_out {
        st: fuse::fuse_kstatfs {
            blocks: of.blocks,
            bfree: of.free,
            bavail: of.available,
            files: of.files,
            ffree: of.files_free,
            bsize: of.block_size,
            namelen: of.name_length,
            frsize: of.fragment_size,
            padding: 0,
            spare: [0; 6],
        },
    }
}

/// Bytes that a folder's entry takes.
pub(super) fn directory_entry_size(entry: &DirectoryEntry, plus: bool) -> usize {
    let before = if plus { ENTRY + DIRENT } else { DIRENT };
    (before + entry.name.count_bytes()).next_multiple_of(ALIGNMENT)
}

/// Adds a folder's entry: with what the file is, if that is asked for, and all zeros for "not told".
pub(super) fn put_directory_entry(reply: &mut Vec<u8>, of: &DirectoryEntry, plus: Option<fuse::fuse_entry_out>) {
    let name = of.name.to_bytes();
    let end = reply.len() + directory_entry_size(of, plus.is_some());
    if let Some(entry) = plus {
        put(reply, &entry);
    }
    put(reply, &of.inode);
    put(reply, &of.next);
    put(reply, &u32::try_from(name.len()).unwrap_or(0));
    put(reply, &u32::from(of.kind));
    reply.extend_from_slice(name);
    reply.resize(end, 0);
}
