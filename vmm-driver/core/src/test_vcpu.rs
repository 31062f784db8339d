//! A vCPU that only holds its registers.

use alloc::vec::Vec;

use crate::engine::Vcpu;
use crate::exit::Injection;
use crate::registers::Gprs;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::Table;
use crate::registers::attributes;

/// A vCPU's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' names say it all")]
pub struct TestVcpu {
    pub gprs: Gprs,
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 8],
    pub kernel_gs_base: u64,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pat: u64,
    pub xcr0: u64,
    pub tsc_aux: u32,
    pub task_priority: u8,
    pub debug_addresses: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub tsc_offset: u64,
    pub cpl: u8,
    pub interrupt_shadow: bool,
    pub nmi_blocked: bool,
    pub next_rip: Option<u64>,
    pub injection: Option<Injection>,
    /// All that was ever injected, in its order.
    pub injected: Vec<Injection>,
    pub interrupt_window: Option<u8>,
    pub forgot_memory: bool,
}

impl Vcpu for TestVcpu {
    fn forget_memory(&mut self) {
        self.forgot_memory = true;
    }
    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }
    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.segments[name as usize] = segment;
        if name == SegmentName::Ss {
            self.cpl = (segment.attributes >> attributes::DPL_SHIFT & 3) as u8;
        }
    }
    fn kernel_gs_base(&self) -> u64 {
        self.kernel_gs_base
    }
    fn set_kernel_gs_base(&mut self, value: u64) {
        self.kernel_gs_base = value;
    }
    fn gdtr(&self) -> Table {
        self.gdtr
    }
    fn set_gdtr(&mut self, table: Table) {
        self.gdtr = table;
    }
    fn idtr(&self) -> Table {
        self.idtr
    }
    fn set_idtr(&mut self, table: Table) {
        self.idtr = table;
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn set_cr0(&mut self, value: u64) {
        self.cr0 = value;
    }
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }
    fn cr3(&self) -> u64 {
        self.cr3
    }
    fn set_cr3(&mut self, value: u64) {
        self.cr3 = value;
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn set_cr4(&mut self, value: u64) {
        self.cr4 = value;
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.efer = value;
    }
    fn pat(&self) -> u64 {
        self.pat
    }
    fn set_pat(&mut self, value: u64) {
        self.pat = value;
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
    fn tsc_aux(&self) -> u32 {
        self.tsc_aux
    }
    fn set_tsc_aux(&mut self, value: u32) {
        self.tsc_aux = value;
    }
    fn task_priority(&self) -> u8 {
        self.task_priority
    }
    fn set_task_priority(&mut self, value: u8) {
        self.task_priority = value;
    }
    fn debug_address(&self, number: usize) -> u64 {
        self.debug_addresses[number & 3]
    }
    fn set_debug_address(&mut self, number: usize, value: u64) {
        self.debug_addresses[number & 3] = value;
    }
    fn dr6(&self) -> u64 {
        self.dr6
    }
    fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
    }
    fn dr7(&self) -> u64 {
        self.dr7
    }
    fn set_dr7(&mut self, value: u64) {
        self.dr7 = value;
    }
    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }
    fn set_tsc_offset(&mut self, value: u64) {
        self.tsc_offset = value;
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn interrupt_shadow(&self) -> bool {
        self.interrupt_shadow
    }
    fn set_interrupt_shadow(&mut self, value: bool) {
        self.interrupt_shadow = value;
    }
    fn nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }
    fn next_rip(&self) -> Option<u64> {
        self.next_rip
    }
    fn inject(&mut self, injection: Injection) {
        self.injected.push(injection);
        self.injection = Some(injection);
    }
    fn injection_waits(&self) -> bool {
        self.injection.is_some()
    }
    fn want_interrupt_window(&mut self, class: Option<u8>) {
        self.interrupt_window = class;
    }
}
