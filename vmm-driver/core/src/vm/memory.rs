//! The RAM of a VM: where it gets its host memory, and gives it back. What is where is in [`crate::memory`].

use alloc::vec::Vec;

use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::PAGE_SIZE;
use covisor_abi::paravirtual::RAM_LIMIT;

use super::Vm;
use crate::device::CallError;
use crate::engine::Engine;
use crate::engine::Vcpu;
use crate::host::Block;
use crate::host::Host;
use crate::host::OutOfMemory;
use crate::vcpu::Owned;

/// A vCPU that does not run.
type OwnedGuard<'a, E> = spin::MutexGuard<'a, Owned<E>>;

impl<H: Host, E: Engine> Vm<H, E> {
    /// Guest RAM gets its host memory where it is first touched.
    pub(crate) const RAM_ON_DEMAND: bool = E::RAM_ON_DEMAND && H::RAM_ON_DEMAND;

    /// Makes RAM of a region of guest-physical addresses, and shows it to the loader.
    pub(super) fn add_memory(&self, request: &mut MemoryAdd) -> Result<(), CallError> {
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

    /// Gives host memory of RAM back, as far as it comes on demand, and tells how much there is still.
    pub(super) fn discard_memory(&self, request: &mut MemoryDiscard) -> Result<(), CallError> {
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

    /// Calls `hold` on the physical address of the page at `gpa`, which gets its host memory if need be; false where there is none.
    pub(super) fn hold_ram_page(&self, gpa: u64, hold: &mut dyn FnMut(u64)) -> bool {
        self.change_memory(|| {
            let populated = !Self::RAM_ON_DEMAND || self.memory.populate::<H>(gpa).is_ok();
            self.memory.phys(gpa).filter(|_| populated).map(hold).is_some()
        })
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
    use covisor_abi::Run;

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
