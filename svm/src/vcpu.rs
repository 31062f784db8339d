//! One vCPU: its VMCB, and the registers that are not in it. How core reads and sets them is in `registers`.

mod registers;

use core::cell::Cell;

use covisor_core::debug_registers::DR7_ENABLES;
use covisor_core::delivery::Deliveries;
use covisor_core::engine::Vcpu;
use covisor_core::guest_registers::GuestRegisters;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::permission_maps::PermissionMaps;
use covisor_core::registers::Gprs;
use covisor_core::reset::reset;
use covisor_core::tlb_tag::Assigned;
use covisor_core::xstate::Area;
use covisor_core::xstate::ExtendedState;

use crate::features::Features;
use crate::instructions as insn;
use crate::intercept;
use crate::intercept::ControlRegisters;
use crate::intercept::Instructions1;
use crate::nmi::NmiState;
use crate::vmcb::Clean;
use crate::vmcb::NESTED_PAGING_ENABLE;
use crate::vmcb::TlbControl;
use crate::vmcb::VirtualInterrupt;
use crate::vmcb::Vmcb;

/// One vCPU.
#[derive(Debug)]
#[repr(C)]
pub struct SvmVcpu {
    /// First, for the switch addresses them from here. RAX and RSP are the VMCB's while the guest runs.
    gprs: Gprs,
    /// Physical address of the VMCB; the switch reads it behind the registers.
    vmcb_pa: u64,
    block: Block,
    pub(crate) extended: Area,
    pub(crate) own: GuestRegisters,
    pub(crate) assigned: Assigned,
    pub(crate) deliveries: Deliveries,
    pub(crate) nmi: NmiState,
    /// Core waits for the guest to take NMIs.
    pub(crate) nmi_window: bool,
    next_rip_save: bool,
    /// QEMU emulates the CPU: VMRUN does not take the interrupt shadow from the VMCB, and interrupts have to be offered
    /// (`offer.rs`).
    pub(crate) emulated_by_qemu: bool,
    /// An interrupt is offered.
    pub(crate) offered: bool,
    /// QEMU's VMRUN finds a virtual interrupt, offered or to open the window, and so may lose one of the host's (`offer.rs`).
    pub(crate) virtual_on_qemu: bool,
    /// How this CPU best forgets one guest's translations.
    flush: TlbControl,
    /// The priority class whose interrupt window core asked for.
    window: Option<u8>,
    /// The VMCB has that part too, since the last exit.
    synced: Cell<bool>,
}

// SAFETY: the VMCB is in memory that only this value names.
unsafe impl Send for SvmVcpu {}

impl SvmVcpu {
    /// Where the switch finds the VMCB's physical address.
    pub(crate) const VMCB_PA_OFFSET: usize = core::mem::offset_of!(Self, vmcb_pa);

    /// Sets the intercepts for [`Vcpu::want_interrupt_window`]. A class above the guest's task priority has a window by a
    /// virtual interrupt, whose priority the CPU compares with V_TPR (APM vol. 2, 15.21.2). One that V_TPR holds back has to
    /// wait for a lower CR8. (The CPU could wait for that by itself, but QEMU's takes an interrupt of V_TPR's own class.)
    /// While an interrupt is offered, the place is taken.
    pub(crate) fn place_window(&mut self) {
        if self.offered {
            return;
        }
        let (window, task_priority) = (self.window, self.task_priority());
        let held = window.is_some_and(|class| class <= task_priority);
        let control = &mut self.change(Clean::VIRTUAL_INTERRUPT | Clean::INTERCEPTS).control;
        control.control_registers.set(ControlRegisters::WRITE_CR8, held);
        control.virtual_interrupt.remove(VirtualInterrupt::IRQ | VirtualInterrupt::PRIORITY);
        let open = window.filter(|_| !held);
        control.instructions1.set(Instructions1::VINTR, open.is_some());
        if let Some(class) = open {
            let priority = u64::from(class & 0xf) << VirtualInterrupt::PRIORITY.bits().trailing_zeros();
            control.virtual_interrupt.insert(VirtualInterrupt::IRQ | VirtualInterrupt::from_bits_retain(priority));
        }
        self.virtual_on_qemu = self.emulated_by_qemu && open.is_some();
    }

    pub(crate) fn new<H: Host>(
        features: &Features,
        extended: &ExtendedState,
        maps: &PermissionMaps,
        nested_root: u64,
        tsc_offset: u64,
    ) -> Result<Self, OutOfMemory> {
        let extended = extended.area_new::<H>()?;
        let Some(block) = H::alloc_block(0) else {
            extended.free::<H>();
            return Err(OutOfMemory);
        };
        let encrypt = features.encryption_bit;
        let mut vcpu = Self {
            gprs: Gprs::default(),
            vmcb_pa: block.phys | encrypt,
            block,
            extended,
            own: GuestRegisters::RESET,
            assigned: Assigned::default(),
            deliveries: Deliveries::default(),
            nmi: NmiState::Open,
            nmi_window: false,
            next_rip_save: features.next_rip_save,
            emulated_by_qemu: features.emulated_by_qemu,
            offered: false,
            virtual_on_qemu: false,
            flush: if features.flush_by_asid { TlbControl::FlushGuest } else { TlbControl::FlushAll },
            window: None,
            synced: Cell::new(false),
        };
        let vmcb = vcpu.vmcb_mut();
        vmcb.control.control_registers = intercept::CONTROL_REGISTERS;
        vmcb.control.debug_registers = intercept::ALL_DEBUG_REGISTERS;
        vmcb.control.exceptions = intercept::EXCEPTIONS;
        vmcb.control.instructions1 = intercept::INSTRUCTIONS1;
        vmcb.control.instructions2 = intercept::INSTRUCTIONS2;
        vmcb.control.instructions3 = intercept::INSTRUCTIONS3;
        vmcb.control.iopm_base = maps.io() | encrypt;
        vmcb.control.msrpm_base = maps.msr() | encrypt;
        vmcb.control.tsc_offset = tsc_offset;
        vmcb.control.virtual_interrupt = VirtualInterrupt::MASKING;
        vmcb.control.nested_enable = NESTED_PAGING_ENABLE;
        vmcb.control.nested_cr3 = nested_root | encrypt;
        reset(&mut vcpu);
        Ok(vcpu)
    }

    pub(crate) fn free<H: Host>(self) {
        self.extended.free::<H>();
        // SAFETY: allocated in new(); the vCPU does not run any more.
        unsafe { H::free_block(self.block) };
    }

    #[inline]
    pub(crate) fn vmcb(&self) -> &Vmcb {
        // SAFETY: the block is a page of its own, zeroed when allocated, and every bit pattern that the CPU writes is valid
        // in the fields that are read (flags types keep unknown bits; TlbControl is written by us alone). While the guest
        // runs, nobody holds a reference.
        unsafe { self.block.virt.cast().as_ref() }
    }

    #[inline]
    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as in vmcb(), and &mut self makes it the only reference.
        unsafe { self.block.virt.cast().as_mut() }
    }

    /// The VMCB, of which `changed` is about to change.
    #[inline]
    pub(crate) fn change(&mut self, changed: Clean) -> &mut Vmcb {
        let vmcb = self.vmcb_mut();
        vmcb.control.clean.remove(changed);
        vmcb
    }

    /// The VMCB's physical address.
    #[inline]
    pub(crate) fn vmcb_pa(&self) -> u64 {
        self.vmcb_pa
    }

    /// Whether the guest has breakpoints.
    #[inline]
    pub(crate) fn debug_active(&self) -> bool {
        self.vmcb().save.dr7 & DR7_ENABLES != 0
    }

    /// Says whether the guest's state is in the CPU.
    ///
    /// # Safety
    /// As [`GuestRegisters::set_loaded`].
    #[inline]
    pub(crate) unsafe fn set_loaded(&mut self, loaded: bool) {
        // SAFETY: by the caller.
        unsafe { self.own.set_loaded(loaded) };
        self.synced.set(false);
    }

    /// The guest ran: what VMSAVE stored is old.
    #[inline]
    pub(crate) fn unsync(&mut self) {
        self.synced.set(false);
    }

    /// Has the part of the state that VMLOAD loads in the VMCB.
    fn sync(&self) {
        if self.own.are_loaded() && !self.synced.get() {
            // SAFETY: the engine runs this vCPU on this CPU (loaded), with SVM on.
            unsafe { insn::vmsave(self.vmcb_pa) };
            self.synced.set(true);
        }
    }

    /// Loads that part again after a change in the VMCB.
    fn reload(&self) {
        if self.own.are_loaded() {
            // SAFETY: as in sync(); core checked the values.
            unsafe { insn::vmload(self.vmcb_pa) };
        }
    }

    /// Forgets the guest's translations at the next entry.
    fn flush_translations(&mut self) {
        self.vmcb_mut().control.tlb_control = self.flush;
    }

    /// Uses an ASID at the next entry.
    pub(crate) fn set_asid(&mut self, assigned: Assigned, flush: bool) {
        self.assigned = assigned;
        let vmcb = self.change(Clean::ASID);
        vmcb.control.asid = assigned.tag;
        vmcb.control.tlb_control = if flush { TlbControl::FlushAll } else { TlbControl::Keep };
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::npt::NestedTables;
    use covisor_core::test_support::MockHost;
    use covisor_core::tlb_tag::Tags;

    use super::*;
    use crate::features::EFER_SVME;
    use crate::npt::Npt;
    use crate::permission;

    const FEATURES: Features = Features {
        next_rip_save: true,
        flush_by_asid: true,
        asids: 8,
        emulated_by_qemu: false,
        tsc_aux: true,
        supervisor_state: false,
        return_stack_isolated: false,
        paging_levels: 4,
        encryption_bit: 0,
    };

    /// Calls `use_vcpu` on a new vCPU, and frees all that it needs.
    pub(crate) fn with_vcpu(use_vcpu: impl FnOnce(&mut SvmVcpu)) {
        with_vcpu_of(&FEATURES, use_vcpu);
    }

    /// The same on the CPU that QEMU emulates.
    pub(crate) fn with_vcpu_of_qemu(use_vcpu: impl FnOnce(&mut SvmVcpu)) {
        with_vcpu_of(&Features { emulated_by_qemu: true, ..FEATURES }, use_vcpu);
    }

    fn with_vcpu_of(features: &Features, use_vcpu: impl FnOnce(&mut SvmVcpu)) {
        let before = MockHost::blocks();
        let maps = permission::maps::<MockHost>().unwrap();
        let tables = NestedTables::new::<MockHost>(Npt { encrypt: 0 }, 4).unwrap();
        let extended = ExtendedState::for_tests();
        let mut vcpu = SvmVcpu::new::<MockHost>(features, &extended, &maps, tables.root(), 0).unwrap();
        use_vcpu(&mut vcpu);
        vcpu.free::<MockHost>();
        tables.free::<MockHost>();
        maps.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    #[test]
    fn test_a_new_vcpu_is_in_its_state_after_reset() {
        with_vcpu(|vcpu| {
            let save = &vcpu.vmcb().save;
            assert_eq!((save.cs.selector, save.cs.base, save.cs.limit), (0xf000, 0xffff_0000, 0xffff));
            let attributes = [&save.cs, &save.ss, &save.es, &save.gs, &save.ldtr, &save.tr].map(|s| s.attributes);
            assert_eq!(attributes, [0x9b, 0x93, 0x93, 0x93, 0x82, 0x8b]);
            assert_eq!((save.gdtr.base, save.gdtr.limit, save.idtr.limit), (0, 0xffff, 0xffff));
            assert_eq!((save.cr0, save.cr3, save.cr4, save.efer), (0x6000_0010, 0, 0, EFER_SVME));
            assert_eq!((save.rip, save.rflags, save.cpl), (0xfff0, 2, 0));
            assert_eq!((save.dr6, save.dr7, save.pat), (0xffff_0ff0, 0x400, 0x0007_0406_0007_0406));
            assert_eq!((vcpu.xcr0(), vcpu.efer(), vcpu.nmi_blocked()), (1, 0, false));
        });
    }

    /// Attack: memory that went to another guest, reached by a translation that a CPU still knows.
    #[test]
    fn test_attack_translations_of_memory_that_was_given_back() {
        with_vcpu(|vcpu| {
            let mut tags = Tags::new(8);
            let (assigned, flush) = tags.assign();
            vcpu.set_asid(assigned, flush);
            assert!(tags.holds(&vcpu.assigned));
            vcpu.forget_memory();
            assert!(!tags.holds(&vcpu.assigned), "the next entry has another ASID");
        });
    }
}
