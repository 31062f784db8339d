//! Locks, condition variables and "once" of one word each, for an NT that has none for programs, over what every NT has: waits by
//! the address of a word. They are behind the functions that Rust's library takes for its own, so they use nothing of that.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::AcqRel;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;

/// NT's keyed events: a release lets one wait for the same address pass, whichever of both comes first.
pub(in crate::sys) trait Keyed {
    /// Waits for a release. False if `milliseconds` pass before that; `None` is for ever.
    fn wait(key: usize, milliseconds: Option<u32>) -> bool;

    /// Lets a wait pass, and waits for one if there is none yet.
    fn release(key: usize);
}

/// The waits are by a word's address, which the kernel does not look at: the word may be gone by then.
fn key(word: &AtomicUsize) -> usize {
    std::ptr::from_ref(word).addr()
}

/// In a lock's word: a thread has it. Above that is the number of those that wait.
const LOCKED: usize = 1;
/// One that waits.
const WAITER: usize = 2;

/// Takes the lock, once nobody has it.
pub(in crate::sys) fn acquire<K: Keyed>(lock: &AtomicUsize) {
    while !try_acquire(lock) {
        // Counted as waiting while another has it, who looks at the count when he lets go.
        let counted = lock.try_update(Relaxed, Relaxed, |word| (word & LOCKED != 0).then(|| word + WAITER));
        if counted.is_ok() {
            K::wait(key(lock), None);
        }
    }
}

/// Takes the lock if nobody has it.
pub(in crate::sys) fn try_acquire(lock: &AtomicUsize) -> bool {
    lock.try_update(Acquire, Relaxed, |word| (word & LOCKED == 0).then_some(word | LOCKED)).is_ok()
}

/// Gives the lock back. One of those that wait tries again, and is not counted meanwhile.
pub(in crate::sys) fn release<K: Keyed>(lock: &AtomicUsize) {
    let key = key(lock);
    let before = lock.update(AcqRel, Relaxed, |word| (word & !LOCKED) - if word >= WAITER { WAITER } else { 0 });
    if before >= WAITER {
        K::release(key);
    }
}

/// How long a release can take, in milliseconds, that is on its way. It may have come already: an NT that lets a wait pass whose time
/// is over just then (ReactOS) tells that wait of its time only.
const SOON: u32 = 1000;

/// Gives the lock back, waits for a wake, and takes the lock again. False if `milliseconds` passed before that. The word is the
/// number of those that wait.
pub(in crate::sys) fn sleep<K: Keyed>(waiters: &AtomicUsize, lock: &AtomicUsize, milliseconds: Option<u32>) -> bool {
    waiters.fetch_add(1, Relaxed);
    release::<K>(lock);
    let mut woken = K::wait(key(waiters), milliseconds);
    if !woken && waiters.try_update(Relaxed, Relaxed, |count| count.checked_sub(1)).is_err() {
        // Who wakes has counted this one, so that a release comes, or came: see `SOON`.
        K::wait(key(waiters), Some(SOON));
        woken = true;
    }
    acquire::<K>(lock);
    woken
}

/// Wakes one that sleeps.
pub(in crate::sys) fn wake<K: Keyed>(waiters: &AtomicUsize) {
    if waiters.try_update(Relaxed, Relaxed, |count| count.checked_sub(1)).is_ok() {
        K::release(key(waiters));
    }
}

/// Wakes all that sleep.
pub(in crate::sys) fn wake_all<K: Keyed>(waiters: &AtomicUsize) {
    let key = key(waiters);
    for _ in 0..waiters.swap(0, Relaxed) {
        K::release(key);
    }
}

/// In the word of a "once": somebody is at it; it is done. Above that is the number of those that wait for it.
const BEGUN: usize = 1;
/// As above.
const DONE: usize = 2;
/// One that waits.
const ONCE_WAITER: usize = 4;

/// Whether the caller is the one to do it, and calls [`complete`] then; otherwise it is done when this returns.
pub(in crate::sys) fn begin<K: Keyed>(once: &AtomicUsize) -> bool {
    loop {
        let before = once.update(AcqRel, Acquire, |word| match word {
            0 => BEGUN,
            word if word & DONE == 0 => word + ONCE_WAITER,
            done => done,
        });
        match before {
            0 => return true,
            word if word & DONE != 0 => return false,
            _ => K::wait(key(once), None),
        };
    }
}

/// It is done.
pub(in crate::sys) fn complete<K: Keyed>(once: &AtomicUsize) {
    let key = key(once);
    for _ in 0..once.swap(DONE, AcqRel) / ONCE_WAITER {
        K::release(key);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;
    use std::collections::HashMap;
    use std::sync::Condvar;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;
    use std::time::Instant;

    use super::*;

    /// By key, releases that are not taken yet, and waits that are not let pass yet.
    static EVENTS: Mutex<Option<HashMap<usize, (usize, usize)>>> = Mutex::new(None);
    static CHANGED: Condvar = Condvar::new();

    struct Fake;

    impl Keyed for Fake {
        fn wait(key: usize, milliseconds: Option<u32>) -> bool {
            let deadline = milliseconds.map(|time| Instant::now() + Duration::from_millis(time.into()));
            let mut events = EVENTS.lock().unwrap();
            events.get_or_insert_default().entry(key).or_default().1 += 1;
            CHANGED.notify_all();
            loop {
                let event = events.get_or_insert_default().entry(key).or_default();
                if event.0 > 0 {
                    *event = (event.0 - 1, event.1 - 1);
                    CHANGED.notify_all();
                    return true;
                }
                let left =
                    deadline.map_or(Duration::from_secs(60), |end| end.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    event.1 -= 1;
                    return false;
                }
                events = CHANGED.wait_timeout(events, left).unwrap().0;
            }
        }

        fn release(key: usize) {
            let mut events = EVENTS.lock().unwrap();
            loop {
                let event = events.get_or_insert_default().entry(key).or_default();
                if event.0 < event.1 {
                    event.0 += 1;
                    CHANGED.notify_all();
                    return;
                }
                events = CHANGED.wait(events).unwrap();
            }
        }
    }

    struct Guarded(AtomicUsize, UnsafeCell<usize>);

    // SAFETY: the lock guards the cell.
    unsafe impl Sync for Guarded {}

    const THREADS: usize = 8;
    const TIMES: usize = 500;

    #[test]
    fn test_one_thread_at_a_time_has_a_lock() {
        let guarded = Guarded(AtomicUsize::new(0), UnsafeCell::new(0));
        let guarded = &guarded;
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        acquire::<Fake>(&guarded.0);
                        assert!(!try_acquire(&guarded.0));
                        // SAFETY: this thread has the lock.
                        unsafe { *guarded.1.get() += 1 };
                        std::thread::yield_now();
                        release::<Fake>(&guarded.0);
                    }
                });
            }
        });
        assert_eq!(guarded.0.load(SeqCst), 0, "as it was");
        // SAFETY: all threads have ended.
        assert_eq!(unsafe { *guarded.1.get() }, THREADS * TIMES);
    }

    #[test]
    fn test_what_is_put_is_taken() {
        let (lock, waiters) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (put, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (lock, waiters, put, taken) = (&lock, &waiters, &put, &taken);
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        acquire::<Fake>(lock);
                        // Some with a time limit, which may pass at any moment.
                        while put.load(SeqCst) == 0 {
                            sleep::<Fake>(waiters, lock, (thread % 2 == 0).then_some(1));
                        }
                        put.fetch_sub(1, SeqCst);
                        taken.fetch_add(1, SeqCst);
                        release::<Fake>(lock);
                    }
                });
            }
            for round in 0..THREADS * TIMES {
                acquire::<Fake>(&lock);
                put.fetch_add(1, SeqCst);
                release::<Fake>(&lock);
                if round % 5 == 0 { wake_all::<Fake>(&waiters) } else { wake::<Fake>(&waiters) }
            }
        });
        assert_eq!(taken.load(SeqCst), THREADS * TIMES);
        assert_eq!((lock.load(SeqCst), waiters.load(SeqCst)), (0, 0), "as they were");
    }

    #[test]
    fn test_a_sleep_ends_by_its_time() {
        let (lock, waiters) = (AtomicUsize::new(0), AtomicUsize::new(0));
        acquire::<Fake>(&lock);
        assert!(!sleep::<Fake>(&waiters, &lock, Some(5)));
        assert_eq!((lock.load(SeqCst), waiters.load(SeqCst)), (LOCKED, 0));
        release::<Fake>(&lock);
        wake::<Fake>(&waiters);
    }

    #[test]
    fn test_once_is_once_and_the_others_wait() {
        for _ in 0..100 {
            let (once, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        if begin::<Fake>(&once) {
                            std::thread::yield_now();
                            count.fetch_add(1, SeqCst);
                            complete::<Fake>(&once);
                        }
                        assert_eq!(count.load(SeqCst), 1);
                    });
                }
            });
            assert_eq!(once.load(SeqCst), DONE);
        }
    }
}
