//! What vCPUs' threads wait for, timers, and events of the loader's.
//!
//! All three are objects that the kernel has pointers to, so they are in boxes, and the driver's heap is never paged.

use alloc::boxed::Box;
use core::ffi::c_void;
use core::marker::PhantomData;

use covisor_core::device::try_box;
use covisor_core::host::Interrupted;
use covisor_core::host::OutOfMemory;
use covisor_core::host::TimerCallback;

use crate::kapi::EventKind;
use crate::kapi::EventObject;
use crate::kapi::Kapi;
use crate::kapi::KernelDpc;
use crate::kapi::KernelEvent;
use crate::kapi::KernelTimer;
use crate::kapi::WaitKind;
use crate::status::NtStatus;

/// What is added to the priority of a thread that waited for an event of the loader's (`EVENT_INCREMENT`): enough to get the CPU
/// from the vCPU's thread when that lets go.
const BOOST: i32 = 1;
/// What timers expire at while there are any, in 100 ns. A guest's clock ticks 250 or 1000 times a second.
const RESOLUTION: u32 = 10_000;
/// Nanoseconds of a unit of NT's time.
const UNIT_NS: u64 = 100;

/// Where a vCPU's thread sleeps.
#[derive(Debug)]
pub struct Waker<K: Kapi> {
    event: Box<KernelEvent>,
    kapi: PhantomData<fn() -> K>,
}

impl<K: Kapi> Waker<K> {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let event = try_box(KernelEvent::new())?;
        // SAFETY: just made, and in a box.
        unsafe { K::event_initialize(&event, EventKind::Synchronization, false) };
        Ok(Self { event, kapi: PhantomData })
    }

    /// Sleeps until it is woken, or was since the last sleep. An alert, a user APC or the end of the thread end that.
    pub(crate) fn sleep(&self) -> Result<(), Interrupted> {
        // SAFETY: new() initialized it.
        match unsafe { K::event_wait(&self.event, WaitKind::Interruptible) } {
            NtStatus::SUCCESS => Ok(()),
            _ => Err(Interrupted),
        }
    }

    pub(crate) fn wake(&self) {
        // SAFETY: new() initialized it.
        unsafe { K::event_set(&self.event, BOOST) };
    }
}

/// What the kernel has pointers to of a timer.
#[derive(Debug)]
struct Expiry {
    timer: KernelTimer,
    dpc: KernelDpc,
    callback: TimerCallback,
}

/// A timer.
#[derive(Debug)]
pub struct Timer<K: Kapi> {
    expiry: Box<Expiry>,
    kapi: PhantomData<fn() -> K>,
}

// SAFETY: the kernel's objects have locks of their own; the callback may run on any CPU by its contract.
unsafe impl<K: Kapi> Send for Timer<K> {}
// SAFETY: as above.
unsafe impl<K: Kapi> Sync for Timer<K> {}

/// The timer's deferred call.
///
/// # Safety
/// `expiry` is what [`Timer::new`] gave.
unsafe extern "C" fn expired(_dpc: *mut c_void, expiry: *mut c_void, _first: *mut c_void, _second: *mut c_void) {
    // SAFETY: dropping the timer waits for this.
    let callback = unsafe { &*expiry.cast_const().cast::<Expiry>() }.callback;
    (callback.function)(callback.argument);
}

impl<K: Kapi> Timer<K> {
    pub(crate) fn new(callback: TimerCallback) -> Result<Self, OutOfMemory> {
        let expiry = try_box(Expiry { timer: KernelTimer::new(), dpc: KernelDpc::new(), callback })?;
        let context = core::ptr::from_ref::<Expiry>(&expiry).cast_mut().cast();
        // SAFETY: just made, and in a box that stays until drop().
        unsafe {
            K::timer_initialize(&expiry.timer);
            K::dpc_initialize(&expiry.dpc, expired, context);
        }
        // The kernel counts who wants that.
        K::timer_resolution(RESOLUTION, true);
        Ok(Self { expiry, kapi: PhantomData })
    }

    pub(crate) fn set(&self, delay_ns: u64) {
        // Rounded up: when it expires it is time. 0 would be the year 1601.
        let units = delay_ns.div_ceil(UNIT_NS).max(1);
        // SAFETY: new() initialized them.
        unsafe { K::timer_set(&self.expiry.timer, units, &self.expiry.dpc) };
    }

    pub(crate) fn cancel(&self) {
        // SAFETY: new() initialized them.
        unsafe {
            if !K::timer_cancel(&self.expiry.timer) {
                K::dpc_remove(&self.expiry.dpc);
            }
        }
    }
}

impl<K: Kapi> Drop for Timer<K> {
    fn drop(&mut self) {
        self.cancel();
        // It may run on another CPU at this moment.
        K::dpc_flush();
        K::timer_resolution(RESOLUTION, false);
    }
}

/// An event of the loader's.
#[derive(Debug)]
pub struct Event<K: Kapi> {
    object: EventObject,
    kapi: PhantomData<fn() -> K>,
}

impl<K: Kapi> Event<K> {
    pub(crate) fn open(handle: i64) -> Option<Self> {
        let object = K::event_object(isize::try_from(handle).ok()?)?;
        Some(Self { object, kapi: PhantomData })
    }

    pub(crate) fn signal(&self) {
        // SAFETY: the reference is held.
        unsafe { K::event_object_set(self.object, BOOST) };
    }
}

impl<K: Kapi> Drop for Event<K> {
    fn drop(&mut self) {
        // SAFETY: open() took the reference, and this is its only end.
        unsafe { K::event_object_release(self.object) };
    }
}
