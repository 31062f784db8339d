//! The program that a call is for.
//!
//! Wine says it in the thread that hands out requests, and nowhere else. A thread that works for another program keeps that in
//! the word of its block that is for whatever a thread likes (`NT_TIB.ArbitraryUserPointer`).

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;
use core::ptr::NonNull;

use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::kapi::ApcState;
use covisor_nt::kapi::EventObject;
use covisor_nt::kapi::Process;
use wdk_sys::HANDLE;
use wdk_sys::ntddk;

use crate::imports;
use crate::kernel;
use crate::status;

/// The word's place in a thread's block.
const GS_USER_POINTER: usize = 0x28;
/// `PROCESS_ALL_ACCESS`.
const ALL_ACCESS: u32 = 0x001f_ffff;
/// `EVENT_MODIFY_STATE`.
const EVENT_MODIFY_STATE: u32 = 2;
/// `OBJ_KERNEL_HANDLE`.
const KERNEL_HANDLE: u32 = 0x200;
/// `KernelMode`.
const KERNEL_MODE: i8 = 0;
/// `NtCurrentProcess()`: Wine's process for drivers.
pub(super) const OURSELVES: HANDLE = ptr::without_provenance_mut(usize::MAX);

/// Whom the calling thread works for, if that is not for Wine to say.
fn chosen() -> *mut c_void {
    let process;
    // SAFETY: only reads the word.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) process, const GS_USER_POINTER, options(nostack, readonly, preserves_flags));
    }
    process
}

fn choose(process: *mut c_void) {
    // SAFETY: nobody else uses the word while this driver's code runs.
    unsafe { asm!("mov gs:[{}], {}", const GS_USER_POINTER, in(reg) process, options(nostack, preserves_flags)) };
}

/// The process that the calling thread works for.
pub(super) fn current() -> Process {
    NonNull::new(chosen()).map_or_else(kernel::Kernel::current_process, Process)
}

/// Calls it on behalf of a process.
pub(super) fn on_behalf_of<T>(process: Process, call: impl FnOnce() -> T) -> T {
    let before = chosen();
    choose(process.0.as_ptr());
    let result = call();
    choose(before);
    result
}

/// [`Kapi::attach`].
///
/// # Safety
/// As there.
pub(super) unsafe fn attach(process: Process, state: &ApcState) {
    // SAFETY: it is longer than a pointer, and the caller's alone.
    unsafe { state.as_ptr().cast::<*mut c_void>().write(chosen()) };
    choose(process.0.as_ptr());
}

/// [`Kapi::detach`].
///
/// # Safety
/// As there.
pub(super) unsafe fn detach(state: &ApcState) {
    // SAFETY: attach() wrote it.
    choose(unsafe { state.as_ptr().cast::<*mut c_void>().read() });
}

/// A handle of Wine's process.
#[derive(Debug)]
pub(super) struct Handle(pub(super) HANDLE);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody uses it any more. Closing it cannot fail.
        let _ = unsafe { ntddk::ZwClose(self.0) };
    }
}

/// Opens the process that the calling thread works for.
pub(super) fn open() -> Result<Handle, NtStatus> {
    let mut handle = ptr::null_mut();
    // SAFETY: it is referenced; the handle is closed by its owner.
    status(unsafe {
        ntddk::ObOpenObjectByPointer(
            current().0.as_ptr(),
            KERNEL_HANDLE,
            ptr::null_mut(),
            ALL_ACCESS,
            ptr::null_mut(),
            KERNEL_MODE,
            &raw mut handle,
        )
    })?;
    Ok(Handle(handle))
}

/// The event that a handle of that process names.
pub(super) fn event(handle: isize) -> Option<EventObject> {
    let process = open().ok()?;
    let (mut copy, mut object) = (ptr::null_mut(), ptr::null_mut());
    let name = ptr::without_provenance_mut(handle.cast_unsigned());
    // SAFETY: both processes are open. The handle may be anything.
    status(unsafe {
        ntddk::ZwDuplicateObject(process.0, name, OURSELVES, &raw mut copy, EVENT_MODIFY_STATE, KERNEL_HANDLE, 0)
    })
    .ok()?;
    let copy = Handle(copy);
    // SAFETY: the loader filled the slot with the address of Wine's variable; the handle is open.
    status(unsafe {
        ntddk::ObReferenceObjectByHandle(
            copy.0,
            EVENT_MODIFY_STATE,
            (*imports::EVENT_OBJECT_TYPE).cast(),
            KERNEL_MODE,
            &raw mut object,
            ptr::null_mut(),
        )
    })
    .ok()?;
    NonNull::new(object).map(EventObject)
}
