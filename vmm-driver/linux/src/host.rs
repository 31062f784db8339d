//! Linux as core's host.

use core::ffi::c_int;
use core::ffi::c_void;
use core::mem::transmute;
use core::ptr::NonNull;
use core::ptr::from_ref;

use covisor_core::host::Block;
use covisor_core::host::CpuFunction;
use covisor_core::host::Cpus;
use covisor_core::host::Host;
use covisor_core::host::Interrupted;
use covisor_core::host::Machine;
use covisor_core::host::OutOfMemory;
use covisor_core::host::Stay;
use covisor_core::host::TimerCallback;

use crate::NO_PAGE;
use crate::ffi;
use crate::ffi::RawEvent;
use crate::ffi::RawTimer;
use crate::ffi::RawWaker;

/// The Linux kernel that the module is loaded into.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

/// An eventfd of the loader's.
#[derive(Debug)]
pub struct Event(NonNull<RawEvent>);

// SAFETY: the kernel's eventfd has locks of its own and belongs to no thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: covisor_host_event_open() gave the reference, and this is its only end.
        unsafe { ffi::covisor_host_event_close(self.0.as_ptr()) };
    }
}

/// Where one vCPU's thread sleeps.
#[derive(Debug)]
pub struct Waker(NonNull<RawWaker>);

// SAFETY: the kernel's rcuwait is made for being woken from anywhere; core lets one thread at a time wait on it.
unsafe impl Send for Waker {}
// SAFETY: as above.
unsafe impl Sync for Waker {}

impl Drop for Waker {
    fn drop(&mut self) {
        // SAFETY: covisor_host_waker_new() gave it, and nobody has a reference any more.
        unsafe { ffi::covisor_host_waker_free(self.0.as_ptr()) };
    }
}

/// A high-resolution timer.
#[derive(Debug)]
pub struct Timer(NonNull<RawTimer>);

// SAFETY: the kernel's timers have locks of their own; the callback may run on any CPU by its contract.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: covisor_host_timer_new() gave it; the shim waits until its callback does not run.
        unsafe { ffi::covisor_host_timer_free(self.0.as_ptr()) };
    }
}

/// A function for CPUs, and its argument.
struct CpuCall {
    function: CpuFunction,
    argument: *const (),
}

/// Runs a [`CpuCall`] on one CPU, with interrupts off.
///
/// # Safety
/// `call` is what [`Linux::on_cpus`] gave to the shim, which it waits for.
#[unsafe(no_mangle)]
unsafe extern "C" fn covisor_call_on_cpu(call: *const c_void) {
    // SAFETY: who gave it keeps it until all CPUs are done.
    let call = unsafe { &*call.cast::<CpuCall>() };
    (call.function)(cpu_number(ffi::covisor_host_cpu()), call.argument);
}

/// Runs a timer's callback, in interrupt context.
///
/// # Safety
/// The arguments are what [`Linux::timer_new`] gave to the shim.
#[unsafe(no_mangle)]
unsafe extern "C" fn covisor_timer_expired(function: *const c_void, argument: *const c_void) {
    // SAFETY: timer_new() made the pointer of such a function.
    let function: fn(*const ()) = unsafe { transmute(function) };
    function(argument.cast());
}

/// A number of a CPU as the kernel has it.
fn cpu_number(cpu: u32) -> usize {
    cpu as usize
}

/// `Err` where a signal waits.
fn interrupted(signal_waits: bool) -> Result<(), Interrupted> {
    if signal_waits { Err(Interrupted) } else { Ok(()) }
}

impl Host for Linux {
    type Event = Event;
    type Waker = Waker;
    type Timer = Timer;
    /// The process' mapping holds the file, and with that the VM.
    type Mapping = ();

    /// A page of the mapping is asked for by its fault.
    const RAM_ON_DEMAND: bool = true;

    fn alloc_block(order: u32) -> Option<Block> {
        let mut phys = 0;
        let virt = NonNull::new(ffi::covisor_host_pages_alloc(order, &mut phys).cast())?;
        Some(Block { phys, virt, order })
    }

    unsafe fn free_block(block: Block) {
        // SAFETY: the caller promises that alloc_block() gave it and that it is not used any more.
        unsafe { ffi::covisor_host_pages_free(block.virt.as_ptr().cast(), block.order) };
    }

    fn physical_address(pointer: *const u8) -> Option<u64> {
        Some(ffi::covisor_host_physical_address(pointer.cast())).filter(|phys| *phys != NO_PAGE)
    }

    /// The loader maps it by `mmap` on the device: there the offset is the guest-physical address.
    fn map_to_loader(gpa: u64, _blocks: &[Block]) -> Result<(u64, ()), OutOfMemory> {
        Ok((gpa, ()))
    }

    fn memory_available() -> u64 {
        ffi::covisor_host_memory_available()
    }

    fn machine() -> Machine {
        Machine { cpu_limit: cpu_number(ffi::covisor_host_cpu_limit()), tsc_khz: ffi::covisor_host_tsc_khz() }
    }

    fn on_cpus(cpus: Cpus, function: CpuFunction, argument: *const ()) {
        let call = CpuCall { function, argument };
        let call = from_ref(&call).cast();
        // SAFETY: the call lives until the shim returns, which is when all of the CPUs have run it.
        unsafe {
            match cpus {
                Cpus::Each => ffi::covisor_host_on_each_cpu(call),
                Cpus::One(cpu) => ffi::covisor_host_on_cpu(u32::try_from(cpu).unwrap_or(u32::MAX), call),
            }
        }
    }

    fn preempt_off() -> usize {
        cpu_number(ffi::covisor_host_preempt_off())
    }

    fn preempt_on() {
        ffi::covisor_host_preempt_on();
    }

    fn in_guest(stay: Stay, enter: impl FnOnce()) {
        enter();
        if stay.cuts_task_segment {
            ffi::covisor_host_task_segment_cut();
        }
    }

    fn set_vmx_enable(on: bool) {
        ffi::covisor_host_set_vmx_enable(on);
    }

    fn must_yield() -> bool {
        ffi::covisor_host_must_yield()
    }

    fn yield_now() -> Result<(), Interrupted> {
        interrupted(ffi::covisor_host_yield())
    }

    fn kick(cpu: usize) {
        if let Ok(cpu) = u32::try_from(cpu) {
            ffi::covisor_host_kick(cpu);
        }
    }

    fn wall_clock_ns() -> u64 {
        ffi::covisor_host_wall_clock_ns()
    }

    fn event_open(handle: i64) -> Option<Event> {
        let fd = c_int::try_from(handle).ok()?;
        NonNull::new(ffi::covisor_host_event_open(fd)).map(Event)
    }

    fn event_signal(event: &Event) {
        // SAFETY: the event holds its reference.
        unsafe { ffi::covisor_host_event_signal(event.0.as_ptr()) };
    }

    fn waker_new() -> Result<Waker, OutOfMemory> {
        NonNull::new(ffi::covisor_host_waker_new()).map(Waker).ok_or(OutOfMemory)
    }

    fn wait(waker: &Waker, ready: impl Fn() -> bool) -> Result<(), Interrupted> {
        // SAFETY: the waker is alive until this function returns, and core lets no other thread wait on it.
        unsafe { ffi::covisor_host_wait_begin(waker.0.as_ptr()) };
        let result = loop {
            if ready() {
                break Ok(());
            }
            if let Err(signal) = interrupted(ffi::covisor_host_wait_sleep()) {
                break Err(signal);
            }
        };
        // SAFETY: as above.
        unsafe { ffi::covisor_host_wait_end(waker.0.as_ptr()) };
        result
    }

    fn wake(waker: &Waker) {
        // SAFETY: the waker is alive.
        unsafe { ffi::covisor_host_wake(waker.0.as_ptr()) };
    }

    fn timer_new(callback: TimerCallback) -> Result<Timer, OutOfMemory> {
        let function = callback.function as *const c_void;
        let raw = ffi::covisor_host_timer_new(function, callback.argument.cast());
        NonNull::new(raw).map(Timer).ok_or(OutOfMemory)
    }

    fn timer_set(timer: &Timer, delay_ns: Option<u64>) {
        // SAFETY: the timer is alive.
        unsafe {
            match delay_ns {
                Some(delay_ns) => ffi::covisor_host_timer_set(timer.0.as_ptr(), delay_ns),
                None => ffi::covisor_host_timer_cancel(timer.0.as_ptr()),
            }
        }
    }
}
