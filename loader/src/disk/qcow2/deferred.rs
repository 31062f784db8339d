//! Writes of tables that the host has refused.
//!
//! The library has a changed table in its memory before it writes it, and does not come back to one whose write failed: what a
//! guest writes afterwards by way of that table would be lost with the process, whatever is flushed. So such writes are kept here, in
//! their order, and count as done for the library. The guest's next flush tries them again, and fails as long as they do.

use std::fmt;
use std::io;
use std::sync::Mutex;

use vm_memory::VolatileSlice;

use crate::disk::medium::Medium;
use crate::platform::lock;

/// Most bytes that are kept.
const MOST_BYTES: usize = 64 << 20;

#[derive(Default)]
struct State {
    writes: Vec<(u64, Vec<u8>)>,
    /// There were more than can be kept: the image's tables in the host's file are not those of the library any more.
    overflowed: bool,
    /// Some write failed, whether it is done by now or not.
    failed: bool,
}

/// The writes.
#[derive(Default)]
pub(super) struct Deferred {
    state: Mutex<State>,
}

impl Deferred {
    /// Writes a table, or keeps it.
    pub(super) fn write(&self, medium: &dyn Medium, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        // None overtakes another.
        if state.writes.is_empty() {
            match medium.write(offset, bytes) {
                Ok(()) => return Ok(()),
                Err(_) => state.failed = true,
            }
        }
        let same = state.writes.iter_mut().find(|(at, kept)| *at == offset && kept.len() == bytes.len());
        if let Some((_, kept)) = same {
            kept.copy_from_slice(bytes);
            return Ok(());
        }
        let kept: usize = state.writes.iter().map(|(_, bytes)| bytes.len()).sum();
        if kept + bytes.len() > MOST_BYTES {
            state.overflowed = true;
            return Err(lost());
        }
        state.writes.push((offset, bytes.to_vec()));
        Ok(())
    }

    /// Tries again what is kept.
    pub(super) fn settle(&self, medium: &dyn Medium) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.overflowed {
            return Err(lost());
        }
        let mut done = 0;
        let result = state.writes.iter().try_for_each(|(offset, bytes)| {
            medium.write(*offset, bytes)?;
            done += 1;
            Ok(())
        });
        state.writes.drain(..done);
        result
    }

    /// Puts what is kept over what was read from `offset` on.
    pub(super) fn lay_over(&self, mut offset: u64, buffers: &[VolatileSlice<'_>]) {
        let state = lock(&self.state);
        if state.writes.is_empty() {
            return;
        }
        for buffer in buffers {
            let end = offset + buffer.len() as u64;
            for (at, kept) in &state.writes {
                let both = offset.max(*at)..end.min(at + kept.len() as u64);
                if !both.is_empty()
                    && let Ok(to) = buffer.subslice(index(both.start - offset), index(both.end - both.start))
                {
                    to.copy_from(&kept[index(both.start - at)..index(both.end - at)]);
                }
            }
            offset = end;
        }
    }

    /// Where the last of what is kept ends.
    pub(super) fn end(&self) -> u64 {
        lock(&self.state).writes.iter().map(|(at, kept)| at + kept.len() as u64).max().unwrap_or(0)
    }

    /// What has other data now is not to be written any more.
    pub(super) fn forget(&self, offset: u64, length: u64) {
        let mut state = lock(&self.state);
        if state.writes.is_empty() {
            return;
        }
        let end = offset + length;
        let old = std::mem::take(&mut state.writes);
        for (at, kept) in old {
            let behind = at + kept.len() as u64;
            if end <= at || behind <= offset {
                state.writes.push((at, kept));
                continue;
            }
            if at < offset {
                state.writes.push((at, kept[..index(offset - at)].to_vec()));
            }
            if end < behind {
                state.writes.push((end, kept[index(end - at)..].to_vec()));
            }
        }
    }

    /// Whether any write ever failed.
    pub(super) fn has_failed(&self) -> bool {
        lock(&self.state).failed
    }
}

/// A distance within something that is in memory.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

fn lost() -> io::Error {
    io::Error::other(
        "the image's tables could not be written for too long: end the machine; the next one goes on with what was flushed",
    )
}

impl fmt::Debug for Deferred {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Deferred").field("writes", &lock(&self.state).writes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::medium::Faulty;
    use crate::disk::medium::MemoryMedium;

    #[test]
    fn test_a_write_that_failed_is_done_later_and_seen_before() {
        let memory = Arc::new(MemoryMedium::new(vec![0; 100], 100));
        // The first fails, and it and its successor fail when they are tried again; then all is well.
        let medium = Faulty::new(Arc::clone(&memory), vec![true, true]);
        let deferred = Deferred::default();
        deferred.write(&medium, 10, &[1; 10]).unwrap();
        deferred.write(&medium, 15, &[2; 10]).unwrap();
        assert_eq!(deferred.end(), 25);
        let mut bytes = [9; 20];
        let (first, second) = bytes.split_at_mut(5);
        deferred.lay_over(8, &[VolatileSlice::from(first), VolatileSlice::from(second)]);
        assert_eq!(bytes, [9, 9, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 9, 9, 9]);
        assert!(deferred.settle(&medium).is_err());
        deferred.write(&medium, 10, &[3; 10]).unwrap();
        deferred.settle(&medium).unwrap();
        let content = memory.bytes();
        assert_eq!(content[10..25], [[3; 5].as_slice(), &[2; 10]].concat());
        assert!(deferred.has_failed());
        deferred.write(&medium, 0, &[4]).unwrap();
        assert_eq!(memory.bytes()[0], 4);
    }

    #[test]
    fn test_data_takes_the_place_of_what_was_kept() {
        let memory = Arc::new(MemoryMedium::new(vec![0; 100], 100));
        let medium = Faulty::new(Arc::clone(&memory), vec![true]);
        let deferred = Deferred::default();
        deferred.write(&medium, 10, &[1; 10]).unwrap();
        deferred.write(&medium, 40, &[1; 10]).unwrap();
        let as_medium: &dyn Medium = &medium;
        for (at, data) in [(12, &[7; 2][..]), (39, &[7; 5])] {
            deferred.forget(at, data.len() as u64);
            as_medium.write(at, data).unwrap();
        }
        deferred.settle(&medium).unwrap();
        let content = memory.bytes();
        assert_eq!(content[9..21], [0, 1, 1, 7, 7, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(content[39..51], [7, 7, 7, 7, 7, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn test_too_much_is_told_and_stays_told() {
        let memory = Arc::new(MemoryMedium::new(Vec::new(), 2 * MOST_BYTES));
        let medium = Faulty::new(Arc::clone(&memory), vec![true]);
        let deferred = Deferred::default();
        deferred.write(&medium, 0, &vec![1; MOST_BYTES]).unwrap();
        assert!(deferred.write(&medium, MOST_BYTES as u64, &[1]).is_err());
        assert!(deferred.settle(&medium).is_err() && deferred.settle(&medium).is_err());
    }
}
