//! A vCPU's registers and events as core reads and sets them: most are the VMCB's.

use covisor_abi::Segment;
use covisor_abi::Table;
use covisor_core::delivery::Event;
use covisor_core::engine::Vcpu;
use covisor_core::exit::Injection;
use covisor_core::registers::Cr0;
use covisor_core::registers::Cr4;
use covisor_core::registers::Gprs;
use covisor_core::registers::SegmentName;
use covisor_core::registers::attributes;
use covisor_core::tlb_tag::Assigned;

use super::SvmVcpu;
use crate::features::EFER_SVME;
use crate::nmi::NmiState;
use crate::vmcb;
use crate::vmcb::Clean;
use crate::vmcb::INTERRUPT_SHADOW;
use crate::vmcb::VirtualInterrupt;

/// Whether VMLOAD and VMSAVE move the segment, not VMRUN and #VMEXIT.
const fn is_loaded_apart(name: SegmentName) -> bool {
    matches!(name, SegmentName::Fs | SegmentName::Gs | SegmentName::Ldtr | SegmentName::Tr)
}

#[expect(clippy::cast_possible_truncation, reason = "limits of tables have 16 bits, the caller's Table says so")]
fn table_to_save(table: Table) -> vmcb::Segment {
    vmcb::Segment { selector: 0, attributes: 0, limit: table.limit as u32 & 0xffff, base: table.base }
}

fn table_from_save(segment: &vmcb::Segment) -> Table {
    Table { base: segment.base, limit: u64::from(segment.limit & 0xffff) }
}

impl SvmVcpu {
    fn save_segment(&self, name: SegmentName) -> &vmcb::Segment {
        let save = &self.vmcb().save;
        match name {
            SegmentName::Es => &save.es,
            SegmentName::Cs => &save.cs,
            SegmentName::Ss => &save.ss,
            SegmentName::Ds => &save.ds,
            SegmentName::Fs => &save.fs,
            SegmentName::Gs => &save.gs,
            SegmentName::Ldtr => &save.ldtr,
            SegmentName::Tr => &save.tr,
        }
    }
}

impl Vcpu for SvmVcpu {
    #[inline]
    fn gprs(&self) -> &Gprs {
        &self.gprs
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb().save.rip
    }

    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.vmcb_mut().save.rip = value;
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcb().save.rflags
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.vmcb_mut().save.rflags = value;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        if is_loaded_apart(name) {
            self.sync();
        }
        let segment = self.save_segment(name);
        Segment {
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            attributes: segment.attributes & attributes::ALL,
        }
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let value = vmcb::Segment {
            selector: segment.selector,
            attributes: segment.attributes & attributes::ALL,
            limit: segment.limit,
            base: segment.base,
        };
        if is_loaded_apart(name) {
            self.sync();
        }
        let save = &mut self.change(Clean::SEGMENTS).save;
        match name {
            SegmentName::Es => save.es = value,
            SegmentName::Cs => save.cs = value,
            SegmentName::Ss => {
                save.ss = value;
                // The CPL is SS's DPL, in a field of its own (15.5.1).
                save.cpl = (value.attributes >> attributes::DPL_SHIFT & 3).to_le_bytes()[0];
            }
            SegmentName::Ds => save.ds = value,
            SegmentName::Fs => save.fs = value,
            SegmentName::Gs => save.gs = value,
            SegmentName::Ldtr => save.ldtr = value,
            SegmentName::Tr => save.tr = value,
        }
        if is_loaded_apart(name) {
            self.reload();
        }
    }

    fn gdtr(&self) -> Table {
        table_from_save(&self.vmcb().save.gdtr)
    }

    fn set_gdtr(&mut self, table: Table) {
        self.change(Clean::TABLES).save.gdtr = table_to_save(table);
    }

    fn idtr(&self) -> Table {
        table_from_save(&self.vmcb().save.idtr)
    }

    fn set_idtr(&mut self, table: Table) {
        self.change(Clean::TABLES).save.idtr = table_to_save(table);
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.vmcb().save.cr0
    }

    fn set_cr0(&mut self, value: u64) {
        self.change(Clean::CONTROL_REGISTERS).save.cr0 = value;
        self.flush_translations();
    }

    #[inline]
    fn cr2(&self) -> u64 {
        self.vmcb().save.cr2
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.change(Clean::CR2).save.cr2 = value;
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcb().save.cr3
    }

    fn set_cr3(&mut self, value: u64) {
        self.change(Clean::CONTROL_REGISTERS).save.cr3 = value;
        self.flush_translations();
    }

    /// By a new ASID: nested translations are tagged with it, on whichever CPU they are (15.16.1).
    #[inline]
    fn forget_memory(&mut self) {
        self.assigned = Assigned::default();
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.vmcb().save.cr4
    }

    fn set_cr4(&mut self, value: u64) {
        self.change(Clean::CONTROL_REGISTERS).save.cr4 = value;
        self.flush_translations();
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.vmcb().save.efer & !EFER_SVME
    }

    fn set_efer(&mut self, value: u64) {
        // VMRUN demands SVME in the guest's EFER (15.5.1); the guest never sees it.
        self.change(Clean::CONTROL_REGISTERS).save.efer = value | EFER_SVME;
        self.flush_translations();
    }

    fn pat(&self) -> u64 {
        self.vmcb().save.pat
    }

    fn set_pat(&mut self, value: u64) {
        self.change(Clean::NESTED_PAGING).save.pat = value;
        self.flush_translations();
    }

    fn xcr0(&self) -> u64 {
        self.own.current_xcr0(self.cr4() & Cr4::CR4_ENABLE_OS_XSAVE.bits() as u64 != 0)
    }

    fn set_xcr0(&mut self, value: u64) {
        self.own.set_xcr0(value);
    }

    fn tsc_aux(&self) -> u32 {
        self.own.tsc_aux
    }

    fn set_tsc_aux(&mut self, value: u32) {
        self.own.set_tsc_aux(value);
    }

    #[inline]
    fn task_priority(&self) -> u8 {
        self.vmcb().control.virtual_interrupt.bits().to_le_bytes()[0] & 0xf
    }

    fn set_task_priority(&mut self, value: u8) {
        let field = &mut self.change(Clean::VIRTUAL_INTERRUPT).control.virtual_interrupt;
        field.remove(VirtualInterrupt::TPR);
        field.insert(VirtualInterrupt::from_bits_retain(u64::from(value & 0xf)));
        if self.window.is_some() {
            self.place_window();
        }
    }

    fn debug_address(&self, number: usize) -> u64 {
        self.own.debug_address(number)
    }

    fn set_debug_address(&mut self, number: usize, value: u64) {
        self.own.set_debug_address(number, value);
    }

    fn dr6(&self) -> u64 {
        self.vmcb().save.dr6
    }

    fn set_dr6(&mut self, value: u64) {
        self.change(Clean::DEBUG_REGISTERS).save.dr6 = value;
    }

    fn dr7(&self) -> u64 {
        self.vmcb().save.dr7
    }

    fn set_dr7(&mut self, value: u64) {
        self.change(Clean::DEBUG_REGISTERS).save.dr7 = value;
    }

    fn tsc_offset(&self) -> u64 {
        self.vmcb().control.tsc_offset
    }

    fn set_tsc_offset(&mut self, value: u64) {
        self.change(Clean::INTERCEPTS).control.tsc_offset = value;
    }

    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb().save.cpl
    }

    #[inline]
    fn interrupt_shadow(&self) -> bool {
        self.vmcb().control.interrupt_shadow & INTERRUPT_SHADOW != 0
    }

    #[inline]
    fn forgets_interrupt_shadow(&self) -> bool {
        self.emulated_by_qemu
    }

    #[inline]
    fn set_interrupt_shadow(&mut self, value: bool) {
        let field = &mut self.vmcb_mut().control.interrupt_shadow;
        *field = if value { *field | INTERRUPT_SHADOW } else { *field & !INTERRUPT_SHADOW };
    }

    fn nmi_blocked(&self) -> bool {
        self.nmi != NmiState::Open
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        self.next_rip_save.then(|| self.vmcb().control.next_rip).filter(|rip| *rip != 0)
    }

    #[inline]
    fn inject(&mut self, injection: Injection) {
        match injection {
            Injection::Interrupt(vector) if self.emulated_by_qemu => return self.offer(vector),
            Injection::Nmi => self.block_nmis(),
            _ => {}
        }
        let protected = self.cr0() & Cr0::CR0_PROTECTED_MODE.bits() as u64 != 0;
        self.vmcb_mut().control.event_injection = Event::encode(injection, protected).to_amd();
    }

    #[inline]
    fn injection_waits(&self) -> bool {
        self.offered || Event::from_amd(self.vmcb().control.event_injection).is_valid()
    }

    #[inline]
    fn want_nmi_window(&mut self, on: bool) {
        self.nmi_window = on;
    }

    fn want_interrupt_window(&mut self, class: Option<u8>) {
        self.window = class;
        self.place_window();
    }
}

#[cfg(test)]
mod tests {
    use covisor_core::exit::Exception;

    use super::*;
    use crate::vcpu::tests::with_vcpu;

    #[test]
    fn test_injections_are_the_vmcbs_field() {
        with_vcpu(|vcpu| {
            assert!(!vcpu.injection_waits());
            vcpu.set_cr0(0x8000_0011);
            vcpu.inject(Injection::Exception(Exception::page_fault(7)));
            assert!(vcpu.injection_waits());
            // SAFETY: offset 0xa8 is in the VMCB, which is a page of the vCPU's own.
            let field = unsafe { vcpu.block.virt.cast::<u64>().add(0xa8 / 8).read() };
            assert_eq!(field, 0x0000_0007_8000_0b0e);
            vcpu.set_cr0(0x10);
            vcpu.inject(Injection::Exception(Exception::GENERAL_PROTECTION));
            assert_eq!(vcpu.vmcb().control.event_injection, 0x8000_030d, "real mode has no error codes");
        });
    }
}
