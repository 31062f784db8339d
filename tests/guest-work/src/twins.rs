//! Two disks that get the same.

use std::fs::File;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Failure;
use crate::error::Result;
use crate::error::ensure;
use crate::random::Random;
use crate::records::punch_hole;

const SECTOR: usize = 512;
/// Sectors of an operation at most.
const MOST: usize = 400;
/// One operation of so many zeroes, and one flushes.
const ZEROES: u64 = 4;
const FLUSHES: u64 = 5;

/// Writes and zeroes `count` random ranges of both disks, which are equally large and have the same on them, and compares them.
pub(crate) fn work(paths: [&Path; 2], seed: u64, count: u32) -> Result<String> {
    let mut disks = Vec::new();
    for path in paths {
        disks.push(File::options().read(true).write(true).open(path).map_err(Failure::refused("opening a disk"))?);
    }
    let mut sizes = Vec::new();
    for disk in &mut disks {
        sizes.push(disk.seek(SeekFrom::End(0)).map_err(Failure::refused("asking for a disk's size"))?);
    }
    ensure!(sizes[0] == sizes[1] && sizes[0] > 0, "the disks have {} and {} bytes", sizes[0], sizes[1]);
    let sectors = usize::try_from(sizes[0]).unwrap_or(usize::MAX) / SECTOR;
    let mut random = Random::new(seed | 1);
    for _ in 0..count {
        let first = random.below(sectors);
        let length = (1 + random.below(MOST.min(sectors - first))) * SECTOR;
        let offset = (first * SECTOR) as u64;
        let (zeroes, flushes) = (random.next().is_multiple_of(ZEROES), random.next().is_multiple_of(FLUSHES));
        let bytes: Vec<u8> = (0..length / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        for disk in &disks {
            if zeroes {
                punch_hole(disk, offset, length as u64)?;
            } else {
                disk.write_all_at(&bytes, offset).map_err(Failure::refused("writing"))?;
            }
            if flushes {
                disk.sync_data().map_err(Failure::refused("flushing"))?;
            }
        }
    }
    for disk in &disks {
        disk.sync_data().map_err(Failure::refused("flushing"))?;
    }
    Ok(format!("twins: {count} ranges"))
}
