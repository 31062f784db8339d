//! The machine's sleep. No thread is in the driver's code then but where it waits, and virtualization is off on every CPU: a CPU
//! that sleeps forgets what it was told.
//!
//! Everybody passes the gate on the way into a call, and again behind each wait in it. Who goes to sleep shuts the gate, has
//! every guest exit, and waits until nobody is inside; a thread in `RUN` sees by [`Gate::is_shut`] that it has to step aside.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_core::host::Interrupted;

use crate::kapi::EventKind;
use crate::kapi::Kapi;
use crate::kapi::KernelEvent;
use crate::kapi::WaitKind;
use crate::status::NtStatus;

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    shut: AtomicBool,
    /// Threads behind it that do not wait.
    inside: AtomicUsize,
    /// Set while it is open.
    open: KernelEvent,
}

/// How long who shuts it waits for those inside, in milliseconds: adding memory takes longest.
const PATIENCE_MS: u32 = 20_000;

impl Gate {
    pub(crate) const fn new() -> Self {
        Self { shut: AtomicBool::new(false), inside: AtomicUsize::new(0), open: KernelEvent::new() }
    }

    /// Opens it for the first time.
    ///
    /// # Safety
    /// Nobody uses it yet, and it does not move any more.
    pub(crate) unsafe fn initialize<K: Kapi>(&self) {
        self.shut.store(false, Ordering::SeqCst);
        // SAFETY: by the caller.
        unsafe { K::event_initialize(&self.open, EventKind::Notification, true) };
    }

    /// Whether who is inside is to step aside.
    #[inline]
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    /// Passes it, when it is open.
    ///
    /// # Errors
    /// [`Interrupted`] where the thread is to end before that.
    #[inline]
    pub(crate) fn enter<K: Kapi>(&self) -> Result<(), Interrupted> {
        loop {
            // First in, then the look: who shuts it does that first, and looks who is in then.
            self.inside.fetch_add(1, Ordering::SeqCst);
            if !self.is_shut() {
                return Ok(());
            }
            self.leave();
            self.wait_open::<K>()?;
        }
    }

    #[cold]
    fn wait_open<K: Kapi>(&self) -> Result<(), Interrupted> {
        // SAFETY: initialize() came before.
        match unsafe { K::event_wait(&self.open, WaitKind::Interruptible) } {
            NtStatus::SUCCESS => Ok(()),
            _ => Err(Interrupted),
        }
    }

    /// Leaves it.
    #[inline]
    pub(crate) fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits for something outside of it. Whatever comes of that, the thread is inside again then, be it that the gate is shut:
    /// if so it is interrupted, and goes no other way than out.
    pub(crate) fn aside<K: Kapi>(&self, wait: impl FnOnce() -> Result<(), Interrupted>) -> Result<(), Interrupted> {
        self.leave();
        let waited = wait();
        let back = self.enter::<K>();
        if back.is_err() {
            self.inside.fetch_add(1, Ordering::SeqCst);
        }
        waited.and(back)
    }

    /// Shuts it. `rouse` makes those inside look.
    pub(crate) fn shut<K: Kapi>(&self, rouse: impl Fn()) {
        // SAFETY: initialize() came before.
        unsafe { K::event_clear(&self.open) };
        self.shut.store(true, Ordering::SeqCst);
        for _ in 0..PATIENCE_MS {
            if self.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            rouse();
            K::sleep(1);
        }
        log::error!("the machine sleeps while a call is in the driver");
    }

    /// Opens it.
    pub(crate) fn open<K: Kapi>(&self) {
        self.shut.store(false, Ordering::SeqCst);
        // SAFETY: initialize() came before.
        unsafe { K::event_set(&self.open, 0) };
    }
}
