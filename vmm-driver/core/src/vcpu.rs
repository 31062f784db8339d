//! One vCPU: what its thread owns, and what others reach.

use alloc::boxed::Box;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_abi::Run;
use covisor_abi::StatsKind;

use crate::apic::Inbox;
use crate::apic::LocalApic;
use crate::device::try_box;
use crate::emulate::Cause;
use crate::engine::Engine;
use crate::host::Host;
use crate::host::OutOfMemory;
use crate::host::TimerCallback;
use crate::msr::GuestMsrs;

/// What any thread may use of a vCPU.
pub(crate) struct Shared<H: Host> {
    /// First, for fields are dropped in their order: until it is dropped it may expire, and its callback uses all others.
    timer: spin::Once<H::Timer>,
    /// Interrupts on their way to it.
    pub(crate) inbox: Inbox,
    /// Number of the physical CPU that it runs on, and 1; 0 while it does not run.
    cpu: AtomicUsize,
    /// `Run` is to return.
    pub(crate) kicked: AtomicBool,
    /// The host's timer expired since it was set.
    pub(crate) timer_fired: AtomicBool,
    pub(crate) waker: H::Waker,
    counts: [AtomicU64; 8],
}

impl<H: Host> Shared<H> {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            timer: spin::Once::new(),
            inbox: Inbox::new(),
            cpu: AtomicUsize::new(0),
            kicked: AtomicBool::new(false),
            timer_fired: AtomicBool::new(false),
            waker: H::waker_new()?,
            counts: [const { AtomicU64::new(0) }; 8],
        })
    }

    /// Its thread runs it on this CPU from now on. What is posted before is seen by the look into the inbox that
    /// follows; who posts later sees the CPU and interrupts it (both sides use sequentially consistent order).
    pub(crate) fn enter(&self, cpu: usize) {
        self.cpu.store(cpu + 1, Ordering::SeqCst);
    }

    /// It runs no longer.
    pub(crate) fn leave(&self) {
        self.cpu.store(0, Ordering::Release);
    }

    /// Whether its thread is to look at more than the inbox before it enters the guest again.
    #[inline]
    pub(crate) fn wants_attention(&self) -> bool {
        self.timer_fired.load(Ordering::Relaxed) || self.kicked.load(Ordering::Relaxed)
    }

    /// Has it look at what was posted: wakes it from a halt, and out of the guest. Not in guest context.
    pub(crate) fn notify(&self) {
        core::sync::atomic::fence(Ordering::SeqCst);
        H::wake(&self.waker);
        if let Some(cpu) = self.cpu.load(Ordering::SeqCst).checked_sub(1) {
            H::kick(cpu);
        }
    }

    /// Has `RUN` return, now or at its next start.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Arms the timer for `delay_ns` from now, or disarms it.
    pub(crate) fn set_timer(&self, delay_ns: Option<u64>) {
        if let Some(timer) = self.timer.get() {
            H::timer_set(timer, delay_ns);
        }
    }

    fn timer_callback(shared: *const ()) {
        // SAFETY: VcpuSlot::new() passed the address of the Shared that owns the timer, in a box; dropping the timer waits
        // for this function.
        let shared = unsafe { &*shared.cast::<Self>() };
        shared.timer_fired.store(true, Ordering::SeqCst);
        shared.notify();
    }

    /// Counts; only the vCPU's thread does.
    #[inline]
    pub(crate) fn count(&self, kind: StatsKind) {
        let counter = &self.counts[kind as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The counts.
    pub(crate) fn counts(&self) -> [u64; 8] {
        core::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed))
    }
}

/// What the loader was asked for and has not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pending {
    /// IN of one element into RAX.
    PortRead {
        /// Bytes.
        size: u8,
        /// Where the guest goes on.
        next_rip: u64,
    },
    /// A read by an instruction that is emulated again with the answer.
    PortElement {
        /// The port.
        port: u16,
        /// Bytes.
        size: u8,
        /// Why it is emulated.
        cause: Cause,
    },
    /// Device memory read by an instruction that is emulated again with the answer.
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u8,
        /// Why it is emulated.
        cause: Cause,
    },
}

/// What the vCPU's thread owns besides the engine's part.
pub(crate) struct VcpuState {
    pub(crate) id: u32,
    pub(crate) apic: LocalApic,
    pub(crate) msrs: GuestMsrs,
    /// An NMI waits.
    pub(crate) nmi: bool,
    /// In HLT.
    pub(crate) halted: bool,
    /// The interrupt window was asked for, for this priority class.
    pub(crate) window: Option<u8>,
    /// The deadline that the host's timer is armed for.
    pub(crate) armed: Option<u64>,
    pub(crate) pending: Option<Pending>,
    /// The wall clock at the guest's time 0, in nanoseconds since 1970, read for a guest that is about to ask for it.
    pub(crate) wall_clock: Option<u64>,
    /// How the vCPU ended; it does not run again.
    pub(crate) ended: Option<Run>,
}

/// What one thread at a time owns.
pub(crate) struct Owned<E: Engine> {
    pub(crate) engine: E::Vcpu,
    pub(crate) state: VcpuState,
}

/// A vCPU.
pub(crate) struct VcpuSlot<H: Host, E: Engine> {
    pub(crate) shared: Box<Shared<H>>,
    /// Held while `Run` runs; only ever tried, so nobody waits for a guest.
    pub(crate) owned: spin::Mutex<Owned<E>>,
}

impl<H: Host, E: Engine> VcpuSlot<H, E> {
    pub(crate) fn new(id: u32, engine: E::Vcpu, apic: LocalApic) -> Result<Self, (OutOfMemory, E::Vcpu)> {
        let shared = match Shared::new().and_then(try_box) {
            Ok(shared) => shared,
            Err(error) => return Err((error, engine)),
        };
        let argument = core::ptr::from_ref::<Shared<H>>(&shared).cast();
        match H::timer_new(TimerCallback { function: Shared::<H>::timer_callback, argument }) {
            Ok(timer) => shared.timer.call_once(|| timer),
            Err(error) => return Err((error, engine)),
        };
        shared.inbox.publish(apic.identity());
        let state = VcpuState {
            id,
            apic,
            msrs: GuestMsrs::default(),
            nmi: false,
            halted: false,
            window: None,
            armed: None,
            pending: None,
            wall_clock: None,
            ended: None,
        };
        Ok(Self { shared, owned: spin::Mutex::new(Owned { engine, state }) })
    }
}
