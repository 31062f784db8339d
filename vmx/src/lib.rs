//! covisor's Intel VT-x engine: guests in their own ring 0, by VMLAUNCH and extended page tables (Intel 64 and IA-32
//! Architectures Software Developer's Manual volume 3, "SDM", chapters 24 to 32, as of December 2023).
//!
//! | file | concept |
//! |---|---|
//! | `capability.rs` | what the CPU offers, and why it may not |
//! | `field.rs`, `vmcs.rs` | the control structure: its fields, its region, where it is active |
//! | `controls.rs`, `bitmap.rs` | what makes the guest exit |
//! | `exit_reason.rs`, `exits.rs` | why it exited |
//! | `entry_check.rs` | why it was not entered |
//! | `ept.rs` | extended page tables |
//! | `cpu.rs`, `host_state.rs`, `syscall.rs` | one physical CPU: on, off, the host's state |
//! | `vcpu.rs`, `vcpu/registers.rs` | one vCPU, and its registers to core |
//! | `registers.rs`, `segment.rs` | its registers in the VMCS |
//! | `switch.rs` | the way in and out |
#![cfg_attr(not(test), no_std)]

mod bitmap;
mod capability;
mod controls;
mod cpu;
mod entry_check;
mod ept;
mod exit_reason;
mod exits;
mod field;
mod host_state;
mod instructions;
mod registers;
mod segment;
mod switch;
mod syscall;
mod vcpu;
mod vmcs;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_core::engine::Engine;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::VcpuConfig;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::host::Stay;
use covisor_core::mitigation;
use covisor_core::nested::NestedTables;
use covisor_core::permission_maps::PermissionMaps;
use covisor_core::xstate::ExtendedState;

use crate::capability::Capabilities;
pub use crate::cpu::Cpu;
use crate::ept::Ept;
pub use crate::vcpu::VmxVcpu;

/// The Intel VT-x engine.
#[derive(Debug)]
pub struct Vmx {
    capabilities: Capabilities,
    extended: ExtendedState,
    bitmaps: PermissionMaps,
    /// Whether EPT may have pages of 2 MiB.
    large_pages: bool,
}

/// One VM: its extended page tables.
#[derive(Debug)]
pub struct Vm {
    /// Physical address of the root.
    root: u64,
    /// Nobody ever waits for them, for core has one thread at a time change them.
    tables: spin::Mutex<NestedTables<Ept>>,
}

impl Vmx {
    fn map<H: Host>(&self, tables: &mut NestedTables<Ept>, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        if self.large_pages {
            return tables.map::<H>(gpa, phys, order);
        }
        let page = |number| number * covisor_abi::PAGE_SIZE;
        (0..1_u64 << order).try_for_each(|number| tables.map::<H>(gpa + page(number), phys + page(number), 0))
    }
}

impl Engine for Vmx {
    const KIND: EngineKind = EngineKind::Vmx;
    const RAM_ON_DEMAND: bool = true;
    const STAY: Stay = Stay { takes_interrupts: false, cuts_task_segment: true };
    type Cpu = Cpu;
    type Vm = Vm;
    type Vcpu = VmxVcpu;

    fn status() -> EngineStatus {
        capability::status()
    }

    fn new<H: Host>() -> Result<Self, OutOfMemory> {
        // SAFETY: drivers run in ring 0, and the engine is made only where its status is usable.
        let (capabilities, extended, large_pages) =
            unsafe { (Capabilities::read(), ExtendedState::new(), mitigation::large_pages_are_safe()) };
        let capabilities = capabilities.map_err(|_| OutOfMemory)?;
        Ok(Self { capabilities, extended, bitmaps: bitmap::bitmaps::<H>()?, large_pages })
    }

    fn free<H: Host>(self) {
        self.bitmaps.free::<H>();
    }

    fn cpu_new<H: Host>(&self) -> Result<Cpu, OutOfMemory> {
        Cpu::new::<H>(self.capabilities.revision, &self.extended)
    }

    fn cpu_drop<H: Host>(&self, cpu: Cpu) {
        cpu.free::<H>();
    }

    unsafe fn cpu_enable<H: Host>(&self, cpu: &mut Cpu, number: usize) -> Result<(), EngineStatus> {
        // SAFETY: by the caller.
        unsafe { cpu.enable::<H>(&self.capabilities, number) }
    }

    unsafe fn cpu_disable<H: Host>(&self, cpu: &mut Cpu) {
        // SAFETY: by the caller.
        unsafe { cpu.disable::<H>() }
    }

    fn extended_state(&self) -> &ExtendedState {
        &self.extended
    }

    fn vm_new<H: Host>(&self) -> Result<Vm, OutOfMemory> {
        let tables = NestedTables::new::<H>(Ept, ept::LEVELS)?;
        Ok(Vm { root: tables.root(), tables: spin::Mutex::new(tables) })
    }

    fn vm_drop<H: Host>(&self, vm: Vm) {
        vm.tables.into_inner().free::<H>();
    }

    fn vm_map<H: Host>(&self, vm: &mut Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        self.map::<H>(vm.tables.get_mut(), gpa, phys, order)
    }

    fn vm_map_later<H: Host>(&self, vm: &Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        self.map::<H>(&mut vm.tables.lock(), gpa, phys, order)
    }

    fn vm_unmap(&self, vm: &Vm, gpa: u64) {
        vm.tables.lock().unmap(gpa);
    }

    fn vcpu_new<H: Host>(&self, vm: &Vm, config: &VcpuConfig) -> Result<VmxVcpu, OutOfMemory> {
        VmxVcpu::new::<H>(&self.capabilities, &self.extended, ept::pointer(vm.root), config.tsc_offset)
    }

    fn vcpu_drop<H: Host>(&self, vcpu: VmxVcpu) {
        // SAFETY: core had it given up on its home before.
        unsafe { vcpu.free::<H>() };
    }

    fn home(vcpu: &VmxVcpu) -> Option<usize> {
        vcpu.home
    }

    fn forget_home(vcpu: &mut VmxVcpu) {
        vcpu.home = None;
    }

    unsafe fn give_up(&self, cpu: &mut Cpu, vcpu: &VmxVcpu) {
        // SAFETY: by the caller.
        unsafe { cpu.give_up(vcpu) };
    }

    fn is_complete(vcpu: &VmxVcpu) -> bool {
        vcpu.registers.is_complete()
    }

    unsafe fn complete(&self, cpu: &mut Cpu, vcpu: &mut VmxVcpu) {
        // SAFETY: by the caller; where the VMCS cannot be made current, the next run says so.
        unsafe {
            if cpu.take(self, vcpu).is_ok() {
                vcpu.registers.fetch();
            }
        }
    }

    unsafe fn run<X: ExitHandler<Self>>(&self, cpu: &mut Cpu, _vm: &Vm, vcpu: &mut VmxVcpu, handler: &mut X) {
        // SAFETY: by the caller.
        unsafe { switch::run(self, cpu, vcpu, handler) }
    }
}
