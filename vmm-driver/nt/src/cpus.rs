//! CPUs, and what holds a thread on one of them.
//!
//! **Preemption off** is DISPATCH_LEVEL: the scheduler is a deferred call of this level. Interrupts of devices, of the clock and
//! between CPUs still come, for their levels are above.
//!
//! **In the guest** that would not do: an interrupt that CR8 holds back does not leave the APIC, so it does not make the guest
//! exit either, and the kernel asks a CPU for its deferred calls by an interrupt of just that level. So CR8 is lowered for the
//! stay, with interrupts off: nothing comes in the host, anything ends the stay, and then waits for CR8 to fall again at
//! [`Cpus::let_go`]. The kernel is not called while it is low, so nobody sees it.
//!
//! **A kick** is an empty deferred call for the CPU, of high importance, which the kernel interrupts it for.
//!
//! **On a certain CPU** something runs by moving the thread there. Waiting for a deferred call on another CPU would be
//! shorter, but whoever waits at DISPATCH_LEVEL for what another CPU can only do below it may wait for one that waits for him.

use core::cell::UnsafeCell;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use covisor_core::host;
use covisor_core::host::CpuFunction;

use crate::kapi::DeferredRoutine;
use crate::kapi::Irql;
use crate::kapi::Kapi;
use crate::kapi::KernelDpc;
use crate::watch::Watched;

/// CPUs of a group (`MAXIMUM_PROC_PER_GROUP`), and of an NT without groups.
pub(crate) const MAX_CPUS: usize = 64;

/// How long a thread keeps its CPU at a stretch where the kernel does not tell whether another one wants it, in microseconds.
const SLICE_US: u64 = 1000;

/// What the port remembers of a CPU. Only that CPU writes, at DISPATCH_LEVEL, so it needs no lock.
#[derive(Debug)]
struct Cpu {
    /// How often preemption was switched off.
    depth: AtomicU32,
    /// The level before that.
    level: AtomicU8,
    /// The time stamp then.
    since: AtomicU64,
    /// An event of ours may have made a thread ready since then.
    readied: AtomicBool,
    kick: KernelDpc,
    /// When interrupts went off.
    watched: UnsafeCell<Watched>,
}

// SAFETY: the cell is touched on its own CPU only, with interrupts off.
unsafe impl Sync for Cpu {}

/// All of them.
#[derive(Debug)]
pub(crate) struct Cpus {
    cpus: [Cpu; MAX_CPUS],
    /// Those that there are.
    active: AtomicU64,
    /// The slice, in counts of the time stamp counter.
    slice: AtomicU64,
}

/// The deferred call of a kick: that it comes is all.
unsafe extern "C" fn kicked(
    _dpc: *mut core::ffi::c_void,
    _context: *mut core::ffi::c_void,
    _first: *mut core::ffi::c_void,
    _second: *mut core::ffi::c_void,
) {
}

impl Cpus {
    pub(crate) const fn new() -> Self {
        Self {
            cpus: [const {
                Cpu {
                    depth: AtomicU32::new(0),
                    level: AtomicU8::new(0),
                    since: AtomicU64::new(0),
                    readied: AtomicBool::new(false),
                    kick: KernelDpc::new(),
                    watched: UnsafeCell::new(Watched::NONE),
                }
            }; MAX_CPUS],
            active: AtomicU64::new(0),
            slice: AtomicU64::new(u64::MAX),
        }
    }

    /// Gets them ready, on a machine whose time stamp counter has this rate.
    ///
    /// # Safety
    /// Nobody uses them yet, and they do not move any more.
    pub(crate) unsafe fn start<K: Kapi>(&self, tsc_khz: u32) {
        let active = K::active_cpus();
        let routine: DeferredRoutine = kicked;
        for (number, cpu) in self.cpus.iter().enumerate().filter(|(number, _)| active >> number & 1 != 0) {
            // SAFETY: by the caller; the CPU is there.
            unsafe {
                K::dpc_initialize(&cpu.kick, routine, core::ptr::null_mut());
                K::dpc_target(&cpu.kick, number);
            }
        }
        self.slice.store(SLICE_US * u64::from(tsc_khz) / 1000, Ordering::Relaxed);
        self.active.store(active, Ordering::SeqCst);
    }

    /// Nobody kicks any more: waits for the last ones.
    pub(crate) fn stop<K: Kapi>(&self) {
        if self.active.swap(0, Ordering::SeqCst) != 0 {
            K::dpc_flush();
        }
    }

    /// Their numbers are below it.
    pub(crate) fn limit(&self) -> usize {
        (u64::BITS - self.active.load(Ordering::Relaxed).leading_zeros()) as usize
    }

    /// The calling CPU. Its number is below [`MAX_CPUS`] wherever the port starts; the division only has the compiler know.
    #[inline]
    fn here<K: Kapi>(&self) -> &Cpu {
        &self.cpus[K::cpu() % MAX_CPUS]
    }

    #[inline]
    pub(crate) fn preempt_off<K: Kapi>(&self) -> usize {
        let before = K::raise_irql(Irql::DISPATCH);
        let number = K::cpu();
        let cpu = &self.cpus[number % MAX_CPUS];
        let depth = cpu.depth.load(Ordering::Relaxed);
        if depth == 0 {
            cpu.level.store(before.0, Ordering::Relaxed);
            cpu.since.store(K::time_stamp(), Ordering::Relaxed);
            cpu.readied.store(false, Ordering::Relaxed);
        }
        cpu.depth.store(depth.wrapping_add(1), Ordering::Relaxed);
        number
    }

    #[inline]
    pub(crate) fn preempt_on<K: Kapi>(&self) {
        let cpu = self.here::<K>();
        let depth = cpu.depth.load(Ordering::Relaxed).wrapping_sub(1);
        cpu.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            let level = Irql(cpu.level.load(Ordering::Relaxed));
            // SAFETY: it undoes preempt_off(), and nothing of the CPU's is touched any more. With interrupts off, let_go() has
            // them on before anything of the kernel's.
            unsafe { K::lower_irql(level) };
        }
    }

    /// Interrupts off. At DISPATCH_LEVEL.
    #[inline]
    pub(crate) fn interrupts_off<K: Kapi>(&self) {
        K::interrupts_off();
        if K::WATCH {
            // SAFETY: interrupts are off; nobody else has the cell.
            unsafe { *self.here::<K>().watched.get() = K::watched() };
        }
    }

    /// Interrupts on. At DISPATCH_LEVEL.
    #[inline]
    pub(crate) fn interrupts_on<K: Kapi>(&self) {
        self.check_watched::<K>();
        K::interrupts_on();
    }

    /// Everything that NT watches is as it was when interrupts went off.
    #[inline]
    fn check_watched<K: Kapi>(&self) {
        if K::WATCH {
            // SAFETY: as above.
            let (before, after) = unsafe { (&*self.here::<K>().watched.get(), K::watched()) };
            if let Some((name, before, after)) = after.changed(before) {
                panic!("{name} was {before:#x} and is {after:#x}");
            }
        }
    }

    /// [`Cpus::preempt_on`] and interrupts on, in one: CR8 falls first. What is pending then finds a CPU that runs a thread. With
    /// CR8 up it would find one at DISPATCH_LEVEL at each tick, since most of them end a stay in the guest, and NT stops the
    /// machine (0x133) that stays there for too long.
    #[inline]
    pub(crate) fn let_go<K: Kapi>(&self, last: impl FnOnce()) {
        self.check_watched::<K>();
        self.preempt_on::<K>();
        last();
        K::interrupts_on();
    }

    /// An event of ours was set, which may have made a thread ready that waits for this CPU.
    #[inline]
    pub(crate) fn note_readied<K: Kapi>(&self) {
        self.here::<K>().readied.store(true, Ordering::Relaxed);
    }

    /// Whether the calling thread has had this CPU for long enough, where the kernel does not tell. At DISPATCH_LEVEL.
    #[inline]
    pub(crate) fn slice_is_over<K: Kapi>(&self) -> bool {
        let cpu = self.here::<K>();
        let had = K::time_stamp().wrapping_sub(cpu.since.load(Ordering::Relaxed));
        cpu.readied.load(Ordering::Relaxed) || had > self.slice.load(Ordering::Relaxed)
    }

    /// Interrupts a CPU.
    #[inline]
    pub(crate) fn kick<K: Kapi>(&self, cpu: usize) {
        if self.is_active(cpu) {
            // SAFETY: start() initialized it.
            unsafe { K::dpc_insert(&self.cpus[cpu].kick) };
        }
    }

    /// Interrupts all.
    pub(crate) fn kick_all<K: Kapi>(&self) {
        (0..MAX_CPUS).for_each(|cpu| self.kick::<K>(cpu));
    }

    fn is_active(&self, cpu: usize) -> bool {
        cpu < MAX_CPUS && self.active.load(Ordering::Relaxed) >> cpu & 1 != 0
    }

    /// Calls it on a CPU, with interrupts off. Below DISPATCH_LEVEL.
    fn on_cpu<K: Kapi>(&self, cpu: usize, function: CpuFunction, argument: *const ()) {
        if !self.is_active(cpu) {
            return;
        }
        // SAFETY: below DISPATCH_LEVEL, and the CPU is there.
        unsafe { K::set_affinity(1 << cpu) };
        self.preempt_off::<K>();
        self.interrupts_off::<K>();
        function(cpu, argument);
        self.interrupts_on::<K>();
        self.preempt_on::<K>();
        // SAFETY: undoes set_affinity().
        unsafe { K::revert_affinity() };
    }

    /// Calls it on these CPUs, one after the other.
    pub(crate) fn on_cpus<K: Kapi>(&self, cpus: host::Cpus, function: CpuFunction, argument: *const ()) {
        match cpus {
            host::Cpus::Each => (0..MAX_CPUS).for_each(|cpu| self.on_cpu::<K>(cpu, function, argument)),
            host::Cpus::One(cpu) => self.on_cpu::<K>(cpu, function, argument),
        }
    }
}
