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
//! | `vcpu.rs`, `vcpu/registers.rs` | one vCPU, and its registers to core |
//! | `nmi.rs` | the way out of an NMI's handler |
//! | `offer.rs` | interrupts on a CPU that QEMU emulates |
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
mod offer;
mod permission;
mod switch;
mod vcpu;
mod vmcb;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_core::engine::Engine;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::VcpuConfig;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::permission_maps::PermissionMaps;
use covisor_core::xstate::ExtendedState;

pub use crate::cpu::Cpu;
use crate::features::Features;
use crate::npt::NestedTables;
use crate::npt::Npt;
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
    /// Physical address of the root.
    root: u64,
    /// Nobody ever waits for them, for core has one thread at a time change them.
    tables: spin::Mutex<NestedTables>,
}

impl Engine for Svm {
    const KIND: EngineKind = EngineKind::Svm;
    const RAM_ON_DEMAND: bool = true;
    type Cpu = Cpu;
    type Vm = Vm;
    type Vcpu = SvmVcpu;

    fn status() -> EngineStatus {
        features::status()
    }

    fn new<H: Host>() -> Result<Self, OutOfMemory> {
        // SAFETY: drivers run in ring 0.
        let (features, extended) = unsafe { (Features::read(), ExtendedState::new()) };
        Ok(Self { features, extended, maps: permission::maps::<H>()? })
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
        let tables = NestedTables::new::<H>(format, self.features.paging_levels)?;
        Ok(Vm { root: tables.root(), tables: spin::Mutex::new(tables) })
    }

    fn vm_drop<H: Host>(&self, vm: Vm) {
        vm.tables.into_inner().free::<H>();
    }

    fn vm_map<H: Host>(&self, vm: &mut Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        vm.tables.get_mut().map::<H>(gpa, phys, order)
    }

    fn vm_map_later<H: Host>(&self, vm: &Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        vm.tables.lock().map::<H>(gpa, phys, order)
    }

    fn vm_unmap(&self, vm: &Vm, gpa: u64) {
        vm.tables.lock().unmap(gpa);
    }

    fn vcpu_new<H: Host>(&self, vm: &Vm, config: &VcpuConfig) -> Result<SvmVcpu, OutOfMemory> {
        SvmVcpu::new::<H>(&self.features, &self.extended, &self.maps, vm.root, config.tsc_offset)
    }

    fn vcpu_drop<H: Host>(&self, vcpu: SvmVcpu) {
        vcpu.free::<H>();
    }

    unsafe fn run<X: ExitHandler<Self>>(&self, cpu: &mut Cpu, _vm: &Vm, vcpu: &mut SvmVcpu, handler: &mut X) {
        // SAFETY: by the caller.
        unsafe { switch::run(self, cpu, vcpu, handler) }
    }
}
