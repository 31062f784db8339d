//! The driver's start and end, and what the kernel tells it of: processes that end, and the machine's sleep.

use core::ffi::c_void;
use core::mem;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;

use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use wdk_sys::DRIVER_OBJECT;
use wdk_sys::HANDLE;
use wdk_sys::NTSTATUS;
use wdk_sys::OBJECT_ATTRIBUTES;
use wdk_sys::UNICODE_STRING;
use wdk_sys::ntddk;

use crate::Kernel;
use crate::device;
use crate::heap;
use crate::imports::ObfDereferenceObject;
use crate::kernel;
use crate::print;
use crate::status;
use crate::string;
use crate::utf16;

/// The kernel's callback object for changes of power.
const POWER_STATE: &[u16; 20] = &utf16(b"\\Callback\\PowerState");
/// `PO_CB_SYSTEM_STATE_LOCK`: the machine is about to leave its working state, or is back in it.
const SYSTEM_STATE_LOCK: usize = 3;
/// `OBJ_CASE_INSENSITIVE`.
const CASE_INSENSITIVE: u32 = 0x40;

/// The first NT that knows memory that is not executable.
const NO_EXECUTE_SINCE: (u32, u32) = (6, 2);

/// The driver is loaded.
///
/// # Safety
/// The kernel calls it once, at PASSIVE_LEVEL, before all others.
#[unsafe(no_mangle)]
unsafe extern "system" fn DriverEntry(driver: *mut DRIVER_OBJECT, _registry_path: *mut UNICODE_STRING) -> NTSTATUS {
    print::start();
    let (major, minor) = Kernel::version();
    log::info!("this is NT {major}.{minor}");
    if (major, minor) >= NO_EXECUTE_SINCE {
        heap::forbid_execution();
        kernel::forbid_execution();
    }
    // SAFETY: by the caller.
    match unsafe { start(&mut *driver) } {
        Ok(()) => 0,
        Err(NtStatus(status)) => {
            log::error!("the driver cannot start: status {status:#x}");
            status
        }
    }
}

/// Starts the port, then what calls it.
///
/// # Safety
/// As `DriverEntry`.
unsafe fn start(driver: &mut DRIVER_OBJECT) -> Result<(), NtStatus> {
    // SAFETY: by the caller.
    unsafe { crate::start() }.map_err(|error| {
        log::error!("{error}");
        NtStatus::from(error)
    })?;
    let result = Notifications::begin().and_then(|notifications| {
        // SAFETY: the driver is this one, and the port has started.
        unsafe { device::make(driver) }?;
        // The driver object keeps them until the unload.
        driver.DriverUnload = Some(crate::unload);
        notifications.keep();
        Ok(())
    });
    if result.is_err() {
        // SAFETY: it started, and nothing calls it any more.
        unsafe { Kernel::port().stop() };
    }
    result
}

/// The driver is unloaded.
///
/// # Safety
/// The kernel calls it once, at PASSIVE_LEVEL, when all handles are closed.
pub(crate) unsafe extern "C" fn unload(driver: *mut DRIVER_OBJECT) {
    // SAFETY: start() made all of it.
    unsafe {
        device::remove(&mut *driver);
        drop(Notifications::kept());
        if !Kernel::port().stop() {
            log::error!("the driver was unloaded while the device was open");
        }
    }
}

/// What the kernel calls the port for; ends when dropped.
struct Notifications {
    power: *mut c_void,
}

/// The registration, from the driver's start to its end.
static POWER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

impl Notifications {
    /// From now on they come.
    fn begin() -> Result<Self, NtStatus> {
        // SAFETY: the routine stays until it is removed.
        status(unsafe { ntddk::PsSetCreateProcessNotifyRoutine(Some(on_process), 0) })?;
        let power = register_for_power().unwrap_or_else(|NtStatus(status)| {
            log::warn!("this kernel does not tell of the machine's sleep (status {status:#x}); end machines before it");
            ptr::null_mut()
        });
        Ok(Self { power })
    }

    fn keep(self) {
        POWER.store(self.power, Ordering::Relaxed);
        mem::forget(self);
    }

    /// # Safety
    /// They were kept, and this is their end.
    unsafe fn kept() -> Self {
        Self { power: POWER.load(Ordering::Relaxed) }
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        if let Some(power) = ptr::NonNull::new(self.power) {
            // SAFETY: it is registered. Returns when no call of it is running.
            unsafe { ntddk::ExUnregisterCallback(power.as_ptr()) };
        }
        // SAFETY: it is registered. Returns when no call of it is running; removing what is there does not fail.
        let _ = unsafe { ntddk::PsSetCreateProcessNotifyRoutine(Some(on_process), 1) };
    }
}

/// A process begins or ends; when it ends, its last thread calls this.
unsafe extern "C" fn on_process(_parent: HANDLE, _process: HANDLE, begins: u8) {
    if begins == 0 {
        Kernel::port().process_ended(Kernel::current_process());
    }
}

/// Has the kernel call `on_power`.
fn register_for_power() -> Result<*mut c_void, NtStatus> {
    let mut name = string(POWER_STATE);
    #[expect(clippy::cast_possible_truncation, reason = "a structure of 48 bytes")]
    let mut attributes = OBJECT_ATTRIBUTES {
        Length: size_of::<OBJECT_ATTRIBUTES>() as u32,
        ObjectName: &raw mut name,
        Attributes: CASE_INSENSITIVE,
        ..Default::default()
    };
    let mut callback = ptr::null_mut();
    // SAFETY: the attributes are there. The object is the kernel's own, so it is not made anew.
    status(unsafe { ntddk::ExCreateCallback(&raw mut callback, &raw mut attributes, 0, 1) })?;
    // SAFETY: the routine stays until it is unregistered.
    let registration = unsafe { ntddk::ExRegisterCallback(callback, Some(on_power), ptr::null_mut()) };
    // SAFETY: ExCreateCallback() gave a reference; the registration has one of its own.
    unsafe { ObfDereferenceObject(callback.cast()) };
    if registration.is_null() { Err(NtStatus::NO_MEMORY) } else { Ok(registration) }
}

/// The machine's power changes.
unsafe extern "C" fn on_power(_context: *mut c_void, what: *mut c_void, is_back: *mut c_void) {
    if what.addr() == SYSTEM_STATE_LOCK {
        if is_back.is_null() { Kernel::port().sleeps() } else { Kernel::port().wakes() }
    }
}
