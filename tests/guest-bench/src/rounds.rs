//! Counting.

use core::arch::x86_64::_rdtsc;
use std::io;

/// How many rounds are measured; odd, so that there is a median.
const ROUNDS: usize = 21;

/// The time stamp counter.
pub(crate) fn counter() -> u64 {
    // SAFETY: reads a counter that every x86-64 CPU has; Linux lets user space read it.
    unsafe { _rdtsc() }
}

/// What one of the operations takes of which `round` does `count`: the median of the rounds' means, rounded down, so that
/// rounds with an interrupt between do not matter. One more round comes first and is not counted. `round` gives the counter's
/// difference, since not all that it does belongs to the operation.
pub(crate) fn measure(count: u32, mut round: impl FnMut(u32) -> io::Result<u64>) -> io::Result<u64> {
    round(count)?;
    let mut taken = [0; ROUNDS];
    for value in &mut taken {
        *value = round(count)?;
    }
    Ok(median(taken) / u64::from(count))
}

fn median(mut values: [u64; ROUNDS]) -> u64 {
    values.sort_unstable();
    values[ROUNDS / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_interrupted_round_does_not_matter() {
        let mut rounds = 0;
        let figure = measure(10, |count| {
            assert_eq!(count, 10);
            rounds += 1;
            Ok(if rounds == 5 { 9_999_999 } else { 1239 })
        });
        assert_eq!((figure.unwrap(), rounds), (123, ROUNDS + 1));
    }

    #[test]
    fn a_failing_round_ends_it() {
        assert!(measure(1, |_| Err(io::Error::other("no"))).is_err());
    }
}
