//! Times. Windows counts units of 100 ns from 1601 on, Linux seconds and nanoseconds from 1970 on.

/// Units in a second.
const SECOND: i64 = 10_000_000;
/// Seconds between 1601 and 1970.
const SECONDS_TO_1970: i64 = 11_644_473_600;
/// Nanoseconds in a unit.
const NANOSECONDS: u32 = 100;

/// Seconds and nanoseconds from 1970 on.
pub(in crate::sys) fn to_linux(time: i64) -> (i64, u32) {
    let nanoseconds = u32::try_from(time.rem_euclid(SECOND)).unwrap_or(0) * NANOSECONDS;
    (time.div_euclid(SECOND) - SECONDS_TO_1970, nanoseconds)
}

/// Units from 1601 on, cut off. What was before is the first unit, what is too late the last: 0 and less mean something else to
/// NT.
pub(in crate::sys) fn to_windows(seconds: i64, nanoseconds: u32) -> i64 {
    let seconds = seconds.saturating_add(SECONDS_TO_1970).saturating_mul(SECOND);
    seconds.saturating_add(i64::from(nanoseconds / NANOSECONDS)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_times_are_those_of_the_other() {
        // 2000-01-01 and 1969-12-31 23:59:55.5, by `[DateTime]::FromFileTimeUtc`.
        for (windows, linux) in [
            (125_911_584_000_000_000, (946_684_800, 0)),
            (116_444_736_000_000_000, (0, 0)),
            (116_444_735_955_000_001, (-5, 500_000_100)),
            (1, (-11_644_473_600, 100)),
            (i64::MAX, (910_692_730_085, 477_580_700)),
        ] {
            assert_eq!(to_linux(windows), linux);
            assert_eq!(to_windows(linux.0, linux.1), windows);
        }
        assert_eq!(to_windows(0, 199), 116_444_736_000_000_001);
    }

    #[test]
    fn test_times_that_windows_does_not_have_are_its_first_and_last() {
        assert_eq!((to_windows(i64::MIN, 0), to_windows(-11_644_473_600, 0)), (1, 1));
        assert_eq!(to_windows(i64::MAX, 999_999_999), i64::MAX);
        assert_eq!(to_linux(-1).0, -11_644_473_601);
    }
}
