//! What the port takes of the NT kernel: one short function for each, as the kernel has it.
//!
//! Every function here is in NT 5.2 for x64 (Windows Server 2003, XP x64), so an implementation may import it. What came later
//! is asked for by name ([`Kapi::system_routine`]) and has a way round it in [`crate::routines`]. IRQLs are those of the
//! documentation; "any" is up to DISPATCH_LEVEL where nothing else is said.
//!
//! Structures that the kernel keeps pointers to are [`KernelEvent`], [`KernelTimer`] and [`KernelDpc`]: room for them, in memory
//! that is never paged. What lies elsewhere is a pointer in a type of its own, which only the implementation looks behind.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;

use crate::Port;
use crate::status::NtStatus;
use crate::watch::Watched;

/// An interrupt request level. On x64 it is CR8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Irql(pub u8);

impl Irql {
    /// Threads run.
    pub const PASSIVE: Self = Self(0);
    /// Asynchronous procedure calls are held back.
    pub const APC: Self = Self(1);
    /// The scheduler and deferred procedure calls are held back.
    pub const DISPATCH: Self = Self(2);
}

/// A pointer to something of the kernel's.
macro_rules! kernel_pointer {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        pub struct $name(pub NonNull<c_void>);

        // SAFETY: it is an address; what may be done with it is said at the functions that take it.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    };
}

kernel_pointer!(
    /// `MDL`: names physical pages.
    Mdl
);
kernel_pointer!(
    /// A referenced event object of a program's (`KEVENT`).
    EventObject
);
kernel_pointer!(
    /// A process (`EPROCESS`).
    Process
);
kernel_pointer!(
    /// A request (`IRP`).
    Irp
);

/// Room for a structure of the kernel's, which has pointers to it while it is in use.
macro_rules! kernel_structure {
    ($(#[$documentation:meta])* $name:ident, $words:literal) => {
        $(#[$documentation])*
        #[derive(Debug)]
        #[repr(C, align(16))]
        pub struct $name(UnsafeCell<[u64; $words]>);

        // SAFETY: the kernel has locks of its own for it, and nobody else looks inside.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// Room, of zeros.
            #[must_use]
            pub const fn new() -> Self {
                Self(UnsafeCell::new([0; $words]))
            }

            /// Where it is.
            #[must_use]
            pub const fn as_ptr(&self) -> *mut c_void {
                self.0.get().cast()
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

kernel_structure!(
    /// Room for a `KEVENT` (24 bytes).
    KernelEvent,
    3
);
kernel_structure!(
    /// Room for a `KTIMER` (64 bytes).
    KernelTimer,
    8
);
kernel_structure!(
    /// Room for a `KDPC` (64 bytes).
    KernelDpc,
    8
);
kernel_structure!(
    /// Room for a `KAPC_STATE` (48 bytes); on the stack, for it is the calling thread's alone.
    ApcState,
    6
);

/// How an event behaves (`EVENT_TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `NotificationEvent`: lets everybody pass until it is cleared.
    Notification,
    /// `SynchronizationEvent`: lets one waiter pass and is cleared by that.
    Synchronization,
}

/// Whether something else can end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// KernelMode, not alertable: nothing can.
    Firm,
    /// UserMode, alertable: alerts, user APCs and the end of the thread can. The thread's kernel stack may be paged out
    /// meanwhile, so nobody else may have a pointer into it.
    Interruptible,
}

/// `KDEFERRED_ROUTINE`: the DPC, its context, and two arguments.
pub type DeferredRoutine = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut c_void);

/// The NT kernel.
///
/// # Safety
/// The functions do what the NT functions that they name do.
pub unsafe trait Kapi: Sized + Send + Sync + core::fmt::Debug + 'static {
    /// The port's state: a static of the implementation's.
    fn port() -> &'static Port<Self>;

    /// Whether the port looks after each stretch with interrupts off that nothing is changed which NT watches. For tests, since
    /// exits get slow by it.
    const WATCH: bool = false;

    /// What NT watches, of the calling CPU.
    ///
    /// # Safety
    /// Interrupts are off.
    unsafe fn watched() -> Watched {
        // SAFETY: drivers run in ring 0, and by the caller.
        unsafe { Watched::read() }
    }

    // Newer functions.

    /// `MmGetSystemRoutineAddress` (NT 5.0; PASSIVE_LEVEL): a function of the kernel's or the HAL's by its name.
    fn system_routine(name: &str) -> Option<NonNull<c_void>>;

    /// `RtlGetVersion` (NT 5.1; PASSIVE_LEVEL): major and minor version; (6, 1) is Windows 7, (10, 0) 10 and 11.
    fn version() -> (u32, u32);

    // CPUs.

    /// `KeGetCurrentIrql` (any NT; any IRQL): CR8.
    fn irql() -> Irql;

    /// `KeRaiseIrql` (any NT; at most `to`): returns the level before. A write of CR8 on x64.
    fn raise_irql(to: Irql) -> Irql;

    /// `KeLowerIrql` (any NT; at least `to`): what was held back comes at once. A write of CR8 on x64.
    ///
    /// # Safety
    /// Undoes a [`Kapi::raise_irql`], or goes below it with interrupts off and calls nothing of the kernel's until it is raised
    /// again.
    unsafe fn lower_irql(to: Irql);

    /// Interrupts of this CPU off.
    #[inline]
    fn interrupts_off() {
        // SAFETY: drivers run in ring 0; who calls switches them on again.
        unsafe { core::arch::asm!("cli", options(nostack)) };
    }

    /// Interrupts of this CPU on.
    #[inline]
    fn interrupts_on() {
        // SAFETY: undoes interrupts_off().
        unsafe { core::arch::asm!("sti", options(nostack)) };
    }

    /// `KeGetCurrentProcessorNumber` (any NT; any IRQL, DISPATCH_LEVEL for a meaning): the number in the CPU's group, which is
    /// the byte at GS:0x184 in every NT for x64.
    fn cpu() -> usize;

    /// `KeQueryActiveProcessors` (NT 5.0; any): bit by CPU, of the calling thread's group.
    fn active_cpus() -> u64;

    /// `KeSetSystemAffinityThread` (NT 5.0; any, but the thread moves only below DISPATCH_LEVEL): runs the calling thread on
    /// these CPUs from now on.
    ///
    /// # Safety
    /// Below DISPATCH_LEVEL, `cpus` are active ones, and [`Kapi::revert_affinity`] follows in the same thread.
    unsafe fn set_affinity(cpus: u64);

    /// `KeRevertToUserAffinityThread` (NT 5.0; any).
    ///
    /// # Safety
    /// Undoes a [`Kapi::set_affinity`].
    unsafe fn revert_affinity();

    // Memory.

    /// `MmAllocateContiguousMemorySpecifyCache` (NT 5.0; PASSIVE_LEVEL to be safe with every version): cached, anywhere, not over
    /// a multiple of `boundary`. Contents are undefined.
    fn allocate_contiguous(bytes: usize, boundary: u64) -> Option<NonNull<u8>>;

    /// `MmFreeContiguousMemorySpecifyCache` (NT 5.0; PASSIVE_LEVEL).
    ///
    /// # Safety
    /// `memory` is from [`Kapi::allocate_contiguous`] with the same size, and nobody uses it any more.
    unsafe fn free_contiguous(memory: NonNull<u8>, bytes: usize);

    /// `MmGetPhysicalAddress` (NT 3.1; any): 0 where there is none.
    fn physical_address(pointer: *const u8) -> u64;

    /// `MmAllocatePagesForMdlEx` (NT 5.2 SP1, which every NT 5.2 for x64 is; at most APC_LEVEL): cached pages from anywhere,
    /// perhaps fewer than wanted. `skip` and `flags` as there (`SkipBytes`, `MM_ALLOCATE_XXX`).
    fn allocate_pages(bytes: usize, skip: u64, flags: u32) -> Option<Mdl>;

    /// `MmFreePagesFromMdl` and `ExFreePool` of the MDL (NT 5.0; at most APC_LEVEL). A page that a transfer still has locked is
    /// free only when that is over.
    ///
    /// # Safety
    /// `mdl` is from [`Kapi::allocate_pages`] and mapped nowhere; nobody uses the pages any more.
    unsafe fn free_pages(mdl: Mdl);

    /// `IoAllocateMdl` without a buffer (NT 3.1; any), marked `MDL_PAGES_LOCKED`: for this many page frames, which the caller
    /// writes to where [`Kapi::mdl_frames`] says.
    fn allocate_mdl(pages: usize) -> Option<Mdl>;

    /// `IoFreeMdl` (NT 3.1; any).
    ///
    /// # Safety
    /// `mdl` is from [`Kapi::allocate_mdl`] and mapped nowhere.
    unsafe fn free_mdl(mdl: Mdl);

    /// `MmGetMdlPfnArray` (any NT; any), a macro: the page frames' numbers, as many as `MmGetMdlByteCount` has pages.
    ///
    /// # Safety
    /// `mdl` is alive.
    unsafe fn mdl_frames(mdl: Mdl) -> NonNull<[usize]>;

    /// `MmMapLockedPagesSpecifyCache` for KernelMode (NT 5.0; any): cached, not executable where NT knows that. `None` where
    /// there is no room.
    ///
    /// # Safety
    /// `mdl` is from [`Kapi::allocate_pages`] and not mapped for the kernel.
    unsafe fn map_to_kernel(mdl: Mdl) -> Option<NonNull<u8>>;

    /// `MmMapLockedPagesSpecifyCache` for UserMode (NT 5.0; at most APC_LEVEL), into the calling process at `address`: cached, to
    /// read and to write, not executable where NT knows that. `None` also where the kernel raises an exception, which it does
    /// when that place is taken.
    ///
    /// # Safety
    /// `mdl` is from [`Kapi::allocate_mdl`], its frames are written and stay the caller's until [`Kapi::unmap`].
    unsafe fn map_to_user(mdl: Mdl, address: usize) -> Option<usize>;

    /// `MmUnmapLockedPages` (NT 3.1; any for the kernel's addresses, at most APC_LEVEL for a process').
    ///
    /// # Safety
    /// `address` is where `mdl` is mapped; if that is in a process, it is the current one.
    unsafe fn unmap(address: usize, mdl: Mdl);

    /// `ZwAllocateVirtualMemory` of address space only (MEM_RESERVE) and `ZwFreeVirtualMemory` of it (NT 3.1; PASSIVE_LEVEL):
    /// where the calling process has room for so much now.
    fn find_user_room(bytes: usize) -> Option<usize>;

    /// `ZwQuerySystemInformation(SystemPerformanceInformation)`, `AvailablePages` (any NT; PASSIVE_LEVEL).
    fn available_pages() -> u64;

    // Waiting.

    /// `KeInitializeEvent` (NT 3.1; any).
    ///
    /// # Safety
    /// Nobody waits for it, and it does not move while it is used.
    unsafe fn event_initialize(event: &KernelEvent, kind: EventKind, signaled: bool);

    /// `KeSetEvent` without `Wait` (NT 3.1; any); `boost` is added to the priority of who waited.
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn event_set(event: &KernelEvent, boost: i32);

    /// `KeClearEvent` (NT 3.1; any).
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn event_clear(event: &KernelEvent);

    /// `KeWaitForSingleObject` without a time limit (NT 3.1; at most APC_LEVEL).
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn event_wait(event: &KernelEvent, kind: WaitKind) -> NtStatus;

    /// `KeDelayExecutionThread`, KernelMode, not alertable (NT 3.1; at most APC_LEVEL).
    fn sleep(milliseconds: u32);

    /// `KeEnterCriticalRegion` (NT 3.1; at most APC_LEVEL): the thread cannot be suspended, nor ended, until it leaves. Nests.
    fn enter_critical_region();

    /// `KeLeaveCriticalRegion` (NT 3.1; at most APC_LEVEL).
    ///
    /// # Safety
    /// Undoes a [`Kapi::enter_critical_region`].
    unsafe fn leave_critical_region();

    /// `PsIsThreadTerminating` of the current thread (NT 5.0; any): a flag of the thread's is read, so interrupts may be off.
    fn thread_ends() -> bool;

    // Events of programs.

    /// `ObReferenceObjectByHandle` for `EVENT_MODIFY_STATE`, `*ExEventObjectType`, UserMode (NT 3.1; PASSIVE_LEVEL): an event of
    /// the calling process.
    fn event_object(handle: isize) -> Option<EventObject>;

    /// `KeSetEvent` of it (NT 3.1; any).
    ///
    /// # Safety
    /// The reference is held.
    unsafe fn event_object_set(event: EventObject, boost: i32);

    /// `ObDereferenceObject` (NT 3.1; any).
    ///
    /// # Safety
    /// Gives back a reference, which nobody uses any more.
    unsafe fn event_object_release(event: EventObject);

    // Timers and deferred calls.

    /// `KeInitializeDpc` (NT 3.1; any).
    ///
    /// # Safety
    /// It is not queued, and does not move while it is used; `routine` may be called with `context` until then.
    unsafe fn dpc_initialize(dpc: &KernelDpc, routine: DeferredRoutine, context: *mut c_void);

    /// `KeSetTargetProcessorDpc` and `KeSetImportanceDpc(HighImportance)` (NT 3.5; any): it runs there, and that CPU is
    /// interrupted for it.
    ///
    /// # Safety
    /// It is initialized and not queued; `cpu` is an active one.
    unsafe fn dpc_target(dpc: &KernelDpc, cpu: usize);

    /// `KeInsertQueueDpc` (NT 3.1; any IRQL): false where it is queued already.
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn dpc_insert(dpc: &KernelDpc) -> bool;

    /// `KeRemoveQueueDpc` (NT 3.1; any IRQL).
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn dpc_remove(dpc: &KernelDpc) -> bool;

    /// `KeFlushQueuedDpcs` (NT 5.1; PASSIVE_LEVEL): returns when all DPCs that are queued now have run.
    fn dpc_flush();

    /// `KeInitializeTimer` (NT 3.1; any).
    ///
    /// # Safety
    /// It is not set, and does not move while it is used.
    unsafe fn timer_initialize(timer: &KernelTimer);

    /// `KeSetTimer` (NT 3.1; any): queues `dpc` in so many units of 100 ns, once. Replaces an earlier setting.
    ///
    /// # Safety
    /// Both are initialized, and stay until the timer is cancelled and the DPC does not run.
    unsafe fn timer_set(timer: &KernelTimer, units: u64, dpc: &KernelDpc);

    /// `KeCancelTimer` (NT 3.1; any): whether it was set.
    ///
    /// # Safety
    /// It is initialized.
    unsafe fn timer_cancel(timer: &KernelTimer) -> bool;

    /// `ExSetTimerResolution(units, on)` (NT 5.0; at most APC_LEVEL): timers expire at ticks that are this far apart at most,
    /// in 100 ns.
    fn timer_resolution(units: u32, on: bool);

    // Clocks.

    /// `KeQuerySystemTime` (NT 3.1; any IRQL): 100 ns since 1601 UTC, as of the last tick.
    fn system_time() -> i64;

    /// `KeQueryPerformanceCounter` (NT 3.1; any IRQL): count, and counts a second.
    fn performance_counter() -> (i64, i64);

    /// The time stamp counter.
    #[inline]
    fn time_stamp() -> u64 {
        // SAFETY: every CPU with long mode has RDTSC, and drivers may execute it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    // Processes.

    /// `PsGetCurrentProcess` (`IoGetCurrentProcess`; NT 3.1; any): the process whose address space is loaded.
    fn current_process() -> Process;

    /// `ObReferenceObject` (NT 3.1; any).
    ///
    /// # Safety
    /// The process is the current one, or a reference is held.
    unsafe fn process_reference(process: Process);

    /// `ObDereferenceObject` (NT 3.1; any).
    ///
    /// # Safety
    /// Gives back a reference, which nobody uses any more.
    unsafe fn process_release(process: Process);

    /// `KeStackAttachProcess` (NT 5.0; at most APC_LEVEL): its address space is loaded.
    ///
    /// # Safety
    /// A reference is held, its address space is still there, and [`Kapi::detach`] follows in the same thread with the same
    /// state.
    unsafe fn attach(process: Process, state: &ApcState);

    /// `KeUnstackDetachProcess` (NT 5.0; at most APC_LEVEL).
    ///
    /// # Safety
    /// Undoes a [`Kapi::attach`].
    unsafe fn detach(state: &ApcState);

    // Requests.

    /// `IoSetCancelRoutine` (NT 3.1; any): with `context`, a cancel of the request calls [`Port::cancelled`] with it; without,
    /// it calls nothing. The implementation keeps it in `Irp->Tail.Overlay.DriverContext[0]` and has the routine, which calls
    /// [`Port::cancelled`] and then `IoReleaseCancelSpinLock(Irp->CancelIrql)`. Returns whether a routine was set, and was not
    /// taken by a cancel.
    ///
    /// # Safety
    /// The request is the caller's. `context` stays until the routine is taken back, or has run.
    unsafe fn set_cancel_routine(irp: Irp, context: Option<NonNull<c_void>>) -> bool;

    /// `Irp->Cancel` (any NT; any).
    ///
    /// # Safety
    /// The request is the caller's.
    unsafe fn is_cancelled(irp: Irp) -> bool;

    /// `IoAcquireCancelSpinLock` and `IoReleaseCancelSpinLock` (NT 3.1; any): returns when no cancel routine runs that was
    /// running when it was called.
    fn wait_for_cancel_routines();
}
