//! Whether a clock has jumped between two looks at it.

use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// A clock that is slewed, or read late, does not differ by so much.
const TOLERANCE: Duration = Duration::from_millis(100);
/// Between two looks there is no more than this, unless the host slept.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// A look at the clocks.
#[derive(Debug, Clone, Copy)]
pub(in crate::sys) struct Look {
    monotonic: Instant,
    wall: SystemTime,
}

impl Look {
    pub(in crate::sys) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Whether the clock was set since another look, or the host slept.
    pub(in crate::sys) fn is_after_a_jump(&self, before: &Self) -> bool {
        let passed = self.monotonic.saturating_duration_since(before.monotonic);
        let differs = match self.wall.duration_since(before.wall) {
            Ok(forward) => forward.abs_diff(passed) > TOLERANCE,
            Err(back) => back.duration() + passed > TOLERANCE,
        };
        differs || passed > LONGEST_INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_steps_and_sleep_are_jumps_and_ticks_are_none() {
        let before = Look::now();
        let second = Duration::from_secs(1);
        let later = |passed: Duration, wall: SystemTime| Look { monotonic: before.monotonic + passed, wall };
        for (look, jumped) in [
            (before, false),
            (later(second, before.wall + second), false),
            (later(second, before.wall + second + TOLERANCE), false),
            (later(second, before.wall + 3600 * second), true),
            (later(second, before.wall), true),
            (later(second, before.wall - 3600 * second), true),
            (later(Duration::ZERO, before.wall - TOLERANCE), false),
            // The counter stood still, or did not, while the host slept.
            (later(second, before.wall + 60 * second), true),
            (later(60 * second, before.wall + 60 * second), true),
        ] {
            assert_eq!(look.is_after_a_jump(&before), jumped, "{look:?} after {before:?}");
        }
    }
}
