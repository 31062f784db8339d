//! A vCPU's registers after reset (APM vol. 2, 14.1.3; SDM vol. 3, table 10-1).

use crate::debug_registers::DR6_RESET;
use crate::debug_registers::DR7_RESET;
use crate::engine::Vcpu;
use crate::registers::Gprs;
use crate::registers::RFlags;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::Table;

/// CR0: caches off, extension type.
const CR0_RESET: u64 = 0x6000_0010;
/// `IA32_PAT`.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// XCR0: x87 only, as it has to be.
const XCR0_RESET: u64 = 1;
/// RIP, in a segment whose base makes it 16 bytes below 4 GiB.
const RIP_RESET: u64 = 0xfff0;
/// Limit of every segment and table.
const LIMIT: u32 = 0xffff;
/// Attributes of data segments: present, writable, accessed.
const DATA: u16 = 0x93;
/// Of the code segment: present, readable, accessed.
const CODE: u16 = 0x9b;
/// Of the LDT: present.
const LDT: u16 = 0x82;
/// Of the task: present, busy.
const TASK: u16 = 0x8b;

/// What a segment register holds.
const fn segment(name: SegmentName) -> Segment {
    let plain = Segment { base: 0, limit: LIMIT, selector: 0, attributes: DATA };
    match name {
        SegmentName::Cs => Segment { base: 0xffff_0000, selector: 0xf000, attributes: CODE, ..plain },
        SegmentName::Ldtr => Segment { attributes: LDT, ..plain },
        SegmentName::Tr => Segment { attributes: TASK, ..plain },
        _ => plain,
    }
}

/// Puts every register into its state after reset; EDX holds the CPU's family, model and stepping.
pub fn reset<V: Vcpu>(vcpu: &mut V) {
    let identity = core::arch::x86_64::__cpuid(1).eax;
    *vcpu.gprs_mut() = Gprs { rdx: u64::from(identity), ..Gprs::default() };
    vcpu.set_rip(RIP_RESET);
    vcpu.set_rflags(RFlags::FLAGS_A1.bits());
    for name in SegmentName::USER.into_iter().chain([SegmentName::Ldtr, SegmentName::Tr]) {
        vcpu.set_segment(name, segment(name));
    }
    let table = Table { base: 0, limit: u64::from(LIMIT) };
    vcpu.set_gdtr(table);
    vcpu.set_idtr(table);
    vcpu.set_efer(0);
    vcpu.set_cr0(CR0_RESET);
    vcpu.set_cr2(0);
    vcpu.set_cr3(0);
    vcpu.set_cr4(0);
    vcpu.set_pat(PAT_RESET);
    vcpu.set_xcr0(XCR0_RESET);
    vcpu.set_tsc_aux(0);
    vcpu.set_task_priority(0);
    for number in 0..4 {
        vcpu.set_debug_address(number, 0);
    }
    vcpu.set_dr6(DR6_RESET);
    vcpu.set_dr7(DR7_RESET);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::TestVcpu;

    #[test]
    fn test_the_first_instruction_is_16_bytes_below_4_gib() {
        let mut vcpu = TestVcpu::default();
        reset(&mut vcpu);
        assert_eq!(vcpu.segments[SegmentName::Cs as usize].base + vcpu.rip, 0xffff_fff0);
        assert_eq!((vcpu.cr0, vcpu.rflags, vcpu.cpl), (0x6000_0010, 2, 0));
    }

    #[test]
    fn test_nothing_of_before_is_left() {
        let segment = Segment { base: 1, limit: 2, selector: 3, attributes: 0xf3 };
        let table = Table { base: 5, limit: 6 };
        let mut used = TestVcpu {
            gprs: Gprs { rax: 1, r15: 1, ..Gprs::default() },
            rip: 1,
            rflags: 0x202,
            segments: [segment; 8],
            gdtr: table,
            idtr: table,
            cr0: 0x8000_0031,
            cr2: 1,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0x500,
            pat: 6,
            xcr0: 7,
            tsc_aux: 1,
            task_priority: 1,
            debug_addresses: [1; 4],
            dr6: 1,
            dr7: 1,
            cpl: 3,
            ..TestVcpu::default()
        };
        let mut fresh = TestVcpu::default();
        reset(&mut used);
        reset(&mut fresh);
        assert_eq!(used, fresh);
    }
}
