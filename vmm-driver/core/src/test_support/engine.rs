//! An engine without a CPU: its vCPUs are plain structs, and a test's script says what the guest does. As with VT-x, the
//! CPU that ran a vCPU last has to give it up before another one can.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;

use crate::engine::Engine;
use crate::engine::ExitHandler;
use crate::engine::Next;
use crate::engine::VcpuConfig;
use crate::exit::Exit;
use crate::host::Host;
use crate::host::OutOfMemory;
use crate::reset::reset;
use crate::test_support::MockHost;
use crate::test_support::TestVcpu;
use crate::xstate::ExtendedState;

/// What the guest does between an entry and the next exit: changes its registers and names the exit. `None` ends the
/// script; from then on the vCPU only gets host interrupts, and a signal ends `RUN`.
pub type Script = Box<dyn FnMut(&mut TestVcpu) -> Option<Exit>>;

thread_local! {
    static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
    static ENTRIES: Cell<usize> = const { Cell::new(0) };
    static ON_MAP: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
    /// The CPU that keeps the thread's vCPU.
    static HOME: Cell<Option<usize>> = const { Cell::new(None) };
}

/// An engine.
pub struct Mock<const PARAVIRTUAL: bool, const RAM_ON_DEMAND: bool>(ExtendedState);

/// The one of guests with interrupt controllers. It says that it is the first one.
pub type MockEngine = Mock<false, false>;

/// The same, with RAM that comes when it is touched.
pub type MockOnDemandEngine = Mock<false, true>;

/// The one of paravirtual guests.
pub type MockParavirtualEngine = Mock<true, false>;

/// The calling CPU's number.
fn here<H: Host>() -> usize {
    let here = H::preempt_off();
    H::preempt_on();
    here
}

/// A CPU, with its number while the engine is on there.
#[derive(Debug, Default)]
pub struct MockCpu {
    number: Option<usize>,
}

impl<const PARAVIRTUAL: bool, const RAM_ON_DEMAND: bool> fmt::Debug for Mock<PARAVIRTUAL, RAM_ON_DEMAND> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if PARAVIRTUAL { "MockParavirtualEngine" } else { "MockEngine" })
    }
}

impl<const PARAVIRTUAL: bool, const RAM_ON_DEMAND: bool> Mock<PARAVIRTUAL, RAM_ON_DEMAND> {
    /// Sets what the guests of the calling thread do.
    pub fn set_script(script: Script) {
        MockHost::set_signal(false);
        SCRIPT.set(Some(script));
    }

    /// Calls `other` in the middle of the calling thread's next [`Engine::vm_map`].
    pub fn on_map(other: impl FnOnce() + 'static) {
        ON_MAP.set(Some(Box::new(other)));
    }

    /// How often the calling thread entered a guest from the host.
    #[must_use]
    pub fn entries() -> usize {
        ENTRIES.get()
    }
}

/// Guest memory, as [`Engine::vm_map`] gets it, by address: host address and order of a block.
pub type MockTables = spin::Mutex<BTreeMap<u64, (u64, u32)>>;

impl<const PV: bool, const ON_DEMAND: bool> Engine for Mock<PV, ON_DEMAND> {
    const KIND: EngineKind = match (PV, ON_DEMAND) {
        (true, _) => EngineKind::Coop,
        (false, true) => EngineKind::Vmx,
        (false, false) => EngineKind::Svm,
    };
    const PARAVIRTUAL: bool = PV;
    const RAM_ON_DEMAND: bool = ON_DEMAND;
    type Cpu = MockCpu;
    type Vm = MockTables;
    type Vcpu = TestVcpu;

    fn status() -> EngineStatus {
        EngineStatus::Usable
    }

    fn new<H: Host>() -> Result<Self, OutOfMemory> {
        Ok(Self(ExtendedState::for_tests()))
    }

    fn free<H: Host>(self) {}

    fn extended_state(&self) -> &ExtendedState {
        &self.0
    }

    fn cpu_new<H: Host>(&self) -> Result<MockCpu, OutOfMemory> {
        Ok(MockCpu::default())
    }

    fn cpu_drop<H: Host>(&self, cpu: MockCpu) {
        assert_eq!(cpu.number, None, "it was switched off before");
    }

    unsafe fn cpu_enable<H: Host>(&self, cpu: &mut MockCpu, number: usize) -> Result<(), EngineStatus> {
        assert_eq!(number, here::<H>(), "it is the calling CPU's number");
        assert_eq!(cpu.number.replace(number), None, "it was off");
        Ok(())
    }

    unsafe fn cpu_disable<H: Host>(&self, cpu: &mut MockCpu) {
        assert_eq!(cpu.number, Some(here::<H>()), "it was on, and is the calling CPU's");
        if HOME.get() == cpu.number.take() {
            HOME.set(None);
        }
    }

    fn vm_new<H: Host>(&self) -> Result<MockTables, OutOfMemory> {
        Ok(MockTables::default())
    }

    fn vm_drop<H: Host>(&self, _vm: MockTables) {}

    fn vm_map<H: Host>(&self, vm: &mut MockTables, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        if let Some(other) = ON_MAP.take() {
            other();
        }
        self.vm_map_later::<H>(vm, gpa, phys, order)
    }

    fn vm_map_later<H: Host>(&self, vm: &MockTables, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        assert!(
            gpa.is_multiple_of(4096 << order) && phys.is_multiple_of(4096 << order),
            "blocks lie at their multiples"
        );
        vm.lock().insert(gpa, (phys, order));
        Ok(())
    }

    fn vm_unmap(&self, vm: &MockTables, gpa: u64) {
        vm.lock().retain(|at, _| at >> 21 != gpa >> 21);
    }

    fn vcpu_new<H: Host>(&self, _vm: &MockTables, config: &VcpuConfig) -> Result<TestVcpu, OutOfMemory> {
        let mut vcpu = TestVcpu { tsc_offset: config.tsc_offset, ..TestVcpu::default() };
        reset(&mut vcpu);
        Ok(vcpu)
    }

    fn vcpu_drop<H: Host>(&self, vcpu: TestVcpu) {
        assert_eq!(Self::home(&vcpu), None, "its home has given it up");
    }

    fn home(_vcpu: &TestVcpu) -> Option<usize> {
        HOME.get()
    }

    unsafe fn give_up(&self, cpu: &mut MockCpu, _vcpu: &TestVcpu) {
        assert!(cpu.number.is_some(), "it is on");
        if HOME.get() == cpu.number {
            HOME.set(None);
        }
    }

    unsafe fn run<X: ExitHandler<Self>>(
        &self,
        cpu: &mut MockCpu,
        _vm: &MockTables,
        vcpu: &mut TestVcpu,
        handler: &mut X,
    ) {
        assert!(HOME.replace(cpu.number).is_none_or(|home| Some(home) == cpu.number), "no other CPU keeps it");
        ENTRIES.set(ENTRIES.get() + 1);
        let mut script = SCRIPT.take();
        loop {
            // The CPU has delivered it.
            vcpu.injection = None;
            let exit = script.as_mut().and_then(|script| script(vcpu)).unwrap_or_else(|| {
                MockHost::set_signal(true);
                Exit::HostInterrupt
            });
            if handler.on_exit(vcpu, exit) == Next::Leave {
                break;
            }
        }
        SCRIPT.set(script);
    }
}

#[cfg(test)]
mod tests {
    use covisor_abi::ExitReason;

    use super::*;
    use crate::device::CallError;
    use crate::exit::PortAccess;
    use crate::registers::SegmentName;
    use crate::test_support::machine::Machine;

    #[test]
    fn a_script_reaches_the_loader() {
        let machine = Machine::new::<MockEngine>();
        let mut reads = 0;
        MockEngine::set_script(Box::new(move |vcpu| {
            reads += 1;
            match reads {
                1 => {
                    Some(Exit::Port(PortAccess { port: 0x60, size: 1, write: false, string: false, next_rip: 0xfff1 }))
                }
                2 => {
                    assert_eq!((vcpu.rip, vcpu.gprs.rax), (0xfff1, 0x42), "the loader has answered");
                    vcpu.rflags |= 1 << 9;
                    vcpu.next_rip = Some(0xfff2);
                    Some(Exit::Halt)
                }
                _ => None,
            }
        }));
        let run = machine.run(0).expect("it runs");
        assert_eq!((run.exit, run.address, run.size), (ExitReason::PortRead as u32, 0x60, 1));
        // Only a signal ends the halt.
        assert!(matches!(machine.run(0x42), Err(CallError::Interrupted)));
    }

    /// Executes `code`, in real mode, which exits as an access to a control or debug register; returns how often the guest
    /// was entered until it is behind that.
    fn entries_for(code: &[u8]) -> usize {
        let machine = Machine::new::<MockEngine>();
        // SAFETY: guest RAM, which nobody else uses now, has room for an instruction.
        unsafe { machine.ram.add(0x100).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        let end = 0x100 + code.len() as u64;
        MockEngine::set_script(Box::new(move |vcpu| {
            if vcpu.rip == end {
                return None;
            }
            vcpu.segments[SegmentName::Cs as usize].base = 0;
            vcpu.rip = 0x100;
            Some(Exit::DebugRegister)
        }));
        let before = MockEngine::entries();
        machine.run_to_signal();
        MockEngine::entries() - before
    }

    #[test]
    fn test_a_vcpu_that_moves_is_given_up_by_the_cpu_that_keeps_it() {
        let machine = Machine::new::<MockEngine>();
        MockEngine::set_script(Box::new(|_| None));
        let run_on = |cpu| {
            MockHost::move_to(cpu);
            machine.run_to_signal();
            HOME.get()
        };
        // The engine asserts at each entry that no other CPU keeps it.
        assert_eq!([0, 0, 1, 0].map(run_on), [Some(0), Some(0), Some(1), Some(0)]);
        drop(machine);
        assert_eq!(HOME.get(), None, "and so is one that ends");
    }

    #[test]
    fn test_a_vcpu_whose_home_was_switched_off_runs_elsewhere() {
        let machine = Machine::new::<MockEngine>();
        MockEngine::set_script(Box::new(|_| None));
        machine.run_to_signal();
        machine.driver.power_down();
        assert_eq!(HOME.get(), None);
        MockHost::move_to(1);
        machine.run_to_signal();
        assert_eq!(HOME.get(), Some(1));
    }

    #[test]
    fn test_a_stop_ends_what_runs_and_lets_nothing_begin() {
        let machine: &'static Machine = Box::leak(Box::new(Machine::new::<MockEngine>()));
        MockEngine::set_script(Box::new(|_| {
            machine.handle.stop();
            Some(Exit::HostInterrupt)
        }));
        let before = MockEngine::entries();
        assert_eq!(machine.run(0).map(|run| run.exit), Ok(ExitReason::Interrupted as u32));
        assert_eq!(MockEngine::entries() - before, 1);
        assert_eq!(machine.run(0).map(|run| run.exit), Err(CallError::Interrupted));
        assert_eq!(MockEngine::entries() - before, 1, "it was not entered again");
    }

    #[test]
    fn test_a_breakpoint_is_loaded_before_the_guest_goes_on() {
        for number in 0..8 {
            let (write, read) = ([0x0f, 0x23, 0xc0 | number << 3], [0x0f, 0x21, 0xc0 | number << 3]);
            assert_eq!(entries_for(&write), 2, "MOV to DR{number} leaves the guest: entry loads the registers");
            assert_eq!(entries_for(&read), 1, "MOV from DR{number} does not");
        }
    }
}
