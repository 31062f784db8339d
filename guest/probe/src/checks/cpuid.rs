//! CPUID: what the machine says about itself.

use core::arch::x86_64::CpuidResult;

use super::Check;
use super::skips_paravirtual;
use crate::apic;
use crate::cpu;
use crate::cpu::cr4;
use crate::report::Report;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "cpuid-hypervisor", run: hypervisor },
    Check { name: "cpuid-hidden", run: hidden },
    Check { name: "cpuid-out-of-range", run: out_of_range },
    Check { name: "cpuid-osxsave", run: osxsave },
    Check { name: "cpuid-xsave-sizes", run: xsave_sizes },
    Check { name: "cpuid-apic-id", run: apic_id },
];

/// A hypervisor says that it is one: leaf 1, ECX bit 31, and a signature at 0x4000_0000 (APM vol. 3, E.3.2 and E.3.7).
fn hypervisor(report: &mut Report) {
    report.expect(cpu::cpuid(1, 0).ecx & 1 << 31 != 0, format_args!("leaf 1 ECX bit 31 is clear"));
    let leaf = cpu::cpuid(0x4000_0000, 0);
    report.expect(leaf.eax >= 0x4000_0001, format_args!("highest hypervisor leaf is {:#x}", leaf.eax));
    report.expect(leaf.ebx != 0, format_args!("no signature at leaf 0x40000000"));
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    const fn of(self, leaf: &CpuidResult) -> u32 {
        match self {
            Self::Ebx => leaf.ebx,
            Self::Ecx => leaf.ecx,
            Self::Edx => leaf.edx,
        }
    }
}

/// Features whose state or instructions a guest does not get (APM vol. 3, appendix E; Intel SDM vol. 2, CPUID).
const HIDDEN: &[(&str, u32, Register, u32)] = &[
    ("MONITOR", 1, Register::Ecx, 3),
    ("VMX", 1, Register::Ecx, 5),
    ("SMX", 1, Register::Ecx, 6),
    ("SVM", 0x8000_0001, Register::Ecx, 2),
    ("IBS", 0x8000_0001, Register::Ecx, 10),
    ("SKINIT", 0x8000_0001, Register::Ecx, 12),
    ("LWP", 0x8000_0001, Register::Ecx, 15),
    ("SGX", 7, Register::Ebx, 2),
    ("MPX", 7, Register::Ebx, 14),
    ("PT", 7, Register::Ebx, 25),
    ("CET_SS", 7, Register::Ecx, 7),
    ("LA57", 7, Register::Ecx, 16),
    ("PKS", 7, Register::Ecx, 31),
    ("CET_IBT", 7, Register::Edx, 20),
    ("AMX_BF16", 7, Register::Edx, 22),
    ("AMX_TILE", 7, Register::Edx, 24),
    ("AMX_INT8", 7, Register::Edx, 25),
    ("RDPRU", 0x8000_0008, Register::Ebx, 4),
];

/// What the machine does not switch, it does not offer.
fn hidden(report: &mut Report) {
    for (name, leaf, register, bit) in HIDDEN {
        let there = highest(*leaf) >= *leaf && register.of(&cpu::cpuid(*leaf, 0)) & 1 << bit != 0;
        report.expect(!there, format_args!("{name} is offered"));
    }
    report.expect(
        highest(10) < 10 || cpu::cpuid(10, 0).eax & 0xff == 0,
        format_args!("performance counters are offered"),
    );
}

/// The highest leaf of the range that `leaf` is in.
fn highest(leaf: u32) -> u32 {
    cpu::cpuid(leaf & 0xffff_0000, 0).eax
}

/// Leaves that do not exist give zeros on AMD's CPUs (APM vol. 3, CPUID), and the highest basic leaf's values, for the same
/// ECX, on Intel's (SDM vol. 2, CPUID): nothing of the host shines through.
fn out_of_range(report: &mut Report) {
    let intel = cpu::is_intel();
    for leaf in [highest(0) + 1, 0x3fff_ffff, 0x4fff_ffff, highest(0x8000_0000) + 1, 0x8fff_ffff, 0xc000_0000, u32::MAX]
    {
        for subleaf in [0, 1, u32::MAX] {
            let CpuidResult { eax, ebx, ecx, edx } = cpu::cpuid(leaf, subleaf);
            let same = if intel {
                cpu::cpuid(leaf, subleaf) == cpu::cpuid(highest(0), subleaf)
            } else {
                eax | ebx | ecx | edx == 0
            };
            report.expect(same, format_args!("leaf {leaf:#x}/{subleaf:#x} is {eax:#x} {ebx:#x} {ecx:#x} {edx:#x}"));
        }
    }
}

/// Leaf 1, ECX bit 27 follows CR4.OSXSAVE (APM vol. 3, E.3.2).
fn osxsave(report: &mut Report) {
    if !cpu::has_xsave() {
        return report.skip(format_args!("no XSAVE"));
    }
    let before = cpu::cr4();
    if xen::active() {
        // A paravirtual guest does not have CR4 in its hands.
        let (on, seen) = (before & cr4::OSXSAVE != 0, cpu::cpuid(1, 0).ecx & 1 << 27 != 0);
        return report.expect_of_covisor(seen == on, format_args!("CR4.OSXSAVE {on}, CPUID says {seen}"));
    }
    for on in [true, false] {
        let value = if on { before | cr4::OSXSAVE } else { before & !cr4::OSXSAVE };
        if let Err(fault) = cpu::try_set_cr4(value) {
            return report.fail(format_args!("CR4 {value:#x}: {fault}"));
        }
        let seen = cpu::cpuid(1, 0).ecx & 1 << 27 != 0;
        report.expect(seen == on, format_args!("CR4.OSXSAVE {on}, CPUID says {seen}"));
    }
    let _ = cpu::try_set_cr4(before);
}

/// Leaf 0xd describes an XSAVE area that is large enough for what it promises (APM vol. 3, E.3.9): the size for XCR0 as
/// it is follows XCR0, and no component lies behind the end.
fn xsave_sizes(report: &mut Report) {
    if !cpu::has_xsave() {
        return report.skip(format_args!("no XSAVE"));
    }
    let before = cpu::cr4();
    if let Err(fault) = cpu::try_set_cr4(before | cr4::OSXSAVE) {
        return report.fail(format_args!("CR4.OSXSAVE: {fault}"));
    }
    let whole = cpu::cpuid(0xd, 0);
    let supported = u64::from(whole.edx) << 32 | u64::from(whole.eax);
    report.expect(supported & 3 == 3, format_args!("x87 and SSE are not in {supported:#x}"));
    for component in 2..63 {
        if supported & 1 << component == 0 {
            continue;
        }
        let leaf = cpu::cpuid(0xd, component);
        let end = u64::from(leaf.ebx) + u64::from(leaf.eax);
        let supervisor = leaf.ecx & 1 != 0;
        report.expect(
            leaf.eax > 0 && !supervisor && end <= u64::from(whole.ecx),
            format_args!("component {component}: {} bytes at {}, the whole is {}", leaf.eax, leaf.ebx, whole.ecx),
        );
    }
    let old = cpu::xcr0();
    for (mask, name) in [(1, "x87"), (supported, "all")] {
        match cpu::try_xsetbv(0, mask) {
            Ok(()) => {
                let now = cpu::cpuid(0xd, 0).ebx;
                let wanted = if mask == 1 { 576 } else { whole.ecx };
                // QEMU's CPU tells no hypervisor of XSETBV.
                report.expect_of_cpu(now == wanted, format_args!("size with XCR0 {name} is {now}, not {wanted}"));
            }
            Err(fault) => report.fail(format_args!("XCR0 {mask:#x}: {fault}")),
        }
    }
    let _ = cpu::try_xsetbv(0, old);
    let _ = cpu::try_set_cr4(before);
}

/// Leaf 1, EBX bits 31 to 24 are the local APIC's id (APM vol. 3, E.3.2).
fn apic_id(report: &mut Report) {
    if skips_paravirtual(report, "an APIC") {
        return;
    }
    if let Err(fault) = apic::enter_xapic() {
        return report.fail(format_args!("xAPIC mode: {fault}"));
    }
    let (leaf, register) = (cpu::cpuid(1, 0).ebx >> 24, apic::read(apic::register::ID) >> 24);
    report.expect(leaf == register, format_args!("CPUID says {leaf}, the APIC {register}"));
}
