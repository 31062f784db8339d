//! Raw disk images and block devices of the host.

use std::io;
use std::path::Path;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::BlockBackend;
use super::DiskError;
use super::Run;
use super::SECTOR;
use super::medium::HostMedium;
use super::medium::Medium;
use super::medium::is_unsupported;

/// A raw disk image or a block device.
///
/// Writes are in the host's page cache when they are done, and last when the guest has flushed.
#[derive(Debug)]
pub struct Raw {
    medium: Arc<dyn Medium>,
    sectors: u64,
    read_only: bool,
}

impl Raw {
    /// The disk that is `medium`, which is called `path` in messages.
    ///
    /// # Errors
    ///
    /// Its size is none of a disk.
    pub fn new(medium: HostMedium, path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let size = medium.size().map_err(|error| DiskError::System { path: path.to_owned(), error })?;
        if size == 0 {
            return Err(DiskError::Empty(path.to_owned()));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(DiskError::PartialSector { path: path.to_owned(), size });
        }
        Ok(Self { medium: Arc::new(medium), sectors: size / SECTOR, read_only })
    }
}

impl BlockBackend for Raw {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.medium.read_at(offset, buffers)
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.medium.write_at(offset, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.medium.sync() }
    }

    /// A hint: where storage cannot be given back, nothing is done.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let result = self.medium.punch_hole(offset, length);
        if is_unsupported(&result) { Ok(()) } else { result }
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.medium.write_zeroes(offset, length, unmap)
    }

    fn run(&mut self, offset: u64, length: u64) -> io::Result<Run> {
        self.medium.run(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(size: usize) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; size]).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn test_data_is_stored_and_zeroed() {
        let image = image(1024 * 1024);
        let mut disk = Raw::new(HostMedium::open(&image, false).unwrap(), &image, false).unwrap();
        assert_eq!((disk.sectors(), disk.is_read_only()), (2048, false));
        let mut data = *b"data";
        disk.write_at(512, &[VolatileSlice::from(&mut data[..])]).unwrap();
        disk.flush().unwrap();
        disk.write_zeroes(4096, 100 * 1024, true).unwrap();
        disk.write_zeroes(200 * 1024, 100 * 1024, false).unwrap();
        disk.discard(512 * 1024, 4096).unwrap();
        // For this process alone, on some hosts.
        drop(disk);
        let content = std::fs::read(&image).unwrap();
        assert_eq!(&content[510..518], b"\x07\x07data\x07\x07");
        assert!(content[4096..4096 + 100 * 1024].iter().all(|byte| *byte == 0));
        assert!(content[200 * 1024..300 * 1024].iter().all(|byte| *byte == 0));
        assert_eq!((content[300 * 1024], content.len()), (7, 1024 * 1024));
    }

    #[test]
    fn test_what_is_never_written_is_known_to_be_zero_or_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let image = file.into_temp_path();
        let mut disk = Raw::new(HostMedium::open(&image, false).unwrap(), &image, false).unwrap();
        let mut data = [1; 512];
        disk.write_at(2 << 20, &[VolatileSlice::from(&mut data[..])]).unwrap();
        let (mut at, mut data_seen) = (0, false);
        while at < 4 << 20 {
            let run = disk.run(at, (4 << 20) - at).unwrap();
            assert!(run.length > 0);
            let has_data = (at..at + run.length).contains(&(2 << 20));
            assert!(!(has_data && run.zeroes));
            data_seen |= has_data;
            at += run.length;
        }
        assert!(data_seen && at == 4 << 20);
    }
}
