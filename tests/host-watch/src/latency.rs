//! How late a program wakes that must run first and sleeps until points of time a millisecond apart: a histogram.

use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

use crate::run_first;

/// The widths of the histogram: microseconds, each its own up to the last, which has all beyond.
const BUCKETS: usize = 10_000;

/// Sleeps `count` times for `period`, and prints how late it woke: what so many of a thousand do not exceed.
pub(crate) fn watch(period: Duration, count: u32) -> io::Result<()> {
    run_first()?;
    let mut histogram = vec![0_u32; BUCKETS];
    let mut overruns = 0;
    let mut longest = Duration::ZERO;
    let mut next = now()?;
    for _ in 0..count {
        next += period;
        let before = now()?;
        if before >= next {
            // It woke so late that the next point of time is over, too.
            overruns += 1;
        }
        sleep_until(next)?;
        let late = now()?.saturating_sub(next);
        longest = longest.max(late);
        let bucket = usize::try_from(late.as_micros()).unwrap_or(BUCKETS).min(BUCKETS - 1);
        histogram[bucket] += 1;
    }
    let [half, most, nearly_all] = [500, 990, 999].map(|share| quantile(&histogram, count, share));
    println!(
        "latency: {count} wake-ups, 50 % within {half} us, 99 % {most} us, 99.9 % {nearly_all} us, all {} us, {overruns} missed",
        longest.as_micros()
    );
    Ok(())
}

/// The microseconds that `share` of a thousand wake-ups do not exceed.
fn quantile(histogram: &[u32], count: u32, share: u64) -> usize {
    let wanted = (u64::from(count) * share).div_ceil(1000);
    let mut seen = 0;
    let bucket = histogram.iter().position(|entries| {
        seen += u64::from(*entries);
        seen >= wanted
    });
    // A bucket's wake-ups were late by less than the next one's microseconds.
    bucket.map_or(BUCKETS, |bucket| bucket + 1)
}

fn now() -> io::Result<Duration> {
    // SAFETY: all zeros are a right value.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live value.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return crate::last_error();
    }
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
    Ok(Duration::new(seconds, nanoseconds))
}

fn sleep_until(point: Duration) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(point.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: point.subsec_nanos().into(),
    };
    // SAFETY: the pointer is to a live value.
    let result =
        unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const time, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}
