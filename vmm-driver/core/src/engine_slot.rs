//! An engine in the driver: made when the driver is loaded, switched on per CPU when a VM first runs there, and off
//! everywhere when the last VM is gone.

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering;

use covisor_abi::EngineStatus;

use crate::engine::Engine;
use crate::host::Cpus;
use crate::host::Host;
use crate::host::Machine;
use crate::host::OutOfMemory;

/// One physical CPU of an engine.
struct CpuSlot<E: Engine> {
    enabled: AtomicBool,
    cpu: UnsafeCell<E::Cpu>,
}

// SAFETY: the cell is touched only on the CPU that it belongs to, with interrupts off (`disable_here`, `give_up_here`,
// `cpu_here`), or with &mut self.
unsafe impl<E: Engine> Sync for CpuSlot<E> {}

/// A vCPU for [`EngineSlot::give_up_callback`].
struct GiveUp<'a, E: Engine> {
    slot: &'a EngineSlot<E>,
    vcpu: &'a E::Vcpu,
}

/// An engine and its physical CPUs.
pub(crate) struct EngineSlot<E: Engine> {
    engine: E,
    cpus: Vec<CpuSlot<E>>,
    /// VMs that exist.
    users: AtomicU32,
}

impl<E: Engine> EngineSlot<E> {
    pub(crate) fn new<H: Host>() -> Result<Self, OutOfMemory> {
        let mut slot = Self { engine: E::new::<H>()?, cpus: Vec::new(), users: AtomicU32::new(0) };
        let Machine { cpu_limit, .. } = H::machine();
        if slot.cpus.try_reserve_exact(cpu_limit).is_err() {
            slot.free::<H>();
            return Err(OutOfMemory);
        }
        for _ in 0..cpu_limit {
            match slot.engine.cpu_new::<H>() {
                Ok(cpu) => slot.cpus.push(CpuSlot { enabled: AtomicBool::new(false), cpu: UnsafeCell::new(cpu) }),
                Err(error) => {
                    slot.free::<H>();
                    return Err(error);
                }
            }
        }
        Ok(slot)
    }

    /// Frees it; no VM exists.
    pub(crate) fn free<H: Host>(self) {
        for slot in self.cpus {
            self.engine.cpu_drop::<H>(slot.cpu.into_inner());
        }
        self.engine.free::<H>();
    }

    pub(crate) fn engine(&self) -> &E {
        &self.engine
    }

    /// Whether the engine can run here. While VMs exist it does.
    pub(crate) fn status<H: Host>(&self) -> EngineStatus {
        if self.users.load(Ordering::SeqCst) != 0 {
            return EngineStatus::Usable;
        }
        H::preempt_off();
        let status = E::status();
        H::preempt_on();
        status
    }

    /// One VM more.
    pub(crate) fn acquire(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// One VM less; the last one gives the extension back on every CPU.
    pub(crate) fn release<H: Host>(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            H::on_cpus(Cpus::Each, Self::disable_callback::<H>, core::ptr::from_ref(self).cast());
        }
    }

    /// Switches the extension off on every CPU, though VMs may exist: the machine sleeps or goes down. It comes back by
    /// itself when a vCPU runs again.
    pub(crate) fn power_down<H: Host>(&self) {
        H::on_cpus(Cpus::Each, Self::power_down_callback::<H>, core::ptr::from_ref(self).cast());
    }

    fn disable_callback<H: Host>(cpu: usize, slot: *const ()) {
        // SAFETY: release() passed a reference to a slot, and waits for this.
        let slot = unsafe { &*slot.cast::<Self>() };
        // A VM may have come since; then the extension stays.
        if slot.users.load(Ordering::SeqCst) == 0 {
            slot.disable_here::<H>(cpu);
        }
    }

    fn power_down_callback<H: Host>(cpu: usize, slot: *const ()) {
        // SAFETY: power_down() passed a reference to a slot, and waits for this.
        unsafe { &*slot.cast::<Self>() }.disable_here::<H>(cpu);
    }

    /// Switches the extension off on this CPU, which has this number, if it is on. Interrupts are off.
    pub(crate) fn disable_here<H: Host>(&self, cpu: usize) {
        let Some(slot) = self.cpus.get(cpu) else { return };
        if slot.enabled.swap(false, Ordering::Relaxed) {
            // SAFETY: called on this CPU with interrupts off, so no vCPU is loaded here and nobody else has the cell; it was
            // enabled.
            unsafe { self.engine.cpu_disable::<H>(&mut *slot.cpu.get()) };
        }
    }

    /// Has the vCPU's home, if it has one, give up what it keeps of it. In thread context.
    pub(crate) fn give_up<H: Host>(&self, vcpu: &mut E::Vcpu) {
        if let Some(home) = E::home(vcpu) {
            let argument = GiveUp { slot: self, vcpu: &*vcpu };
            H::on_cpus(Cpus::One(home), Self::give_up_callback, core::ptr::from_ref(&argument).cast());
            E::forget_home(vcpu);
        }
    }

    /// Switches preemption off, on a CPU that can use the vCPU: no other one keeps a part of it. Returns that CPU's number.
    #[inline]
    pub(crate) fn settle<H: Host>(&self, vcpu: &mut E::Vcpu) -> usize {
        loop {
            let here = H::preempt_off();
            if E::home(vcpu).is_none_or(|home| home == here) {
                return here;
            }
            H::preempt_on();
            self.give_up::<H>(vcpu);
        }
    }

    fn give_up_callback(cpu: usize, argument: *const ()) {
        // SAFETY: give_up() passed a reference to one, and waits for this; its caller owns the vCPU, which does not run.
        let GiveUp { slot, vcpu } = unsafe { &*argument.cast::<GiveUp<'_, E>>() };
        slot.give_up_here(cpu, vcpu);
    }

    /// Gives up what this CPU, which has this number, keeps of the vCPU. Interrupts are off.
    fn give_up_here(&self, cpu: usize, vcpu: &E::Vcpu) {
        let Some(slot) = self.cpus.get(cpu) else { return };
        // Where the extension is off by now, all was given up before.
        if slot.enabled.load(Ordering::Relaxed) {
            // SAFETY: called on this CPU with interrupts off, so no vCPU is loaded here and nobody else has the cell; it is
            // enabled.
            unsafe { self.engine.give_up(&mut *slot.cpu.get(), vcpu) };
        }
    }

    /// Makes all registers of a vCPU that does not run readable. In thread context.
    ///
    /// # Errors
    /// The status that stands against the extension on this CPU.
    #[inline]
    pub(crate) fn complete<H: Host>(&self, vcpu: &mut E::Vcpu) -> Result<(), EngineStatus> {
        if E::is_complete(vcpu) {
            return Ok(());
        }
        let here = self.settle::<H>(vcpu);
        H::interrupts_off();
        // SAFETY: interrupts are off, and this is the only reference on this CPU until they are on. The CPU is this one and
        // enabled then, and no other one has anything of the vCPU.
        let completed = unsafe { self.cpu_here::<H>(here).map(|cpu| self.engine.complete(cpu, vcpu)) };
        H::let_go(|| {});
        completed
    }

    /// The part of this CPU, which has this number, with the extension on.
    ///
    /// # Errors
    /// The status that stands against it.
    ///
    /// # Safety
    /// Interrupts are off, and stay so while the reference lives; no other lives.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "the cell belongs to this CPU, see the safety contract")]
    pub(crate) unsafe fn cpu_here<H: Host>(&self, number: usize) -> Result<&mut E::Cpu, EngineStatus> {
        let slot = self.cpus.get(number).ok_or(EngineStatus::CpuLacks)?;
        // SAFETY: by the caller.
        let cpu = unsafe { &mut *slot.cpu.get() };
        if !slot.enabled.load(Ordering::Relaxed) {
            // SAFETY: on the CPU, interrupts off, not enabled yet.
            unsafe { self.engine.cpu_enable::<H>(cpu, number)? };
            slot.enabled.store(true, Ordering::Relaxed);
        }
        Ok(cpu)
    }
}
