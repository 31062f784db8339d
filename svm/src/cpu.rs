//! One physical CPU: SVM on and off, and where the host's state is while a guest's is loaded.

use covisor_abi::EngineStatus;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::host_registers::HostRegisters;
use covisor_core::instructions::rdmsr;
use covisor_core::instructions::wrmsr;
use covisor_core::msr::index::EFER;
use covisor_core::tlb_tag::Tags;
use covisor_core::xstate::Area;
use covisor_core::xstate::ExtendedState;

use crate::features::EFER_SVME;
use crate::features::Features;
use crate::instructions as insn;
use crate::vcpu::SvmVcpu;

/// `VM_HSAVE_PA`: where VMRUN saves the host (15.30.4).
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

/// One physical CPU while VMs exist.
#[derive(Debug)]
pub struct Cpu {
    /// VMRUN's own save area.
    save_area: Block,
    /// A VMCB for the part of the host's state that VMSAVE and VMLOAD move.
    host_vmcb: Block,
    /// The host's extended state.
    extended: Area,
    pub(crate) asids: Tags,
    encryption_bit: u64,
    /// `VM_HSAVE_PA` of before.
    host_save_pa: u64,
    host: HostRegisters,
}

impl Cpu {
    pub(crate) fn new<H: Host>(extended: &ExtendedState) -> Result<Self, OutOfMemory> {
        let save_area = H::alloc_block(0).ok_or(OutOfMemory)?;
        // SAFETY: just allocated, unused.
        let undo = |block| unsafe { H::free_block(block) };
        let Some(host_vmcb) = H::alloc_block(0) else {
            undo(save_area);
            return Err(OutOfMemory);
        };
        let extended = extended.area_new::<H>().inspect_err(|_| {
            undo(save_area);
            undo(host_vmcb);
        })?;
        Ok(Self {
            save_area,
            host_vmcb,
            extended,
            asids: Tags::new(0),
            encryption_bit: 0,
            host_save_pa: 0,
            host: HostRegisters::default(),
        })
    }

    pub(crate) fn free<H: Host>(self) {
        self.extended.free::<H>();
        // SAFETY: allocated in new(); SVM is off on this CPU, so nothing names them any more.
        unsafe {
            H::free_block(self.save_area);
            H::free_block(self.host_vmcb);
        }
    }

    /// # Safety
    /// On the CPU itself, preemption off, not enabled by us.
    pub(crate) unsafe fn enable(&mut self, features: &Features) -> Result<(), EngineStatus> {
        match crate::features::status() {
            EngineStatus::Usable => {}
            other => return Err(other),
        }
        self.asids.restart(features.asids);
        self.encryption_bit = features.encryption_bit;
        // SAFETY: the CPU has SVM, usable; the MSRs exist as the features say.
        unsafe {
            self.host.capture(features.tsc_aux, features.supervisor_state);
            wrmsr(EFER, rdmsr(EFER) | EFER_SVME);
            self.host_save_pa = rdmsr(MSR_VM_HSAVE_PA);
            wrmsr(MSR_VM_HSAVE_PA, self.save_area.phys | self.encryption_bit);
        }
        Ok(())
    }

    /// # Safety
    /// On the CPU itself, preemption off, enabled by us, no guest loaded.
    pub(crate) unsafe fn disable(&mut self) {
        // SAFETY: by the caller.
        unsafe {
            wrmsr(MSR_VM_HSAVE_PA, self.host_save_pa);
            wrmsr(EFER, rdmsr(EFER) & !EFER_SVME);
        }
    }

    /// Physical address of the host's VMCB.
    fn host_vmcb(&self) -> u64 {
        self.host_vmcb.phys | self.encryption_bit
    }

    /// Puts the host's state aside and loads the guest's: what stays loaded over exits that core answers itself.
    ///
    /// # Safety
    /// GIF is 0, SVM is on; nothing of the host runs until [`Cpu::unload`].
    #[inline]
    pub(crate) unsafe fn load(&mut self, extended: &ExtendedState, vcpu: &mut SvmVcpu) {
        // SAFETY: by the caller; the guest's values are checked when they are set.
        unsafe {
            self.host.enter(vcpu.debug_active(), &vcpu.own.debug_addresses, vcpu.own.tsc_aux);
            extended.enter(&mut self.extended, &vcpu.extended, vcpu.own.xcr0);
            insn::vmsave(self.host_vmcb());
            insn::vmload(vcpu.vmcb_pa());
            vcpu.set_loaded(true);
        }
    }

    /// Puts the guest's state aside and loads the host's.
    ///
    /// # Safety
    /// GIF is 0, and [`Cpu::load`] came before with the same vCPU.
    #[inline]
    pub(crate) unsafe fn unload(&mut self, extended: &ExtendedState, vcpu: &mut SvmVcpu) {
        // SAFETY: by the caller; the host's values are the ones that load() found.
        unsafe {
            insn::vmsave(vcpu.vmcb_pa());
            insn::vmload(self.host_vmcb());
            extended.leave(&self.extended, &mut vcpu.extended, &mut vcpu.own.xcr0);
            self.host.leave(vcpu.own.tsc_aux);
            vcpu.set_loaded(false);
        }
    }
}
