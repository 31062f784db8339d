//! A virtual machine: its vCPUs and what they share. Its memory is in `memory`, its interrupts are in `interrupts`.

mod interrupts;
mod memory;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use core::sync::atomic::fence;

use covisor_abi::DoorbellChange;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::Stats;
use covisor_abi::VcpuCreate;
use covisor_abi::driver_ports;

use crate::apic::IoApic;
use crate::apic::LocalApic;
use crate::cpuid::CpuidConfig;
use crate::cpuid::CpuidTable;
use crate::device::CallError;
use crate::device::Room;
use crate::device::VmCalls;
use crate::doorbell::Doorbells;
use crate::engine::Engine;
use crate::engine::VcpuConfig;
use crate::engine_slot::EngineSlot;
use crate::host::Host;
use crate::host::Machine;
use crate::memory::Memory;
use crate::pae;
use crate::paravirtual;
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
    /// The VM's RAM in the loader.
    maps: Vec<H::Mapping>,
}

/// A VM that the engine `E` runs.
pub(crate) struct Vm<H: Host, E: Engine> {
    pub(crate) slot: &'static EngineSlot<E>,
    pub(crate) memory: Memory,
    /// Held while host memory comes and goes. Its holder may sleep in the host, so who waits lets others run.
    changing_memory: spin::Mutex<()>,
    pub(crate) doorbells: Doorbells<H>,
    /// Locked for a few instructions with preemption off, so that a vCPU may wait for it in guest context.
    pub(crate) io_apic: spin::Mutex<IoApic>,
    pub(crate) cpuid: Box<CpuidTable>,
    pub(crate) clock: Clock,
    /// What is added to the host's time stamp counter for the guest's: it begins at 0 with the VM. Nothing is where the guest
    /// is paravirtual, for its RDTSC is the host's.
    pub(crate) tsc_offset: u64,
    /// ACPI timer counts in one count of the time stamp counter, times 2^64.
    pm_timer_step: u64,
    /// How many vCPUs it is to have.
    vcpus: u32,
    /// Nothing runs any more ([`VmCalls::stop`]).
    pub(crate) stopped: AtomicBool,
    /// A bit for each vCPU that was interrupted before the parts were sealed.
    interrupted: AtomicU64,
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
    pub(crate) fn new(slot: &'static EngineSlot<E>, vcpus: u32) -> Result<Box<Self>, CallError> {
        if E::PARAVIRTUAL && vcpus != 1 {
            return Err(CallError::Invalid);
        }
        let xcr0 = slot.engine().extended_state().guest_xcr0();
        let Machine { tsc_khz, .. } = H::machine();
        let config = CpuidConfig { vcpus, tsc_khz, xcr0, paravirtual: E::PARAVIRTUAL };
        let room = Room::new()?;
        let cpuid = Room::new()?.fill(|| CpuidTable::new(core::arch::x86_64::__cpuid_count, &config));
        let vm = Some(slot.engine().vm_new::<H>()?);
        slot.acquire();
        let start = tsc();
        Ok(room.fill(|| Self {
            slot,
            memory: Memory::default(),
            changing_memory: spin::Mutex::new(()),
            doorbells: Doorbells::new(),
            io_apic: spin::Mutex::new(IoApic::new()),
            cpuid,
            clock: Clock::new(tsc_khz, start, H::wall_clock_ns()),
            tsc_offset: if E::PARAVIRTUAL { 0 } else { start.wrapping_neg() },
            pm_timer_step: pm_timer_step(tsc_khz),
            vcpus,
            stopped: AtomicBool::new(false),
            interrupted: AtomicU64::new(0),
            building: spin::Mutex::new(Some(Parts { vm, vcpus: Vec::new(), maps: Vec::new() })),
            parts: spin::Once::new(),
        }))
    }

    /// The parts; from now on they are fixed.
    #[inline]
    fn seal(&self) -> Result<&Parts<H, E>, CallError> {
        if let Some(parts) = self.parts.get() {
            return Ok(parts);
        }
        // Who comes second finds the parts taken, and tries again.
        let parts = self.building.try_lock().and_then(|mut building| building.take()).ok_or(CallError::Busy)?;
        let parts = self.parts.call_once(|| parts);
        fence(Ordering::SeqCst);
        let interrupted = self.interrupted.load(Ordering::SeqCst);
        for (_, slot) in parts.vcpus.iter().enumerate().filter(|(id, _)| interrupted >> id & 1 != 0) {
            slot.shared.kick();
        }
        if E::PARAVIRTUAL {
            self.connect_lines();
        }
        Ok(parts)
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

    /// The ACPI timer: 32 bits of the guest's time, at its own rate.
    #[inline]
    pub(crate) fn pm_timer(&self) -> u64 {
        let ticks = tsc().wrapping_add(self.tsc_offset);
        // 64 fraction bits, so the product's upper half is the count.
        #[expect(clippy::cast_possible_truncation, reason = "32 bits are kept")]
        let count = ((u128::from(ticks) * u128::from(self.pm_timer_step)) >> 64) as u32;
        u64::from(count)
    }
}

impl<H: Host, E: Engine> VmCalls for Vm<H, E> {
    fn memory_add(&self, request: &mut MemoryAdd) -> Result<(), CallError> {
        self.add_memory(request)
    }

    fn memory_discard(&self, request: &mut MemoryDiscard) -> Result<(), CallError> {
        self.discard_memory(request)
    }

    fn vcpu_create(&self, request: &VcpuCreate) -> Result<(), CallError> {
        let flags = if E::PARAVIRTUAL { VcpuCreate::CHECKS } else { 0 };
        if request.flags & !flags != 0 || request.vcpu >= self.vcpus {
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
            let config = VcpuConfig {
                tsc_offset: self.tsc_offset,
                clock: self.clock,
                checks: request.flags & VcpuCreate::CHECKS != 0,
            };
            let vcpu = engine.vcpu_new::<H>(parts.vm.as_ref().ok_or(CallError::Busy)?, &config)?;
            let apic = if E::PARAVIRTUAL {
                paravirtual::local_apic(next, H::machine().tsc_khz)
            } else {
                LocalApic::new(next, H::machine().tsc_khz, self.tsc_offset)
            };
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
        self.set_line(request)
    }

    fn msi(&self, request: &Msi) -> Result<(), CallError> {
        self.send_msi(request)
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
            slot.shared.kick();
            Ok(())
        };
        match self.parts.get() {
            Some(parts) => kick(parts),
            None => self.build(|parts| kick(parts)),
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Before they are sealed nothing runs; who seals them after this sees the flag.
        if let Some(parts) = self.parts.get() {
            for slot in &parts.vcpus {
                slot.shared.kick();
            }
        }
    }

    fn interrupt(&self, vcpu: u32) {
        if vcpu >= self.vcpus {
            return;
        }
        if self.parts.get().is_none() {
            self.interrupted.fetch_or(1 << vcpu, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        // If they were sealed meanwhile, nobody may look at the bit any more.
        if let Some(slot) = self.parts.get().and_then(|parts| parts.vcpus.get(vcpu as usize)) {
            slot.shared.kick();
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

    fn with_ram_page(&self, gpa: u64, hold: &mut dyn FnMut(u64)) -> bool {
        self.hold_ram_page(gpa, hold)
    }
}

impl<H: Host, E: Engine> Drop for Vm<H, E> {
    fn drop(&mut self) {
        let engine = self.slot.engine();
        let sealed = core::mem::take(&mut self.parts).try_into_inner();
        // The loader loses sight of the memory before it goes: with the parts.
        for parts in [self.building.get_mut().take(), sealed].into_iter().flatten() {
            for slot in parts.vcpus {
                // The timer goes first, with `shared`; then nothing calls into the vCPU any more.
                drop(slot.shared);
                let mut vcpu = slot.owned.into_inner().engine;
                self.slot.give_up::<H>(&mut vcpu);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::test_support::MockHost;
    use crate::test_support::MockOnDemandEngine;
    use crate::test_support::machine::Machine;

    #[test]
    fn test_the_wall_clock_is_read_when_the_guest_asks() {
        let machine = Machine::new::<MockOnDemandEngine>();
        // It is set, or the guest asks late: that of the VM's making would be wrong.
        MockHost::advance(5_000_000_000_000);
        MockOnDemandEngine::set_script(Box::new(|vcpu| {
            vcpu.gprs.rcx = crate::msr::index::KVM_WALL_CLOCK.into();
            vcpu.gprs.rax = 0x3000;
            vcpu.gprs.rdx = 0;
            vcpu.next_rip = Some(0xfff2);
            // The instruction is done when RIP is behind it.
            (vcpu.rip == 0xfff0).then_some(Exit::WriteMsr)
        }));
        machine.run_to_signal();
        let mut seconds = 0;
        assert!(machine.handle.with_ram_page(0x3000, |page| {
            let place = std::ptr::with_exposed_provenance::<u32>(usize::try_from(page).expect("it is an address"));
            // SAFETY: the mock host's pages are at their addresses, and this one is alive.
            seconds = unsafe { place.add(1).read() };
        }));
        let host = u32::try_from(MockHost::wall_clock_ns() / 1_000_000_000).expect("it is before 2106");
        assert!(host.abs_diff(seconds) <= 6, "{host} {seconds}");
    }
}
