//! Bytes on their way, in the order in which they came.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::io::Read;
use std::io::Write;

/// Bytes that a ring has at first.
const FIRST: usize = 16 << 10;

/// A ring of bytes that grows up to a limit.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
    limit: usize,
}

impl Ring {
    /// An empty one, for at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, length: 0, limit }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How much more it takes.
    pub(super) fn room(&self) -> usize {
        self.limit - self.length
    }

    /// Bytes `from..from + count` of what it has, in two parts.
    pub(super) fn slices(&self, from: usize, count: usize) -> [&[u8]; 2] {
        let begin = self.start + from;
        let capacity = self.bytes.len();
        if begin >= capacity {
            let begin = begin - capacity;
            return [&self.bytes[begin..begin + count], &[]];
        }
        let first = count.min(capacity - begin);
        [&self.bytes[begin..begin + first], &self.bytes[..count - first]]
    }

    /// Drops the first bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.length -= count;
        self.start += count;
        if self.start >= self.bytes.len() {
            self.start -= self.bytes.len();
        }
        if self.length == 0 {
            self.start = 0;
        }
    }

    /// Gives the memory back while there is nothing in it: what a burst needed, the next one may not.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
        }
    }

    /// Makes the memory for `wanted` bytes in all.
    fn grow(&mut self, wanted: usize) {
        if wanted <= self.bytes.len() {
            return;
        }
        let capacity = wanted.next_power_of_two().clamp(FIRST.min(self.limit), self.limit);
        let mut bytes = Vec::with_capacity(capacity);
        for part in self.slices(0, self.length) {
            bytes.extend_from_slice(part);
        }
        bytes.resize(capacity, 0);
        (self.bytes, self.start) = (bytes, 0);
    }

    /// Appends all of `bytes`, for which there must be room.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.grow(self.length + bytes.len());
        let [first, second] = self.free();
        let cut = bytes.len().min(first.len());
        first[..cut].copy_from_slice(&bytes[..cut]);
        second[..bytes.len() - cut].copy_from_slice(&bytes[cut..]);
        self.length += bytes.len();
    }

    /// What is not in use of the memory that there is.
    fn free(&mut self) -> [&mut [u8]; 2] {
        let end = self.start + self.length;
        let capacity = self.bytes.len();
        if end >= capacity {
            return [&mut self.bytes[end - capacity..self.start], &mut []];
        }
        let (front, back) = self.bytes.split_at_mut(end);
        [back, &mut front[..self.start]]
    }

    /// Reads from `source` as much as it gives at once and there is room for; 0 is its end.
    pub(super) fn fill(&mut self, mut source: impl Read) -> io::Result<usize> {
        // A connection that has filled what it had gets more.
        if self.length == self.bytes.len() || self.bytes.len() < FIRST {
            self.grow((self.bytes.len() * 4).clamp(FIRST.min(self.limit), self.limit));
        }
        let [first, second] = self.free();
        let count = source.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)])?;
        self.length += count;
        Ok(count)
    }

    /// Writes to `sink` as much as it takes at once.
    pub(super) fn drain(&mut self, mut sink: impl Write) -> io::Result<usize> {
        let [first, second] = self.slices(0, self.length);
        let count = sink.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn test_it_is_a_queue(steps in prop::collection::vec((0u8..4, 0usize..30_000), 1..60), limit in 15u32..18) {
            let mut ring = Ring::new(1 << limit);
            let mut model = VecDeque::new();
            let mut next = 0_u8;
            for (step, count) in steps {
                match step {
                    0 => {
                        let count = count.min(ring.room());
                        let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(31); next }).collect();
                        ring.push(&bytes);
                        model.extend(bytes);
                    }
                    1 if ring.room() > 0 => {
                        let bytes: Vec<u8> = (0..count).map(|index| index.to_le_bytes()[0]).collect();
                        let count = ring.fill(&bytes[..]).unwrap();
                        model.extend(&bytes[..count]);
                    }
                    2 => {
                        let count = count.min(ring.len());
                        ring.consume(count);
                        model.drain(..count);
                        ring.release();
                    }
                    _ => {
                        let mut out = vec![0; count];
                        let written = ring.drain(&mut out[..]).unwrap();
                        prop_assert_eq!(&out[..written], &model.drain(..written).collect::<Vec<_>>()[..]);
                    }
                }
                prop_assert_eq!(ring.len(), model.len());
                prop_assert!(ring.bytes.len() <= 1 << limit);
                let all = ring.slices(0, ring.len()).concat();
                prop_assert!(all.iter().eq(model.iter()));
            }
        }
    }
}
