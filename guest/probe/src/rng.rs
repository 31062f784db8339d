//! Random numbers that are the same in every run: splitmix64.

/// The generator's state.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; the same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// A number with one to four bits set: control registers have more to say to those.
    pub fn few_bits(&mut self) -> u64 {
        (0..=self.below(4)).fold(0, |value, _| value | 1 << self.below(64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_same_seed_gives_the_same_numbers() {
        assert_eq!(Rng::new(1).draw(), Rng::new(1).draw());
        assert_ne!(Rng::new(1).draw(), Rng::new(2).draw());
    }

    #[test]
    fn test_few_bits_has_one_to_four() {
        let mut rng = Rng::new(3);
        for _ in 0..1000 {
            assert!((1..=4).contains(&rng.few_bits().count_ones()));
        }
    }
}
