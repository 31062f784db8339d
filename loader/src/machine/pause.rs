//! Moments in which no vCPU runs.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::platform::lock;

/// Where vCPUs' threads stop for a moment.
#[derive(Debug, Default)]
pub struct Pause {
    /// Somebody wants one. Looked at before each run, so it is apart from the lock.
    wanted: AtomicBool,
    /// vCPUs that are not here.
    running: Mutex<u32>,
    changed: Condvar,
    /// Who has a pause.
    holder: Mutex<()>,
}

impl Pause {
    /// A vCPU begins. It ends with what is returned.
    pub fn enter(&self) -> Running<'_> {
        let mut running = lock(&self.running);
        running = self.wait_while_wanted(running);
        *running += 1;
        Running(self)
    }

    fn wait_while_wanted<'a>(&self, running: MutexGuard<'a, u32>) -> MutexGuard<'a, u32> {
        let wanted = |_: &mut u32| self.wanted.load(Ordering::SeqCst);
        self.changed.wait_while(running, wanted).unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `work` while no vCPU runs. `kick` makes those return that do, and is called once `wanted` can be seen.
    pub fn hold<T>(&self, kick: impl FnOnce(), work: impl FnOnce() -> T) -> T {
        let _holder = lock(&self.holder);
        let _wanted = Wanted::by(self);
        kick();
        let running = lock(&self.running);
        let _none = self.changed.wait_while(running, |count| *count != 0).unwrap_or_else(PoisonError::into_inner);
        work()
    }
}

/// Somebody wants a pause. It is over when this goes, be it by a panic, so that vCPUs never wait in vain.
struct Wanted<'a>(&'a Pause);

impl<'a> Wanted<'a> {
    fn by(pause: &'a Pause) -> Self {
        pause.wanted.store(true, Ordering::SeqCst);
        Self(pause)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.wanted.store(false, Ordering::SeqCst);
        // Who saw it wanted waits by now.
        drop(lock(&self.0.running));
        self.0.changed.notify_all();
    }
}

/// A vCPU that is not in a pause.
#[derive(Debug)]
pub struct Running<'a>(&'a Pause);

impl Running<'_> {
    /// Waits out a pause, if somebody wants one: called between two runs.
    #[inline]
    pub fn give_way(&self) {
        if self.0.wanted.load(Ordering::Acquire) {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let mut running = lock(&self.0.running);
        *running -= 1;
        self.0.changed.notify_all();
        running = self.0.wait_while_wanted(running);
        *running += 1;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    #[test]
    fn test_nobody_runs_in_a_pause() {
        let (pause, inside, stop) = (Pause::default(), AtomicU32::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let running = pause.enter();
                    while !stop.load(Ordering::Relaxed) {
                        running.give_way();
                        inside.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            let pausing = [(); 2].map(|()| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pause.hold(|| {}, || assert_eq!(inside.load(Ordering::SeqCst), 0));
                    }
                })
            });
            for thread in pausing {
                thread.join().expect("nobody runs");
            }
            stop.store(true, Ordering::Relaxed);
        });
        pause.hold(|| {}, || ());
    }

    #[test]
    fn test_a_pause_that_panics_is_over() {
        let pause = Pause::default();
        thread::scope(|scope| {
            let panics = scope.spawn(|| pause.hold(|| {}, || panic!("as it should")));
            panics.join().expect_err("it panics");
        });
        pause.enter().give_way();
        pause.hold(|| {}, || ());
    }

    #[test]
    fn test_a_vcpu_that_ends_holds_nobody_up() {
        let pause = Pause::default();
        let running = pause.enter();
        thread::scope(|scope| {
            let (kicked, done) = std::sync::mpsc::channel();
            scope.spawn(|| pause.hold(move || kicked.send(()).expect("somebody waits"), || ()));
            done.recv().expect("it asks");
            drop(running);
        });
    }
}
