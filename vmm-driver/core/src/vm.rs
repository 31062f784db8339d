//! A virtual machine: its memory, its vCPUs and what they share.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use covisor_abi::DoorbellChange;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MAX_GSI;
use covisor_abi::MAX_VCPUS;
use covisor_abi::MemoryAdd;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::Stats;
use covisor_abi::VcpuCreate;
use covisor_abi::driver_ports;

use crate::apic::Identity;
use crate::apic::IoApic;
use crate::apic::LocalApic;
use crate::apic::Message;
use crate::apic::msi;
use crate::cpuid::CpuidConfig;
use crate::cpuid::CpuidTable;
use crate::device::CallError;
use crate::device::VmCalls;
use crate::device::try_box;
use crate::doorbell::Doorbells;
use crate::engine::Engine;
use crate::engine_slot::EngineSlot;
use crate::host::Host;
use crate::memory::Memory;
use crate::pae;
use crate::pvclock::Clock;
use crate::run;
use crate::state;
use crate::vcpu::Owned;
use crate::vcpu::VcpuSlot;

/// What is put together before the first vCPU runs, and fixed after.
pub(crate) struct Parts<H: Host, E: Engine> {
    /// `None` only while the VM is dropped.
    pub(crate) vm: Option<E::Vm>,
    pub(crate) vcpus: Vec<VcpuSlot<H, E>>,
}

/// A VM that the engine `E` runs.
pub(crate) struct Vm<H: Host, E: Engine> {
    pub(crate) slot: &'static EngineSlot<E>,
    pub(crate) memory: Memory,
    pub(crate) doorbells: Doorbells<H>,
    /// Locked for a few instructions with preemption off, so that a vCPU may wait for it in guest context.
    pub(crate) io_apic: spin::Mutex<IoApic>,
    pub(crate) cpuid: Box<CpuidTable>,
    pub(crate) clock: Clock,
    /// What is added to the host's time stamp counter for the guest's: it begins at 0 with the VM.
    pub(crate) tsc_offset: u64,
    /// ACPI timer counts in one count of the time stamp counter, times 2^64.
    pm_timer_step: u64,
    /// How many vCPUs it is to have.
    vcpus: u32,
    building: spin::Mutex<Option<Parts<H, E>>>,
    parts: spin::Once<Parts<H, E>>,
}

/// The host's time stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every CPU with long mode has RDTSC, and drivers may execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// [`driver_ports::PM_TIMER_HZ`] as a fraction of a time stamp counter's rate; that of a counter no quicker than it is as
/// good as 1.
fn pm_timer_step(tsc_khz: u32) -> u64 {
    let rate = u128::from(tsc_khz.max(1)) * 1000;
    u64::try_from((u128::from(driver_ports::PM_TIMER_HZ) << 64) / rate).unwrap_or(u64::MAX)
}

impl<H: Host, E: Engine> Vm<H, E> {
    pub(crate) fn new(slot: &'static EngineSlot<E>, vcpus: u32) -> Result<Self, CallError> {
        let xcr0 = slot.engine().extended_state().guest_xcr0();
        let config = CpuidConfig { vcpus, tsc_khz: H::tsc_khz(), xcr0 };
        let cpuid = try_box(CpuidTable::new(core::arch::x86_64::__cpuid_count, &config))?;
        let vm = Some(slot.engine().vm_new::<H>()?);
        slot.acquire();
        let start = tsc();
        Ok(Self {
            slot,
            memory: Memory::default(),
            doorbells: Doorbells::new(),
            io_apic: spin::Mutex::new(IoApic::new()),
            cpuid,
            clock: Clock::new(H::tsc_khz(), start, H::wall_clock_ns()),
            tsc_offset: start.wrapping_neg(),
            pm_timer_step: pm_timer_step(H::tsc_khz()),
            vcpus,
            building: spin::Mutex::new(Some(Parts { vm, vcpus: Vec::new() })),
            parts: spin::Once::new(),
        })
    }

    /// The parts; from now on they are fixed.
    #[inline]
    fn seal(&self) -> Result<&Parts<H, E>, CallError> {
        if let Some(parts) = self.parts.get() {
            return Ok(parts);
        }
        // Who comes second finds the parts taken, and tries again.
        let parts = self.building.try_lock().and_then(|mut building| building.take()).ok_or(CallError::Busy)?;
        Ok(self.parts.call_once(|| parts))
    }

    /// Calls `use_parts` on what is being put together; [`CallError::Busy`] after the first run.
    fn build<T>(&self, use_parts: impl FnOnce(&mut Parts<H, E>) -> Result<T, CallError>) -> Result<T, CallError> {
        let mut building = self.building.try_lock().ok_or(CallError::Busy)?;
        use_parts(building.as_mut().ok_or(CallError::Busy)?)
    }

    /// Calls `use_vcpu` on a vCPU that does not run, before the first run and after.
    fn with_vcpu<T>(
        &self,
        vcpu: u32,
        use_vcpu: impl FnOnce(&mut Owned<E>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let find = |parts: &Parts<H, E>| {
            let slot = parts.vcpus.get(vcpu as usize).ok_or(CallError::NotFound)?;
            let mut owned = slot.owned.try_lock().ok_or(CallError::Busy)?;
            use_vcpu(&mut owned)
        };
        match self.parts.get() {
            Some(parts) => find(parts),
            None => self.build(|parts| find(parts)),
        }
    }

    /// Posts a message to the vCPUs that it is for; returns those that have to be notified. Guest context too.
    pub(crate) fn post(&self, message: &Message, sender: Option<u32>) -> u64 {
        let Some(parts) = self.parts.get() else { return 0 };
        let count = u32::try_from(parts.vcpus.len()).unwrap_or(MAX_VCPUS);
        let identity =
            |id: u32| parts.vcpus.get(id as usize).map_or(Identity::RESET, |slot| slot.shared.inbox.identity());
        let mut targets = message.targets(sender, count, identity);
        let mut notify = 0;
        while targets != 0 {
            let id = targets.trailing_zeros();
            targets &= targets - 1;
            if let Some(slot) = parts.vcpus.get(id as usize)
                && slot.shared.inbox.post(message)
                && sender != Some(id)
            {
                notify |= 1 << id;
            }
        }
        notify
    }

    /// Notifies a set of vCPUs. Not in guest context.
    pub(crate) fn notify(&self, mut set: u64) {
        let Some(parts) = self.parts.get() else { return };
        while set != 0 {
            let id = set.trailing_zeros();
            set &= set - 1;
            if let Some(slot) = parts.vcpus.get(id as usize) {
                slot.shared.notify();
            }
        }
    }

    /// The ACPI timer: 32 bits of the guest's time, at its own rate.
    #[inline]
    pub(crate) fn pm_timer(&self) -> u64 {
        let ticks = tsc().wrapping_add(self.tsc_offset);
        // 64 fraction bits, so the product's upper half is the count.
        #[expect(clippy::cast_possible_truncation, reason = "32 bits are kept")]
        let count = ((u128::from(ticks) * u128::from(self.pm_timer_step)) >> 64) as u32;
        u64::from(count)
    }

    /// Locks the I/O APIC, from thread context.
    fn with_io_apic<T>(&self, use_it: impl FnOnce(&mut IoApic) -> T) -> T {
        H::preempt_off();
        let result = use_it(&mut self.io_apic.lock());
        H::preempt_on();
        result
    }
}

impl<H: Host, E: Engine> VmCalls for Vm<H, E> {
    fn memory_add(&self, request: &mut MemoryAdd) -> Result<(), CallError> {
        self.build(|parts| {
            let blocks = self.memory.add::<H>(request.gpa, request.size)?;
            let vm = parts.vm.as_mut().ok_or(CallError::Busy)?;
            let mut gpa = request.gpa;
            for block in blocks {
                self.slot.engine().vm_map::<H>(vm, gpa, block.phys, block.order)?;
                gpa += covisor_abi::PAGE_SIZE << block.order;
            }
            request.map = H::map_to_loader(request.gpa, blocks)?;
            Ok(())
        })
    }

    fn vcpu_create(&self, request: &VcpuCreate) -> Result<(), CallError> {
        if request.flags != 0 || request.vcpu >= self.vcpus {
            return Err(CallError::Invalid);
        }
        self.build(|parts| {
            let next = u32::try_from(parts.vcpus.len()).map_err(|_| CallError::Invalid)?;
            match request.vcpu {
                id if id < next => return Err(CallError::Exists),
                id if id > next => return Err(CallError::Invalid),
                _ => {}
            }
            parts.vcpus.try_reserve(1).map_err(|_| CallError::NoMemory)?;
            let engine = self.slot.engine();
            let vcpu = engine.vcpu_new::<H>(parts.vm.as_ref().ok_or(CallError::Busy)?, self.tsc_offset)?;
            let apic = LocalApic::new(next, H::tsc_khz(), self.tsc_offset);
            match VcpuSlot::new(next, vcpu, apic) {
                Ok(slot) => {
                    parts.vcpus.push(slot);
                    Ok(())
                }
                Err((error, vcpu)) => {
                    engine.vcpu_drop::<H>(vcpu);
                    Err(error.into())
                }
            }
        })
    }

    fn vcpu_set(&self, values: &covisor_abi::VcpuState) -> Result<(), CallError> {
        self.with_vcpu(values.vcpu, |owned| {
            state::set(&mut owned.engine, &self.cpuid, values)?;
            pae::load_at_start(&mut owned.engine, &self.memory, self.cpuid.physical_bits())
                .map_err(|_| CallError::Invalid)
        })
    }

    fn vcpu_get(&self, values: &mut covisor_abi::VcpuState) -> Result<(), CallError> {
        self.with_vcpu(values.vcpu, |owned| {
            self.slot.complete::<H>(&mut owned.engine).map_err(|_| CallError::NoEngine)?;
            *values = state::get(&owned.engine, values.vcpu);
            Ok(())
        })
    }

    fn run(&self, run: &mut Run) -> Result<(), CallError> {
        let parts = self.seal()?;
        let slot = parts.vcpus.get(run.vcpu as usize).ok_or(CallError::NotFound)?;
        let mut owned = slot.owned.try_lock().ok_or(CallError::Busy)?;
        run::run(self, parts, &slot.shared, &mut owned, run)
    }

    fn irq_line(&self, request: &IrqLine) -> Result<(), CallError> {
        if request.gsi >= MAX_GSI || request.level > 1 {
            return Err(CallError::Invalid);
        }
        let message = self.with_io_apic(|io_apic| io_apic.set_line(request.gsi, request.level != 0));
        if let Some(message) = message {
            self.notify(self.post(&message, None));
        }
        Ok(())
    }

    fn msi(&self, request: &Msi) -> Result<(), CallError> {
        if request.reserved != 0 {
            return Err(CallError::Invalid);
        }
        let message = msi::decode(request.address, request.data).ok_or(CallError::Invalid)?;
        self.notify(self.post(&message, None));
        Ok(())
    }

    fn doorbell_add(&self, request: &DoorbellChange) -> Result<(), CallError> {
        self.doorbells.add(request)
    }

    fn doorbell_remove(&self, request: &DoorbellChange) -> Result<(), CallError> {
        self.doorbells.remove(request)
    }

    fn kick(&self, request: &Kick) -> Result<(), CallError> {
        if request.reserved != 0 {
            return Err(CallError::Invalid);
        }
        let kick = |parts: &Parts<H, E>| {
            let slot = parts.vcpus.get(request.vcpu as usize).ok_or(CallError::NotFound)?;
            slot.shared.kicked.store(true, Ordering::SeqCst);
            slot.shared.notify();
            Ok(())
        };
        match self.parts.get() {
            Some(parts) => kick(parts),
            None => self.build(|parts| kick(parts)),
        }
    }

    fn stats(&self, request: &mut Stats) -> Result<(), CallError> {
        let counts = |parts: &Parts<H, E>| {
            parts.vcpus.get(request.vcpu as usize).map(|slot| slot.shared.counts()).ok_or(CallError::NotFound)
        };
        request.counts = match self.parts.get() {
            Some(parts) => counts(parts)?,
            None => self.build(|parts| counts(parts))?,
        };
        Ok(())
    }

    fn ram_page(&self, gpa: u64) -> Option<u64> {
        self.memory.phys(gpa)
    }
}

impl<H: Host, E: Engine> Drop for Vm<H, E> {
    fn drop(&mut self) {
        let engine = self.slot.engine();
        let sealed = core::mem::take(&mut self.parts).try_into_inner();
        for parts in [self.building.get_mut().take(), sealed].into_iter().flatten() {
            for slot in parts.vcpus {
                // The timer goes first, with `shared`; then nothing calls into the vCPU any more.
                drop(slot.shared);
                let vcpu = slot.owned.into_inner().engine;
                self.slot.give_up::<H>(&vcpu, None);
                engine.vcpu_drop::<H>(vcpu);
            }
            if let Some(vm) = parts.vm {
                engine.vm_drop::<H>(vm);
            }
        }
        // Nested tables and TLB entries of the VM's ASIDs are of no use to anybody now: its memory may go.
        self.memory.free::<H>();
        self.slot.release::<H>();
    }
}
