//! An open handle of the device, and its calls.
//!
//! **Buffers.** All codes are METHOD_BUFFERED: what a call reads and writes is a copy of the I/O manager's, which no program can
//! change meanwhile. Both sizes are those of the call's structure, exactly. Codes demand FILE_READ_ACCESS and FILE_WRITE_ACCESS
//! of the handle, which the I/O manager checks.
//!
//! **`RUN`** is carried out by the thread that makes the call, which is what a vCPU is here; the request is never pending, so no
//! other thread completes it and nothing of it is left behind when it returns. Four things end it:
//!
//! | what | how it comes to the thread |
//! |---|---|
//! | `Kick`, from any thread | core's flag; the thread is woken, or its CPU interrupted. (NT 5.2 has no way to cancel what another thread waits for) |
//! | a cancel (`CancelIoEx`, `CancelSynchronousIo`: NT 6.0) | the request's cancel routine does the same |
//! | the end of the thread or its process | waits in user mode end by that; the flag of the thread is looked at before each stay in the guest, and the kernel's request for it ends a stay |
//! | the last handle is closed | IRP_MJ_CLEANUP stops the VM, for this and every later `RUN` |
//!
//! A handle is to be opened for overlapped I/O. For others the I/O manager has one call wait for the other, so nothing can be
//! asked of a VM that runs, closing it included; that hurts nobody but the program itself.
//!
//! **Who calls** is the process that opened the device, for guest RAM is mapped there and events are named by its handles. Others
//! that came by the handle are refused.

use alloc::boxed::Box;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;

use covisor_abi::Call;
use covisor_abi::MAX_VCPUS;
use covisor_abi::Run;
use covisor_core::device::CallError;
use covisor_core::device::Driver;
use covisor_core::device::Handle;
use covisor_core::device::try_box;
use covisor_core::host::OutOfMemory;

use crate::host::Nt;
use crate::kapi::Irp;
use crate::kapi::Kapi;
use crate::kapi::Process;
use crate::status::NtStatus;

/// A device control request, decoded.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// `IoControlCode`.
    pub code: u32,
    /// `SystemBuffer`; null where both sizes are 0.
    pub buffer: *mut u8,
    /// `InputBufferLength`.
    pub input: usize,
    /// `OutputBufferLength`.
    pub output: usize,
}

/// What a request is completed with (`IO_STATUS_BLOCK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: NtStatus,
    /// Bytes that are copied back.
    pub information: usize,
}

/// What a cancel of a vCPU's `RUN` gets to see. Not on the thread's stack, which may be paged out while it waits.
struct RunSlot<K: Kapi> {
    handle: NonNull<Handle<Nt<K>>>,
    vcpu: u32,
    /// A thread is in it. Core would refuse the second one too, but not before a cancel of that could end the first.
    busy: AtomicBool,
}

/// An open handle.
pub(crate) struct File<K: Kapi> {
    handle: Box<Handle<Nt<K>>>,
    /// It is referenced.
    opener: Process,
    runs: [RunSlot<K>; MAX_VCPUS as usize],
}

// SAFETY: the pointers in it are to its own handle, which any thread may use.
unsafe impl<K: Kapi> Send for File<K> {}
// SAFETY: as above.
unsafe impl<K: Kapi> Sync for File<K> {}

impl<K: Kapi> File<K> {
    /// The calling process opens the device.
    pub(crate) fn open(driver: &'static Driver<Nt<K>>) -> Result<Box<Self>, OutOfMemory> {
        let handle = Handle::new(driver)?;
        let pointer = NonNull::from(&*handle);
        let runs = core::array::from_fn(|vcpu| RunSlot {
            handle: pointer,
            #[expect(clippy::cast_possible_truncation, reason = "it is below MAX_VCPUS")]
            vcpu: vcpu as u32,
            busy: AtomicBool::new(false),
        });
        let opener = K::current_process();
        let file = try_box(Self { handle, opener, runs })?;
        // SAFETY: it is the current process.
        unsafe { K::process_reference(opener) };
        Ok(file)
    }

    /// The last handle is closed; requests may still be on their way.
    pub(crate) fn cleanup(&self) {
        self.handle.stop();
    }

    /// Nothing comes any more.
    pub(crate) fn close(self: Box<Self>) {
        let opener = self.opener;
        // The VM goes, and with it its memory in the opener's address space.
        drop(self);
        // SAFETY: open() took the reference.
        unsafe { K::process_release(opener) };
    }

    /// Carries a request out.
    ///
    /// # Safety
    /// `irp` is the request, and the caller's. Its buffer has as many bytes as the larger one of the sizes, of which the first
    /// `input` hold values, and is the caller's alone.
    pub(crate) unsafe fn control(&self, irp: Irp, control: Control) -> Answer {
        // SAFETY: by the caller.
        match unsafe { self.carry_out(irp, control) } {
            Ok(()) => Answer { status: NtStatus::SUCCESS, information: control.output },
            Err(status) => Answer { status, information: 0 },
        }
    }

    /// # Safety
    /// As [`File::control`].
    unsafe fn carry_out(&self, irp: Irp, control: Control) -> Result<(), NtStatus> {
        let call = Call::from_nt_code(control.code).ok_or(NtStatus::INVALID_DEVICE_REQUEST)?;
        if control.input != call.size() || control.output != call.size() || control.buffer.is_null() {
            return Err(NtStatus::INFO_LENGTH_MISMATCH);
        }
        if K::current_process() != self.opener {
            return Err(NtStatus::ACCESS_DENIED);
        }
        // SAFETY: by the caller; all bytes hold values, since the input is as long.
        let bytes = unsafe { core::slice::from_raw_parts_mut(control.buffer, call.size()) };
        let gate = K::port().gate();
        gate.enter::<K>().map_err(CallError::from)?;
        let result = match call {
            // SAFETY: by the caller.
            Call::Run => unsafe { self.run(irp, bytes) },
            _ => self.handle.call(call, bytes),
        };
        gate.leave();
        Ok(result?)
    }

    /// # Safety
    /// `irp` is the caller's.
    unsafe fn run(&self, irp: Irp, bytes: &mut [u8]) -> Result<(), CallError> {
        const _: () = assert!(offset_of!(Run, vcpu) == 0);
        let vcpu = bytes.first_chunk().map_or(u32::MAX, |vcpu| u32::from_le_bytes(*vcpu));
        let slot = self.runs.get(vcpu as usize).ok_or(CallError::NotFound)?;
        if slot.busy.swap(true, Ordering::Acquire) {
            return Err(CallError::Busy);
        }
        // SAFETY: the request is the caller's; the slot stays until the close, before which this returns.
        let cancelled = unsafe {
            K::set_cancel_routine(irp, Some(NonNull::from(slot).cast()));
            K::is_cancelled(irp)
        };
        // A cancel that came before the routine was set has not called it.
        let result = if cancelled { Err(CallError::Interrupted) } else { self.handle.call(Call::Run, bytes) };
        // SAFETY: as above.
        if !unsafe { K::set_cancel_routine(irp, None) } {
            // A cancel has taken it, and may be in it still.
            K::wait_for_cancel_routines();
        }
        slot.busy.store(false, Ordering::Release);
        result
    }
}

/// A `RUN` is cancelled: what [`File::run`] gave to [`Kapi::set_cancel_routine`] says which. At DISPATCH_LEVEL.
///
/// # Safety
/// `slot` is of a file that is not closed before the return.
pub(crate) unsafe fn cancelled<K: Kapi>(slot: NonNull<c_void>) {
    // SAFETY: by the caller; the handle is there as long as its file.
    unsafe {
        let slot = slot.cast::<RunSlot<K>>().as_ref();
        slot.handle.as_ref().interrupt(slot.vcpu);
    }
}
