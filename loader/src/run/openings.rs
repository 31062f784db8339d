//! Disks on their way into a running machine.
//!
//! To open an image takes as long as to count what is in it, which may be seconds. A thread does it, while the machine goes on and
//! whoever gave the disk asks again and again. Who does not come for [`ABANDONED`] is gone, and the disk is closed.

use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::Disk;
use crate::disk::BlockBackend;
use crate::disk::DiskError;
use crate::platform::lock;

/// Who does not come for so long is gone.
const ABANDONED: Duration = Duration::from_secs(5);

/// How opening it ended.
pub(super) type Opened = Result<Box<dyn BlockBackend>, DiskError>;

/// What has become of a disk.
#[derive(Debug)]
pub(super) enum Progress {
    /// It is being opened.
    Opening,
    /// It is open, or cannot be opened.
    Ended(Disk, Opened),
    /// There is none of this number: nobody has asked for it for too long.
    Gone,
}

#[derive(Debug)]
enum State {
    Opening,
    Opened(Opened),
    Gone,
}

/// A disk that is being opened.
#[derive(Debug)]
struct Opening {
    /// Its state, and when it was asked for last.
    state: Mutex<(State, Instant)>,
    changed: Condvar,
    abandoned: Duration,
}

impl Opening {
    /// The end of the thread that opens it.
    fn end(&self, opened: Opened) {
        let mut state = lock(&self.state);
        state.0 = State::Opened(opened);
        self.changed.notify_all();
        while let (State::Opened(_), asked) = &*state {
            let Some(left) = self.abandoned.checked_sub(asked.elapsed()).filter(|left| !left.is_zero()) else {
                state.0 = State::Gone;
                return;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what came of it, if it does within this time.
    fn take(&self, patience: Duration) -> State {
        let mut state = lock(&self.state);
        state.1 = Instant::now();
        let mut state = self
            .changed
            .wait_timeout_while(state, patience, |(state, _)| matches!(state, State::Opening))
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        state.1 = Instant::now();
        if matches!(state.0, State::Opening) {
            return State::Opening;
        }
        self.changed.notify_all();
        std::mem::replace(&mut state.0, State::Gone)
    }
}

/// All that are being opened.
#[derive(Debug)]
pub(super) struct Openings {
    given: u64,
    openings: Vec<(u64, Disk, Arc<Opening>)>,
    abandoned: Duration,
}

impl Openings {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { given: 0, openings: Vec::new(), abandoned: ABANDONED }
    }

    /// Begins to open a disk by `open`, and gives its number.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn start(&mut self, disk: Disk, open: impl FnOnce() -> Opened + Send + 'static) -> io::Result<u64> {
        self.openings.retain(|(.., opening)| !matches!(lock(&opening.state).0, State::Gone));
        let state = Mutex::new((State::Opening, Instant::now()));
        let opening = Arc::new(Opening { state, changed: Condvar::new(), abandoned: self.abandoned });
        let by_thread = Arc::clone(&opening);
        thread::Builder::new().name("open".to_owned()).spawn(move || by_thread.end(open()))?;
        self.given += 1;
        self.openings.push((self.given, disk, opening));
        Ok(self.given)
    }

    /// What has become of the disk of this number, after this time at most.
    pub(super) fn ask(&mut self, number: u64, patience: Duration) -> Progress {
        let Some(place) = self.openings.iter().position(|(known, ..)| *known == number) else { return Progress::Gone };
        let ended = self.openings[place].2.take(patience);
        if matches!(ended, State::Opening) {
            return Progress::Opening;
        }
        let (_, disk, _) = self.openings.swap_remove(place);
        match ended {
            State::Opened(opened) => Progress::Ended(disk, opened),
            _ => Progress::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::disk::MemoryBackend;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    fn opened() -> Box<dyn BlockBackend> {
        Box::new(MemoryBackend::new(vec![0; 512], false))
    }

    fn disk() -> Disk {
        Disk { name: String::new(), path: "a".into(), read_only: false, format: None }
    }

    #[test]
    fn test_a_disk_that_takes_long_is_opened_all_the_same() {
        let mut openings = Openings::new();
        let (go, may_go) = mpsc::channel();
        let slow = move || {
            may_go.recv().unwrap();
            Ok(opened())
        };
        let number = openings.start(disk(), slow).unwrap();
        // Another one is not kept waiting.
        let other = openings.start(disk(), || Ok(opened())).unwrap();
        assert!(matches!(openings.ask(number, SHORT), Progress::Opening));
        assert!(matches!(openings.ask(other, LONG), Progress::Ended(_, Ok(_))));
        go.send(()).unwrap();
        assert!(matches!(openings.ask(number, LONG), Progress::Ended(disk, Ok(_)) if disk.path.ends_with("a")));
        assert!(matches!(openings.ask(number, SHORT), Progress::Gone));
    }

    #[test]
    fn test_why_it_cannot_be_opened_is_told() {
        let mut openings = Openings::new();
        let missing = Disk { path: "/no/disk".into(), ..disk() };
        let number = openings.start(missing.clone(), move || missing.open()).unwrap();
        assert!(
            matches!(openings.ask(number, LONG), Progress::Ended(_, Err(error)) if error.to_string().contains("/no/disk"))
        );
    }

    #[test]
    fn test_a_disk_that_nobody_asks_for_is_closed() {
        let mut openings = Openings { abandoned: SHORT, ..Openings::new() };
        let number = openings.start(disk(), || Ok(opened())).unwrap();
        let opening = Arc::clone(&openings.openings[0].2);
        while !matches!(lock(&opening.state).0, State::Gone) {
            thread::sleep(SHORT);
        }
        assert!(matches!(openings.ask(number, SHORT), Progress::Gone));
        openings.start(disk(), || Ok(opened())).unwrap();
        assert_eq!(openings.openings.len(), 1);
    }
}
