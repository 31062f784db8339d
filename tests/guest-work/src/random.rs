//! Numbers that look random and are the same each time.

/// A generator (xorshift with a multiplication at the end).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    /// One that begins with a seed, which must not be 0.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap_or(0) % end
    }
}

/// What is written to the word at `index` in a round: each has a value of its own.
pub(crate) const fn pattern(round: u64, index: u64) -> u64 {
    (index ^ round << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ round
}
