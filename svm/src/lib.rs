//! covisor's AMD-V engine: guests in their own ring 0, by VMRUN and nested paging (AMD64 Architecture Programmer's Manual
//! volume 2, "APM", chapter 15).
//!
//! | file | concept |
//! |---|---|
//! | `features.rs` | what the CPU offers, and why it may not |
//! | `vmcb.rs` | the control block |
//! | `intercept.rs`, `permission.rs` | what makes the guest exit |
//! | `exit_code.rs`, `exits.rs` | why it exited |
//! | `npt.rs` | nested page tables' entries |
//! | `cpu.rs` | one physical CPU: on, off, the host's state |
//! | `vcpu.rs` | one vCPU's registers |
//! | `nmi.rs` | the way out of an NMI's handler |
//! | `switch.rs` | the way in and out |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod cpu;
mod exit_code;
mod exits;
mod features;
mod instructions;
mod intercept;
mod nmi;
mod npt;
mod permission;
mod switch;
mod vcpu;
mod vmcb;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_core::engine::Engine;
use covisor_core::engine::ExitHandler;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::xstate::ExtendedState;

pub use crate::cpu::Cpu;
use crate::features::Features;
use crate::npt::NestedTables;
use crate::npt::Npt;
use crate::permission::PermissionMaps;
pub use crate::vcpu::SvmVcpu;

/// The AMD-V engine.
#[derive(Debug)]
pub struct Svm {
    features: Features,
    extended: ExtendedState,
    maps: PermissionMaps,
}

/// One VM: its nested page tables.
#[derive(Debug)]
pub struct Vm {
    tables: NestedTables,
}

impl Engine for Svm {
    const KIND: EngineKind = EngineKind::Svm;
    type Cpu = Cpu;
    type Vm = Vm;
    type Vcpu = SvmVcpu;

    fn status() -> EngineStatus {
        features::status()
    }

    fn new<H: Host>() -> Result<Self, OutOfMemory> {
        // SAFETY: drivers run in ring 0.
        let (features, extended) = unsafe { (Features::read(), ExtendedState::new()) };
        Ok(Self { features, extended, maps: PermissionMaps::new::<H>()? })
    }

    fn free<H: Host>(self) {
        self.maps.free::<H>();
    }

    fn cpu_new<H: Host>(&self) -> Result<Cpu, OutOfMemory> {
        Cpu::new::<H>(&self.extended)
    }

    fn cpu_drop<H: Host>(&self, cpu: Cpu) {
        cpu.free::<H>();
    }

    unsafe fn cpu_enable<H: Host>(&self, cpu: &mut Cpu, _number: usize) -> Result<(), EngineStatus> {
        // SAFETY: by the caller.
        unsafe { cpu.enable(&self.features) }
    }

    unsafe fn cpu_disable<H: Host>(&self, cpu: &mut Cpu) {
        // SAFETY: by the caller.
        unsafe { cpu.disable() }
    }

    fn extended_state(&self) -> &ExtendedState {
        &self.extended
    }

    fn vm_new<H: Host>(&self) -> Result<Vm, OutOfMemory> {
        let format = Npt { encrypt: self.features.encryption_bit };
        // As many levels as the host's own tables have, for VMRUN takes the mode from there (15.25.3).
        Ok(Vm { tables: NestedTables::new::<H>(format, self.features.paging_levels)? })
    }

    fn vm_drop<H: Host>(&self, vm: Vm) {
        vm.tables.free::<H>();
    }

    fn vm_map<H: Host>(&self, vm: &mut Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        vm.tables.map::<H>(gpa, phys, order)
    }

    fn vcpu_new<H: Host>(&self, vm: &Vm, tsc_offset: u64) -> Result<SvmVcpu, OutOfMemory> {
        SvmVcpu::new::<H>(&self.features, &self.extended, &self.maps, &vm.tables, tsc_offset)
    }

    fn vcpu_drop<H: Host>(&self, vcpu: SvmVcpu) {
        vcpu.free::<H>();
    }

    unsafe fn run<X: ExitHandler<Self>>(&self, cpu: &mut Cpu, _vm: &Vm, vcpu: &mut SvmVcpu, handler: &mut X) {
        // SAFETY: by the caller.
        unsafe { switch::run(self, cpu, vcpu, handler) }
    }
}
