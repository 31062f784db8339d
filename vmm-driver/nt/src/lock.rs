//! A lock that waits asleep, for threads at PASSIVE_LEVEL. The kernel's own of that kind (`FAST_MUTEX`) is an event and a
//! counter too.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ops::DerefMut;

use crate::kapi::EventKind;
use crate::kapi::Kapi;
use crate::kapi::KernelEvent;
use crate::kapi::WaitKind;

/// A value that one thread at a time has.
#[derive(Debug)]
pub(crate) struct Lock<K: Kapi, T> {
    /// Set while nobody has it.
    free: KernelEvent,
    value: UnsafeCell<T>,
    kapi: PhantomData<fn() -> K>,
}

// SAFETY: only the holder reaches the value.
unsafe impl<K: Kapi, T: Send> Sync for Lock<K, T> {}

impl<K: Kapi, T> Lock<K, T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { free: KernelEvent::new(), value: UnsafeCell::new(value), kapi: PhantomData }
    }

    /// Makes it ready for use.
    ///
    /// # Safety
    /// Nobody uses it yet, and it does not move any more.
    pub(crate) unsafe fn initialize(&self) {
        // SAFETY: by the caller.
        unsafe { K::event_initialize(&self.free, EventKind::Synchronization, true) };
    }

    /// Waits until nobody else has it. The holder is not suspended, so nobody waits for a debugger.
    pub(crate) fn lock(&self) -> Guard<'_, K, T> {
        K::enter_critical_region();
        // SAFETY: it was initialized at the driver's start. Nothing ends the wait but the event.
        unsafe { K::event_wait(&self.free, WaitKind::Firm) };
        Guard(self)
    }
}

/// Who has the value.
pub(crate) struct Guard<'a, K: Kapi, T>(&'a Lock<K, T>);

impl<K: Kapi, T> Deref for Guard<'_, K, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the event let this thread pass, and no other one until the drop.
        unsafe { &*self.0.value.get() }
    }
}

impl<K: Kapi, T> DerefMut for Guard<'_, K, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in deref().
        unsafe { &mut *self.0.value.get() }
    }
}

impl<K: Kapi, T> Drop for Guard<'_, K, T> {
    fn drop(&mut self) {
        // SAFETY: it is initialized, and lock() entered the region.
        unsafe {
            K::event_set(&self.0.free, 0);
            K::leave_critical_region();
        }
    }
}
