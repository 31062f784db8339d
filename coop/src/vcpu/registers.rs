//! A vCPU's registers and events as core reads and sets them. Most are in the area; what a paravirtual guest does not have is fixed or
//! only kept.

use covisor_core::engine::Vcpu;
use covisor_core::exit::Exception;
use covisor_core::exit::Injection;
use covisor_core::paravirtual::PV_LINE_BASE;
use covisor_core::paravirtual::PV_TIMER_VECTOR;
use covisor_core::registers::Efer;
use covisor_core::registers::Gprs;
use covisor_core::registers::Segment;
use covisor_core::registers::SegmentName;
use covisor_core::registers::Table;
use covisor_monitor::area::Answer;
use covisor_monitor::area::Area;
use covisor_monitor::area::MODE_KERNEL;
use covisor_monitor::layout::PAGE;
use covisor_monitor::layout::selector;

use super::CoopVcpu;
use super::DR6;
use super::DR7;
use crate::control::Cr4;
use crate::pages::to_usize;

/// EFER as the guest sees it.
const EFER: Efer = Efer::SCE.union(Efer::LME).union(Efer::LMA).union(Efer::NXE);
/// PAT after reset; the guest's entries have no memory type.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Attributes of 64-bit code of the guest's kernel, which core takes for ring 0: present, readable, accessed.
const KERNEL_CODE: u16 = 0x29b | 1 << 11;
/// As above, of its data.
const KERNEL_DATA: u16 = 0xc93;
/// A selector names the LDT.
const SELECTOR_LDT: u16 = 1 << 2;
/// Limit of a flat segment.
const FLAT: u32 = u32::MAX;

/// By less than this, in nanoseconds, the wall clock is not corrected: reading two clocks one after the other takes time.
const WALL_CLOCK_TOLERANCE: u64 = 1_000_000;

impl CoopVcpu {
    /// What the host tells the guest at the next entry.
    fn answer(&mut self) -> &mut Answer {
        &mut self.area_mut().answer
    }

    fn in_kernel(&self) -> bool {
        self.area().mode == MODE_KERNEL
    }

    /// The descriptor of a selector, as the monitor has it; `None` where there is none.
    fn descriptor(&self, selector: u16) -> Option<u64> {
        let table = if selector & SELECTOR_LDT != 0 { self.ldt } else { self.gdt };
        // SAFETY: the VM outlives the vCPU and keeps these pages as they are.
        let pages = unsafe { table.as_ref() };
        let offset = u64::from(selector & !7);
        let block = pages.get(to_usize(offset / PAGE))?;
        // SAFETY: the block has a page, and the offset is a multiple of 8; the monitor writes it only while its world runs.
        Some(unsafe { block.virt.cast::<u64>().add(to_usize(offset % PAGE / 8)).read() })
    }

    /// A segment of a program of the guest's, without FS's and GS's own bases.
    fn program_segment(&self, selector: u64) -> Segment {
        let selector = u16::try_from(selector & 0xffff).unwrap_or(0);
        if selector & !selector::RPL == 0 {
            return Segment { base: 0, limit: 0, selector, attributes: 0 };
        }
        unpack(self.descriptor(selector).unwrap_or(0), selector)
    }

    fn selector(&self, name: SegmentName) -> u64 {
        let Area { frame, segments, .. } = self.area();
        match name {
            SegmentName::Cs => frame.cs,
            SegmentName::Ss => frame.ss,
            SegmentName::Ds => segments.ds,
            SegmentName::Es => segments.es,
            SegmentName::Fs => segments.fs,
            SegmentName::Gs => segments.gs,
            SegmentName::Ldtr | SegmentName::Tr => 0,
        }
    }
}

/// A descriptor of code or data as a register (SDM vol. 3, 3.4.5).
fn unpack(descriptor: u64, selector: u16) -> Segment {
    #[expect(clippy::cast_possible_truncation, reason = "the fields are masked to their width")]
    let (limit, attributes) = (
        (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32,
        (descriptor >> 40 & 0xff | descriptor >> 44 & 0xf00) as u16,
    );
    let limit = if descriptor & 1 << 55 == 0 { limit } else { limit << 12 | 0xfff };
    Segment { base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000, limit, selector, attributes }
}

impl Vcpu for CoopVcpu {
    #[inline]
    fn gprs(&self) -> &Gprs {
        zerocopy::transmute_ref!(&self.area().frame.registers)
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut Gprs {
        zerocopy::transmute_mut!(&mut self.area_mut().frame.registers)
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.area().frame.rip
    }

    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.area_mut().frame.rip = value;
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.area().frame.rflags
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.area_mut().frame.rflags = value;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let selector = self.selector(name);
        let segments = &self.area().segments;
        let base = match name {
            SegmentName::Fs => segments.fs_base,
            SegmentName::Gs => segments.gs_base,
            _ => 0,
        };
        if !self.in_kernel() {
            let segment = self.program_segment(selector);
            let has_own_base = matches!(name, SegmentName::Fs | SegmentName::Gs);
            return if has_own_base { Segment { base, ..segment } } else { segment };
        }
        // Ring 3's bits in a selector would tell core of ring 3.
        let selector = u16::try_from(selector & 0xffff).unwrap_or(0) & !selector::RPL;
        match name {
            SegmentName::Cs => Segment { base: 0, limit: FLAT, selector, attributes: KERNEL_CODE },
            SegmentName::Ldtr | SegmentName::Tr => Segment { base: 0, limit: 0, selector: 0, attributes: 0 },
            _ => Segment { base, limit: FLAT, selector, attributes: KERNEL_DATA },
        }
    }

    /// The bases of FS and GS are the guest's to set; it has its selectors from the monitor, or loads them itself.
    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let segments = &mut self.area_mut().segments;
        match name {
            SegmentName::Fs => segments.fs_base = segment.base,
            SegmentName::Gs => segments.gs_base = segment.base,
            _ => {}
        }
    }

    fn gdtr(&self) -> Table {
        Table { base: 0, limit: 0 }
    }

    fn set_gdtr(&mut self, _table: Table) {}

    fn idtr(&self) -> Table {
        Table { base: 0, limit: 0 }
    }

    fn set_idtr(&mut self, _table: Table) {}

    #[inline]
    fn cr0(&self) -> u64 {
        self.area().cr0
    }

    fn set_cr0(&mut self, _value: u64) {}

    #[inline]
    fn cr2(&self) -> u64 {
        self.area().cr2
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.area_mut().cr2 = value;
    }

    #[inline]
    fn cr3(&self) -> u64 {
        let area = self.area();
        if area.started == 0 { self.config().first_root } else { area.guest_cr3 }
    }

    /// Before the start only: the guest's kernel changes its root by a call to the monitor.
    fn set_cr3(&mut self, value: u64) {
        self.config_mut().first_root = value;
    }

    #[inline]
    fn cr4(&self) -> u64 {
        Cr4::of_guest(self.xsave).bits()
    }

    fn set_cr4(&mut self, _value: u64) {}

    #[inline]
    fn efer(&self) -> u64 {
        EFER.bits()
    }

    fn set_efer(&mut self, _value: u64) {}

    fn pat(&self) -> u64 {
        PAT_RESET
    }

    fn set_pat(&mut self, _value: u64) {}

    fn xcr0(&self) -> u64 {
        self.own.xcr0
    }

    fn set_xcr0(&mut self, value: u64) {
        self.own.set_xcr0(value);
    }

    fn tsc_aux(&self) -> u32 {
        self.own.tsc_aux
    }

    /// In kernel mode, in which alone core asks, the base of the other mode is that of programs.
    fn kernel_gs_base(&self) -> u64 {
        self.area().segments.other_gs_base
    }

    fn set_kernel_gs_base(&mut self, value: u64) {
        self.area_mut().segments.other_gs_base = value;
    }

    fn set_tsc_aux(&mut self, value: u32) {
        self.own.set_tsc_aux(value);
    }

    #[inline]
    fn task_priority(&self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, _value: u8) {}

    fn debug_address(&self, number: usize) -> u64 {
        self.area().debug[number & 3]
    }

    fn set_debug_address(&mut self, number: usize, value: u64) {
        self.area_mut().debug[number & 3] = value;
    }

    fn dr6(&self) -> u64 {
        self.area().debug[DR6]
    }

    fn set_dr6(&mut self, value: u64) {
        self.area_mut().debug[DR6] = value;
    }

    fn dr7(&self) -> u64 {
        self.area().debug[DR7]
    }

    fn set_dr7(&mut self, value: u64) {
        self.area_mut().debug[DR7] = value;
    }

    /// RDTSC is the CPU's own.
    fn tsc_offset(&self) -> u64 {
        0
    }

    fn set_tsc_offset(&mut self, _value: u64) {}

    fn show_wall_clock(&mut self, nanoseconds: u64) {
        let has_started = self.area().started != 0;
        let config = self.config_mut();
        if config.wall_clock.abs_diff(nanoseconds) < WALL_CLOCK_TOLERANCE {
            return;
        }
        config.wall_clock = nanoseconds;
        // Before, the monitor writes the page, by the configuration.
        if has_started {
            self.shared.set_wall_clock(nanoseconds);
        }
    }

    /// The guest's kernel has the rights of ring 0 with core, though it runs in ring 3.
    #[inline]
    fn cpl(&self) -> u8 {
        if self.in_kernel() { 0 } else { 3 }
    }

    #[inline]
    fn interrupt_shadow(&self) -> bool {
        false
    }

    #[inline]
    fn set_interrupt_shadow(&mut self, _value: bool) {}

    fn nmi_blocked(&self) -> bool {
        false
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        self.next_rip
    }

    #[inline]
    fn inject(&mut self, injection: Injection) {
        match injection {
            Injection::Interrupt(PV_TIMER_VECTOR) => self.answer().timer = 1,
            Injection::Interrupt(vector) => {
                if let Some(line) = vector.checked_sub(PV_LINE_BASE).filter(|line| *line < 64) {
                    self.answer().lines |= 1 << line;
                }
            }
            // The guest has no NMIs, and core has none for it.
            Injection::Nmi => {}
            Injection::Exception(Exception { vector, error_code }) => {
                let answer = self.answer();
                answer.exception = 1;
                answer.vector = u64::from(vector);
                answer.error_code = error_code.map_or(0, u64::from);
            }
        }
    }

    #[inline]
    fn injection_waits(&self) -> bool {
        self.area().answer.exception != 0
    }

    fn want_interrupt_window(&mut self, _class: Option<u8>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::tests::with_vcpu;

    #[test]
    fn a_clock_that_was_set_is_shown_and_one_that_ticks_is_not() {
        with_vcpu(|vcpu| {
            let page = vcpu.shared;
            let begin = vcpu.config().wall_clock;
            vcpu.show_wall_clock(begin + 7_000_000_000);
            // The monitor is still to start.
            assert_eq!((vcpu.config().wall_clock, page.wall_clock()), (begin + 7_000_000_000, (0, 0)));
            vcpu.area_mut().started = 1;
            vcpu.show_wall_clock(begin + 7_000_900_000);
            assert_eq!(page.wall_clock(), (0, 0));
            vcpu.show_wall_clock(begin);
            assert_eq!(page.wall_clock(), (2, begin));
            vcpu.show_wall_clock(3 << 62);
            assert_eq!(page.wall_clock(), (4, 3 << 62));
        });
    }

    #[test]
    fn registers_that_are_set_are_got() {
        with_vcpu(|vcpu| {
            vcpu.gprs_mut().rsp = 0x7000;
            vcpu.gprs_mut().r15 = 15;
            vcpu.set_rip(0x1234);
            vcpu.set_rflags(0x246);
            vcpu.set_cr2(0x5555);
            vcpu.set_cr3(0x8000);
            vcpu.set_debug_address(2, 0x9999);
            vcpu.set_dr7(0x402);
            vcpu.store_rsp();
            let area = vcpu.area();
            assert_eq!((area.frame.rsp, area.frame.registers.r15, area.frame.rip), (0x7000, 15, 0x1234));
            assert_eq!(
                (area.frame.rflags, area.cr2, area.debug),
                (0x246, 0x5555, [0, 0, 0x9999, 0, 0xffff_0ff0, 0x402])
            );
            assert_eq!((vcpu.cr3(), vcpu.config().first_root), (0x8000, 0x8000));
            vcpu.area_mut().frame.rsp = 0x6ff8;
            vcpu.area_mut().started = 1;
            vcpu.area_mut().guest_cr3 = 0x9000;
            vcpu.load_rsp();
            assert_eq!((vcpu.gprs().rsp, vcpu.cr3()), (0x6ff8, 0x9000));
        });
    }

    #[test]
    fn segments_of_the_kernel_are_flat_and_programs_have_the_guests_own() {
        with_vcpu(|vcpu| {
            vcpu.set_segment(
                SegmentName::Gs,
                Segment { base: 0xffff_8880_0000_0000, limit: 0, selector: 8, attributes: 0 },
            );
            vcpu.set_segment(SegmentName::Cs, Segment { base: 0x1000, limit: 0, selector: 8, attributes: 0 });
            let code = Segment { base: 0, limit: u32::MAX, selector: 0xe030, attributes: 0xa9b };
            assert_eq!(vcpu.segment(SegmentName::Cs), code);
            assert_eq!(vcpu.segment(SegmentName::Gs).base, 0xffff_8880_0000_0000);
            // A 32-bit program with Linux's selectors.
            // SAFETY: the page is the VM's.
            unsafe { vcpu.gdt.as_ref()[0].virt.cast::<u64>().add(4).write(0x00cf_fb00_0000_ffff) };
            vcpu.area_mut().mode = covisor_monitor::area::MODE_USER;
            vcpu.area_mut().frame.cs = 0x23;
            vcpu.area_mut().segments.ds = 0x2b;
            let code = Segment { base: 0, limit: u32::MAX, selector: 0x23, attributes: 0xcfb };
            assert_eq!((vcpu.segment(SegmentName::Cs), vcpu.cpl()), (code, 3));
            assert_eq!(vcpu.segment(SegmentName::Ds).attributes, 0, "it has no descriptor");
            assert_eq!(vcpu.segment(SegmentName::Ss).attributes, 0xcf3, "the monitor's own page counts, too");
            assert_eq!(vcpu.segment(SegmentName::Gs).base, 0xffff_8880_0000_0000);
        });
    }

    #[test]
    fn a_descriptor_is_unpacked_as_the_manual_has_it() {
        let segment = unpack(0x1240_f312_3456_789a, 0x2b);
        assert_eq!((segment.base, segment.limit, segment.attributes), (0x1212_3456, 0x789a, 0x4f3));
        assert_eq!(unpack(0x00cf_f300_0000_ffff, 0x2b).limit, u32::MAX);
    }

    #[test]
    fn what_is_injected_is_in_the_answer() {
        with_vcpu(|vcpu| {
            vcpu.inject(Injection::Interrupt(PV_LINE_BASE + 11));
            vcpu.inject(Injection::Interrupt(PV_LINE_BASE));
            vcpu.inject(Injection::Interrupt(PV_TIMER_VECTOR));
            vcpu.inject(Injection::Interrupt(PV_LINE_BASE - 1));
            vcpu.inject(Injection::Interrupt(0xff));
            assert_eq!((vcpu.area().answer.lines, vcpu.area().answer.timer), (1 << 11 | 1, 1));
            assert!(!vcpu.injection_waits(), "interrupts come whatever waits");
            vcpu.inject(Injection::Exception(Exception::page_fault(7)));
            let answer = vcpu.area().answer;
            assert_eq!((answer.exception, answer.vector, answer.error_code), (1, 14, 7));
            assert!(vcpu.injection_waits());
        });
    }
}
