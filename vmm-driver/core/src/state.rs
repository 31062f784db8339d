//! A vCPU's registers from and to the loader, checked as if the guest had set them.

use covisor_abi::VcpuState;

use crate::cpuid::CpuidTable;
use crate::device::CallError;
use crate::engine::Vcpu;
use crate::policy;
use crate::registers::RFlags;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::Table;
use crate::registers::attributes;
use crate::registers::is_canonical;

/// RFLAGS bits that a vCPU can start with: the status and control flags, IF, and the bit that is always 1.
const START_FLAGS: u64 = 0x0024_4fd7;

fn check_segment(segment: &Segment) -> Result<(), CallError> {
    if segment.attributes & !attributes::ALL != 0 || !is_canonical(segment.base) {
        return Err(CallError::Invalid);
    }
    Ok(())
}

fn check_table(table: &Table) -> Result<(), CallError> {
    if table.limit > 0xffff || !is_canonical(table.base) {
        return Err(CallError::Invalid);
    }
    Ok(())
}

/// Sets all registers.
pub(crate) fn set<V: Vcpu>(vcpu: &mut V, cpuid: &CpuidTable, values: &VcpuState) -> Result<(), CallError> {
    if values.reserved != 0 || values.rflags & !START_FLAGS != 0 || !is_canonical(values.rip) {
        return Err(CallError::Invalid);
    }
    values.segments.iter().chain([&values.ldtr, &values.tr]).try_for_each(check_segment)?;
    check_table(&values.gdtr)?;
    check_table(&values.idtr)?;
    policy::check_start(cpuid, values.cr0, values.cr3, values.cr4, values.efer).map_err(|_| CallError::Invalid)?;
    vcpu.gprs_mut().set_array(&values.gprs);
    vcpu.set_rip(values.rip);
    vcpu.set_rflags(values.rflags | RFlags::FLAGS_A1.bits());
    for (name, segment) in SegmentName::USER.into_iter().zip(values.segments) {
        vcpu.set_segment(name, segment);
    }
    vcpu.set_segment(SegmentName::Ldtr, values.ldtr);
    vcpu.set_segment(SegmentName::Tr, values.tr);
    vcpu.set_gdtr(values.gdtr);
    vcpu.set_idtr(values.idtr);
    vcpu.set_cr0(values.cr0);
    vcpu.set_cr2(values.cr2);
    vcpu.set_cr3(values.cr3);
    vcpu.set_cr4(values.cr4);
    vcpu.set_efer(values.efer);
    Ok(())
}

/// All registers.
pub(crate) fn get<V: Vcpu>(vcpu: &V, number: u32) -> VcpuState {
    VcpuState {
        vcpu: number,
        reserved: 0,
        gprs: vcpu.gprs().to_array(),
        rip: vcpu.rip(),
        rflags: vcpu.rflags(),
        segments: SegmentName::USER.map(|name| vcpu.segment(name)),
        ldtr: vcpu.segment(SegmentName::Ldtr),
        tr: vcpu.segment(SegmentName::Tr),
        gdtr: vcpu.gdtr(),
        idtr: vcpu.idtr(),
        cr0: vcpu.cr0(),
        cr2: vcpu.cr2(),
        cr3: vcpu.cr3(),
        cr4: vcpu.cr4(),
        efer: vcpu.efer(),
        xcr0: vcpu.xcr0(),
    }
}
