//! A vCPU's registers and events as core reads and sets them: most are the VMCS's, by way of [`crate::registers`].

use covisor_abi::Segment;
use covisor_abi::Table;
use covisor_core::delivery::Event;
use covisor_core::emulate;
use covisor_core::engine::Vcpu;
use covisor_core::exit::Injection;
use covisor_core::paging;
use covisor_core::registers::Cr0;
use covisor_core::registers::Efer;
use covisor_core::registers::Gprs;
use covisor_core::registers::SegmentName;
use covisor_core::tlb_tag::Assigned;

use super::CR0_MASK;
use super::CR0_UNLOADED;
use super::INTERRUPTIBILITY_MOV_SS;
use super::INTERRUPTIBILITY_NMI;
use super::INTERRUPTIBILITY_STI;
use super::VmxVcpu;
use super::low;
use crate::controls::Entry;
use crate::registers::Register;
use crate::segment;

impl Vcpu for VmxVcpu {
    const KEEPS_PAGE_DIRECTORY_POINTERS: bool = true;

    fn set_page_directory_pointers(&mut self, pointers: [u64; 4]) {
        for (register, pointer) in Register::PDPTES.into_iter().zip(pointers) {
            self.registers.set(register, pointer);
        }
    }

    fn set_deadline(&mut self, deadline: Option<u64>) -> bool {
        if self.timer_shift.is_none() {
            return false;
        }
        self.deadline = deadline;
        true
    }

    fn want_nmi_window(&mut self, on: bool) {
        if on != self.nmi_window {
            self.nmi_window = on;
            self.place_window();
        }
    }

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
        self.registers.get(Register::RIP)
    }

    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.registers.set(Register::RIP, value);
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.registers.get(Register::RFLAGS)
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.registers.set(Register::RFLAGS, value);
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let [low, high, ..] = self.registers.get(Register::selector(name)).to_le_bytes();
        Segment {
            base: self.registers.get(Register::base(name)),
            limit: self::low(self.registers.get(Register::limit(name))),
            selector: u16::from_le_bytes([low, high]),
            attributes: segment::from_access_rights(self.registers.get(Register::access_rights(name))),
        }
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.registers.set(Register::selector(name), u64::from(segment.selector));
        self.registers.set(Register::base(name), segment.base);
        self.registers.set(Register::limit(name), u64::from(segment.limit));
        self.registers.set(Register::access_rights(name), segment::to_access_rights(name, segment.attributes));
    }

    fn gdtr(&self) -> Table {
        Table { base: self.registers.get(Register::GDTR_BASE), limit: self.registers.get(Register::GDTR_LIMIT) }
    }

    fn set_gdtr(&mut self, table: Table) {
        self.registers.set(Register::GDTR_BASE, table.base);
        self.registers.set(Register::GDTR_LIMIT, table.limit & 0xffff);
    }

    fn idtr(&self) -> Table {
        Table { base: self.registers.get(Register::IDTR_BASE), limit: self.registers.get(Register::IDTR_LIMIT) }
    }

    fn set_idtr(&mut self, table: Table) {
        self.registers.set(Register::IDTR_BASE, table.base);
        self.registers.set(Register::IDTR_LIMIT, table.limit & 0xffff);
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.registers.get(Register::CR0) & !CR0_MASK | self.registers.get(Register::CR0_SHADOW) & CR0_MASK
    }

    fn set_cr0(&mut self, value: u64) {
        self.registers.set(Register::CR0_SHADOW, value);
        self.registers.set(Register::CR0, (value & !CR0_UNLOADED | self.cr0_ones) & self.cr0_possible);
        self.flush_translations();
    }

    #[inline]
    fn cr2(&self) -> u64 {
        self.cr2
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.registers.get(Register::CR3)
    }

    fn set_cr3(&mut self, value: u64) {
        self.registers.set(Register::CR3, value);
        self.flush_translations();
    }

    /// By a new tag, with which comes INVEPT on the CPU that the vCPU enters next ([`crate::cpu::Cpu::tag`]). On others, that have
    /// translations by these tables still, it has a new tag when it comes there.
    #[inline]
    fn forget_memory(&mut self) {
        self.assigned = Assigned::default();
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.registers.get(Register::CR4_SHADOW)
    }

    fn set_cr4(&mut self, value: u64) {
        self.registers.set(Register::CR4_SHADOW, value);
        self.registers.set(Register::CR4, value | self.cr4_ones);
        self.flush_translations();
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.registers.get(Register::EFER)
    }

    fn set_efer(&mut self, value: u64) {
        self.registers.set(Register::EFER, value);
        let mut controls = Entry::from_bits_retain(low(self.registers.get(Register::ENTRY_CONTROLS)));
        controls.set(Entry::GUEST_LONG_MODE, value & Efer::LMA.bits() != 0);
        self.registers.change(Register::ENTRY_CONTROLS, u64::from(controls.bits()));
        self.flush_translations();
    }

    fn pat(&self) -> u64 {
        self.registers.get(Register::PAT)
    }

    fn set_pat(&mut self, value: u64) {
        self.registers.set(Register::PAT, value);
        self.flush_translations();
    }

    fn xcr0(&self) -> u64 {
        self.own.xcr0
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
        // SAFETY: the byte is in a page of this vCPU's, which the CPU writes only while the guest runs.
        unsafe { self.virtual_task_priority().read_volatile() >> 4 }
    }

    fn set_task_priority(&mut self, value: u8) {
        // SAFETY: as above.
        unsafe { self.virtual_task_priority().write_volatile((value & 0xf) << 4) };
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
        self.dr6
    }

    fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
    }

    fn dr7(&self) -> u64 {
        self.registers.get(Register::DR7)
    }

    fn set_dr7(&mut self, value: u64) {
        self.registers.set(Register::DR7, value);
    }

    fn tsc_offset(&self) -> u64 {
        self.registers.get(Register::TSC_OFFSET)
    }

    fn set_tsc_offset(&mut self, value: u64) {
        self.registers.set(Register::TSC_OFFSET, value);
    }

    #[inline]
    fn cpl(&self) -> u8 {
        segment::privilege(self.registers.get(Register::access_rights(SegmentName::Ss)))
    }

    #[inline]
    fn interrupt_shadow(&self) -> bool {
        self.registers.get(Register::INTERRUPTIBILITY) & (INTERRUPTIBILITY_STI | INTERRUPTIBILITY_MOV_SS) != 0
    }

    #[inline]
    fn set_interrupt_shadow(&mut self, value: bool) {
        let field = self.registers.get(Register::INTERRUPTIBILITY);
        let cleared = field & !(INTERRUPTIBILITY_STI | INTERRUPTIBILITY_MOV_SS);
        // The shadow of MOV SS is valid with any flags; that of STI only with IF (27.3.1.5).
        let wanted = if value { cleared | INTERRUPTIBILITY_MOV_SS } else { cleared };
        if wanted != field {
            self.registers.set(Register::INTERRUPTIBILITY, wanted);
        }
    }

    fn nmi_blocked(&self) -> bool {
        self.registers.get(Register::INTERRUPTIBILITY) & INTERRUPTIBILITY_NMI != 0
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        if !self.own.are_loaded() || !self.exited_at_instruction() {
            return None;
        }
        // SAFETY: loaded: the VMCS is current.
        let length = unsafe { crate::instructions::vmread(crate::field::Field::EXIT_INSTRUCTION_LENGTH) };
        let rip = self.rip();
        let next = rip.wrapping_add(length);
        // Only there the code's size matters: EIP wraps.
        if (rip ^ next) >> 32 != 0 {
            return Some(emulate::advance(paging::code_size(self), rip, length.to_le_bytes()[0].into()));
        }
        Some(next)
    }

    #[inline]
    fn inject(&mut self, injection: Injection) {
        let protected = self.cr0() & Cr0::CR0_PROTECTED_MODE.bits() as u64 != 0;
        self.injection = Event::encode(injection, protected);
    }

    #[inline]
    fn injection_waits(&self) -> bool {
        self.injection.is_valid()
    }

    fn want_interrupt_window(&mut self, class: Option<u8>) {
        self.window = class;
        self.place_window();
    }
}
