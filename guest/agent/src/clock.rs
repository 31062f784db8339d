//! The guest's clock, when the host's was set or the host slept.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By less than this the clock is left alone: the message was under way, and the guest may have a better clock than the host's.
const TOLERANCE: Duration = Duration::from_millis(100);

/// Sets the clock to this time of day, in nanoseconds since 1970.
pub(crate) fn set(nanoseconds: u64) {
    let time = Duration::from_nanos(nanoseconds);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if differs(now, time)
        && let Err(error) = set_time(time)
    {
        crate::say(&format!("cannot set the guest's clock to the host's: {error}"));
    }
}

fn differs(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) >= TOLERANCE
}

/// Sets the clock to this time since 1970.
fn set_time(time: Duration) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).map_err(io::Error::other)?,
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: the pointer is to a valid timespec.
    match unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let now = Duration::from_secs(1_700_000_000);
        for (difference, is_off) in [(0, false), (99, false), (100, true), (3_600_000, true)] {
            let difference = Duration::from_millis(difference);
            assert_eq!([differs(now, now + difference), differs(now, now - difference)], [is_off; 2]);
        }
    }
}
