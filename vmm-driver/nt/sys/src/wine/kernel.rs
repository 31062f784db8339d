//! The kernel as Wine has it.

use core::ffi::c_void;
use core::ptr;
use core::ptr::NonNull;

use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::Port;
use covisor_nt::kapi::ApcState;
use covisor_nt::kapi::DeferredRoutine;
use covisor_nt::kapi::EventKind;
use covisor_nt::kapi::EventObject;
use covisor_nt::kapi::Irp;
use covisor_nt::kapi::Irql;
use covisor_nt::kapi::KernelDpc;
use covisor_nt::kapi::KernelEvent;
use covisor_nt::kapi::KernelTimer;
use covisor_nt::kapi::Mdl;
use covisor_nt::kapi::Process;
use covisor_nt::kapi::WaitKind;

use crate::kernel;
use crate::wine::client;
use crate::wine::cpu;
use crate::wine::memory;

/// Wine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

static PORT: Port<Kernel> = Port::new();

/// `KUSER_SHARED_DATA`'s `SystemTime` where programs see it. The kernel's own place is nowhere, and Wine does in software what
/// reads it, where it knows the instruction.
const SYSTEM_TIME: *const u32 = ptr::without_provenance(0x7ffe_0014);

/// Functions that Wine has as the kernel has them.
macro_rules! as_the_kernel {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            fn $name($($argument: $type),*) $(-> $result)? {
                kernel::Kernel::$name($($argument),*)
            }
        )*
    };
    ($(unsafe fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            unsafe fn $name($($argument: $type),*) $(-> $result)? {
                // SAFETY: by the caller.
                unsafe { kernel::Kernel::$name($($argument),*) }
            }
        )*
    };
}

// SAFETY: as the kernel's functions, seen by a driver of this machine: one with one CPU.
unsafe impl Kapi for Kernel {
    fn port() -> &'static Port<Self> {
        &PORT
    }

    /// Wine finds functions that end the driver when they are called, too.
    fn system_routine(_name: &str) -> Option<NonNull<c_void>> {
        None
    }

    fn irql() -> Irql {
        cpu::level()
    }

    fn raise_irql(to: Irql) -> Irql {
        cpu::raise(to)
    }

    unsafe fn lower_irql(to: Irql) {
        cpu::lower(to);
    }

    fn interrupts_off() {
        cpu::interrupts_off();
    }

    fn interrupts_on() {
        cpu::interrupts_on();
    }

    fn cpu() -> usize {
        0
    }

    fn active_cpus() -> u64 {
        1
    }

    /// All threads are on the one CPU already.
    unsafe fn set_affinity(_cpus: u64) {}

    unsafe fn revert_affinity() {}

    fn allocate_pages(bytes: usize, _skip: u64, _flags: u32) -> Option<Mdl> {
        memory::allocate_pages(bytes)
    }

    unsafe fn free_pages(mdl: Mdl) {
        // SAFETY: by the caller.
        unsafe { memory::free_pages(mdl) };
    }

    fn allocate_mdl(pages: usize) -> Option<Mdl> {
        memory::allocate_mdl(pages)
    }

    unsafe fn free_mdl(mdl: Mdl) {
        // SAFETY: by the caller.
        unsafe { memory::free_mdl(mdl) };
    }

    unsafe fn map_to_kernel(mdl: Mdl) -> Option<NonNull<u8>> {
        // SAFETY: by the caller.
        unsafe { memory::map_to_kernel(mdl) }
    }

    unsafe fn map_to_user(mdl: Mdl, address: usize) -> Option<usize> {
        // SAFETY: by the caller.
        unsafe { memory::map_to_user(mdl, address) }
    }

    unsafe fn unmap(address: usize, mdl: Mdl) {
        // SAFETY: by the caller.
        unsafe { memory::unmap(address, mdl) };
    }

    fn find_user_room(bytes: usize) -> Option<usize> {
        let process = client::open().ok()?;
        kernel::find_room(process.0.addr().cast_signed(), bytes)
    }

    fn available_pages() -> u64 {
        memory::available_pages()
    }

    /// Wine does not tell. It cancels what the thread waits for.
    fn thread_ends() -> bool {
        false
    }

    fn event_object(handle: isize) -> Option<EventObject> {
        client::event(handle)
    }

    /// Only kicks queue one, and a guest's stay is over soon without that.
    unsafe fn dpc_insert(_dpc: &KernelDpc) -> bool {
        true
    }

    unsafe fn dpc_remove(_dpc: &KernelDpc) -> bool {
        false
    }

    /// Wine calls a timer's from another thread, and waits for that when the timer is cancelled.
    fn dpc_flush() {}

    unsafe fn timer_set(timer: &KernelTimer, units: u64, dpc: &KernelDpc) {
        // SAFETY: by the caller.
        unsafe {
            // Of a timer that is set, Wine would wait for the last call with a lock held that the call may need.
            kernel::Kernel::timer_cancel(timer);
            kernel::Kernel::timer_set(timer, units, dpc);
        }
    }

    fn system_time() -> i64 {
        // SAFETY: it is mapped in every process.
        unsafe { kernel::time_at(SYSTEM_TIME) }
    }

    fn current_process() -> Process {
        client::current()
    }

    unsafe fn attach(process: Process, state: &ApcState) {
        // SAFETY: by the caller.
        unsafe { client::attach(process, state) };
    }

    unsafe fn detach(state: &ApcState) {
        // SAFETY: by the caller.
        unsafe { client::detach(state) };
    }

    unsafe fn set_cancel_routine(irp: Irp, context: Option<NonNull<c_void>>) -> bool {
        // SAFETY: by the caller.
        unsafe { kernel::set_cancel_routine::<Self>(irp, context) }
    }

    as_the_kernel! {
        fn version() -> (u32, u32);
        fn allocate_contiguous(bytes: usize, boundary: u64) -> Option<NonNull<u8>>;
        fn physical_address(pointer: *const u8) -> u64;
        fn sleep(milliseconds: u32);
        fn enter_critical_region();
        fn timer_resolution(units: u32, on: bool);
        fn performance_counter() -> (i64, i64);
        fn wait_for_cancel_routines();
    }

    as_the_kernel! {
        unsafe fn free_contiguous(memory: NonNull<u8>, bytes: usize);
        unsafe fn mdl_frames(mdl: Mdl) -> NonNull<[usize]>;
        unsafe fn event_initialize(event: &KernelEvent, kind: EventKind, signaled: bool);
        unsafe fn event_set(event: &KernelEvent, boost: i32);
        unsafe fn event_clear(event: &KernelEvent);
        unsafe fn event_wait(event: &KernelEvent, kind: WaitKind) -> NtStatus;
        unsafe fn leave_critical_region();
        unsafe fn event_object_set(event: EventObject, boost: i32);
        unsafe fn event_object_release(event: EventObject);
        unsafe fn dpc_initialize(dpc: &KernelDpc, routine: DeferredRoutine, context: *mut c_void);
        unsafe fn dpc_target(dpc: &KernelDpc, cpu: usize);
        unsafe fn timer_initialize(timer: &KernelTimer);
        unsafe fn timer_cancel(timer: &KernelTimer) -> bool;
        unsafe fn process_reference(process: Process);
        unsafe fn process_release(process: Process);
        unsafe fn is_cancelled(irp: Irp) -> bool;
    }
}
