//! The virtual machine control block (APM vol. 2, appendix B): control area and state save area, by their offsets.

use core::mem::offset_of;
use core::mem::size_of;

use bitflags::bitflags;
use static_assertions::const_assert_eq;

use crate::intercept::ControlRegisters;
use crate::intercept::Exceptions;
use crate::intercept::Instructions1;
use crate::intercept::Instructions2;
use crate::intercept::Instructions3;

bitflags! {
    /// VMCB clean bits (15.15.3): parts that the CPU may take from its cache because we did not change them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct Clean: u32 {
        /// Intercept vectors, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// I/O and MSR permission map addresses.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// V_TPR, V_IRQ and what belongs to them.
        const VIRTUAL_INTERRUPT = 1 << 3;
        /// Nested CR3, PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const TABLES = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last branch records.
        const LBR = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
    }
}

/// What VMRUN does to the TLB (15.16.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TlbControl {
    /// Nothing.
    Keep = 0,
    /// Forgets everything.
    FlushAll = 1,
    /// Forgets this guest's translations, where the CPU has flush by ASID.
    FlushGuest = 3,
}

bitflags! {
    /// Offset 0x60: the virtual interrupt (15.21).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(crate) struct VirtualInterrupt: u64 {
        /// The guest's task priority.
        const TPR = 0xff;
        /// A virtual interrupt waits.
        const IRQ = 1 << 8;
        /// Its priority.
        const PRIORITY = 0xf << 16;
        /// It comes whatever the task priority is.
        const IGNORE_TPR = 1 << 20;
        /// The guest's IF masks virtual interrupts only; the host's masks physical ones.
        const MASKING = 1 << 24;
        /// Its vector.
        const VECTOR = 0xff << 32;
    }
}

/// Offset 0x68, bit 0: the guest is in an interrupt shadow (15.21.5).
pub(crate) const INTERRUPT_SHADOW: u64 = 1;
/// Offset 0x90, bit 0: nested paging (15.25.3).
pub(crate) const NESTED_PAGING_ENABLE: u64 = 1;

/// A segment register in the save area.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Segment {
    /// Selector.
    pub(crate) selector: u16,
    /// Attributes, bits 40-47 and 52-55 of the descriptor.
    pub(crate) attributes: u16,
    /// Limit in bytes.
    pub(crate) limit: u32,
    /// Base.
    pub(crate) base: u64,
}
const_assert_eq!(size_of::<Segment>(), 16);

/// The control area, offsets 0 to 0x3ff.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Control {
    /// 0x000: CR reads and writes.
    pub(crate) control_registers: ControlRegisters,
    /// 0x004: DR reads (low half) and writes.
    pub(crate) debug_registers: u32,
    /// 0x008: exceptions.
    pub(crate) exceptions: Exceptions,
    /// 0x00c: first vector of events and instructions.
    pub(crate) instructions1: Instructions1,
    /// 0x010: second vector.
    pub(crate) instructions2: Instructions2,
    /// 0x014: third vector.
    pub(crate) instructions3: Instructions3,
    reserved_018: [u8; 0x3c - 0x18],
    /// 0x03c.
    pub(crate) pause_filter_threshold: u16,
    /// 0x03e.
    pub(crate) pause_filter_count: u16,
    /// 0x040: physical address of the I/O permission map.
    pub(crate) iopm_base: u64,
    /// 0x048: physical address of the MSR permission map.
    pub(crate) msrpm_base: u64,
    /// 0x050: added to the TSC.
    pub(crate) tsc_offset: u64,
    /// 0x058: the guest's address space identifier, not 0.
    pub(crate) asid: u32,
    /// 0x05c.
    pub(crate) tlb_control: TlbControl,
    reserved_05d: [u8; 3],
    /// 0x060.
    pub(crate) virtual_interrupt: VirtualInterrupt,
    /// 0x068.
    pub(crate) interrupt_shadow: u64,
    /// 0x070: why the guest exited.
    pub(crate) exit_code: u64,
    /// 0x078.
    pub(crate) exit_info1: u64,
    /// 0x080.
    pub(crate) exit_info2: u64,
    /// 0x088: the event whose delivery the exit interrupted.
    pub(crate) exit_interrupt_info: u64,
    /// 0x090.
    pub(crate) nested_enable: u64,
    reserved_098: [u8; 0xa8 - 0x98],
    /// 0x0a8: the event to deliver at entry.
    pub(crate) event_injection: u64,
    /// 0x0b0: nested page table root.
    pub(crate) nested_cr3: u64,
    /// 0x0b8: last branch records, virtual VMLOAD and VMSAVE: all off.
    pub(crate) lbr_virtualization: u64,
    /// 0x0c0.
    pub(crate) clean: Clean,
    reserved_0c4: u32,
    /// 0x0c8: address of the next instruction, where the CPU saves it.
    pub(crate) next_rip: u64,
    /// 0x0d0: number of the guest's instruction bytes that follow, with decode assists.
    pub(crate) fetched_count: u8,
    /// 0x0d1: the bytes.
    pub(crate) fetched: [u8; 15],
    reserved_0e0: [u8; 0x400 - 0xe0],
}
const_assert_eq!(size_of::<Control>(), 0x400);
const_assert_eq!(offset_of!(Control, iopm_base), 0x40);
const_assert_eq!(offset_of!(Control, asid), 0x58);
const_assert_eq!(offset_of!(Control, virtual_interrupt), 0x60);
const_assert_eq!(offset_of!(Control, exit_code), 0x70);
const_assert_eq!(offset_of!(Control, exit_interrupt_info), 0x88);
const_assert_eq!(offset_of!(Control, nested_enable), 0x90);
const_assert_eq!(offset_of!(Control, event_injection), 0xa8);
const_assert_eq!(offset_of!(Control, clean), 0xc0);
const_assert_eq!(offset_of!(Control, next_rip), 0xc8);
const_assert_eq!(offset_of!(Control, fetched), 0xd1);

/// The state save area, offsets from 0x400.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Save {
    /// 0x000.
    pub(crate) es: Segment,
    /// 0x010.
    pub(crate) cs: Segment,
    /// 0x020.
    pub(crate) ss: Segment,
    /// 0x030.
    pub(crate) ds: Segment,
    /// 0x040: moved by VMLOAD and VMSAVE only, like all that says so below.
    pub(crate) fs: Segment,
    /// 0x050: VMLOAD, VMSAVE.
    pub(crate) gs: Segment,
    /// 0x060: base and limit count.
    pub(crate) gdtr: Segment,
    /// 0x070: VMLOAD, VMSAVE.
    pub(crate) ldtr: Segment,
    /// 0x080: base and limit count.
    pub(crate) idtr: Segment,
    /// 0x090: VMLOAD, VMSAVE.
    pub(crate) tr: Segment,
    reserved_0a0: [u8; 0xcb - 0xa0],
    /// 0x0cb.
    pub(crate) cpl: u8,
    reserved_0cc: u32,
    /// 0x0d0.
    pub(crate) efer: u64,
    reserved_0d8: [u8; 0x148 - 0xd8],
    /// 0x148.
    pub(crate) cr4: u64,
    /// 0x150.
    pub(crate) cr3: u64,
    /// 0x158.
    pub(crate) cr0: u64,
    /// 0x160.
    pub(crate) dr7: u64,
    /// 0x168.
    pub(crate) dr6: u64,
    /// 0x170.
    pub(crate) rflags: u64,
    /// 0x178.
    pub(crate) rip: u64,
    reserved_180: [u8; 0x1d8 - 0x180],
    /// 0x1d8.
    pub(crate) rsp: u64,
    reserved_1e0: [u8; 0x1f8 - 0x1e0],
    /// 0x1f8.
    pub(crate) rax: u64,
    /// 0x200: VMLOAD, VMSAVE, up to `SYSENTER_EIP`.
    pub(crate) star: u64,
    /// 0x208.
    pub(crate) lstar: u64,
    /// 0x210.
    pub(crate) cstar: u64,
    /// 0x218.
    pub(crate) sfmask: u64,
    /// 0x220.
    pub(crate) kernel_gs_base: u64,
    /// 0x228.
    pub(crate) sysenter_cs: u64,
    /// 0x230.
    pub(crate) sysenter_esp: u64,
    /// 0x238.
    pub(crate) sysenter_eip: u64,
    /// 0x240.
    pub(crate) cr2: u64,
    reserved_248: [u8; 0x268 - 0x248],
    /// 0x268: the guest's PAT, with nested paging.
    pub(crate) pat: u64,
    /// 0x270.
    pub(crate) debug_control: u64,
    reserved_278: [u8; 0xc00 - 0x278],
}
const_assert_eq!(size_of::<Save>(), 0xc00);
const_assert_eq!(offset_of!(Save, tr), 0x90);
const_assert_eq!(offset_of!(Save, cpl), 0xcb);
const_assert_eq!(offset_of!(Save, efer), 0xd0);
const_assert_eq!(offset_of!(Save, cr4), 0x148);
const_assert_eq!(offset_of!(Save, rip), 0x178);
const_assert_eq!(offset_of!(Save, rsp), 0x1d8);
const_assert_eq!(offset_of!(Save, rax), 0x1f8);
const_assert_eq!(offset_of!(Save, cr2), 0x240);
const_assert_eq!(offset_of!(Save, pat), 0x268);

/// A VMCB: one page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct Vmcb {
    /// Control area.
    pub(crate) control: Control,
    /// State save area.
    pub(crate) save: Save,
}
const_assert_eq!(size_of::<Vmcb>(), 4096);
const_assert_eq!(offset_of!(Vmcb, save), 0x400);
