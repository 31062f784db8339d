//! More memory than there is: what is written goes out to swap and comes back.

use crate::error::Result;
use crate::error::ensure;
use crate::mmap::Mapping;
use crate::processes;
use crate::random::pattern;

/// What is written.
const ROUND: u64 = 1;
/// Of the pages that parent and child share after a fork, the child writes one of so many words.
const STRIDE: usize = 1536;

/// Writes `mib` MiB and reads them back, once more with a child that has a copy.
pub(crate) fn work(mib: usize) -> Result<String> {
    let mut memory = Mapping::private(mib << 20)?;
    for (index, word) in (0..).zip(memory.words()) {
        *word = pattern(ROUND, index);
    }
    // The child changes a few words of its copy, reads all of it, and the parent's stay as they were.
    let child = processes::fork(|| {
        for (index, word) in (0..).zip(memory.words()).step_by(STRIDE) {
            *word = !pattern(ROUND, index);
        }
        let changed = |index: u64| index.is_multiple_of(STRIDE as u64);
        check(memory.words(), |index| if changed(index) { !pattern(ROUND, index) } else { pattern(ROUND, index) })
    })?;
    child.succeeds()?;
    check(memory.words(), |index| pattern(ROUND, index))?;
    Ok(format!("memory: {mib} MiB kept their values"))
}

/// Checks all words.
fn check(words: &[u64], expected: impl Fn(u64) -> u64) -> Result<()> {
    for (index, word) in (0..).zip(words) {
        ensure!(*word == expected(index), "word {index} is {word:#x} and should be {:#x}", expected(index));
    }
    Ok(())
}
