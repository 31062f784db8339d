//! Random numbers that a seed repeats.

/// A generator (George Marsaglia, "Xorshift RNGs", 2003).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // It must not be 0, and neighbours are to differ at once.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| _ = random.next());
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below a limit, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % limit
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A word as structures have them: small numbers, single bits, ends of ranges; and any.
    pub(crate) fn word(&mut self) -> u32 {
        let any = self.next().to_le_bytes();
        let any = u32::from_le_bytes([any[4], any[5], any[6], any[7]]);
        match self.below(8) {
            0..3 => any % 4,
            3 => 1 << (any % 32),
            4 => (any % 2048) << 12,
            5 => u32::MAX - any % 4,
            _ => any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_neighbours_differ() {
        let words = |seed| {
            let mut random = Random::new(seed);
            [(); 16].map(|()| random.word())
        };
        assert_eq!(words(7), words(7));
        assert_ne!(words(7), words(8));
    }
}
