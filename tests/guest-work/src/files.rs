//! Files in memory: what is written to a shared mapping is in the file, whenever it was written.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Failure;
use crate::error::Result;
use crate::error::ensure;
use crate::mmap::Mapping;
use crate::mmap::WORDS;
use crate::random::pattern;

/// Of which pages a round writes: all, or each so many.
const STRIDES: [usize; 4] = [1, 3, 7, 2];
/// What has the kernel drop its memory of files.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

/// Writes to the file by a new mapping each round, and at the end by one that stays, and reads it each time.
pub(crate) fn work(path: &Path, mib: usize) -> Result<String> {
    let bytes = mib << 20;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(Failure::refused("opening the file"))?;
    file.set_len(bytes as u64).map_err(Failure::refused("giving the file its size"))?;
    let mut expected = vec![0; bytes / 8];
    for (round, stride) in (1..).zip(STRIDES) {
        let mut mapping = Mapping::file(&file, bytes, true)?;
        // They are read first, and so mapped without a write.
        ensure!(mapping.words() == expected, "the mapping of round {round} is not what the file should be");
        write(mapping.words(), &mut expected, round, stride);
        // What was written is told by the page tables' dirty bits alone.
        drop(mapping);
        forget(&file)?;
        check(path, &expected, round)?;
    }
    let mut mapping = Mapping::file(&file, bytes, true)?;
    let more = STRIDES.len() as u64 + 1;
    for (round, stride) in (more..).zip(STRIDES) {
        write(mapping.words(), &mut expected, round, stride);
        // Afterwards the page is clean, and mapped still.
        mapping.write_back()?;
        forget(&file)?;
        check(path, &expected, round)?;
    }
    // What is written to a private mapping stays there.
    let mut private = Mapping::file(&file, bytes, false)?;
    write(private.words(), &mut expected.clone(), more * 2, 1);
    drop(private);
    drop(mapping);
    forget(&file)?;
    check(path, &expected, more * 2)?;
    Ok(format!("files: {mib} MiB, {} rounds", STRIDES.len() * 2))
}

/// Writes a word or two of each page that this round is about.
fn write(words: &mut [u64], expected: &mut [u64], round: u64, stride: usize) {
    for page in (0..words.len() / WORDS).step_by(stride) {
        for at in [page * WORDS + page % WORDS, page * WORDS] {
            words[at] = pattern(round, at as u64);
            expected[at] = words[at];
        }
    }
}

/// Has all that was written go to the disk, and the kernel forget the file.
fn forget(file: &File) -> Result<()> {
    file.sync_all().map_err(Failure::refused("fsync"))?;
    fs::write(DROP_CACHES, "3").map_err(Failure::refused("dropping the caches"))
}

/// Reads the file and compares it.
fn check(path: &Path, expected: &[u64], round: u64) -> Result<()> {
    let mut file = File::open(path).map_err(Failure::refused("opening the file"))?;
    let mut bytes = vec![0; CHUNK];
    for (chunk, words) in expected.chunks(CHUNK / 8).enumerate() {
        let bytes = &mut bytes[..words.len() * 8];
        file.read_exact(bytes).map_err(Failure::refused("reading the file"))?;
        let differs = bytes.chunks_exact(8).zip(words).position(|(read, word)| read != word.to_ne_bytes());
        ensure!(
            differs.is_none(),
            "round {round}: word {} of the file is not what was written",
            chunk * CHUNK / 8 + differs.unwrap_or(0)
        );
    }
    Ok(())
}
