//! An orderly end of a guest: its power button is pressed, again and again, until it powers off or its time is over.

use std::time::Duration;
use std::time::Instant;

use crate::control::AGAIN_INTERVAL;

/// What is to be done for the stop of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Press its power button.
    Press,
    /// Its time is over: end it.
    End,
}

/// A stop that has begun.
#[derive(Debug)]
pub(super) struct Stop {
    patience: Duration,
    next_press: Instant,
    end: Option<Instant>,
}

impl Stop {
    /// A stop that begins now, of a guest that may take so long.
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self { patience, next_press: now, end: now.checked_add(patience) }
    }

    /// How long the guest may take.
    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// When there is something to be done next.
    pub(super) fn due(&self) -> Instant {
        self.end.map_or(self.next_press, |end| end.min(self.next_press))
    }

    /// What is to be done now, if anything.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        if self.end.is_some_and(|end| now >= end) {
            return Some(Step::End);
        }
        if now < self.next_press {
            return None;
        }
        self.next_press = now + AGAIN_INTERVAL;
        Some(Step::Press)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_stop_presses_the_button_then_ends() {
        let start = Instant::now();
        let mut stop = Stop::new(start, Duration::from_secs(12));
        let mut steps = Vec::new();
        while steps.last().is_none_or(|&(_, step)| step == Step::Press) {
            let now = stop.due();
            let step = stop.step(now).expect("something is due");
            steps.push(((now - start).as_secs(), step));
            assert!(step == Step::End || stop.step(now).is_none());
        }
        assert_eq!(steps, [(0, Step::Press), (5, Step::Press), (10, Step::Press), (12, Step::End)]);
    }

    #[test]
    fn test_a_guest_without_time_is_ended_at_once() {
        let start = Instant::now();
        assert_eq!(Stop::new(start, Duration::ZERO).step(start), Some(Step::End));
    }

    #[test]
    fn test_there_may_be_time_without_end() {
        let start = Instant::now();
        assert_eq!(Stop::new(start, Duration::MAX).step(start), Some(Step::Press));
    }
}
