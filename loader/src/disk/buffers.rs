//! Buffers of a request, taken piece by piece: an image seldom has in one piece what the guest sees in one.

use std::io;

use vm_memory::VolatileSlice;

/// Zeroes to copy from.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Bytes of all of them.
#[must_use]
pub fn total(buffers: &[VolatileSlice<'_>]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
}

/// Fills all of them with zeroes.
pub fn fill_with_zeroes(buffers: &[VolatileSlice<'_>]) {
    for buffer in buffers {
        let mut done = 0;
        while let Ok(rest) = buffer.offset(done) {
            if rest.is_empty() {
                break;
            }
            let count = rest.len().min(ZEROES.len());
            rest.copy_from(&ZEROES[..count]);
            done += count;
        }
    }
}

/// Stores zeroes from `offset` on, `length` bytes, by `write`, which stores buffers at a position: for a range that there is no better
/// way to have read zeroes.
///
/// # Errors
/// Those of `write`.
pub fn write_zero_bytes(
    mut offset: u64,
    mut length: u64,
    mut write: impl FnMut(u64, &[VolatileSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let at_most = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    // A slice of volatile memory is made of what can be written, so the static ones do not serve.
    let mut zeroes = vec![0; ZEROES.len().min(at_most(length))];
    while length > 0 {
        let count = zeroes.len().min(at_most(length));
        write(offset, &[VolatileSlice::from(&mut zeroes[..count])])?;
        offset += count as u64;
        length -= count as u64;
    }
    Ok(())
}

/// Copies `bytes` into the buffers, as far as they go.
pub fn copy_in(buffers: &[VolatileSlice<'_>], mut bytes: &[u8]) {
    for buffer in buffers {
        let (part, rest) = bytes.split_at(buffer.len().min(bytes.len()));
        buffer.copy_from(part);
        bytes = rest;
    }
}

/// What is left of some buffers.
#[derive(Debug)]
pub struct Pieces<'a, 'b> {
    buffers: &'b [VolatileSlice<'a>],
    /// Bytes of the first buffer that are taken.
    used: usize,
    left: u64,
}

impl<'a, 'b> Pieces<'a, 'b> {
    /// All of `buffers`.
    #[must_use]
    pub fn new(buffers: &'b [VolatileSlice<'a>]) -> Self {
        Self { buffers, used: 0, left: total(buffers) }
    }

    /// Bytes that are left.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Takes the next `length` bytes, or what is left.
    pub fn take(&mut self, length: u64) -> Vec<VolatileSlice<'a>> {
        let mut wanted = length.min(self.left);
        self.left -= wanted;
        let mut taken = Vec::new();
        while wanted > 0 {
            let Some((first, rest)) = self.buffers.split_first() else { break };
            let there = first.len() - self.used;
            let count = there.min(usize::try_from(wanted).unwrap_or(usize::MAX));
            if let Ok(part) = first.subslice(self.used, count)
                && count > 0
            {
                taken.push(part);
            }
            wanted -= count as u64;
            if count == there {
                (self.buffers, self.used) = (rest, 0);
            } else {
                self.used += count;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_zeroes_fill_long_buffers() {
        let mut bytes = vec![1_u8; 200_001];
        fill_with_zeroes(&[VolatileSlice::from(&mut bytes[1..])]);
        assert_eq!(bytes[0], 1);
        assert!(bytes[1..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn test_zeroes_are_written_piece_by_piece_until_one_fails() {
        let mut written = Vec::new();
        let done = write_zero_bytes(7, 150_000, |offset, zeroes| {
            written.push((offset, total(zeroes)));
            Ok(())
        });
        assert!(done.is_ok());
        assert_eq!(written, [(7, 65_536), (65_543, 65_536), (131_079, 18_928)]);
        let full = write_zero_bytes(0, 150_000, |offset, _| match offset {
            0 => Ok(()),
            65_536 => Err(io::ErrorKind::StorageFull.into()),
            _ => panic!("it goes on behind an error"),
        });
        assert_eq!(full.map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    }

    proptest! {
        #[test]
        fn test_pieces_together_are_the_buffers(
            sizes in prop::collection::vec(0usize..50, 0..6),
            takes in prop::collection::vec(0u64..60, 0..20),
        ) {
            let mut memory: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
            let all: u64 = sizes.iter().map(|size| *size as u64).sum();
            {
                let buffers: Vec<_> = memory.iter_mut().map(|bytes| VolatileSlice::from(bytes.as_mut_slice())).collect();
                let mut pieces = Pieces::new(&buffers);
                for (take, mark) in takes.iter().chain(std::iter::once(&u64::MAX)).zip(1u8..) {
                    let before = pieces.left();
                    let part = pieces.take(*take);
                    prop_assert_eq!(total(&part), before.min(*take));
                    for piece in part {
                        piece.copy_from(&vec![mark; piece.len()]);
                    }
                }
                prop_assert_eq!(pieces.left(), 0);
            }
            let marks: Vec<u8> = memory.concat();
            prop_assert_eq!(marks.len() as u64, all);
            prop_assert!(marks.is_sorted() && !marks.contains(&0));
        }
    }
}
