//! Clocks: the time stamp counter's rate, and the date.

use crate::kapi::Kapi;

/// How long the rate is measured, in milliseconds. NT's counter has steps of 0.3 µs at most, so the error stays below one in
/// 100,000.
const MEASURE_MS: u32 = 100;
/// Pairs of which the closest counts.
const TRIES: usize = 8;
/// 100 ns from 1601 to 1970.
const EPOCH: i64 = 116_444_736_000_000_000;

/// Both counters at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    tsc: u64,
    /// NT's.
    count: i64,
    /// How far apart they were read, in time stamps.
    width: u64,
}

fn pair<K: Kapi>() -> (Pair, i64) {
    let mut frequency = 0;
    let pairs = [(); TRIES].map(|()| {
        let before = K::time_stamp();
        let (count, rate) = K::performance_counter();
        let width = K::time_stamp().wrapping_sub(before);
        frequency = rate;
        Pair { tsc: before.wrapping_add(width / 2), count, width }
    });
    let [first, ..] = pairs;
    let closest = pairs.into_iter().fold(first, |best, pair| if pair.width < best.width { pair } else { best });
    (closest, frequency)
}

/// The rate in kHz, from two pairs and the rate of NT's counter. `None` where one of them does not count.
fn rate(from: Pair, to: Pair, frequency: i64) -> Option<u32> {
    let counts = u128::try_from(to.count.checked_sub(from.count)?).ok().filter(|counts| *counts != 0)?;
    let frequency = u128::try_from(frequency).ok()?;
    let ticks = u128::from(to.tsc.checked_sub(from.tsc)?);
    u32::try_from(ticks * frequency / counts / 1000).ok().filter(|khz| *khz != 0)
}

/// Measures the time stamp counter's rate in kHz, asleep.
pub(crate) fn measure_tsc_khz<K: Kapi>() -> Option<u32> {
    let (from, _) = pair::<K>();
    K::sleep(MEASURE_MS);
    let (to, frequency) = pair::<K>();
    rate(from, to, frequency)
}

/// Nanoseconds since 1970 of NT's time.
pub(crate) fn unix_ns(time: i64) -> u64 {
    u64::try_from(time.saturating_sub(EPOCH)).unwrap_or(0).saturating_mul(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tsc: u64, count: i64) -> Pair {
        Pair { tsc, count, width: 0 }
    }

    #[test]
    fn test_the_rate_is_that_of_both_counters() {
        assert_eq!(rate(at(1000, 5), at(250_001_000, 1_000_005), 10_000_000), Some(2_500_000));
        assert_eq!(rate(at(0, 0), at(300_000_000, 357_954), 3_579_545), Some(3_000_004));
    }

    #[test]
    fn test_counters_that_stand_still_or_run_back_have_no_rate() {
        assert_eq!(rate(at(0, 7), at(100, 7), 1000), None);
        assert_eq!(rate(at(0, 8), at(100, 7), 1000), None);
        assert_eq!(rate(at(100, 0), at(0, 7), 1000), None);
        assert_eq!(rate(at(100, 0), at(100, 7), 1000), None);
        assert_eq!(rate(at(0, 0), at(100, 7), 0), None);
        assert_eq!(rate(at(0, i64::MIN), at(u64::MAX, i64::MAX), i64::MAX), None);
    }

    #[test]
    fn test_the_date() {
        assert_eq!(unix_ns(EPOCH), 0);
        assert_eq!(unix_ns(EPOCH + 10_000_000), 1_000_000_000);
        assert_eq!(unix_ns(0), 0, "before 1970");
        assert_eq!(unix_ns(i64::MAX), u64::MAX, "and far behind what 64 bits of nanoseconds have");
    }
}
