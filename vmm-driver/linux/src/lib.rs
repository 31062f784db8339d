//! covisor's driver on Linux: the [`Host`](covisor_core::host::Host) trait over the kernel's own services, and what the
//! module's C shim (`kmod/`) calls.
//!
//! For `x86_64-unknown-none` this becomes the Rust object inside of `covisor.ko`; elsewhere it is an ordinary library for
//! checks and tests.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

mod errno;
mod ffi;
mod heap;
mod host;
#[cfg(target_os = "none")]
mod panic;
mod printk;
mod text;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::slice;

use covisor_abi::Call;
use covisor_core::device;
use covisor_core::device::Driver;
use covisor_core::device::Handle;
use covisor_core::host::OutOfMemory;

pub use heap::KernelHeap;
pub use host::Linux;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: KernelHeap = KernelHeap;

/// `COVISOR_CALL_WORDS` of `kmod/covisor.h`: the size of the shim's buffer for a call, in 64-bit words.
const CALL_WORDS: usize = 64;
/// `COVISOR_NO_PAGE` of `kmod/covisor.h`.
const NO_PAGE: u64 = u64::MAX;

/// Every structure fits into the shim's buffer and is made of whole words.
const _: () = {
    let mut index = 0;
    while index < Call::ALL.len() {
        let size = Call::ALL[index].size();
        assert!(size.is_multiple_of(8) && size <= CALL_WORDS * 8);
        index += 1;
    }
};

/// The driver, from the module's start to its end.
struct Slot(UnsafeCell<Option<Driver<Linux>>>);

// SAFETY: only `covisor_module_init` and `covisor_module_exit` write it. The kernel calls each once, the first before
// the device can be opened, the second when it is closed for good.
unsafe impl Sync for Slot {}

static DRIVER: Slot = Slot(UnsafeCell::new(None));

/// The driver, with all engines that this machine could have.
fn make_driver() -> Result<Driver<Linux>, OutOfMemory> {
    let mut engines = Vec::new();
    engines.try_reserve_exact(3).map_err(|_| OutOfMemory)?;
    engines.push(device::entry::<Linux, covisor_svm::Svm>()?);
    engines.push(device::entry::<Linux, covisor_vmx::Vmx>()?);
    engines.push(device::entry::<Linux, covisor_coop::Coop>()?);
    Driver::new(engines)
}

/// The module is loaded.
///
/// # Safety
/// The kernel calls it once, before all others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_module_init() -> c_int {
    printk::start();
    if ffi::covisor_host_tsc_khz() == 0 {
        log::error!("this machine's time stamp counter cannot be used as a clock, and guests need it");
        return errno::ENODEV;
    }
    match make_driver() {
        Ok(driver) => {
            // SAFETY: nobody else uses the slot yet.
            unsafe { *DRIVER.0.get() = Some(driver) };
            0
        }
        Err(OutOfMemory) => errno::ENOMEM,
    }
}

/// The module is unloaded.
///
/// # Safety
/// The kernel calls it once, after all handles were released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_module_exit() {
    // SAFETY: nobody else uses the slot any more.
    if let Some(driver) = unsafe { (*DRIVER.0.get()).take() } {
        drop(driver);
    }
}

/// The driver, if the module is loaded.
///
/// # Safety
/// The module is not unloaded while the reference is used. It is not really for ever, but for longer than that.
unsafe fn driver() -> Option<&'static Driver<Linux>> {
    // SAFETY: the slot is written only at the module's start and end.
    unsafe { (*DRIVER.0.get()).as_ref() }
}

/// The machine goes down: virtualization goes off on every CPU.
///
/// # Safety
/// The module is not unloaded before the return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_power_down() {
    // SAFETY: by the caller.
    if let Some(driver) = unsafe { driver() } {
        driver.power_down();
    }
}

/// This CPU goes down, or comes up: virtualization is off here. Interrupts are off.
///
/// # Safety
/// The module is not unloaded before the return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_power_down_here() {
    // SAFETY: by the caller.
    if let Some(driver) = unsafe { driver() } {
        driver.power_down_here();
    }
}

/// The device was opened: gives its handle.
///
/// # Safety
/// `handle` can be written. The module is loaded, and stays so until the handle was released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_open(handle: *mut *mut Handle<Linux>) -> c_int {
    // SAFETY: an open device keeps the module loaded.
    let Some(driver) = (unsafe { driver() }) else { return errno::ENODEV };
    match Handle::new(driver) {
        Ok(new) => {
            // SAFETY: the caller promises that it can be written.
            unsafe { handle.write(Box::into_raw(new)) };
            0
        }
        Err(OutOfMemory) => errno::ENOMEM,
    }
}

/// The last user of an open device is gone.
///
/// # Safety
/// The handle came from `covisor_open`, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_release(handle: *mut Handle<Linux>) {
    // SAFETY: covisor_open() made it of a box, and the caller promises that this is its end.
    drop(unsafe { Box::from_raw(handle) });
}

/// A call, by its ioctl number. `buffer` holds its structure, in and out.
///
/// # Safety
/// The handle came from `covisor_open` and is not released before the return; `buffer` has `CALL_WORDS` words, of which
/// those that the number's size field covers hold values, and is the caller's alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_ioctl(handle: *const Handle<Linux>, number: u32, buffer: *mut u64) -> c_int {
    let Some(call) = Call::from_linux_number(number) else { return errno::ENOTTY };
    // SAFETY: the number's size field is the call's size, or it would not be this call; that many bytes hold values.
    let bytes = unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), call.size()) };
    // SAFETY: the caller promises that the handle is alive.
    match unsafe { &*handle }.call(call, bytes) {
        Ok(()) => 0,
        Err(error) => errno::of_call(error),
    }
}

/// Host-physical address of the page of guest RAM at guest-physical address `offset`, with a reference to the page, or all ones.
///
/// # Safety
/// The handle came from `covisor_open` and is not released before the return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn covisor_ram_page(handle: *const Handle<Linux>, offset: u64) -> u64 {
    // SAFETY: the caller promises that the handle is alive.
    let handle = unsafe { &*handle };
    let mut page = NO_PAGE;
    handle.with_ram_page(offset, |phys| {
        // SAFETY: the page is the VM's, and stays so while this runs.
        unsafe { ffi::covisor_host_page_hold(phys) };
        page = phys;
    });
    page
}
