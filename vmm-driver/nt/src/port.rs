//! The driver between its start and its end: what the driver file calls.
//!
//! ```text
//! DriverEntry        start() ─► process notification, power callback, shutdown notification, device and link
//! IRP_MJ_CREATE      create(): its result goes into FileObject->FsContext
//! IRP_MJ_DEVICE_CONTROL   control()      and meanwhile, from a cancel routine: cancelled()
//! IRP_MJ_CLEANUP     cleanup()
//! IRP_MJ_CLOSE       close()
//! a process ends     process_ended()
//! \Callback\PowerState    sleeps(), wakes()
//! IRP_MJ_SHUTDOWN    sleeps()
//! DriverUnload       link, device, notifications undone ─► stop()
//! ```
//!
//! All are called at PASSIVE_LEVEL but [`Port::cancelled`].
//!
//! **What NT watches.** It checks from time to time that nobody has changed certain registers and tables, and ends the machine
//! (0x109) where somebody has. Nothing of those is changed beyond a stay in the guest: the engines leave descriptor tables and
//! the task segment as they are and load all registers that they put aside, among them `TSC_AUX`, which NT uses and watches;
//! the port writes CR8 only, within what NT's own functions do with it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_core::device::Driver;
use covisor_core::device::EngineEntry;
use covisor_core::device::entry;
use covisor_core::host::OutOfMemory;

use crate::clock;
use crate::cpus::Cpus;
use crate::file;
use crate::file::Answer;
use crate::file::Control;
use crate::file::File;
use crate::gate::Gate;
use crate::host::Nt;
use crate::kapi::Irp;
use crate::kapi::Irql;
use crate::kapi::Kapi;
use crate::kapi::Process;
use crate::lock::Lock;
use crate::maps::Maps;
use crate::pages::Pages;
use crate::routines::Routines;
use crate::status::NtStatus;

/// Why the driver does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// More CPUs than a group has.
    #[error(
        "this machine has {0} processors in several processor groups, and covisor can use machines with one group only"
    )]
    ProcessorGroups(u32),
    /// A counter stands still.
    #[error("this machine's time stamp counter cannot be used as a clock, and guests need it")]
    NoClock,
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl From<StartError> for NtStatus {
    fn from(error: StartError) -> Self {
        match error {
            StartError::ProcessorGroups(_) | StartError::NoClock => Self::NOT_SUPPORTED,
            StartError::OutOfMemory(OutOfMemory) => Self::NO_MEMORY,
        }
    }
}

/// Engines of the driver's, the best one first.
pub type Engines<K> = Vec<Box<dyn EngineEntry<Nt<K>>>>;

/// The port's state, one static of the driver file's.
pub struct Port<K: Kapi> {
    cpus: Cpus,
    gate: Gate,
    maps: Maps<K>,
    pages: Lock<K, Pages<K>>,
    tsc_khz: AtomicU32,
    /// Open handles.
    handles: AtomicUsize,
    /// Written by `start` and `stop` alone.
    routines: UnsafeCell<Routines>,
    driver: UnsafeCell<Option<Driver<Nt<K>>>>,
}

// SAFETY: the cells are written by `start` and `stop` alone, each called once, before and after everything else.
unsafe impl<K: Kapi> Sync for Port<K> {}
// SAFETY: it belongs to no thread.
unsafe impl<K: Kapi> Send for Port<K> {}

impl<K: Kapi> core::fmt::Debug for Port<K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Port").field("handles", &self.handles).finish_non_exhaustive()
    }
}

/// The limit of a task segment without an I/O permission bitmap (SDM vol. 3, 8.7).
const TASK_SEGMENT_LIMIT: u32 = 0x67;

/// The limit of this CPU's task segment, from its descriptor; 0 where there is none.
fn task_segment_limit() -> u32 {
    let limit: u32;
    // SAFETY: STR reads the register, LSL a descriptor; none changes anything but flags.
    unsafe {
        asm!("str {limit:x}", "movzx {limit:e}, {limit:x}", "lsl {limit:e}, {limit:e}", "jz 2f", "xor {limit:e}, {limit:e}",
            "2:", limit = out(reg) limit, options(nomem, nostack));
    }
    limit
}

/// The engines that this machine could have, the best one first.
fn all_engines<K: Kapi>() -> Result<Engines<K>, OutOfMemory> {
    let mut engines = Vec::new();
    engines.try_reserve_exact(3).map_err(|_| OutOfMemory)?;
    engines.push(entry::<Nt<K>, covisor_svm::Svm>()?);
    if task_segment_limit() <= TASK_SEGMENT_LIMIT {
        engines.push(entry::<Nt<K>, covisor_vmx::Vmx>()?);
    } else {
        log::error!("VT-x is not used: it would cut this kernel's task segment");
    }
    engines.push(entry::<Nt<K>, covisor_coop::Coop>()?);
    Ok(engines)
}

impl<K: Kapi> Port<K> {
    /// Before the driver's start.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            cpus: Cpus::new(),
            gate: Gate::new(),
            maps: Maps::new(),
            pages: Lock::new(Pages::new()),
            tsc_khz: AtomicU32::new(0),
            handles: AtomicUsize::new(0),
            routines: UnsafeCell::new(Routines::NONE),
            driver: UnsafeCell::new(None),
        }
    }

    /// The driver is loaded.
    ///
    /// # Errors
    /// [`StartError`]; then [`Port::stop`] is not called.
    ///
    /// # Safety
    /// Called once, before all others; this is [`Kapi::port`].
    pub unsafe fn start(&'static self) -> Result<(), StartError> {
        // SAFETY: by the caller.
        unsafe { self.start_with(all_engines::<K>) }
    }

    /// [`Port::start`] with these engines.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn start_with(
        &'static self,
        engines: fn() -> Result<Engines<K>, OutOfMemory>,
    ) -> Result<(), StartError> {
        let routines = Routines::find::<K>();
        let cpus = routines.cpu_count::<K>();
        if cpus > K::active_cpus().count_ones() {
            return Err(StartError::ProcessorGroups(cpus));
        }
        let tsc_khz = clock::measure_tsc_khz::<K>().ok_or(StartError::NoClock)?;
        self.tsc_khz.store(tsc_khz, Ordering::Relaxed);
        // SAFETY: nobody uses anything of this yet, and it is a static.
        unsafe {
            *self.routines.get() = routines;
            self.pages.initialize();
            self.maps.initialize();
            self.gate.initialize::<K>();
            self.cpus.start::<K>(tsc_khz);
        }
        match engines().and_then(Driver::new) {
            Ok(driver) => {
                log::info!("started: {driver:?}");
                // SAFETY: nobody else uses the cell yet.
                unsafe { *self.driver.get() = Some(driver) };
                Ok(())
            }
            Err(error) => {
                self.cpus.stop::<K>();
                Err(error.into())
            }
        }
    }

    /// The driver is to be unloaded. False while a handle is open: then it stays as it is. (NT does not even ask then.)
    ///
    /// # Safety
    /// [`Port::start`] succeeded. Nothing comes to any other function any more, but for what handles that are open bring.
    pub unsafe fn stop(&'static self) -> bool {
        if self.handles.load(Ordering::SeqCst) != 0 {
            return false;
        }
        // SAFETY: nobody else uses the cell any more.
        drop(unsafe { (*self.driver.get()).take() });
        self.cpus.stop::<K>();
        true
    }

    /// The driver, once it has started.
    fn driver(&'static self) -> Option<&'static Driver<Nt<K>>> {
        // SAFETY: the cell is written only at the start and at the end.
        unsafe { (*self.driver.get()).as_ref() }
    }

    /// The calling process opens the device. What it gives is to be kept for the other calls.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn create(&'static self) -> Result<NonNull<c_void>, NtStatus> {
        let driver = self.driver().ok_or(NtStatus::DEVICE_NOT_READY)?;
        let file = File::open(driver).map_err(|OutOfMemory| NtStatus::NO_MEMORY)?;
        self.handles.fetch_add(1, Ordering::SeqCst);
        Ok(NonNull::from(Box::leak(file)).cast())
    }

    /// A device control request. It is to be completed with the answer, in the same thread.
    ///
    /// # Safety
    /// `context` is from [`Port::create`], and is not closed before the return. `irp` is the request, in the context of the
    /// thread that made it. The buffer is as [`Control`] says: as many bytes as the larger one of the sizes, of which the first
    /// `input` hold values, and nobody else's.
    pub unsafe fn control(&self, context: NonNull<c_void>, irp: Irp, control: Control) -> Answer {
        // SAFETY: by the caller.
        unsafe { context.cast::<File<K>>().as_ref().control(irp, control) }
    }

    /// A request is cancelled that [`Kapi::set_cancel_routine`] was called for, with this context. At DISPATCH_LEVEL, with the
    /// cancel spin lock held.
    ///
    /// # Safety
    /// It is that context, and the cancel spin lock is released after the return.
    pub unsafe fn cancelled(&self, context: NonNull<c_void>) {
        // SAFETY: the request's thread waits for the lock before it returns, so the file is there until then.
        unsafe { file::cancelled::<K>(context) };
    }

    /// The last handle is closed: what runs ends.
    ///
    /// # Safety
    /// `context` is from [`Port::create`] and not closed yet.
    pub unsafe fn cleanup(&self, context: NonNull<c_void>) {
        // SAFETY: by the caller.
        unsafe { context.cast::<File<K>>().as_ref() }.cleanup();
    }

    /// The last request is done: the VM ends.
    ///
    /// # Safety
    /// `context` is from [`Port::create`], and nobody uses it any more.
    pub unsafe fn close(&self, context: NonNull<c_void>) {
        // SAFETY: create() made it of a box, and the caller promises that this is its end.
        unsafe { Box::from_raw(context.cast::<File<K>>().as_ptr()) }.close();
        self.handles.fetch_sub(1, Ordering::SeqCst);
    }

    /// A process ends, and its last thread says so, before its address space goes.
    pub fn process_ended(&self, process: Process) {
        self.maps.process_ended(process);
    }

    /// The machine is about to sleep or to go down: VMs pause, and virtualization goes off on every CPU.
    pub fn sleeps(&'static self) {
        if K::irql() >= Irql::DISPATCH {
            log::error!("the machine's sleep was announced where nothing can be done for it");
            return;
        }
        self.gate.shut::<K>(|| self.cpus.kick_all::<K>());
        if let Some(driver) = self.driver() {
            driver.power_down();
        }
    }

    /// The machine is awake: VMs go on, and switch virtualization on where they run.
    pub fn wakes(&self) {
        self.gate.open::<K>();
    }

    #[inline]
    pub(crate) const fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    #[inline]
    pub(crate) const fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) const fn maps(&self) -> &Maps<K> {
        &self.maps
    }

    pub(crate) const fn pages(&self) -> &Lock<K, Pages<K>> {
        &self.pages
    }

    #[inline]
    pub(crate) fn routines(&self) -> &Routines {
        // SAFETY: written only at the start.
        unsafe { &*self.routines.get() }
    }

    pub(crate) fn tsc_khz(&self) -> u32 {
        self.tsc_khz.load(Ordering::Relaxed)
    }
}

impl<K: Kapi> Default for Port<K> {
    fn default() -> Self {
        Self::new()
    }
}
