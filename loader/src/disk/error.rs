//! Why something is no guest's disk.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Format;
use super::FormatError;
use super::open::MOST_IMAGES;
use crate::sys::disk::OpenError;
use crate::sys::words::BLOCK_DEVICE;
use crate::sys::words::MAKE_IMAGE;
use crate::sys::words::ROUND_IMAGE;

/// Why a file cannot be a guest's disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It is not there.
    #[error("disk {}: there is no such file; name a disk image or {BLOCK_DEVICE}", .0.display())]
    Missing(PathBuf),
    /// The user may not open it.
    #[error("disk {}: permission denied; {}", path.display(), if *.read_only {
        "run as a user who may read it"
    } else {
        "run as a user who may write it, or add `,ro` to use it read-only"
    })]
    Permission {
        /// The disk.
        path: PathBuf,
        /// It was to be used read-only.
        read_only: bool,
    },
    /// It can only be read.
    #[error("disk {}: it cannot be written here; add `,ro` to use it read-only", .0.display())]
    ReadOnlyStorage(PathBuf),
    /// What an image is based on is no file.
    #[error("disk {}: it is no file, and an image can be based on a file only: `covisor image convert` makes one of a device", .0.display())]
    BackingKind(PathBuf),
    /// It is a directory, a terminal, ...
    #[error("disk {}: it is neither a file nor {BLOCK_DEVICE}", .0.display())]
    WrongKind(PathBuf),
    /// The host uses the block device.
    #[error("disk {}: the host itself uses this device; unmount it first", .0.display())]
    InUse(PathBuf),
    /// Another VM has it.
    #[error(
        "disk {}: another process has it open for a VM; stop that one first, or add `,ro` to both to share it",
        .0.display()
    )]
    Locked(PathBuf),
    /// It has no bytes.
    #[error("disk {}: it is empty; make it as large as the disk is to be, {MAKE_IMAGE}", .0.display())]
    Empty(PathBuf),
    /// Its size is not one that a disk can have.
    #[error(
        "disk {}: its size of {size} bytes is not a multiple of 512; is it a raw disk image? ({ROUND_IMAGE})",
        path.display()
    )]
    PartialSector {
        /// The disk.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// The file is not what an image of its format has to be.
    #[error("disk {}: {error}", path.display())]
    Format {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
    /// Images of its format can only be read.
    #[error(
        "disk {}: a {format} image can only be read here; add `,ro` to use it read-only, or make a qcow2 image of it by \
         `covisor image convert`",
        path.display()
    )]
    FormatReadOnly {
        /// The disk.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// The image is based on another one, which cannot be used.
    #[error("disk {} is based on another: {error}", path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// What is wrong with the other.
        error: Box<DiskError>,
    },
    /// An image is based on itself.
    #[error("disk {}: it is based on itself, over one or more other images", .0.display())]
    Cycle(PathBuf),
    /// One is based on another, and so on, for too long.
    #[error("disk {}: more than {MOST_IMAGES} images are based one on another; merge them by `covisor image convert`", .0.display())]
    LongChain(PathBuf),
    /// The format of what it is based on is not one that another image can be based on.
    #[error("disk {}: it is based on an image of the format {format:?}; raw and qcow2 can be used so", path.display())]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// What it says.
        format: String,
    },
    /// What it is based on is no file.
    #[error("disk {}: it is based on {name:?}, which is no file's name", path.display())]
    BackingName {
        /// The image.
        path: PathBuf,
        /// What it says.
        name: String,
    },
    /// Something else.
    #[error("disk {}: {error}", path.display())]
    System {
        /// The disk.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl DiskError {
    /// The refusal of what was to be opened at `path`.
    #[must_use]
    pub fn of_open(error: OpenError, path: &std::path::Path, read_only: bool) -> Self {
        let path = path.to_owned();
        match error {
            OpenError::WrongKind => Self::WrongKind(path),
            OpenError::InUse => Self::InUse(path),
            OpenError::Locked => Self::Locked(path),
            OpenError::System(error) => match error.kind() {
                io::ErrorKind::NotFound => Self::Missing(path),
                io::ErrorKind::PermissionDenied => Self::Permission { path, read_only },
                io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnlyStorage(path),
                _ => Self::System { path, error },
            },
        }
    }
}
