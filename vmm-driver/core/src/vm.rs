//! A virtual machine: its memory, its vCPUs and what they share.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;
use core::sync::atomic::fence;

use covisor_abi::DoorbellChange;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MAX_GSI;
use covisor_abi::MAX_VCPUS;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Msi;
use covisor_abi::PAGE_SIZE;
use covisor_abi::Run;
use covisor_abi::Stats;
use covisor_abi::VcpuCreate;
use covisor_abi::driver_ports;
use covisor_abi::paravirtual::RAM_LIMIT;

use crate::apic::Identity;
use crate::apic::IoApic;
use crate::apic::LocalApic;
use crate::apic::Message;
use crate::apic::msi;
use crate::cpuid::CpuidConfig;
use crate::cpuid::CpuidTable;
use crate::device::CallError;
use crate::device::Room;
use crate::device::VmCalls;
use crate::doorbell::Doorbells;
use crate::engine::Engine;
use crate::engine::Vcpu;
use crate::engine::VcpuConfig;
use crate::engine_slot::EngineSlot;
use crate::host::Block;
use crate::host::Host;
use crate::host::Machine;
use crate::host::OutOfMemory;
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

/// A vCPU that does not run.
type OwnedGuard<'a, E> = spin::MutexGuard<'a, Owned<E>>;

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

    /// Programs the I/O APIC of a paravirtual guest. Only now, for there was no vCPU before that a line could be sent to.
    fn connect_lines(&self) {
        for gsi in 0..MAX_GSI {
            if let Some(message) = self.with_io_apic(|io_apic| paravirtual::connect(io_apic, gsi)) {
                self.notify(self.post(&message, None));
            }
        }
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

    /// Maps a region with all of its host memory for the guest. Returns its blocks in their order.
    fn map_all(&self, vm: &mut E::Vm, request: &MemoryAdd) -> Result<Vec<Block>, OutOfMemory> {
        let mut blocks = Vec::new();
        self.memory.for_blocks(request.gpa, request.size, |gpa, block| {
            blocks.try_reserve(1).map_err(|_| OutOfMemory)?;
            blocks.push(block);
            self.slot.engine().vm_map::<H>(vm, gpa, block.phys, block.order)
        })?;
        Ok(blocks)
    }

    /// Guest RAM gets its host memory where it is first touched.
    pub(crate) const RAM_ON_DEMAND: bool = E::RAM_ON_DEMAND && H::RAM_ON_DEMAND;

    /// Calls `change` while no other thread changes which host memory the guest's RAM has. In thread context.
    fn change_memory<T>(&self, change: impl FnOnce() -> T) -> T {
        let _changing = loop {
            if let Some(guard) = self.changing_memory.try_lock() {
                break guard;
            }
            // A signal can wait: what the other thread does ends soon.
            let _ = H::yield_now();
        };
        change()
    }

    /// Gives the RAM around `gpa` host memory where it has none, and shows it to the guest. In thread context.
    #[cold]
    #[inline(never)]
    pub(crate) fn populate(&self, engine_vm: &E::Vm, gpa: u64) -> Result<(), OutOfMemory> {
        self.change_memory(|| {
            self.memory.populate::<H>(gpa)?;
            self.memory.for_blocks(gpa, 1, |gpa, block| {
                self.slot.engine().vm_map_later::<H>(engine_vm, gpa, block.phys, block.order)
            })
        })
    }

    /// Discards memory; no vCPU runs, for `vcpus` are all of them.
    fn discard(&self, engine_vm: &E::Vm, vcpus: &mut [OwnedGuard<'_, E>], gpa: u64, size: u64) -> u64 {
        self.change_memory(|| {
            for owned in vcpus {
                owned.engine.forget_memory();
            }
            self.memory.discard::<H>(gpa, size, |gpa| self.slot.engine().vm_unmap(engine_vm, gpa))
        })
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
        let within = |limit| request.gpa.checked_add(request.size).is_some_and(|end| end <= limit);
        if E::PARAVIRTUAL && !within(RAM_LIMIT) {
            return Err(CallError::Invalid);
        }
        self.build(|parts| {
            parts.maps.try_reserve(1).map_err(|_| CallError::NoMemory)?;
            let vm = parts.vm.as_mut().ok_or(CallError::Busy)?;
            self.memory.check(request.gpa, request.size)?;
            if Self::RAM_ON_DEMAND && self.memory.size().saturating_add(request.size) > H::memory_available() {
                // It would come to nothing later, and then without a good word.
                return Err(CallError::NoMemory);
            }
            // Who touches the region from the loader meanwhile waits, in a way that lets this thread go on.
            let blocks = self.change_memory(|| {
                self.memory.add::<H>(request.gpa, request.size, !Self::RAM_ON_DEMAND)?;
                if Self::RAM_ON_DEMAND { Ok(Vec::new()) } else { self.map_all(vm, request).map_err(CallError::from) }
            })?;
            let (map, mapping) = H::map_to_loader(request.gpa, &blocks)?;
            request.map = map;
            request.on_demand = Self::RAM_ON_DEMAND.into();
            parts.maps.push(mapping);
            Ok(())
        })
    }

    fn memory_discard(&self, request: &mut MemoryDiscard) -> Result<(), CallError> {
        let whole = request.gpa.is_multiple_of(PAGE_SIZE) && request.size.is_multiple_of(PAGE_SIZE);
        if !whole || request.gpa.checked_add(request.size).is_none() {
            return Err(CallError::Invalid);
        }
        request.freed = 0;
        if request.size != 0 && Self::RAM_ON_DEMAND {
            let parts = self.seal()?;
            let engine_vm = parts.vm.as_ref().ok_or(CallError::Busy)?;
            let mut vcpus = Vec::new();
            vcpus.try_reserve_exact(parts.vcpus.len()).map_err(|_| CallError::NoMemory)?;
            for slot in &parts.vcpus {
                vcpus.push(slot.owned.try_lock().ok_or(CallError::Busy)?);
            }
            request.freed = self.discard(engine_vm, &mut vcpus, request.gpa, request.size);
        }
        request.allocated = self.memory.allocated();
        Ok(())
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
        // A paravirtual guest's vectors are core's own.
        if request.reserved != 0 || E::PARAVIRTUAL {
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
        self.change_memory(|| {
            let populated = !Self::RAM_ON_DEMAND || self.memory.populate::<H>(gpa).is_ok();
            self.memory.phys(gpa).filter(|_| populated).map(hold).is_some()
        })
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
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use covisor_abi::Call;
    use covisor_abi::ExitReason;
    use covisor_abi::MemoryAdd;

    use super::*;
    use crate::exit::Exit;
    use crate::exit::MemoryAccess;
    use crate::memory::CHUNK;
    use crate::test_support::MockEngine;
    use crate::test_support::MockHost;
    use crate::test_support::MockOnDemandEngine;
    use crate::test_support::MockParavirtualEngine;
    use crate::test_support::machine::Machine;

    const TOUCH: Exit = Exit::Memory(MemoryAccess { gpa: 0x3004, write: true, fetch: false, page_walk: false });

    fn allocated(machine: &Machine) -> u64 {
        machine.call(Call::MemoryDiscard, MemoryDiscard::default()).expect("it only asks").allocated
    }

    fn discard(machine: &Machine, gpa: u64, size: u64) -> Result<MemoryDiscard, CallError> {
        machine.call(Call::MemoryDiscard, MemoryDiscard { gpa, size, ..MemoryDiscard::default() })
    }

    #[test]
    fn test_memory_comes_where_the_guest_touches_it() {
        let machine = Machine::new::<MockOnDemandEngine>();
        assert_eq!(allocated(&machine), 0);
        let mut touches = 0;
        MockOnDemandEngine::set_script(Box::new(move |_| {
            touches += 1;
            (touches == 1).then_some(TOUCH)
        }));
        // The loader does not hear of it.
        machine.run_to_signal();
        assert_eq!(allocated(&machine), 0x1_0000);
    }

    #[test]
    fn test_memory_comes_where_the_loader_touches_it_and_goes_back() {
        let machine = Machine::new::<MockOnDemandEngine>();
        let mut pages = Vec::new();
        for gpa in [0x2000, 0x2fff, 0x3000] {
            assert!(machine.handle.with_ram_page(gpa, |phys| pages.push(phys)));
        }
        assert_eq!((pages[0], pages[2] != pages[0]), (pages[1], true));
        assert!(!machine.handle.with_ram_page(0x1_0000, |_| panic!("there is no RAM")));
        let gone = discard(&machine, 0, 0x1_0000).expect("nothing runs");
        assert_eq!((gone.freed, gone.allocated), (0x1_0000, 0));
        assert_eq!(discard(&machine, 0, CHUNK).expect("nothing runs").freed, 0);
    }

    #[test]
    fn test_memory_that_was_there_at_once_stays() {
        let machine = Machine::new::<MockEngine>();
        let gone = discard(&machine, 0, 0x1_0000).expect("nothing runs");
        assert_eq!((gone.freed, gone.allocated), (0, 0x1_0000));
    }

    #[test]
    fn test_attack_memory_discarded_while_the_guest_runs() {
        let machine: &Machine = Box::leak(Box::new(Machine::new::<MockOnDemandEngine>()));
        let answer = Rc::new(Cell::new(None));
        let seen = Rc::clone(&answer);
        let mut exits = 0;
        MockOnDemandEngine::set_script(Box::new(move |_| {
            exits += 1;
            if exits == 2 {
                seen.set(Some(discard(machine, 0, 0x1_0000).map(|done| done.freed)));
            }
            (exits == 1).then_some(TOUCH)
        }));
        machine.run_to_signal();
        assert_eq!(answer.get(), Some(Err(CallError::Busy)));
        assert_eq!(allocated(machine), 0x1_0000);
    }

    #[test]
    fn test_every_vcpu_forgets_memory_that_goes() {
        let machine = Machine::with_vcpus::<MockOnDemandEngine>(2);
        assert!(machine.handle.with_ram_page(0x2000, |_| ()));
        assert_eq!(discard(&machine, 0, 0x1_0000).map(|done| done.freed), Ok(0x1_0000));
        for vcpu in 0..2 {
            let forgot = Rc::new(Cell::new(false));
            let seen = Rc::clone(&forgot);
            MockOnDemandEngine::set_script(Box::new(move |vcpu| {
                seen.set(vcpu.forgot_memory);
                None
            }));
            let run = machine.call(Call::Run, Run { vcpu, ..Run::default() });
            assert!(matches!(run, Err(CallError::Interrupted)) && forgot.get(), "vCPU {vcpu}");
        }
    }

    /// Attack: another thread touches what is just being added, and spins on this CPU while the one that adds it waits for the CPU.
    #[test]
    fn test_attack_memory_touched_while_it_is_added() {
        let machine = Machine::bare::<MockParavirtualEngine>(1);
        let (handle, (mapping, begin)) = (&machine.handle, mpsc::channel());
        let (yields, yielded) = mpsc::channel();
        MockParavirtualEngine::on_map(move || {
            mapping.send(()).expect("somebody waits for it");
            yielded.recv_timeout(Duration::from_secs(10)).expect("who waits lets others run");
        });
        thread::scope(|scope| {
            let touches = scope.spawn(move || {
                begin.recv().expect("it is mapped");
                MockHost::on_yield(move || yields.send(()).expect("the hook waits"));
                handle.with_ram_page(0x1000, |_| ())
            });
            let memory = MemoryAdd { size: 0x1_0000, ..MemoryAdd::default() };
            machine.call(Call::MemoryAdd, memory).expect("there is memory");
            assert!(touches.join().expect("it ends"), "there is RAM");
        });
    }

    #[test]
    fn test_attack_discarded_ranges_that_are_none() {
        let machine = Machine::new::<MockOnDemandEngine>();
        for (gpa, size) in [(1, 0x1000), (0, 0x1001), (u64::MAX - 0xfff, 0x1000), (0x1000, u64::MAX - 0xfff)] {
            assert_eq!(
                discard(&machine, gpa, size).map(|done| done.freed),
                Err(CallError::Invalid),
                "{gpa:#x} {size:#x}"
            );
        }
        for (gpa, size) in [(0x1_0000, 0x1000), (1 << 45, 1 << 44)] {
            assert_eq!(discard(&machine, gpa, size).map(|done| done.freed), Ok(0), "{gpa:#x} {size:#x}");
        }
    }

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

    #[test]
    fn test_a_guest_that_the_host_has_no_memory_for_is_ended_with_a_sentence() {
        let machine = Machine::new::<MockOnDemandEngine>();
        MockHost::set_no_memory(true);
        MockOnDemandEngine::set_script(Box::new(|_| Some(TOUCH)));
        let run = machine.run(0).expect("it returns");
        MockHost::set_no_memory(false);
        let reason = covisor_abi::KillReason::NoHostMemory as u32;
        assert_eq!((run.exit, run.kill, run.detail), (ExitReason::Killed as u32, reason, 0x3004));
    }
}
