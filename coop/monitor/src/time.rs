//! The guest's clock: nanoseconds since its start, made of the time stamp counter (Xen public headers, `vcpu_time_info`).

use crate::shared_info::Scale;

impl Scale {
    /// Nanoseconds at this count of the time stamp counter.
    #[must_use]
    pub fn nanoseconds(self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc_start));
        let shifted = if self.shift >= 0 { ticks << (self.shift & 63) } else { ticks >> (-self.shift & 63) };
        u64::try_from((shifted * u128::from(self.multiplier)) >> 32).unwrap_or(u64::MAX)
    }

    /// The count of the time stamp counter at which it is this many nanoseconds, or later by what is rounded.
    #[must_use]
    pub fn tsc(self, nanoseconds: u64) -> u64 {
        let Some(multiplier) = core::num::NonZeroU128::new(u128::from(self.multiplier)) else { return u64::MAX };
        let shifted = (u128::from(nanoseconds) << 32) / multiplier + 1;
        let ticks = if self.shift >= 0 { (shifted >> (self.shift & 63)) + 1 } else { shifted << (-self.shift & 31) };
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(self.tsc_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_count_that_is_asked_for_is_not_early_and_not_late() {
        // 1 GHz, 2.4 GHz, 100 MHz as (multiplier, shift).
        for (multiplier, shift) in [(1 << 31, 1), (3_579_139_413, -1), (2_684_354_560, 4)] {
            let scale = Scale { tsc_start: 12345, multiplier, shift };
            for nanoseconds in [0, 1, 999, 1_000_000, 3_600_000_000_000] {
                let back = scale.nanoseconds(scale.tsc(nanoseconds));
                assert!((nanoseconds..nanoseconds + 50).contains(&back), "{nanoseconds} {back}");
            }
        }
    }

    #[test]
    fn test_absurd_times_are_far_away() {
        let scale = Scale { tsc_start: 5, multiplier: 1 << 31, shift: 1 };
        assert_eq!(scale.tsc(u64::MAX), u64::MAX);
        assert_eq!(Scale::default().tsc(7), u64::MAX);
        assert_eq!(scale.nanoseconds(0), 0);
    }
}
