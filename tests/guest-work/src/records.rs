//! Records on a disk: what was flushed is there, whatever happened afterwards.
//!
//! The operations follow from their numbers, so that who checks knows what each of them wrote. Each sector tells of which
//! operation it is. A writer that was ended at any moment is told where to go on: it does again what may have been done and was
//! not flushed.

use std::alloc::Layout;
use std::alloc::alloc_zeroed;
use std::alloc::dealloc;
use std::alloc::handle_alloc_error;
use std::fs::File;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::Failure;
use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::random::Random;
use crate::random::pattern;

const SECTOR: usize = 512;
/// Sectors that an operation writes at most.
const MOST_WRITTEN: usize = 128;
/// Sectors that an operation zeroes at most: several clusters of an image.
const MOST_ZEROED: usize = 1024;
/// One operation of so many zeroes.
const ZEROES: u64 = 6;
/// Operations between two flushes.
const FLUSHED_AT_ONCE: u64 = 8;
/// Operations that may have been done and of which nobody has heard yet.
const UNHEARD: u64 = 512;
/// What a sector of ours begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"covisrec");
/// Sectors that are read at a time.
const CHUNK: usize = 256;

/// What an operation does: it writes or zeroes these sectors.
struct Operation {
    number: u64,
    zeroes: bool,
    first: usize,
    count: usize,
}

impl Operation {
    /// The operation of this number, on a disk of so many sectors.
    fn new(number: u64, sectors: usize) -> Self {
        let mut random = Random::new(pattern(number, 1) | 1);
        let zeroes = random.next().is_multiple_of(ZEROES);
        let most = if zeroes { MOST_ZEROED } else { MOST_WRITTEN };
        let first = random.below(sectors);
        let count = 1 + random.below(most.min(sectors - first));
        Self { number, zeroes, first, count }
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

/// Fills a sector as operation `number` does.
fn fill(bytes: &mut [u8], number: u64, sector: usize) {
    let header = [MAGIC, number, sector as u64];
    let rest = (header.len() as u64..).map(|index| pattern(number, sector as u64 * 64 + index));
    for (to, word) in bytes.chunks_exact_mut(8).zip(header.into_iter().chain(rest)) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

/// Memory that a disk can be read to and written from directly.
struct Buffer {
    start: *mut u8,
    layout: Layout,
}

impl Buffer {
    fn new(sectors: usize) -> Self {
        let layout = Layout::from_size_align(sectors * SECTOR, 4096).unwrap_or(Layout::new::<[u64; 64]>());
        // SAFETY: the layout has a size that is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, layout }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is ours alone, of that size, and was zeroed.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

fn open(path: &Path, write: bool) -> Result<(File, usize)> {
    let mut options = File::options();
    options.read(true).write(write);
    if write {
        options.custom_flags(libc::O_DIRECT);
    }
    let mut file = options.open(path).map_err(Failure::refused("opening the disk"))?;
    let size = file.seek(SeekFrom::End(0)).map_err(Failure::refused("asking for the disk's size"))?;
    let sectors = usize::try_from(size).unwrap_or(usize::MAX) / SECTOR;
    ensure!(sectors > 0, "the disk is empty");
    Ok((file, sectors))
}

/// Writes from operation `first` on, `count` operations or for ever, and tells of each flush.
pub(crate) fn write(path: &Path, first: u64, count: Option<u64>) -> Result<String> {
    let (file, sectors) = open(path, true)?;
    let mut buffer = Buffer::new(MOST_WRITTEN);
    let end = count.map_or(u64::MAX, |count| first.saturating_add(count));
    for number in first..end {
        let operation = Operation::new(number, sectors);
        carry_out(&file, &operation, &mut buffer)?;
        if number % FLUSHED_AT_ONCE == 0 || number + 1 == end {
            file.sync_data().map_err(Failure::refused("flushing"))?;
            println!("flushed {number}");
            std::io::stdout().flush().map_err(Failure::refused("telling of it"))?;
        }
    }
    Ok(format!("records: written up to {}", end - 1))
}

/// Zeroes a range of a disk, whose storage may be given back.
pub(crate) fn punch_hole(file: &File, offset: u64, length: u64) -> Result<()> {
    let [offset, length] = [offset, length].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open, and no memory is passed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
    done("zeroing", result).map(drop)
}

fn carry_out(file: &File, operation: &Operation, buffer: &mut Buffer) -> Result<()> {
    let offset = (operation.first * SECTOR) as u64;
    if operation.zeroes {
        return punch_hole(file, offset, (operation.count * SECTOR) as u64);
    }
    let bytes = &mut buffer.bytes()[..operation.count * SECTOR];
    for (sector, to) in operation.range().zip(bytes.chunks_exact_mut(SECTOR)) {
        fill(to, operation.number, sector);
    }
    file.write_all_at(bytes, offset).map_err(Failure::refused("writing"))
}

/// What a sector holds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Zeroes,
    Written(u64),
    Nonsense,
}

impl Found {
    fn of(bytes: &[u8], sector: usize) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Zeroes;
        }
        let number = bytes.get(8..16).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        let mut expected = [0; SECTOR];
        fill(&mut expected, number, sector);
        if bytes == expected { Self::Written(number) } else { Self::Nonsense }
    }
}

/// Checks that all operations up to `flushed` are on the disk, except where later ones, which may have been done, are.
pub(crate) fn check(path: &Path, flushed: u64) -> Result<String> {
    let (mut file, sectors) = open(path, false)?;
    file.seek(SeekFrom::Start(0)).map_err(Failure::refused("reading"))?;
    // Of each sector the last operation that was flushed, and whether one of those after it may have zeroed it.
    let mut last = vec![(0, true); sectors];
    let mut later_zeroes = vec![false; sectors];
    for number in 1..=flushed {
        let operation = Operation::new(number, sectors);
        last[operation.range()].fill((number, operation.zeroes));
    }
    for operation in (flushed + 1..=flushed + UNHEARD).map(|number| Operation::new(number, sectors)) {
        if operation.zeroes {
            later_zeroes[operation.range()].fill(true);
        }
    }
    let mut bytes = vec![0; CHUNK * SECTOR];
    for first in (0..sectors).step_by(CHUNK) {
        let count = CHUNK.min(sectors - first);
        let bytes = &mut bytes[..count * SECTOR];
        file.read_exact_at(bytes, (first * SECTOR) as u64).map_err(Failure::refused("reading"))?;
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let (number, zeroes) = last[sector];
            let found = Found::of(bytes, sector);
            let holds = match found {
                Found::Zeroes => zeroes || later_zeroes[sector],
                Found::Written(other) if other > flushed => Operation::new(other, sectors).range().contains(&sector),
                Found::Written(other) => !zeroes && other == number,
                Found::Nonsense => false,
            };
            let what = if zeroes { "zeroed" } else { "written" };
            ensure!(
                holds,
                "sector {sector} should be as operation {number} has {what} it, of {flushed} that were flushed; it has {found:?}"
            );
        }
    }
    Ok(format!("records: {flushed} operations are there"))
}
