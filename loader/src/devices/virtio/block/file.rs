//! Raw disk images and block devices of the host.

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::BlockBackend;
use super::SECTOR;
use crate::sys::disk;
use crate::sys::disk::OpenError;

/// Why a file cannot be a guest's disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It is not there.
    #[error("disk {}: there is no such file; name a raw disk image or a block device", .0.display())]
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
    /// It is a directory, a terminal, ...
    #[error("disk {}: it is neither a file nor a block device", .0.display())]
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
    #[error("disk {}: it is empty; make it as large as the disk is to be, e.g. `truncate -s 2G FILE`", .0.display())]
    Empty(PathBuf),
    /// Its size is not one that a disk can have.
    #[error(
        "disk {}: its size of {size} bytes is not a multiple of 512; is it a raw disk image? (`truncate -s %512 FILE` \
         rounds it up)",
        path.display()
    )]
    PartialSector {
        /// The disk.
        path: PathBuf,
        /// Its bytes.
        size: u64,
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

/// A raw disk image or a block device.
///
/// Writes are in the host's page cache when they are done, and last when the guest has flushed.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl FileBackend {
    /// Opens and locks the disk at `path`: nobody else can use it with covisor meanwhile, but for read-only disks.
    ///
    /// # Errors
    ///
    /// It cannot be used.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let name = || path.to_owned();
        let (file, size) = disk::open(path, read_only).map_err(|error| match error {
            OpenError::WrongKind => DiskError::WrongKind(name()),
            OpenError::InUse => DiskError::InUse(name()),
            OpenError::Locked => DiskError::Locked(name()),
            OpenError::System(error) => match error.kind() {
                io::ErrorKind::NotFound => DiskError::Missing(name()),
                io::ErrorKind::PermissionDenied => DiskError::Permission { path: name(), read_only },
                io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnlyStorage(name()),
                _ => DiskError::System { path: name(), error },
            },
        })?;
        if size == 0 {
            return Err(DiskError::Empty(name()));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(DiskError::PartialSector { path: name(), size });
        }
        Ok(Self { file, sectors: size / SECTOR, read_only })
    }

    /// Writes zeroes where the file system has no better way.
    fn write_zero_bytes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let mut zeroes = vec![0; 64 * 1024];
        while length > 0 {
            let count = zeroes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            disk::write_at(&self.file, offset, &[VolatileSlice::from(&mut zeroes[..count])])?;
            offset += count as u64;
            length -= count as u64;
        }
        Ok(())
    }
}

fn is_unsupported(result: &io::Result<()>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::Unsupported)
}

impl BlockBackend for FileBackend {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        disk::read_at(&self.file, offset, buffers)
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        disk::write_at(&self.file, offset, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// A hint: where storage cannot be given back, nothing is done.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let result = disk::punch_hole(&self.file, offset, length);
        if is_unsupported(&result) { Ok(()) } else { result }
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            let result = disk::punch_hole(&self.file, offset, length);
            if !is_unsupported(&result) {
                return result;
            }
        }
        let result = disk::zero_range(&self.file, offset, length);
        if is_unsupported(&result) { self.write_zero_bytes(offset, length) } else { result }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; size]).unwrap();
        file
    }

    fn refusal(path: &Path, read_only: bool) -> String {
        FileBackend::open(path, read_only).unwrap_err().to_string()
    }

    #[test]
    fn test_a_refusal_names_cause_and_remedy() {
        assert!(refusal(Path::new("/no/disk"), false).contains("no such file"));
        assert!(refusal(Path::new("/"), true).contains("neither a file nor a block device"));
        assert!(refusal(image(0).path(), true).contains("empty"));
        assert!(refusal(image(1000).path(), true).contains("1000 bytes is not a multiple of 512"));
        let held = image(512);
        let _first = FileBackend::open(held.path(), false).unwrap();
        assert!(refusal(held.path(), false).contains("another process"));
    }

    #[test]
    fn test_data_is_stored_and_zeroed() {
        let image = image(1024 * 1024);
        let mut disk = FileBackend::open(image.path(), false).unwrap();
        assert_eq!((disk.sectors(), disk.is_read_only()), (2048, false));
        let mut data = *b"data";
        disk.write_at(512, &[VolatileSlice::from(&mut data[..])]).unwrap();
        disk.flush().unwrap();
        disk.write_zeroes(4096, 100 * 1024, true).unwrap();
        disk.write_zero_bytes(200 * 1024, 100 * 1024).unwrap();
        disk.discard(512 * 1024, 4096).unwrap();
        let content = std::fs::read(image.path()).unwrap();
        assert_eq!(&content[510..518], b"\x07\x07data\x07\x07");
        assert!(content[4096..4096 + 100 * 1024].iter().all(|byte| *byte == 0));
        assert!(content[200 * 1024..300 * 1024].iter().all(|byte| *byte == 0));
        assert_eq!((content[300 * 1024], content.len()), (7, 1024 * 1024));
    }
}
