//! Unpacks an archive of a root file system into a [`Tree`].

use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use super::at;
use super::in_archive;
use super::metered::Meter;
use super::metered::Metered;
use super::tree::Attributes;
use super::tree::Node;
use super::tree::Tree;
use super::tree::TreeError;
use crate::rootfs::ArchiveError;
use crate::rootfs::RootfsError;
use crate::rootfs::Watch;

/// How much may be said of a file beside what is in it: names, attributes.
const MOST_HEADERS: u64 = 1 << 20;

/// Most memory that unpacking xz may take, in KiB: four times the largest dictionary of `xz -9`.
const XZ_MEMORY_KIB: u32 = 256 * 1024;

/// What attributes of an archive's are put on the disk: those that give programs rights, and users' own.
const KEYS: [&str; 2] = ["security.capability", "user."];
/// What comes before their names.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// First bytes of what is known, and of what is known by name only.
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const OTHERS: [(&[u8], &str); 4] =
    [(b"BZh", "bzip2"), (&[0x5d, 0, 0], "lzma"), (&[0x04, 0x22, 0x4d, 0x18], "lz4"), (b"PK\x03\x04", "zip")];
/// How many bytes those are at most.
const MAGIC: u64 = 6;

/// Unpacks an archive.
pub(super) fn unpack(path: &Path, tree: &mut Tree, watch: &mut dyn Watch) -> Result<(), RootfsError> {
    let wrong = in_archive(path);
    let reader = decompressed(File::open(path).map_err(at(path))?).map_err(|error| match error {
        TreeError::Name(error) => wrong(error),
        TreeError::Read(error) => at(path)(error),
        other => in_tree(other, tree, path),
    })?;
    read(reader, tree, watch).map_err(|error| in_tree(error, tree, path))?;
    match tree.is_empty() {
        true => Err(wrong(ArchiveError::Empty)),
        false => Ok(()),
    }
}

/// An error that came while an archive was unpacked.
pub(super) fn in_tree(error: TreeError, tree: &Tree, path: &Path) -> RootfsError {
    match error {
        TreeError::Name(error) => in_archive(path)(error),
        TreeError::Read(error) => in_archive(path)(ArchiveError::Damaged(crate::run::describe(&error))),
        TreeError::Host(error) => error,
        TreeError::TooSmall => super::image::too_small(tree),
        TreeError::Cancelled => RootfsError::Cancelled,
    }
}

/// What a file holds, whatever it is compressed by.
fn decompressed(mut file: File) -> Result<Box<dyn Read>, TreeError> {
    let mut head = Vec::new();
    file.by_ref().take(MAGIC).read_to_end(&mut head).map_err(TreeError::Read)?;
    file.rewind().map_err(TreeError::Read)?;
    let reader = BufReader::with_capacity(1 << 16, file);
    if head.starts_with(GZIP) {
        return Ok(Box::new(flate2::read::MultiGzDecoder::new(reader)));
    }
    if head.starts_with(XZ) {
        return Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB)));
    }
    if head.starts_with(ZSTD) {
        return Ok(Box::new(Zstd { decoder: None, reader: Some(reader) }));
    }
    match OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, name)) => Err(ArchiveError::Compression(name).into()),
        None => Ok(Box::new(reader)),
    }
}

type ZstdDecoder = ruzstd::decoding::StreamingDecoder<BufReader<File>, ruzstd::decoding::FrameDecoder>;

/// What zstd has compressed, in one frame or several.
struct Zstd {
    /// That of the frame.
    decoder: Option<ZstdDecoder>,
    /// What comes behind it, while there is none.
    reader: Option<BufReader<File>>,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                let count = decoder.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
            }
            if let Some(decoder) = self.decoder.take() {
                self.reader = Some(decoder.into_inner());
            }
            let Some(mut reader) = self.reader.take() else { return Ok(0) };
            if io::BufRead::fill_buf(&mut reader)?.is_empty() {
                return Ok(0);
            }
            self.decoder = Some(ZstdDecoder::new(reader).map_err(io::Error::other)?);
        }
    }
}

fn read(reader: Box<dyn Read>, tree: &mut Tree, watch: &mut dyn Watch) -> Result<(), TreeError> {
    let meter = Meter::default();
    let mut archive = tar::Archive::new(Metered { reader, meter: meter.clone() });
    meter.set(MOST_HEADERS);
    for entry in archive.entries().map_err(TreeError::Read)? {
        let mut entry = entry.map_err(TreeError::Read)?;
        if watch.is_cancelled() {
            return Err(TreeError::Cancelled);
        }
        let name = entry.path().map_err(TreeError::Read)?.into_owned();
        watch.detail(&name.to_string_lossy());
        // Of what is in a file as much as there is.
        meter.set(u64::MAX);
        put(&mut entry, &name, tree, watch)?;
        // What nobody wanted to read is passed over.
        io::copy(&mut entry, &mut io::sink()).map_err(TreeError::Read)?;
        meter.set(MOST_HEADERS);
    }
    Ok(())
}

/// Puts one file of an archive into the tree.
fn put<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    name: &Path,
    tree: &mut Tree,
    watch: &dyn Watch,
) -> Result<(), TreeError> {
    let header = entry.header();
    let number = |number: io::Result<u64>| {
        let number = number.map_err(TreeError::Read)?;
        u32::try_from(number).map_err(|_| TreeError::Name(ArchiveError::Kind(name.display().to_string())))
    };
    let attributes = Attributes {
        mode: header.mode().map_err(TreeError::Read)?,
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        modified: modified(header.mtime().map_err(TreeError::Read)?),
    };
    let device = || -> Result<(u32, u32), TreeError> {
        let major = header.device_major().map_err(TreeError::Read)?;
        let minor = header.device_minor().map_err(TreeError::Read)?;
        Ok((major.unwrap_or_default(), minor.unwrap_or_default()))
    };
    let link = entry.link_name().map_err(TreeError::Read)?.map(|link| link.into_owned());
    let link = || link.clone().ok_or_else(|| TreeError::Name(ArchiveError::Link(name.display().to_string())));
    match header.entry_type() {
        tar::EntryType::Directory => tree.folder(name, attributes)?,
        tar::EntryType::Symlink => tree.link(name, &link()?, attributes)?,
        tar::EntryType::Link => return tree.second_name(name, &link()?),
        tar::EntryType::Fifo => tree.node(name, Node::Pipe, attributes)?,
        tar::EntryType::Char => {
            let (major, minor) = device()?;
            tree.node(name, Node::Character(major, minor), attributes)?;
        }
        tar::EntryType::Block => {
            let (major, minor) = device()?;
            tree.node(name, Node::Block(major, minor), attributes)?;
        }
        // Settings for all that comes, of which none is needed here.
        tar::EntryType::XGlobalHeader => return Ok(()),
        kind if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() => {
            tree.file(name, attributes, entry, watch)?;
        }
        _ => return Err(ArchiveError::Kind(name.display().to_string()).into()),
    }
    for (key, value) in values(entry)? {
        tree.attribute(name, &key, &value)?;
    }
    Ok(())
}

/// A time in seconds since 1970, if file systems have it.
fn modified(seconds: u64) -> Option<SystemTime> {
    /// The end of the times that ext4 has.
    const END: u64 = 1 << 33;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).filter(|_| seconds < END)
}

/// The extended attributes of a file that are kept.
fn values<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, TreeError> {
    let Some(extensions) = entry.pax_extensions().map_err(TreeError::Read)? else { return Ok(Vec::new()) };
    let mut values = Vec::new();
    for extension in extensions {
        let extension = extension.map_err(TreeError::Read)?;
        let key = extension.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE));
        if let Some(key) = key.filter(|key| KEYS.iter().any(|kept| key.starts_with(kept)))
            && !key.contains(char::is_control)
        {
            values.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(values)
}
