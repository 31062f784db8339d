//! The C shim's functions, as `kmod/covisor.h` declares them.
//!
//! Those that are safe can be called with any argument; the others take what the shim gave out before.

use core::ffi::c_int;
use core::ffi::c_void;

/// The kernel's `struct eventfd_ctx`.
#[repr(C)]
pub(crate) struct RawEvent {
    opaque: [u8; 0],
}

/// The kernel's `struct rcuwait`.
#[repr(C)]
pub(crate) struct RawWaker {
    opaque: [u8; 0],
}

/// The shim's timer.
#[repr(C)]
pub(crate) struct RawTimer {
    opaque: [u8; 0],
}

unsafe extern "C" {
    pub(crate) safe fn covisor_host_allocate(size: usize, zeroed: bool) -> *mut c_void;
    pub(crate) fn covisor_host_deallocate(memory: *mut c_void);
    pub(crate) safe fn covisor_host_pages_alloc(order: u32, phys: &mut u64) -> *mut c_void;
    pub(crate) fn covisor_host_pages_free(pages: *mut c_void, order: u32);
    pub(crate) safe fn covisor_host_physical_address(address: *const c_void) -> u64;
    pub(crate) fn covisor_host_page_hold(phys: u64);
    pub(crate) safe fn covisor_host_memory_available() -> u64;

    pub(crate) fn covisor_host_on_each_cpu(call: *const c_void);
    pub(crate) fn covisor_host_on_cpu(cpu: u32, call: *const c_void);
    pub(crate) safe fn covisor_host_cpu_limit() -> u32;
    pub(crate) safe fn covisor_host_cpu() -> u32;
    pub(crate) safe fn covisor_host_preempt_off() -> u32;
    pub(crate) safe fn covisor_host_preempt_on();
    pub(crate) safe fn covisor_host_task_segment_cut();
    pub(crate) safe fn covisor_host_set_vmx_enable(on: bool);
    pub(crate) safe fn covisor_host_must_yield() -> bool;
    pub(crate) safe fn covisor_host_yield() -> bool;
    pub(crate) safe fn covisor_host_kick(cpu: u32);

    pub(crate) safe fn covisor_host_wall_clock_ns() -> u64;
    pub(crate) safe fn covisor_host_tsc_khz() -> u32;

    pub(crate) safe fn covisor_host_event_open(fd: c_int) -> *mut RawEvent;
    pub(crate) fn covisor_host_event_close(event: *mut RawEvent);
    pub(crate) fn covisor_host_event_signal(event: *mut RawEvent);

    pub(crate) safe fn covisor_host_waker_new() -> *mut RawWaker;
    pub(crate) fn covisor_host_waker_free(waker: *mut RawWaker);
    pub(crate) fn covisor_host_wait_begin(waker: *mut RawWaker);
    pub(crate) safe fn covisor_host_wait_sleep() -> bool;
    pub(crate) fn covisor_host_wait_end(waker: *mut RawWaker);
    pub(crate) fn covisor_host_wake(waker: *mut RawWaker);

    pub(crate) safe fn covisor_host_timer_new(function: *const c_void, argument: *const c_void) -> *mut RawTimer;
    pub(crate) fn covisor_host_timer_free(timer: *mut RawTimer);
    pub(crate) fn covisor_host_timer_set(timer: *mut RawTimer, delay_ns: u64);
    pub(crate) fn covisor_host_timer_cancel(timer: *mut RawTimer);

    pub(crate) fn covisor_host_print(level: u32, text: *const u8, length: usize);
    #[cfg(target_os = "none")]
    pub(crate) fn covisor_host_bug(text: *const u8, length: usize);
}
