//! What the port takes of the kernel, as `wdk-sys` has it.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::SeqCst;

use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::Port;
#[cfg(not(feature = "wine"))]
use covisor_nt::StartError;
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
use wdk_sys::_KDPC_IMPORTANCE::HighImportance;
use wdk_sys::_KWAIT_REASON::Executive;
use wdk_sys::_MEMORY_CACHING_TYPE::MmCached;
use wdk_sys::DEVICE_OBJECT;
use wdk_sys::IRP;
use wdk_sys::LARGE_INTEGER;
use wdk_sys::MDL;
use wdk_sys::OSVERSIONINFOW;
use wdk_sys::UNICODE_STRING;
use wdk_sys::ntddk;

use crate::imports;
use crate::status;
use crate::user_mapping::covisor_map_to_user;

/// The NT kernel that the driver runs in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel;

static PORT: Port<Kernel> = Port::new();

/// `KernelMode` and `UserMode`.
const KERNEL_MODE: i8 = 0;
/// As above.
const USER_MODE: i8 = 1;
/// `NormalPagePriority`.
const NORMAL_PRIORITY: u32 = 16;
/// `MdlMappingNoExecute`, since NT 6.2.
const MAPPING_NO_EXECUTE: u32 = 0x4000_0000;
/// `MDL_PAGES_LOCKED`.
const MDL_PAGES_LOCKED: i16 = 2;
/// `EVENT_MODIFY_STATE`.
const EVENT_MODIFY_STATE: u32 = 2;
/// `NtCurrentProcess()`.
const CURRENT_PROCESS: isize = -1;
/// `MEM_RESERVE`, `MEM_RELEASE`, `PAGE_READWRITE`.
const MEM_RESERVE: u32 = 0x2000;
/// As above.
const MEM_RELEASE: u32 = 0x8000;
/// As above.
const PAGE_READWRITE: u32 = 4;
/// `SystemPerformanceInformation`.
const PERFORMANCE_INFORMATION: i32 = 2;
/// Where it has `AvailablePages`, in 32-bit words.
const AVAILABLE_PAGES: usize = 11;
/// Units of `KeDelayExecutionThread` in a millisecond.
const UNITS_IN_MILLISECOND: i64 = 10_000;
const PAGE: usize = 4096;
/// The CPU's number, at this place of GS in every NT for x64.
const GS_CPU: usize = 0x184;
/// `KUSER_SHARED_DATA`, and where it has `SystemTime`: low half, high half, high half again.
const SYSTEM_TIME: *const u32 = ptr::without_provenance(0xffff_f780_0000_0014);
/// The longest name of a function that is asked for.
const LONGEST_NAME: usize = 64;

/// The time that the kernel keeps at `words`: low half, high half, high half again.
///
/// # Safety
/// They can be read, and are written by the kernel alone.
pub(crate) unsafe fn time_at(words: *const u32) -> i64 {
    // SAFETY: by the caller. It changes them in this order: high half again, low half, high half.
    let word = |index: usize| unsafe { words.add(index).read_volatile() };
    loop {
        let high = word(1);
        let low = word(0);
        if high == word(2) {
            return (u64::from(high) << 32 | u64::from(low)).cast_signed();
        }
    }
}

/// Starts the port, with the engines that every machine may have.
///
/// # Safety
/// As [`Port::start`].
#[cfg(not(feature = "wine"))]
pub(crate) unsafe fn start() -> Result<(), StartError> {
    // SAFETY: by the caller.
    unsafe { PORT.start() }
}

/// How pages are mapped.
static MAPPING: AtomicU32 = AtomicU32::new(NORMAL_PRIORITY);

/// Mappings are not executable from now on, which this NT can do if it is 6.2 or later.
pub(crate) fn forbid_execution() {
    MAPPING.store(NORMAL_PRIORITY | MAPPING_NO_EXECUTE, Relaxed);
}

/// A 64-bit number as the kernel passes it.
fn large(value: i64) -> LARGE_INTEGER {
    LARGE_INTEGER { QuadPart: value }
}

fn mdl(mdl: Mdl) -> *mut MDL {
    mdl.0.as_ptr().cast()
}

/// The request's driver context, which is the driver's to use while it has the request.
///
/// # Safety
/// The request is the caller's.
unsafe fn driver_context(irp: *mut IRP) -> *mut *mut c_void {
    // SAFETY: the first word of the overlay is the first of four that are the driver's.
    unsafe { irp.cast::<u8>().add(offset_of!(IRP, Tail)).cast() }
}

/// The request's cancel routine, which NT exchanges atomically.
///
/// # Safety
/// The request is the caller's, and stays so while the reference is used.
unsafe fn cancel_routine<'a>(irp: *mut IRP) -> &'a AtomicPtr<c_void> {
    // SAFETY: a pointer, aligned as such, that everybody changes atomically only.
    unsafe { AtomicPtr::from_ptr((&raw mut (*irp).CancelRoutine).cast()) }
}

/// A request is cancelled. The cancel spin lock is held.
unsafe extern "C" fn on_cancel<K: Kapi>(_device: *mut DEVICE_OBJECT, irp: *mut IRP) {
    // SAFETY: until this is over the request is not completed. set_cancel_routine() wrote the context.
    let (context, irql) = unsafe { (*driver_context(irp), (*irp).CancelIrql) };
    if let Some(context) = NonNull::new(context) {
        // SAFETY: set_cancel_routine()'s caller keeps it until this has run.
        unsafe { K::port().cancelled(context) };
    }
    // SAFETY: the kernel acquired it and left the level to go back to.
    unsafe { ntddk::IoReleaseCancelSpinLock(irql) };
}

/// [`Kapi::set_cancel_routine`] of `K`.
///
/// # Safety
/// As there.
pub(crate) unsafe fn set_cancel_routine<K: Kapi>(irp: Irp, context: Option<NonNull<c_void>>) -> bool {
    let irp = irp.0.as_ptr().cast::<IRP>();
    let routine = match context {
        Some(context) => {
            // SAFETY: the request is the caller's, and has no cancel routine that reads it.
            unsafe { *driver_context(irp) = context.as_ptr() };
            on_cancel::<K> as *mut c_void
        }
        None => ptr::null_mut(),
    };
    // SAFETY: by the caller.
    let before = unsafe { cancel_routine(irp) }.swap(routine, SeqCst);
    !before.is_null()
}

/// [`Kapi::find_user_room`] in a process, by its handle.
pub(crate) fn find_room(process: isize, bytes: usize) -> Option<usize> {
    let (mut address, mut size) = (0, bytes);
    // SAFETY: it reserves addresses that nobody uses.
    status(unsafe {
        imports::ZwAllocateVirtualMemory(process, &raw mut address, 0, &raw mut size, MEM_RESERVE, PAGE_READWRITE)
    })
    .ok()?;
    let (found, mut all) = (address, 0);
    // SAFETY: they were reserved above, and nothing is there.
    status(unsafe { imports::ZwFreeVirtualMemory(process, &raw mut address, &raw mut all, MEM_RELEASE) }).ok()?;
    Some(found)
}

// SAFETY: each calls the function that it names, or does what that does where Microsoft's headers have it inline.
unsafe impl Kapi for Kernel {
    fn port() -> &'static Port<Self> {
        &PORT
    }

    fn system_routine(name: &str) -> Option<NonNull<c_void>> {
        let mut text = [0_u16; LONGEST_NAME];
        if name.len() > LONGEST_NAME {
            return None;
        }
        for (unit, byte) in text.iter_mut().zip(name.bytes()) {
            *unit = byte.into();
        }
        let bytes = u16::try_from(name.len() * size_of::<u16>()).ok()?;
        let mut string = UNICODE_STRING { Length: bytes, MaximumLength: bytes, Buffer: text.as_mut_ptr() };
        // SAFETY: the string is there while it is read.
        NonNull::new(unsafe { ntddk::MmGetSystemRoutineAddress(&raw mut string) })
    }

    fn version() -> (u32, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "a structure of a few hundred bytes")]
        let mut version =
            OSVERSIONINFOW { dwOSVersionInfoSize: size_of::<OSVERSIONINFOW>() as u32, ..Default::default() };
        // SAFETY: it has the size that it says. The kernel's own cannot fail.
        let _ = unsafe { ntddk::RtlGetVersion((&raw mut version).cast()) };
        (version.dwMajorVersion, version.dwMinorVersion)
    }

    #[inline]
    fn irql() -> Irql {
        let level: u64;
        // SAFETY: only reads it.
        unsafe { asm!("mov {}, cr8", out(reg) level, options(nomem, nostack, preserves_flags)) };
        Irql(level.to_le_bytes()[0])
    }

    #[inline]
    fn raise_irql(to: Irql) -> Irql {
        let before = Self::irql();
        // SAFETY: holds back interrupts, until lower_irql().
        unsafe { asm!("mov cr8, {}", in(reg) u64::from(to.0), options(nostack, preserves_flags)) };
        before
    }

    #[inline]
    unsafe fn lower_irql(to: Irql) {
        // SAFETY: by the caller.
        unsafe { asm!("mov cr8, {}", in(reg) u64::from(to.0), options(nostack, preserves_flags)) };
    }

    #[inline]
    fn cpu() -> usize {
        let number: u64;
        // SAFETY: GS has the kernel's data of this CPU.
        unsafe {
            asm!("movzx {:e}, byte ptr gs:[{}]", out(reg) number, const GS_CPU, options(nostack, readonly, preserves_flags));
        }
        usize::from(number.to_le_bytes()[0])
    }

    fn active_cpus() -> u64 {
        // SAFETY: only reads.
        unsafe { ntddk::KeQueryActiveProcessors() }
    }

    unsafe fn set_affinity(cpus: u64) {
        // SAFETY: by the caller.
        unsafe { ntddk::KeSetSystemAffinityThread(cpus) };
    }

    unsafe fn revert_affinity() {
        // SAFETY: by the caller.
        unsafe { imports::KeRevertToUserAffinityThread() };
    }

    fn allocate_contiguous(bytes: usize, boundary: u64) -> Option<NonNull<u8>> {
        let boundary = large(boundary.cast_signed());
        // SAFETY: it only takes memory.
        let memory = unsafe {
            ntddk::MmAllocateContiguousMemorySpecifyCache(bytes as u64, large(0), large(-1), boundary, MmCached)
        };
        NonNull::new(memory.cast())
    }

    unsafe fn free_contiguous(memory: NonNull<u8>, bytes: usize) {
        // SAFETY: by the caller.
        unsafe { ntddk::MmFreeContiguousMemorySpecifyCache(memory.as_ptr().cast(), bytes as u64, MmCached) };
    }

    fn physical_address(pointer: *const u8) -> u64 {
        // SAFETY: it looks the address up, whatever it is.
        let address = unsafe { ntddk::MmGetPhysicalAddress(pointer.cast_mut().cast()) };
        // SAFETY: all of it is valid as a number.
        unsafe { address.QuadPart }.cast_unsigned()
    }

    fn allocate_pages(bytes: usize, skip: u64, flags: u32) -> Option<Mdl> {
        let skip = large(skip.cast_signed());
        // SAFETY: it only takes memory.
        let list = unsafe { ntddk::MmAllocatePagesForMdlEx(large(0), large(-1), skip, bytes as u64, MmCached, flags) };
        NonNull::new(list.cast()).map(Mdl)
    }

    unsafe fn free_pages(list: Mdl) {
        // SAFETY: by the caller. The pages first, then the MDL, which is a pool block.
        unsafe {
            ntddk::MmFreePagesFromMdl(mdl(list));
            ntddk::ExFreePool(list.0.as_ptr());
        }
    }

    fn allocate_mdl(pages: usize) -> Option<Mdl> {
        let bytes = u32::try_from(pages.checked_mul(PAGE)?).ok()?;
        // SAFETY: it only takes memory; without a request and a buffer it looks at nothing.
        let list = unsafe { ntddk::IoAllocateMdl(ptr::null_mut(), bytes, 0, 0, ptr::null_mut()) };
        let list = NonNull::new(list)?;
        // SAFETY: it is new and nobody else's.
        unsafe { (*list.as_ptr()).MdlFlags |= MDL_PAGES_LOCKED };
        Some(Mdl(list.cast()))
    }

    unsafe fn free_mdl(list: Mdl) {
        // SAFETY: by the caller.
        unsafe { ntddk::IoFreeMdl(mdl(list)) };
    }

    unsafe fn mdl_frames(list: Mdl) -> NonNull<[usize]> {
        let list = mdl(list);
        // SAFETY: it is alive.
        let bytes = unsafe { (*list).ByteOffset as usize + (*list).ByteCount as usize };
        // SAFETY: the numbers lie behind it.
        let frames = unsafe { list.add(1) }.cast::<usize>();
        // SAFETY: that is no null pointer.
        NonNull::slice_from_raw_parts(unsafe { NonNull::new_unchecked(frames) }, bytes.div_ceil(PAGE))
    }

    unsafe fn map_to_kernel(list: Mdl) -> Option<NonNull<u8>> {
        // SAFETY: by the caller. For the kernel it returns null where there is no room.
        let address = unsafe {
            ntddk::MmMapLockedPagesSpecifyCache(
                mdl(list),
                KERNEL_MODE,
                MmCached,
                ptr::null_mut(),
                0,
                MAPPING.load(Relaxed),
            )
        };
        NonNull::new(address.cast())
    }

    unsafe fn map_to_user(list: Mdl, address: usize) -> Option<usize> {
        // SAFETY: by the caller.
        let address = unsafe { covisor_map_to_user(mdl(list), address, MAPPING.load(Relaxed)) };
        NonNull::new(address).map(|address| address.addr().get())
    }

    unsafe fn unmap(address: usize, list: Mdl) {
        // SAFETY: by the caller.
        unsafe { ntddk::MmUnmapLockedPages(ptr::with_exposed_provenance_mut(address), mdl(list)) };
    }

    fn find_user_room(bytes: usize) -> Option<usize> {
        find_room(CURRENT_PROCESS, bytes)
    }

    fn available_pages() -> u64 {
        // Longer than any NT's, so that none finds it too short.
        let mut information = [0_u32; 256];
        #[expect(clippy::cast_possible_truncation, reason = "1 KiB")]
        let bytes = size_of_val(&information) as u32;
        let mut written = 0;
        // SAFETY: so many bytes can be written there.
        let result = unsafe {
            imports::ZwQuerySystemInformation(
                PERFORMANCE_INFORMATION,
                (&raw mut information).cast(),
                bytes,
                &raw mut written,
            )
        };
        if status(result).is_ok() { information[AVAILABLE_PAGES].into() } else { 0 }
    }

    unsafe fn event_initialize(event: &KernelEvent, kind: EventKind, signaled: bool) {
        let kind = match kind {
            EventKind::Notification => 0,
            EventKind::Synchronization => 1,
        };
        // SAFETY: by the caller.
        unsafe { ntddk::KeInitializeEvent(event.as_ptr().cast(), kind, signaled.into()) };
    }

    unsafe fn event_set(event: &KernelEvent, boost: i32) {
        // SAFETY: by the caller.
        unsafe { ntddk::KeSetEvent(event.as_ptr().cast(), boost, 0) };
    }

    unsafe fn event_clear(event: &KernelEvent) {
        // SAFETY: by the caller.
        unsafe { ntddk::KeClearEvent(event.as_ptr().cast()) };
    }

    unsafe fn event_wait(event: &KernelEvent, kind: WaitKind) -> NtStatus {
        let (mode, alertable) = match kind {
            WaitKind::Firm => (KERNEL_MODE, 0),
            WaitKind::Interruptible => (USER_MODE, 1),
        };
        // SAFETY: by the caller.
        NtStatus(unsafe { ntddk::KeWaitForSingleObject(event.as_ptr(), Executive, mode, alertable, ptr::null_mut()) })
    }

    fn sleep(milliseconds: u32) {
        // Negative: from now.
        let mut interval = large(-i64::from(milliseconds) * UNITS_IN_MILLISECOND);
        // SAFETY: the interval is there. Nothing can end the wait early.
        let _ = unsafe { ntddk::KeDelayExecutionThread(KERNEL_MODE, 0, &raw mut interval) };
    }

    fn enter_critical_region() {
        // SAFETY: it is left by leave_critical_region().
        unsafe { ntddk::KeEnterCriticalRegion() };
    }

    unsafe fn leave_critical_region() {
        // SAFETY: by the caller.
        unsafe { ntddk::KeLeaveCriticalRegion() };
    }

    fn thread_ends() -> bool {
        // SAFETY: the current thread is alive.
        unsafe { imports::PsIsThreadTerminating(imports::PsGetCurrentThread()) != 0 }
    }

    fn event_object(handle: isize) -> Option<EventObject> {
        let mut object = ptr::null_mut();
        // SAFETY: the loader filled the slot with the address of the kernel's variable. The handle may be anything.
        status(unsafe {
            ntddk::ObReferenceObjectByHandle(
                ptr::without_provenance_mut(handle.cast_unsigned()),
                EVENT_MODIFY_STATE,
                (*imports::EVENT_OBJECT_TYPE).cast(),
                USER_MODE,
                &raw mut object,
                ptr::null_mut(),
            )
        })
        .ok()?;
        NonNull::new(object).map(EventObject)
    }

    unsafe fn event_object_set(event: EventObject, boost: i32) {
        // SAFETY: by the caller.
        unsafe { ntddk::KeSetEvent(event.0.as_ptr().cast(), boost, 0) };
    }

    unsafe fn event_object_release(event: EventObject) {
        // SAFETY: by the caller.
        unsafe { imports::ObfDereferenceObject(event.0.as_ptr()) };
    }

    unsafe fn dpc_initialize(dpc: &KernelDpc, routine: DeferredRoutine, context: *mut c_void) {
        // SAFETY: both are the same to the CPU: a routine that gets four pointers.
        let routine = unsafe { core::mem::transmute::<DeferredRoutine, wdk_sys::PKDEFERRED_ROUTINE>(routine) };
        // SAFETY: by the caller.
        unsafe { ntddk::KeInitializeDpc(dpc.as_ptr().cast(), routine, context) };
    }

    unsafe fn dpc_target(dpc: &KernelDpc, cpu: usize) {
        // SAFETY: by the caller. A CPU's number in its group has 6 bits.
        #[expect(clippy::cast_possible_truncation, reason = "below 64")]
        unsafe {
            ntddk::KeSetTargetProcessorDpc(dpc.as_ptr().cast(), cpu as i8);
            ntddk::KeSetImportanceDpc(dpc.as_ptr().cast(), HighImportance);
        }
    }

    unsafe fn dpc_insert(dpc: &KernelDpc) -> bool {
        // SAFETY: by the caller.
        unsafe { ntddk::KeInsertQueueDpc(dpc.as_ptr().cast(), ptr::null_mut(), ptr::null_mut()) != 0 }
    }

    unsafe fn dpc_remove(dpc: &KernelDpc) -> bool {
        // SAFETY: by the caller.
        unsafe { ntddk::KeRemoveQueueDpc(dpc.as_ptr().cast()) != 0 }
    }

    fn dpc_flush() {
        // SAFETY: it only waits.
        unsafe { ntddk::KeFlushQueuedDpcs() };
    }

    unsafe fn timer_initialize(timer: &KernelTimer) {
        // SAFETY: by the caller.
        unsafe { ntddk::KeInitializeTimer(timer.as_ptr().cast()) };
    }

    unsafe fn timer_set(timer: &KernelTimer, units: u64, dpc: &KernelDpc) {
        // Negative: from now.
        let due = large(i64::try_from(units).map_or(i64::MIN, |units| -units));
        // SAFETY: by the caller.
        unsafe { ntddk::KeSetTimer(timer.as_ptr().cast(), due, dpc.as_ptr().cast()) };
    }

    unsafe fn timer_cancel(timer: &KernelTimer) -> bool {
        // SAFETY: by the caller.
        unsafe { ntddk::KeCancelTimer(timer.as_ptr().cast()) != 0 }
    }

    fn timer_resolution(units: u32, on: bool) {
        // SAFETY: it only asks.
        unsafe { ntddk::ExSetTimerResolution(units, on.into()) };
    }

    fn system_time() -> i64 {
        // SAFETY: the kernel maps it in every process.
        unsafe { time_at(SYSTEM_TIME) }
    }

    fn performance_counter() -> (i64, i64) {
        let mut frequency = large(0);
        // SAFETY: the frequency can be written there; all of a number is valid.
        unsafe {
            let count = ntddk::KeQueryPerformanceCounter(&raw mut frequency);
            (count.QuadPart, frequency.QuadPart)
        }
    }

    fn current_process() -> Process {
        // SAFETY: there always is one.
        Process(unsafe { NonNull::new_unchecked(imports::IoGetCurrentProcess()) })
    }

    unsafe fn process_reference(process: Process) {
        // SAFETY: by the caller.
        unsafe { imports::ObfReferenceObject(process.0.as_ptr()) };
    }

    unsafe fn process_release(process: Process) {
        // SAFETY: by the caller.
        unsafe { imports::ObfDereferenceObject(process.0.as_ptr()) };
    }

    unsafe fn attach(process: Process, state: &ApcState) {
        // SAFETY: by the caller.
        unsafe { imports::KeStackAttachProcess(process.0.as_ptr(), state.as_ptr()) };
    }

    unsafe fn detach(state: &ApcState) {
        // SAFETY: by the caller.
        unsafe { imports::KeUnstackDetachProcess(state.as_ptr()) };
    }

    unsafe fn set_cancel_routine(irp: Irp, context: Option<NonNull<c_void>>) -> bool {
        // SAFETY: by the caller.
        unsafe { set_cancel_routine::<Self>(irp, context) }
    }

    unsafe fn is_cancelled(irp: Irp) -> bool {
        // SAFETY: by the caller; others write it at any time.
        unsafe { (&raw const (*irp.0.as_ptr().cast::<IRP>()).Cancel).read_volatile() != 0 }
    }

    fn wait_for_cancel_routines() {
        let mut irql = 0;
        // SAFETY: the lock is not held here, and is released at once.
        unsafe {
            ntddk::IoAcquireCancelSpinLock(&raw mut irql);
            ntddk::IoReleaseCancelSpinLock(irql);
        }
    }
}
