//! One physical CPU: SVM on and off, and where the host's state is while a guest's is loaded.

use covisor_abi::EngineStatus;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::instructions::rdmsr;
use covisor_core::instructions::read_dr0;
use covisor_core::instructions::read_dr1;
use covisor_core::instructions::read_dr2;
use covisor_core::instructions::read_dr3;
use covisor_core::instructions::read_dr6;
use covisor_core::instructions::read_dr7;
use covisor_core::instructions::write_dr0;
use covisor_core::instructions::write_dr1;
use covisor_core::instructions::write_dr2;
use covisor_core::instructions::write_dr3;
use covisor_core::instructions::write_dr6;
use covisor_core::instructions::write_dr7;
use covisor_core::instructions::wrmsr;
use covisor_core::tlb_tag::Tags;
use covisor_core::xstate::Area;
use covisor_core::xstate::ExtendedState;

use crate::features::EFER_SVME;
use crate::features::Features;
use crate::features::MSR_EFER;
use crate::instructions as insn;
use crate::vcpu::SvmVcpu;

/// `VM_HSAVE_PA`: where VMRUN saves the host (15.30.4).
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
/// `TSC_AUX`. Windows checks that nobody changes it.
pub(crate) const MSR_TSC_AUX: u32 = 0xc000_0103;
/// `IA32_XSS`.
const MSR_XSS: u32 = 0xda0;
/// DR7 after #VMEXIT: nothing enabled.
const DR7_RESET: u64 = 0x400;
/// The enable bits of DR7.
const DR7_ENABLES: u64 = 0xff;

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
    /// Values of the host, which it does not change while it runs.
    host_save_pa: u64,
    tsc_aux: u32,
    xss: u64,
    has_tsc_aux: bool,
    /// Debug registers of the host, of this stay in the guest.
    dr7: u64,
    dr6: u64,
    debug_addresses: [u64; 4],
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
            tsc_aux: 0,
            xss: 0,
            has_tsc_aux: false,
            dr7: DR7_RESET,
            dr6: 0,
            debug_addresses: [0; 4],
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
        self.has_tsc_aux = features.tsc_aux;
        // SAFETY: the CPU has SVM, usable; the MSRs exist as the features say.
        unsafe {
            if features.tsc_aux {
                #[expect(clippy::cast_possible_truncation, reason = "the MSR has 32 bits")]
                let aux = rdmsr(MSR_TSC_AUX) as u32;
                self.tsc_aux = aux;
            }
            if features.supervisor_state {
                self.xss = rdmsr(MSR_XSS);
            }
            wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
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
            wrmsr(MSR_EFER, rdmsr(MSR_EFER) & !EFER_SVME);
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
            self.dr7 = read_dr7();
            if self.dr7 & DR7_ENABLES != 0 || vcpu.debug_active() {
                self.dr6 = read_dr6();
                self.debug_addresses = [read_dr0(), read_dr1(), read_dr2(), read_dr3()];
                write_dr7(DR7_RESET);
                load_debug_addresses(&vcpu.debug_addresses);
            }
            extended.enter(&mut self.extended, &vcpu.extended, vcpu.xcr0);
            if self.has_tsc_aux && vcpu.tsc_aux != self.tsc_aux {
                wrmsr(MSR_TSC_AUX, u64::from(vcpu.tsc_aux));
            }
            if self.xss != 0 {
                wrmsr(MSR_XSS, 0);
            }
            insn::vmsave(self.host_vmcb());
            insn::vmload(vcpu.vmcb_pa());
        }
        vcpu.set_loaded(true);
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
            if self.xss != 0 {
                wrmsr(MSR_XSS, self.xss);
            }
            if self.has_tsc_aux && vcpu.tsc_aux != self.tsc_aux {
                wrmsr(MSR_TSC_AUX, u64::from(self.tsc_aux));
            }
            extended.leave(&self.extended, &mut vcpu.extended, &mut vcpu.xcr0);
            if self.dr7 & DR7_ENABLES != 0 || vcpu.debug_active() {
                load_debug_addresses(&self.debug_addresses);
                write_dr6(self.dr6);
                write_dr7(self.dr7);
            }
        }
        vcpu.set_loaded(false);
    }
}

/// # Safety
/// Ring 0, no breakpoint is enabled.
unsafe fn load_debug_addresses(addresses: &[u64; 4]) {
    // SAFETY: by the caller.
    unsafe {
        write_dr0(addresses[0]);
        write_dr1(addresses[1]);
        write_dr2(addresses[2]);
        write_dr3(addresses[3]);
    }
}
