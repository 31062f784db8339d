//! covisor's cooperative engine: guests on a CPU without virtualization hardware.
//!
//! The CPU is switched as a whole between two worlds: the host's, and one of our own. There a monitor has ring 0
//! (`coop/monitor`), and the guest, its kernel as its programs, ring 3; the kernel runs by the 64-bit Xen PV interface.
//!
//! | file | concept |
//! |---|---|
//! | `features.rs` | what the CPU and the host have to be like |
//! | `image.rs`, `pages.rs` | the monitor in memory |
//! | `rights.rs` | entries of page tables |
//! | `descriptor.rs`, `control.rs` | descriptors and control registers of the monitor's world |
//! | `vm.rs` | one VM: the monitor's memory and page tables |
//! | `vcpu.rs`, `vcpu/registers.rs` | one vCPU, and its registers to core |
//! | `cpu.rs` | one physical CPU: where the host's state is meanwhile |
//! | `world.rs` | the way from world to world |
//! | `run.rs`, `exits.rs` | the loop around it, and why it comes back |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod control;
mod cpu;
mod descriptor;
mod exits;
mod features;
mod image;
mod instructions;
mod pages;
mod rights;
mod run;
mod vcpu;
mod vm;
mod world;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_core::engine::Engine;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::VcpuConfig;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::host::Stay;
use covisor_core::xstate::ExtendedState;

pub use crate::cpu::Cpu;
use crate::features::Features;
use crate::image::Image;
pub use crate::vcpu::CoopVcpu;
pub use crate::vm::Vm;

/// The cooperative engine.
#[derive(Debug)]
pub struct Coop {
    features: Features,
    extended: ExtendedState,
    image: Image,
}

impl Engine for Coop {
    const KIND: EngineKind = EngineKind::Coop;
    const PARAVIRTUAL: bool = true;
    const STAY: Stay = Stay { takes_interrupts: true, cuts_task_segment: false };
    type Cpu = Cpu;
    type Vm = Vm;
    type Vcpu = CoopVcpu;

    fn status() -> EngineStatus {
        features::status()
    }

    fn new<H: Host>() -> Result<Self, OutOfMemory> {
        // SAFETY: drivers run in ring 0.
        let (features, extended) = unsafe { (Features::read(), ExtendedState::new()) };
        Ok(Self { features, extended, image: Image::new::<H>()? })
    }

    fn free<H: Host>(self) {
        self.image.free::<H>();
    }

    fn cpu_new<H: Host>(&self) -> Result<Cpu, OutOfMemory> {
        Cpu::new::<H>(&self.features, &self.extended)
    }

    fn cpu_drop<H: Host>(&self, cpu: Cpu) {
        cpu.free::<H>();
    }

    unsafe fn cpu_enable<H: Host>(&self, cpu: &mut Cpu, _number: usize) -> Result<(), EngineStatus> {
        match features::status() {
            EngineStatus::Usable => {}
            other => return Err(other),
        }
        // SAFETY: by the caller.
        unsafe { cpu.enable(self) };
        Ok(())
    }

    /// Nothing of the CPU is on: each stay in the guest puts it aside and back.
    unsafe fn cpu_disable<H: Host>(&self, _cpu: &mut Cpu) {}

    fn extended_state(&self) -> &ExtendedState {
        &self.extended
    }

    fn vm_new<H: Host>(&self) -> Result<Vm, OutOfMemory> {
        Vm::new::<H>(&self.image, &self.features)
    }

    fn vm_drop<H: Host>(&self, vm: Vm) {
        vm.free::<H>();
    }

    fn vm_map<H: Host>(&self, vm: &mut Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        vm.map::<H>(gpa, phys, order)
    }

    fn vcpu_new<H: Host>(&self, vm: &Vm, config: &VcpuConfig) -> Result<CoopVcpu, OutOfMemory> {
        CoopVcpu::new::<H>(&self.features, &self.extended, vm, config)
    }

    fn vcpu_drop<H: Host>(&self, vcpu: CoopVcpu) {
        vcpu.free::<H>();
    }

    unsafe fn run<X: ExitHandler<Self>>(&self, cpu: &mut Cpu, vm: &Vm, vcpu: &mut CoopVcpu, handler: &mut X) {
        // SAFETY: by the caller.
        unsafe { run::run(self, cpu, vm, vcpu, handler) }
    }

    #[inline]
    unsafe fn hand_over(vcpu: &mut CoopVcpu) {
        // SAFETY: by the caller.
        unsafe { run::hand_over(vcpu) };
    }
}
