//! Requests as Wine makes them.
//!
//! **Close.** Wine sends IRP_MJ_CLOSE when the last handle is closed, and nothing before; requests may still be pending then. So
//! that is both: the file is cleaned up, its `RUN`s end, and then it is closed.
//!
//! **Unload.** NT unloads a driver that is in use when the last handle is closed, and lets nobody open it until then. Wine calls
//! the unload routine at once, and frees the driver's code behind it; so the routine waits.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_abi::Call;
use covisor_nt::Answer;
use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::kapi::Process;
use wdk_sys::DEVICE_OBJECT;
use wdk_sys::DRIVER_OBJECT;
use wdk_sys::FILE_OBJECT;
use wdk_sys::IRP;
use wdk_sys::IRP_MJ_CLOSE;
use wdk_sys::IRP_MJ_CREATE;
use wdk_sys::IRP_MJ_DEVICE_CONTROL;
use wdk_sys::NTSTATUS;

use crate::device;
use crate::entry;
use crate::kernel;
use crate::wine::Kernel;
use crate::wine::client;
use crate::wine::memory;
use crate::wine::runs;

/// Files that are open.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// The driver is to be unloaded when there is none.
static IS_LEAVING: AtomicBool = AtomicBool::new(false);
/// How often who waits for that looks, in milliseconds.
const LOOKS_EVERY: u32 = 10;

/// A request. One thread of Wine's hands out all, one after the other.
///
/// # Safety
/// Wine calls it with a request for this driver's device.
pub(crate) unsafe extern "C" fn dispatch(_device: *mut DEVICE_OBJECT, irp: *mut IRP) -> NTSTATUS {
    // SAFETY: the request is this driver's until it is completed.
    unsafe {
        let location = &*device::location(irp);
        let code = location.Parameters.DeviceIoControl.IoControlCode;
        match u32::from(location.MajorFunction) {
            IRP_MJ_CREATE => create(irp, &mut *location.FileObject),
            IRP_MJ_DEVICE_CONTROL if code == Call::Run.nt_code() => runs::start(irp),
            IRP_MJ_CLOSE => close(irp, &mut *location.FileObject),
            _ => device::complete(irp, device::carry_out(irp)),
        }
    }
}

/// # Safety
/// The request is the caller's, and no longer after the return.
unsafe fn create(irp: *mut IRP, file: &mut FILE_OBJECT) -> NTSTATUS {
    // First in, then the look: who unloads the driver says that first, and looks who is in then.
    OPEN.fetch_add(1, Ordering::SeqCst);
    let answer = if IS_LEAVING.load(Ordering::SeqCst) {
        Answer { status: NtStatus::DEVICE_NOT_READY, information: 0 }
    } else {
        // SAFETY: by the caller.
        unsafe { device::carry_out(irp) }
    };
    if answer.status.0 >= 0 {
        file.FsContext2 = client::current().0.as_ptr();
    } else {
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
    // SAFETY: by the caller.
    unsafe { device::complete(irp, answer) }
}

/// # Safety
/// The request is the caller's, and no longer after the return.
unsafe fn close(irp: *mut IRP, file: &mut FILE_OBJECT) -> NTSTATUS {
    let (context, opener): (*mut c_void, *mut c_void) = (file.FsContext, file.FsContext2);
    let (Some(context), Some(opener)) = (NonNull::new(context), NonNull::new(opener)) else {
        // SAFETY: by the caller.
        return unsafe { device::complete(irp, device::carry_out(irp)) };
    };
    // SAFETY: create() left both. The port's file has a reference of its opener.
    unsafe {
        Kernel::port().cleanup(context);
        runs::wait_for_those_of(file);
        // Who closes it may be gone, and Wine has nobody to name then.
        let answer = client::on_behalf_of(Process(opener), || device::carry_out(irp));
        let status = device::complete(irp, answer);
        // Behind everything of this file's but the return.
        OPEN.fetch_sub(1, Ordering::SeqCst);
        status
    }
}

/// The driver is unloaded.
///
/// # Safety
/// Wine calls it once, in another thread than [`dispatch`].
pub(crate) unsafe extern "C" fn unload(driver: *mut DRIVER_OBJECT) {
    IS_LEAVING.store(true, Ordering::SeqCst);
    while OPEN.load(Ordering::SeqCst) != 0 {
        kernel::Kernel::sleep(LOOKS_EVERY);
    }
    // SAFETY: by the caller, nothing comes any more.
    unsafe {
        runs::stop();
        entry::unload(driver);
    }
    memory::stop();
}
