//! Threads for `RUN`. Requests are handed out by one thread of Wine's, which has to be free for the next one while a guest runs.
//!
//! A cancel comes to that thread as the request's address, be it that the request is completed and freed by then, or another one
//! is there. So requests are not freed at once when they are completed, but when many others have been: what Wine hands out
//! comes in its order, so a cancel of the first comes before those.

use alloc::boxed::Box;
use core::ffi::c_void;
use core::mem;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_core::device::try_box;
use covisor_nt::Answer;
use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::kapi::EventKind;
use covisor_nt::kapi::KernelEvent;
use covisor_nt::kapi::Process;
use covisor_nt::kapi::WaitKind;
use wdk_sys::DEVICE_OBJECT;
use wdk_sys::FILE_OBJECT;
use wdk_sys::IRP;
use wdk_sys::NTSTATUS;
use wdk_sys::ntddk;

use crate::device;
use crate::imports;
use crate::kernel;
use crate::status;
use crate::wine::client;

/// `THREAD_ALL_ACCESS`.
const ALL_ACCESS: u32 = 0x001f_ffff;
/// `SL_PENDING_RETURNED`: what IoMarkIrpPending sets.
const PENDING_RETURNED: u8 = 1;
/// `STATUS_PENDING`.
const PENDING: NTSTATUS = 0x103;

/// A thread.
struct Runner {
    /// The one that was made before.
    next: *mut Runner,
    handle: client::Handle,
    /// There is something to do.
    wake: KernelEvent,
    /// The request, or null.
    request: AtomicPtr<IRP>,
    /// The request's file, and who made it.
    file: AtomicPtr<FILE_OBJECT>,
    process: AtomicPtr<c_void>,
    ends: AtomicBool,
}

/// `STATUS_MORE_PROCESSING_REQUIRED`: a request that is completed is not to be freed.
const KEEP: NTSTATUS = 0xc000_0016_u32.cast_signed();

/// Requests that are completed and not freed yet, as many as are certainly enough.
static KEPT: [AtomicPtr<IRP>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];
/// How many there were.
static COMPLETED: AtomicUsize = AtomicUsize::new(0);
/// What Wine does when a request is completed, the same function for all.
static WINES: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// What is done when a request is completed.
type Completion = unsafe extern "C" fn(*mut DEVICE_OBJECT, *mut IRP, *mut c_void) -> NTSTATUS;

/// A request is completed.
///
/// # Safety
/// Wine calls it; [`start`] put it in the place of Wine's own.
unsafe extern "C" fn completed(device: *mut DEVICE_OBJECT, irp: *mut IRP, context: *mut c_void) -> NTSTATUS {
    // SAFETY: start() stored what it took from the request, which is such a function.
    let status =
        unsafe { mem::transmute::<*mut c_void, Completion>(WINES.load(Ordering::Acquire))(device, irp, context) };
    if status != KEEP {
        let place = COMPLETED.fetch_add(1, Ordering::Relaxed) % KEPT.len();
        // SAFETY: the one that was there was put there by this function.
        unsafe { free(KEPT[place].swap(irp, Ordering::AcqRel)) };
    }
    // Otherwise Wine has still something to do with it, in the thread that a cancel would come to.
    KEEP
}

/// Frees a request, if it is one.
///
/// # Safety
/// It is completed, and [`completed`] kept it.
unsafe fn free(irp: *mut IRP) {
    if !irp.is_null() {
        // SAFETY: all its parts are done, so that this only frees it.
        unsafe { imports::IofCompleteRequest(irp.cast(), 0) };
    }
}

/// All of them. One thread adds, the one that hands out requests.
static RUNNERS: AtomicPtr<Runner> = AtomicPtr::new(ptr::null_mut());

fn all() -> impl Iterator<Item = &'static Runner> {
    // SAFETY: they stay until stop(), after which nothing comes to this module.
    let get = |runner: *mut Runner| unsafe { runner.as_ref() };
    core::iter::successors(get(RUNNERS.load(Ordering::Acquire)), move |runner| get(runner.next))
}

impl Runner {
    /// Makes one more.
    fn new() -> Result<&'static Self, NtStatus> {
        let runner = try_box(Self {
            next: RUNNERS.load(Ordering::Relaxed),
            handle: client::Handle(ptr::null_mut()),
            wake: KernelEvent::new(),
            request: AtomicPtr::new(ptr::null_mut()),
            file: AtomicPtr::new(ptr::null_mut()),
            process: AtomicPtr::new(ptr::null_mut()),
            ends: AtomicBool::new(false),
        })
        .map_err(|_| NtStatus::NO_MEMORY)?;
        let runner = Box::into_raw(runner);
        // SAFETY: it is nobody else's yet; the thread looks at nothing but the event and what is set before that.
        let made = unsafe {
            kernel::Kernel::event_initialize(&(*runner).wake, EventKind::Synchronization, false);
            status(ntddk::PsCreateSystemThread(
                &raw mut (*runner).handle.0,
                ALL_ACCESS,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                Some(thread),
                runner.cast(),
            ))
        };
        if let Err(status) = made {
            // SAFETY: as above. There is no handle to close.
            let Self { handle, .. } = *unsafe { Box::from_raw(runner) };
            core::mem::forget(handle);
            return Err(status);
        }
        RUNNERS.store(runner, Ordering::Release);
        // SAFETY: it stays until stop().
        Ok(unsafe { &*runner })
    }

    fn is_free(&self) -> bool {
        self.request.load(Ordering::Acquire).is_null()
    }
}

/// Has a thread carry the request out.
///
/// # Safety
/// The request is the caller's, and no longer after the return. Called in the thread that hands out requests, as long as
/// [`stop`] was not called.
pub(super) unsafe fn start(irp: *mut IRP) -> NTSTATUS {
    let runner = match all().find(|runner| runner.is_free()).map_or_else(Runner::new, Ok) {
        Ok(runner) => runner,
        // SAFETY: by the caller.
        Err(status) => return unsafe { device::complete(irp, Answer { status, information: 0 }) },
    };
    // SAFETY: by the caller.
    let file = unsafe {
        let location = &mut *device::location(irp);
        location.Control |= PENDING_RETURNED;
        if let Some(wines) = location.CompletionRoutine.replace(completed) {
            WINES.store(wines as *mut c_void, Ordering::Release);
        }
        location.FileObject
    };
    runner.file.store(file, Ordering::Relaxed);
    runner.process.store(client::current().0.as_ptr(), Ordering::Relaxed);
    runner.request.store(irp, Ordering::Release);
    // SAFETY: new() initialized it.
    unsafe { kernel::Kernel::event_set(&runner.wake, 0) };
    PENDING
}

/// Waits until no request on this file is carried out.
pub(super) fn wait_for_those_of(file: *mut FILE_OBJECT) {
    while all().any(|runner| !runner.is_free() && runner.file.load(Ordering::Relaxed) == file) {
        kernel::Kernel::sleep(1);
    }
}

/// Ends all threads, and waits until none is in the driver's code. None has anything to do.
///
/// # Safety
/// Nothing comes to this module any more.
pub(super) unsafe fn stop() {
    let mut next = RUNNERS.swap(ptr::null_mut(), Ordering::Acquire);
    while !next.is_null() {
        // SAFETY: new() made it of a box; its thread uses it until it is over.
        unsafe {
            (*next).ends.store(true, Ordering::Release);
            kernel::Kernel::event_set(&(*next).wake, 0);
            // Without a time limit it returns when the thread is over.
            let _ = ntddk::ZwWaitForSingleObject((*next).handle.0, 0, ptr::null_mut());
            next = Box::from_raw(next).next;
        }
    }
    for kept in &KEPT {
        // SAFETY: completed() kept it.
        unsafe { free(kept.swap(ptr::null_mut(), Ordering::AcqRel)) };
    }
}

/// The thread.
///
/// # Safety
/// `runner` is one, and stays until the thread is over.
unsafe extern "C" fn thread(runner: *mut c_void) {
    // SAFETY: by the caller.
    let runner = unsafe { &*runner.cast_const().cast::<Runner>() };
    loop {
        // SAFETY: it is initialized. Nothing ends the wait but the event.
        unsafe { kernel::Kernel::event_wait(&runner.wake, WaitKind::Firm) };
        let irp = runner.request.load(Ordering::Acquire);
        match NonNull::new(runner.process.load(Ordering::Relaxed)) {
            Some(process) if !irp.is_null() => {
                // SAFETY: start() left the request to this thread. The file is there as long as it has requests.
                unsafe {
                    let answer = client::on_behalf_of(Process(process), || device::carry_out(irp));
                    device::complete(irp, answer);
                }
                runner.request.store(ptr::null_mut(), Ordering::Release);
            }
            _ if runner.ends.load(Ordering::Acquire) => break,
            _ => {}
        }
    }
    // SAFETY: it is a system thread of this driver's, which has nothing any more. It does not return.
    let _ = unsafe { ntddk::PsTerminateSystemThread(0) };
}
