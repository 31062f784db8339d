//! One physical CPU: VMX operation on and off, and where the host's state is while a guest's is loaded.

use covisor_abi::EngineStatus;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::host_registers::HostRegisters;
use covisor_core::instructions as insn;
use covisor_core::mitigation::Mitigations;
use covisor_core::msr::index;
use covisor_core::permission_maps::PermissionMaps;
use covisor_core::tlb_tag::Tags;
use covisor_core::xstate::Area;
use covisor_core::xstate::ExtendedState;

use crate::Vmx;
use crate::VmxVcpu;
use crate::bitmap;
use crate::capability;
use crate::capability::Capabilities;
use crate::capability::FEATURES_LOCKED;
use crate::capability::FEATURES_VMX;
use crate::capability::MSR_FEATURE_CONTROL;
use crate::controls;
use crate::controls::Secondary;
use crate::field::Field;
use crate::host_state;
use crate::host_state::HostConstants;
use crate::host_state::HostSegments;
use crate::instructions as vmx;
use crate::instructions::vmwrite;
use crate::syscall::SyscallMsrs;
use crate::vcpu;
use crate::vmcs::ActiveSet;
use crate::vmcs::Region;

/// How many VPIDs there are, with 0, the host's.
const VPIDS: u32 = 1 << 16;

/// One physical CPU while VMs exist.
#[derive(Debug)]
pub struct Cpu {
    /// The VMXON region.
    region: Region,
    number: usize,
    active: ActiveSet,
    pub(crate) tags: Tags,
    constants: HostConstants,
    mitigations: Option<Mitigations>,
    /// The host's extended state.
    extended: Area,
    /// Debug registers, `TSC_AUX`, `IA32_XSS`.
    registers: HostRegisters,
    syscall: SyscallMsrs,
    /// Of this stay in the guest.
    segments: HostSegments,
    debugctl: u64,
}

impl Cpu {
    pub(crate) fn new<H: Host>(revision: u32, extended: &ExtendedState) -> Result<Self, OutOfMemory> {
        let region = Region::new::<H>(revision)?;
        let extended = match extended.area_new::<H>() {
            Ok(area) => area,
            Err(error) => {
                // SAFETY: just made, never active.
                unsafe { region.free::<H>() };
                return Err(error);
            }
        };
        Ok(Self {
            region,
            number: 0,
            active: ActiveSet::new(),
            tags: Tags::new(0),
            constants: HostConstants::default(),
            mitigations: None,
            extended,
            registers: HostRegisters::default(),
            syscall: SyscallMsrs::default(),
            segments: HostSegments::default(),
            debugctl: 0,
        })
    }

    pub(crate) fn free<H: Host>(self) {
        self.extended.free::<H>();
        // SAFETY: VMX operation is off on this CPU.
        unsafe { self.region.free::<H>() };
    }

    /// # Safety
    /// On the CPU itself, whose number this is, preemption off, not enabled by us.
    pub(crate) unsafe fn enable<H: Host>(
        &mut self,
        capabilities: &Capabilities,
        number: usize,
    ) -> Result<(), EngineStatus> {
        match capability::status() {
            EngineStatus::Usable => {}
            other => return Err(other),
        }
        // SAFETY: the CPU has VMX, usable, so it has the MSR; unlocked, it takes these bits.
        unsafe {
            let features = insn::rdmsr(MSR_FEATURE_CONTROL);
            if features & FEATURES_LOCKED == 0 {
                insn::wrmsr(MSR_FEATURE_CONTROL, features | FEATURES_LOCKED | FEATURES_VMX);
            }
        }
        H::set_vmx_enable(true);
        // SAFETY: VMXE is set, and nobody had set it before; the region is ours and has the revision.
        if unsafe { vmx::vmxon(self.region.phys()) }.is_err() {
            H::set_vmx_enable(false);
            return Err(EngineStatus::Taken);
        }
        self.number = number;
        self.active = ActiveSet::new();
        self.tags.restart(if capabilities.secondary.contains(Secondary::VPID) { VPIDS } else { 2 });
        // SAFETY: in the host's kernel, on this CPU, which has what the capabilities say.
        unsafe {
            self.constants = HostConstants::read();
            self.mitigations = Some(Mitigations::read());
            self.syscall = SyscallMsrs::read();
            self.registers.capture(capabilities.tsc_aux, capabilities.supervisor_state);
        }
        Ok(())
    }

    /// # Safety
    /// On the CPU itself, interrupts off, enabled by us, no guest loaded.
    pub(crate) unsafe fn disable<H: Host>(&mut self) {
        // SAFETY: by the caller; after the first nothing of a guest's is in this CPU.
        unsafe {
            self.active.clear_all();
            vmx::vmxoff();
        }
        H::set_vmx_enable(false);
    }

    /// Gives up what this CPU has of the vCPU.
    ///
    /// # Safety
    /// On the CPU itself, interrupts off, enabled; the vCPU does not run.
    pub(crate) unsafe fn give_up(&mut self, vcpu: &VmxVcpu) {
        // SAFETY: by the caller.
        unsafe { self.active.clear(vcpu.region.phys()) };
    }

    /// Makes the vCPU's VMCS current, and tells it of this CPU where it comes from memory.
    ///
    /// # Safety
    /// On the CPU itself, interrupts off, enabled; no other CPU has anything of the vCPU.
    #[inline]
    pub(crate) unsafe fn take(&mut self, engine: &Vmx, vcpu: &mut VmxVcpu) -> Result<(), vmx::Failed> {
        if self.active.is_current(vcpu.region.phys()) {
            return Ok(());
        }
        // SAFETY: by the caller.
        unsafe { self.take_other(engine, vcpu) }
    }

    /// # Safety
    /// As [`Cpu::take`].
    #[inline(never)]
    unsafe fn take_other(&mut self, engine: &Vmx, vcpu: &mut VmxVcpu) -> Result<(), vmx::Failed> {
        // SAFETY: by the caller.
        unsafe {
            if !self.active.make_current(vcpu.region.phys())? {
                vcpu.launched = 0;
                self.constants.write();
            }
            if !vcpu.initialized {
                write_controls(&engine.capabilities, &engine.bitmaps, vcpu);
                vcpu.initialized = true;
            }
        }
        vcpu.home = Some(self.number);
        vcpu.clear_buffers = match self.mitigations {
            Some(Mitigations { clear_buffers: true, .. }) => self.constants.ss,
            _ => 0,
        };
        Ok(())
    }

    /// Gives the vCPU a tag of this CPU's for its translations, where it has none.
    ///
    /// # Safety
    /// On the CPU itself, interrupts off, enabled.
    #[inline]
    pub(crate) unsafe fn tag(&mut self, capabilities: &Capabilities, vcpu: &mut VmxVcpu) {
        if !self.tags.holds(&vcpu.assigned) {
            // SAFETY: by the caller.
            unsafe { self.tag_anew(capabilities, vcpu) };
        }
    }

    /// # Safety
    /// As [`Cpu::tag`].
    #[inline(never)]
    unsafe fn tag_anew(&mut self, capabilities: &Capabilities, vcpu: &mut VmxVcpu) {
        let (assigned, all) = self.tags.assign();
        let tagged = capabilities.secondary.contains(Secondary::VPID);
        // SAFETY: the CPU has these types of both instructions, or VPIDs were not chosen. Translations by EPT go too: a VM of
        // before may have had its root where this one's is.
        unsafe {
            if capabilities.invept_single && !all {
                vmx::invept_single(vcpu.ept_pointer);
            } else {
                vmx::invept_all();
            }
            if tagged && all {
                vmx::invvpid_all();
            }
        }
        vcpu.assign(assigned, tagged);
        vcpu.flush = false;
    }

    /// Puts the host's state aside that an exit does not bring back, and loads the guest's.
    ///
    /// # Safety
    /// On the CPU itself, interrupts off, the vCPU's VMCS is current; nothing of the host runs until [`Cpu::unload`] but
    /// handlers of NMIs and machine checks, which use nothing that is put aside.
    #[inline]
    pub(crate) unsafe fn load(&mut self, extended: &ExtendedState, vcpu: &mut VmxVcpu) {
        vcpu.registers.load();
        vcpu.begin_turn();
        self.segments = HostSegments::read();
        // SAFETY: by the caller; the guest's values are checked when they are set.
        unsafe {
            if let Some(mitigations) = &self.mitigations {
                mitigations.before_stay();
            }
            host_state::write_changed(&mut vcpu.host);
            self.debugctl = insn::rdmsr(index::DEBUGCTL);
            self.registers.enter(vcpu.debug_active(), &vcpu.own.debug_addresses, vcpu.own.tsc_aux);
            extended.enter(&mut self.extended, &vcpu.extended, vcpu.own.xcr0);
            self.syscall.read_changing();
            vcpu.syscall.write(&self.syscall);
            vcpu.own.set_loaded(true);
        }
    }

    /// Puts the guest's state aside and loads the host's.
    ///
    /// # Safety
    /// [`Cpu::load`] came before with the same vCPU.
    #[inline]
    pub(crate) unsafe fn unload(&mut self, extended: &ExtendedState, vcpu: &mut VmxVcpu) {
        // SAFETY: by the caller; the host's values are the ones that load() found.
        unsafe {
            self.constants.restore_tables();
            vcpu.syscall = SyscallMsrs::read();
            self.syscall.write(&vcpu.syscall);
            self.segments.restore(vcpu.host.fs_base, self.syscall.kernel_gs_base);
            extended.leave(&self.extended, &mut vcpu.extended, &mut vcpu.own.xcr0);
            self.registers.leave(vcpu.own.tsc_aux);
            if self.debugctl != 0 {
                insn::wrmsr(index::DEBUGCTL, self.debugctl);
            }
            vcpu.own.set_loaded(false);
        }
        vcpu.registers.unload();
    }
}

/// Writes what of a VMCS stays as it is: controls, masks, and state of the guest's that core does not know of.
///
/// # Safety
/// The vCPU's VMCS is current.
unsafe fn write_controls(capabilities: &Capabilities, bitmaps: &PermissionMaps, vcpu: &VmxVcpu) {
    /// No shadow VMCS.
    const NO_LINK: u64 = !0;
    let [io_a, io_b] = bitmap::io(bitmaps);
    for (field, value) in [
        (Field::PIN_CONTROLS, u64::from(capabilities.pin)),
        (Field::SECONDARY_CONTROLS, u64::from(capabilities.secondary.bits())),
        (Field::EXIT_CONTROLS, u64::from(capabilities.exit)),
        (Field::EXCEPTION_BITMAP, u64::from(controls::EXCEPTIONS)),
        (Field::PAGE_FAULT_MASK, 0),
        (Field::PAGE_FAULT_MATCH, 0),
        (Field::CR3_TARGET_COUNT, 0),
        (Field::EXIT_MSR_STORE_COUNT, 0),
        (Field::EXIT_MSR_LOAD_COUNT, 0),
        (Field::ENTRY_MSR_LOAD_COUNT, 0),
        (Field::ENTRY_INTERRUPTION_INFO, 0),
        (Field::IO_BITMAP_A, io_a),
        (Field::IO_BITMAP_B, io_b),
        (Field::MSR_BITMAP, bitmaps.msr()),
        (Field::VIRTUAL_APIC, vcpu.virtual_apic()),
        (Field::EPT_POINTER, vcpu.ept_pointer),
        (Field::CR0_MASK, vcpu::CR0_MASK),
        (Field::CR4_MASK, vcpu::CR4_MASK),
        (Field::LINK_POINTER, NO_LINK),
        (Field::GUEST_DEBUGCTL, 0),
        (Field::GUEST_ACTIVITY, 0),
        (Field::GUEST_SYSENTER_CS, 0),
        (Field::GUEST_SYSENTER_ESP, 0),
        (Field::GUEST_SYSENTER_EIP, 0),
        // The copy of what is written begins as zeros.
        (Field::HOST_CR0, 0),
        (Field::HOST_CR3, 0),
        (Field::HOST_CR4, 0),
        (Field::HOST_FS_BASE, 0),
        (Field::GUEST_RSP, 0),
    ] {
        // SAFETY: by the caller, and these fields are in every CPU with what is required.
        unsafe { vmwrite(field, value) };
    }
    if capabilities.secondary.contains(Secondary::ENCLS) {
        // SAFETY: as above, and the CPU has the control that the field belongs to.
        unsafe { vmwrite(Field::ENCLS_EXITING, !0) };
    }
}
