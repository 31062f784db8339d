//! The device, and requests on it.

use core::mem::offset_of;
use core::ptr;
use core::ptr::NonNull;

use covisor_nt::Answer;
use covisor_nt::Control;
use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::kapi;
use wdk_sys::DEVICE_OBJECT;
use wdk_sys::DRIVER_OBJECT;
use wdk_sys::FILE_OBJECT;
use wdk_sys::IO_STACK_LOCATION;
use wdk_sys::IRP;
use wdk_sys::IRP_MJ_CLEANUP;
use wdk_sys::IRP_MJ_CLOSE;
use wdk_sys::IRP_MJ_CREATE;
use wdk_sys::IRP_MJ_DEVICE_CONTROL;
use wdk_sys::IRP_MJ_SHUTDOWN;
use wdk_sys::NTSTATUS;
use wdk_sys::ntddk;

use crate::Kernel;
use crate::imports::IofCompleteRequest;
use crate::security;
use crate::status;
use crate::string;
use crate::utf16;

/// The device, and what programs open as `\\.\covisor`.
const DEVICE: &[u16; 15] = &utf16(b"\\Device\\covisor");
/// As above.
const LINK: &[u16; 19] = &utf16(b"\\DosDevices\\covisor");

/// The device type in the codes of its calls.
const DEVICE_TYPE: u32 = 0xc051;
/// `FILE_DEVICE_SECURE_OPEN`: the device's access rights are those of everything under its name.
const SECURE_OPEN: u32 = 0x100;
/// `IO_NO_INCREMENT`: who waits for the request gets no higher priority.
const NO_BOOST: i8 = 0;

/// Both sets of headers must describe the same structures: those of NT for x64.
const _: () = {
    assert!(size_of::<IRP>() == 208);
    assert!(size_of::<IO_STACK_LOCATION>() == 72);
    assert!(size_of::<DRIVER_OBJECT>() == 336);
    assert!(size_of::<FILE_OBJECT>() == 216);
    assert!(offset_of!(IRP, CancelRoutine) == 0x68);
    assert!(offset_of!(IRP, Tail.Overlay.__bindgen_anon_2.__bindgen_anon_1.CurrentStackLocation) == 0xb8);
    assert!(offset_of!(IO_STACK_LOCATION, Parameters.DeviceIoControl.OutputBufferLength) == 0x08);
    assert!(offset_of!(IO_STACK_LOCATION, Parameters.DeviceIoControl.InputBufferLength) == 0x10);
    assert!(offset_of!(IO_STACK_LOCATION, Parameters.DeviceIoControl.IoControlCode) == 0x18);
    assert!(offset_of!(IO_STACK_LOCATION, FileObject) == 0x30);
    assert!(offset_of!(FILE_OBJECT, FsContext) == 0x18);
};

/// Makes the device.
///
/// # Errors
/// What the kernel says.
///
/// # Safety
/// The driver is this one, in its start; the port has started.
pub(crate) unsafe fn make(driver: &mut DRIVER_OBJECT) -> Result<(), NtStatus> {
    let mut device = ptr::null_mut();
    let mut name = string(DEVICE);
    // SAFETY: by the caller; the name is there.
    status(unsafe { ntddk::IoCreateDevice(driver, 0, &raw mut name, DEVICE_TYPE, SECURE_OPEN, 0, &raw mut device) })?;
    driver.MajorFunction.fill(Some(crate::dispatch));
    // SAFETY: the device is new.
    let result = unsafe { publish(device) };
    if result.is_err() {
        // SAFETY: nobody can have opened it by a name that was never there.
        unsafe { ntddk::IoDeleteDevice(device) };
    }
    result
}

/// Has programs find the device, if they may open it.
///
/// # Safety
/// The device is new and this driver's.
unsafe fn publish(device: *mut DEVICE_OBJECT) -> Result<(), NtStatus> {
    // SAFETY: by the caller.
    unsafe { security::restrict(device) }?;
    // SAFETY: as above; undone with the device, which does no harm where it was not done.
    if let Err(NtStatus(status)) = status(unsafe { ntddk::IoRegisterShutdownNotification(device) }) {
        log::warn!("this kernel does not tell when the machine goes down (status {status:#x})");
    }
    let (mut link, mut name) = (string(LINK), string(DEVICE));
    // SAFETY: both names are there.
    let result = status(unsafe { ntddk::IoCreateSymbolicLink(&raw mut link, &raw mut name) });
    if result.is_err() {
        // SAFETY: it was registered above.
        unsafe { ntddk::IoUnregisterShutdownNotification(device) };
    }
    result
}

/// Removes the device.
///
/// # Safety
/// [`make`] succeeded, and all handles are closed.
pub(crate) unsafe fn remove(driver: &mut DRIVER_OBJECT) {
    let mut link = string(LINK);
    // SAFETY: make() made all of it. Deleting a link that is there does not fail.
    unsafe {
        let _ = ntddk::IoDeleteSymbolicLink(&raw mut link);
        ntddk::IoUnregisterShutdownNotification(driver.DeviceObject);
        ntddk::IoDeleteDevice(driver.DeviceObject);
    }
}

/// A request. At PASSIVE_LEVEL; creating, controlling and cleaning up in the thread that asks for it.
///
/// # Safety
/// The kernel calls it with a request for this driver's device.
#[cfg(not(feature = "wine"))]
pub(crate) unsafe extern "C" fn dispatch(_device: *mut DEVICE_OBJECT, irp: *mut IRP) -> NTSTATUS {
    // SAFETY: the request is this driver's until it is completed.
    unsafe { complete(irp, carry_out(irp)) }
}

/// Completes the request, and returns its status.
///
/// # Safety
/// The request is the caller's, and no longer after the return.
pub(crate) unsafe fn complete(irp: *mut IRP, answer: Answer) -> NTSTATUS {
    // SAFETY: by the caller.
    unsafe {
        (*irp).IoStatus.__bindgen_anon_1.Status = answer.status.0;
        (*irp).IoStatus.Information = answer.information as u64;
        IofCompleteRequest(irp.cast(), NO_BOOST);
    }
    answer.status.0
}

/// This driver's part of the request.
///
/// # Safety
/// The request is the caller's.
pub(crate) unsafe fn location(irp: *mut IRP) -> *mut IO_STACK_LOCATION {
    // SAFETY: by the caller; it has this driver's part.
    unsafe { (*irp).Tail.Overlay.__bindgen_anon_2.__bindgen_anon_1.CurrentStackLocation }
}

/// Hands the request to the port.
///
/// # Safety
/// The request is the caller's.
pub(crate) unsafe fn carry_out(irp: *mut IRP) -> Answer {
    let port = Kernel::port();
    // SAFETY: by the caller; any bytes are valid numbers.
    let (request, parts) = unsafe {
        let request = &*location(irp);
        (request, &request.Parameters.DeviceIoControl)
    };
    let done = Answer { status: NtStatus::SUCCESS, information: 0 };
    let refused = Answer { status: NtStatus::INVALID_DEVICE_REQUEST, information: 0 };
    let function = u32::from(request.MajorFunction);
    if function == IRP_MJ_SHUTDOWN {
        port.sleeps();
        return done;
    }
    // SAFETY: a request that is not a shutdown's has the file that it is for.
    let Some(file) = (unsafe { request.FileObject.as_mut() }) else { return refused };
    if function == IRP_MJ_CREATE {
        return match port.create() {
            Ok(context) => {
                file.FsContext = context.as_ptr();
                done
            }
            Err(status) => Answer { status, information: 0 },
        };
    }
    let Some(context) = NonNull::new(file.FsContext) else { return refused };
    // SAFETY: create() gave the context. The kernel closes a file after all its requests are completed, once.
    unsafe {
        match function {
            IRP_MJ_DEVICE_CONTROL => {
                let control = Control {
                    code: parts.IoControlCode,
                    buffer: (*irp).AssociatedIrp.SystemBuffer.cast(),
                    input: parts.InputBufferLength as usize,
                    output: parts.OutputBufferLength as usize,
                };
                port.control(context, kapi::Irp(NonNull::new_unchecked(irp.cast())), control)
            }
            IRP_MJ_CLEANUP => {
                port.cleanup(context);
                done
            }
            IRP_MJ_CLOSE => {
                file.FsContext = ptr::null_mut();
                port.close(context);
                done
            }
            _ => refused,
        }
    }
}
