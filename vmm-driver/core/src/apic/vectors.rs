//! A set of interrupt vectors whose highest member is found in a few instructions.

/// A set of the 256 vectors, as IRR, ISR and TMR are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors {
    words: [u64; 4],
    /// Bit n: `words[n]` is not 0.
    used: u8,
}

impl Vectors {
    /// No vector.
    pub(super) const EMPTY: Self = Self { words: [0; 4], used: 0 };

    const fn place(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Whether there is no vector in it.
    #[inline]
    #[must_use]
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether the vector is in it.
    #[inline]
    #[must_use]
    pub(super) const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.words[word] & bit != 0
    }

    /// Puts a vector in.
    #[inline]
    pub(super) const fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.words[word] |= bit;
        self.used |= 1 << word;
    }

    /// Takes a vector out.
    #[inline]
    pub(super) const fn remove(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.words[word] &= !bit;
        if self.words[word] == 0 {
            self.used &= !(1 << word);
        }
    }

    /// The highest vector in it.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "word numbers are below 4, bit numbers below 64")]
    pub(super) const fn highest(&self) -> Option<u8> {
        if self.used == 0 {
            return None;
        }
        let word = self.used.ilog2() as usize & 3;
        match self.words[word].checked_ilog2() {
            Some(bit) => Some((word as u8) << 6 | bit as u8),
            None => None,
        }
    }

    /// In word `word`, gives the vectors of `mask` the membership that `members` has.
    pub(super) const fn assign(&mut self, word: usize, mask: u64, members: u64) {
        self.words[word] = self.words[word] & !mask | members & mask;
        if self.words[word] == 0 {
            self.used &= !(1 << word);
        } else {
            self.used |= 1 << word;
        }
    }

    /// The 32 vectors from `32 * part`, as the APIC's registers hold them; `part` below 8.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "32 of the 64 bits are meant")]
    pub(super) const fn part(&self, part: usize) -> u32 {
        (self.words[part >> 1 & 3] >> ((part & 1) * 32)) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(steps: Vec<(u8, bool)>, assigned in (0..4_usize, any::<u64>(), any::<u64>())) {
            let mut ours = Vectors::EMPTY;
            let mut model = BTreeSet::new();
            for (vector, insert) in steps {
                if insert {
                    ours.insert(vector);
                    model.insert(vector);
                } else {
                    ours.remove(vector);
                    model.remove(&vector);
                }
                prop_assert_eq!(ours.highest(), model.last().copied());
                prop_assert_eq!(ours.is_empty(), model.is_empty());
            }
            let (word, mask, members) = assigned;
            ours.assign(word, mask, members);
            for bit in 0..64_u8 {
                if mask >> bit & 1 != 0 {
                    let vector = u8::try_from(word).unwrap() * 64 + bit;
                    if members >> bit & 1 != 0 { model.insert(vector); } else { model.remove(&vector); }
                }
            }
            prop_assert_eq!(ours.highest(), model.last().copied());
            for vector in 0..=255_u8 {
                prop_assert_eq!(ours.contains(vector), model.contains(&vector));
                let part = ours.part(usize::from(vector >> 5));
                prop_assert_eq!(part >> (vector & 31) & 1 != 0, model.contains(&vector));
            }
        }
    }
}
