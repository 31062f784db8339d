//! What `covisor image` does: images made, converted, described and checked.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::BlockBackend;
use super::DiskError;
use super::Format;
use super::SECTOR;
use super::medium::HostMedium;
use super::medium::Medium;
use super::open;
use super::open::target;
use super::qcow2;
use super::qcow2::Backing;
use super::qcow2::Findings;
use super::qcow2::Header;
use super::qcow2::Incompatible;
use super::qcow2::Qcow2;
use super::vhdx;

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;
/// Bytes that are left out of a copy when they are zero.
const HOLE: usize = 64 << 10;
/// Largest disk of a new image: what a qcow2 image with usual clusters can have.
const LARGEST: u64 = 1 << 50;

/// Why nothing came of it.
#[derive(Debug, Error)]
pub enum ImageError {
    /// An image cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is to be made is there.
    #[error("{}: it is there already; remove it first, or choose another name", .0.display())]
    Exists(PathBuf),
    /// It cannot be made or written.
    #[error("{}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What was read is damaged, or the host's error.
    #[error("{}: {error} (at byte {offset} of the disk)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Where in the disk.
        offset: u64,
        /// Why.
        error: io::Error,
    },
    /// Images of this format cannot be made.
    #[error("{}: {format} images can only be read here; raw and qcow2 ones can be made", path.display())]
    Target {
        /// The file.
        path: PathBuf,
        /// The format.
        format: Format,
    },
    /// A size that is none.
    #[error("a disk has a multiple of 512 bytes, from 512 to 2^50, not {0}")]
    Size(u64),
    /// No size, and nothing to take it from.
    #[error("a new image needs a size, such as 10G; only one that is based on another has that one's")]
    NoSize,
    /// Only qcow2 images are based on others.
    #[error("only a qcow2 image can be based on another")]
    Backing,
    /// The name of what it is to be based on is too long, or no text.
    #[error("{}: this name cannot be written into an image", .0.display())]
    BackingName(PathBuf),
    /// It could be either.
    #[error("{}: it is called like a raw image and begins like a {content} one: say which it is by --from", path.display())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        content: Format,
    },
    /// There is nothing that could be wrong with it.
    #[error("{}: a raw image has no tables that could be checked", .0.display())]
    NothingToCheck(PathBuf),
    /// Only qcow2 images are repaired.
    #[error("{}: only qcow2 images can be repaired here", .0.display())]
    NoRepair(PathBuf),
}

/// What a new image is to be.
#[derive(Debug)]
pub struct New<'a> {
    /// Its file.
    pub path: &'a Path,
    /// Its format, if the name does not say it.
    pub format: Option<Format>,
    /// Bytes of the disk, if it is not based on another of that size.
    pub size: Option<u64>,
    /// What it is based on, and its format, if the name does not say that.
    pub backing: Option<(&'a Path, Option<Format>)>,
}

/// Makes an image, and gives its format and size.
///
/// # Errors
/// It cannot be made.
pub fn create(new: &New<'_>) -> Result<(Format, u64), ImageError> {
    let format = new.format.unwrap_or_else(|| Format::of_name(new.path));
    let backing = new.backing.map(|(name, given)| backing_of(new.path, name, given)).transpose()?;
    if backing.is_some() && format != Format::Qcow2 {
        return Err(ImageError::Backing);
    }
    let size = new.size.or(backing.as_ref().map(|(_, _, size)| *size)).ok_or(ImageError::NoSize)?;
    let names = backing.map(|(name, format, _)| (name, format.name().to_owned()));
    make(new.path, format, size, names)?;
    Ok((format, size))
}

/// The name, format and size of what the image at `path` is to be based on.
fn backing_of(path: &Path, name: &Path, given: Option<Format>) -> Result<(String, Format, u64), ImageError> {
    let text =
        name.to_str().filter(|text| text.len() <= 1023).ok_or_else(|| ImageError::BackingName(name.to_owned()))?;
    let backing = Backing { name: text.to_owned(), format: given.map(|format| format.name().to_owned()) };
    let (file, format) = target(path, &backing)?;
    let disk = open(&file, Some(format), true)?;
    Ok((backing.name, format, disk.sectors() * SECTOR))
}

/// Makes the file; nothing of it is left when that fails.
fn make(
    path: &Path,
    format: Format,
    size: u64,
    backing: Option<(String, String)>,
) -> Result<Arc<dyn Medium>, ImageError> {
    if !matches!(format, Format::Raw | Format::Qcow2) {
        return Err(ImageError::Target { path: path.to_owned(), format });
    }
    if size == 0 || size > LARGEST || !size.is_multiple_of(SECTOR) {
        return Err(ImageError::Size(size));
    }
    let medium = HostMedium::create(path).map_err(|error| match DiskError::of_open(error, path, false) {
        DiskError::System { error, .. } if error.kind() == io::ErrorKind::AlreadyExists => {
            ImageError::Exists(path.to_owned())
        }
        DiskError::Missing(_) => {
            ImageError::Write { path: path.to_owned(), error: io::Error::other("there is no such folder") }
        }
        error => error.into(),
    })?;
    let medium: Arc<dyn Medium> = Arc::new(medium);
    let made = match format {
        Format::Qcow2 => Qcow2::create(Arc::clone(&medium), size, qcow2::CLUSTER, backing),
        _ => medium.set_size(size),
    };
    made.map_err(|error| abandon(path, error))?;
    Ok(medium)
}

/// Removes what was begun.
fn abandon(path: &Path, error: io::Error) -> ImageError {
    // The first error is what the user is to hear of.
    let _ = fs::remove_file(path);
    ImageError::Write { path: path.to_owned(), error }
}

/// What is copied, and how far it is.
#[derive(Debug)]
pub struct Copy<'a> {
    /// What is read.
    pub source: &'a Path,
    /// Its format, if the name does not say it.
    pub from: Option<Format>,
    /// What is made.
    pub target: &'a Path,
    /// Its format, if the name does not say it.
    pub to: Option<Format>,
}

/// Hears how many bytes of how many are done, and says whether to go on.
pub type OnProgress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// Copies a disk into a new image, without what it is based on.
///
/// # Errors
/// It cannot be read, or not be made, or `progress` has put an end to it.
pub fn convert(copy: &Copy<'_>, progress: &mut OnProgress<'_>) -> Result<(Format, u64), ImageError> {
    let from = match copy.from {
        Some(format) => format,
        None => unambiguous(copy.source)?,
    };
    let mut source = open(copy.source, Some(from), true)?;
    let format = copy.to.unwrap_or_else(|| Format::of_name(copy.target));
    let size = source.sectors() * SECTOR;
    let medium = make(copy.target, format, size, None)?;
    let target = copy.target;
    let copied = match format {
        Format::Qcow2 => {
            let image = Header::read(medium.as_ref())
                .and_then(|header| Qcow2::new(Arc::clone(&medium), &header, None, false))
                .map_err(|error| abandon(target, io::Error::other(error)));
            image.and_then(|mut image| {
                let mut write = |offset, buffers: &[VolatileSlice<'_>]| image.write_at(offset, buffers);
                copy_data(copy, source.as_mut(), &mut write, progress)?;
                image.flush().map_err(|error| abandon(target, error))
            })
        }
        _ => {
            let mut write = |offset, buffers: &[VolatileSlice<'_>]| medium.write_at(offset, buffers);
            copy_data(copy, source.as_mut(), &mut write, progress)
                .and_then(|()| medium.sync().map_err(|error| abandon(target, error)))
        }
    };
    copied?;
    Ok((format, size))
}

/// The format that a file's name says, if nothing speaks against it.
fn unambiguous(path: &Path) -> Result<Format, ImageError> {
    let named = Format::of_name(path);
    let medium = HostMedium::open(path, true).map_err(|error| DiskError::of_open(error, path, true))?;
    let content = Format::of_content(&medium).map_err(|error| DiskError::System { path: path.to_owned(), error })?;
    match (named, content) {
        (Format::Raw, Format::Raw) => Ok(named),
        (Format::Raw, content) => Err(ImageError::Ambiguous { path: path.to_owned(), content }),
        _ => Ok(named),
    }
}

/// Copies what is not zero.
fn copy_data(
    copy: &Copy<'_>,
    source: &mut dyn BlockBackend,
    write: &mut dyn FnMut(u64, &[VolatileSlice<'_>]) -> io::Result<()>,
    progress: &mut OnProgress<'_>,
) -> Result<(), ImageError> {
    let size = source.sectors() * SECTOR;
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(HOLE)];
    let mut offset = 0;
    while offset < size {
        if progress(offset, size).is_break() {
            return Err(abandon(copy.target, io::Error::other("it was interrupted")));
        }
        let unread = |error| {
            let _ = fs::remove_file(copy.target);
            ImageError::Read { path: copy.source.to_owned(), offset, error }
        };
        let run = source.run(offset, size - offset).map_err(unread)?;
        if run.zeroes {
            offset += run.length;
            continue;
        }
        // To the next multiple of a chunk, so that what is written is aligned.
        let length = run.length.min(CHUNK - offset % CHUNK);
        let part = &mut buffer[..usize::try_from(length).unwrap_or(0)];
        source.read_at(offset, &[VolatileSlice::from(&mut *part)]).map_err(unread)?;
        let mut at = offset;
        while at < offset + length {
            let begin = usize::try_from(at - offset).unwrap_or(0);
            let count = (HOLE as u64 - at % HOLE as u64).min(offset + length - at);
            let piece = &mut part[begin..begin + usize::try_from(count).unwrap_or(0)];
            if piece.iter().any(|byte| *byte != 0) {
                write(at, &[VolatileSlice::from(piece)]).map_err(|error| abandon(copy.target, error))?;
            }
            at += count;
        }
        offset += length;
    }
    // It is done, whatever is said.
    let _ = progress(size, size);
    Ok(())
}

/// What an image is.
#[derive(Debug)]
pub struct Info {
    /// Its format.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Those of them that are stored.
    pub stored: u64,
    /// What else there is to say, by a name.
    pub more: Vec<(&'static str, String)>,
}

/// The format of a file that nothing but itself will be read of.
fn looks_like(path: &Path, format: Option<Format>) -> Result<(Format, Arc<dyn Medium>), ImageError> {
    let medium = HostMedium::open(path, true).map_err(|error| DiskError::of_open(error, path, true))?;
    let format = match format {
        Some(format) => format,
        None => {
            match Format::of_content(&medium).map_err(|error| DiskError::System { path: path.to_owned(), error })? {
                Format::Raw => Format::of_name(path),
                content => content,
            }
        }
    };
    Ok((format, Arc::new(medium)))
}

/// Describes an image; what it is based on is not looked at.
///
/// # Errors
/// It cannot be used.
pub fn info(path: &Path, format: Option<Format>) -> Result<Info, ImageError> {
    let (format, medium) = looks_like(path, format)?;
    let host = |error| DiskError::System { path: path.to_owned(), error };
    let file_size = medium.size().map_err(host)?;
    let mut stored = 0;
    let mut offset = 0;
    while offset < file_size {
        let run = medium.run(offset, file_size - offset).map_err(host)?;
        stored += if run.zeroes { 0 } else { run.length };
        offset += run.length;
    }
    let mut more = Vec::new();
    let wrong = |error| DiskError::Format { path: path.to_owned(), error };
    let size = match format {
        Format::Qcow2 => {
            let header = Header::read(medium.as_ref()).map_err(|error| wrong(error.into()))?;
            more.push(("version", header.version.to_string()));
            more.push(("cluster size", header.cluster().to_string()));
            if header.snapshots > 0 {
                more.push(("snapshots", header.snapshots.to_string()));
            }
            if let Some(Backing { name, format }) = header.backing {
                more.push(("based on", name));
                more.push(("its format", format.unwrap_or_else(|| "not said".to_owned())));
            }
            if header.incompatible.contains(Incompatible::DIRTY) {
                more.push(("state", "in use, or not closed in good order".to_owned()));
            }
            if header.incompatible.contains(Incompatible::CORRUPT) {
                more.push(("state", "marked as damaged".to_owned()));
            }
            header.size
        }
        Format::Vhdx => {
            let info = vhdx::info(medium.as_ref()).map_err(|error| wrong(error.into()))?;
            more.push(("block size", info.block.to_string()));
            more.push(("sector size", info.sector.to_string()));
            info.size
        }
        Format::Raw | Format::Vmdk => {
            drop(medium);
            open(path, Some(format), true)?.sectors() * SECTOR
        }
    };
    Ok(Info { format, size, file_size, stored, more })
}

/// Checks an image, and with `repair` writes new refcounts where only those are wrong.
///
/// # Errors
/// It cannot be read at all, or not be repaired.
pub fn check(
    path: &Path,
    format: Option<Format>,
    repair: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Format, Findings), ImageError> {
    let (format, medium) = looks_like(path, format)?;
    let host = |error| DiskError::System { path: path.to_owned(), error };
    let wrong = |error: qcow2::Qcow2Error| DiskError::Format { path: path.to_owned(), error: error.into() };
    if repair && format != Format::Qcow2 {
        return Err(ImageError::NoRepair(path.to_owned()));
    }
    match format {
        Format::Raw => Err(ImageError::NothingToCheck(path.to_owned())),
        Format::Qcow2 if repair => {
            drop(medium);
            let medium = HostMedium::open(path, false).map_err(|error| DiskError::of_open(error, path, false))?;
            let medium: &dyn Medium = &medium;
            let header = Header::read(medium).map_err(wrong)?;
            qcow2::repair(medium, &header).map_err(wrong)?;
            let header = Header::read(medium).map_err(wrong)?;
            Ok((format, qcow2::check(medium, &header).map_err(host)?))
        }
        Format::Qcow2 => {
            let header = Header::read(medium.as_ref()).map_err(wrong)?;
            Ok((format, qcow2::check(medium.as_ref(), &header).map_err(host)?))
        }
        Format::Vhdx | Format::Vmdk => {
            drop(medium);
            let mut disk = open(path, Some(format), true)?;
            Ok((format, walk(disk.as_mut(), progress)))
        }
    }
}

/// Looks each part of a disk up, which finds what is wrong with the tables for it.
fn walk(disk: &mut dyn BlockBackend, progress: &mut dyn FnMut(u64, u64)) -> Findings {
    let size = disk.sectors() * SECTOR;
    let mut findings = Findings::default();
    let mut offset = 0;
    while offset < size {
        progress(offset, size);
        match disk.run(offset, size - offset) {
            Ok(run) => {
                findings.data += u64::from(!run.zeroes);
                offset += run.length;
            }
            Err(error) => {
                findings.error(format!("{error} (at byte {offset} of the disk)"));
                // How long the damaged part is, is not known.
                offset += CHUNK - offset % CHUNK;
            }
        }
    }
    progress(size, size);
    findings
}

#[cfg(test)]
mod tests;
