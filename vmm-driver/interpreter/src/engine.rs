//! Core's engine.

use core::ops::ControlFlow;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_core::engine::Engine;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::Next;
use covisor_core::engine::VcpuConfig;
use covisor_core::exit::Exit;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::registers::Cr0;
use covisor_core::registers::RFlags;
use covisor_core::reset::reset;
use covisor_core::test_vcpu::TestVcpu;
use covisor_core::xstate::ExtendedState;

use crate::event;
use crate::instruction;
use crate::ram::Ram;

/// Instructions of a stay in the guest, a fraction of a millisecond.
const STAY: u32 = 4096;
const PAGE: u64 = 4096;

/// The engine.
#[derive(Debug)]
pub struct Interpreter(ExtendedState);

impl Engine for Interpreter {
    /// What programs ask for where they can have any.
    const KIND: EngineKind = EngineKind::Svm;
    type Cpu = ();
    type Vm = Ram;
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

    fn cpu_new<H: Host>(&self) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn cpu_drop<H: Host>(&self, _cpu: ()) {}

    unsafe fn cpu_enable<H: Host>(&self, _cpu: &mut (), _number: usize) -> Result<(), EngineStatus> {
        Ok(())
    }

    unsafe fn cpu_disable<H: Host>(&self, _cpu: &mut ()) {}

    fn vm_new<H: Host>(&self) -> Result<Ram, OutOfMemory> {
        Ok(Ram::default())
    }

    fn vm_drop<H: Host>(&self, _vm: Ram) {}

    fn vm_map<H: Host>(&self, vm: &mut Ram, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        #[expect(clippy::cast_possible_truncation, reason = "it is an address of the driver")]
        vm.add(gpa, PAGE << order, phys as usize)
    }

    fn vcpu_new<H: Host>(&self, _vm: &Ram, config: &VcpuConfig) -> Result<TestVcpu, OutOfMemory> {
        let mut vcpu = TestVcpu { tsc_offset: config.tsc_offset, ..TestVcpu::default() };
        reset(&mut vcpu);
        Ok(vcpu)
    }

    fn vcpu_drop<H: Host>(&self, _vcpu: TestVcpu) {}

    unsafe fn run<X: ExitHandler<Self>>(&self, _cpu: &mut (), vm: &Ram, vcpu: &mut TestVcpu, handler: &mut X) {
        let mut left = STAY;
        loop {
            let exit = next_exit(vm, vcpu, &mut left);
            if handler.on_exit(vcpu, exit) == Next::Leave {
                return;
            }
        }
    }
}

/// Goes on in the guest to its next exit, be it that the stay is over.
fn next_exit(ram: &Ram, vcpu: &mut TestVcpu, left: &mut u32) -> Exit {
    loop {
        if vcpu.cr0 & Cr0::CR0_PROTECTED_MODE.bits() as u64 != 0 || event::deliver(vcpu, ram).is_err() {
            return Exit::Shutdown;
        }
        if window_is_open(vcpu) {
            return Exit::InterruptWindow;
        }
        // Exits count, so that a guest that makes nothing else comes to an end as well.
        *left = left.saturating_sub(1);
        if *left == 0 {
            return Exit::HostInterrupt;
        }
        if let ControlFlow::Break(exit) = instruction::execute(vcpu, ram) {
            return exit;
        }
    }
}

/// Whether the guest can take the interrupt that core holds for it.
fn window_is_open(vcpu: &TestVcpu) -> bool {
    let open = vcpu.rflags & RFlags::FLAGS_IF.bits() != 0 && !vcpu.interrupt_shadow;
    open && vcpu.interrupt_window.is_some_and(|class| class > vcpu.task_priority)
}
