//! Instructions that are not for guests, not for ring 3, or not for everyone.

use core::arch::asm;

use super::Check;
use super::skips_paravirtual;
use crate::cpu;
use crate::cpu::cr0;
use crate::exception::Fault;
use crate::exception::TablePointer;
use crate::exception::vector;
use crate::report::Report;
use crate::user;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "privileged", run: privileged },
    Check { name: "undefined", run: undefined },
    Check { name: "descriptor-tables", run: descriptor_tables },
    Check { name: "machine-status-word", run: machine_status_word },
    Check { name: "icebp", run: icebp },
    Check { name: "ring-3", run: ring_3 },
];

/// Expects a vector.
fn expect(report: &mut Report, name: &str, raised: Option<Fault>, wanted: u8) {
    match raised {
        Some(fault) => report.expect(fault.vector == wanted, format_args!("{name}: {fault}")),
        None => report.fail(format_args!("{name} is carried out")),
    }
}

/// Expects success.
fn expect_done(report: &mut Report, name: &str, raised: Option<Fault>) {
    if let Some(fault) = raised {
        report.fail(format_args!("{name}: {fault}"));
    }
}

/// Ring 0's instructions that reach beyond the CPU are carried out without harm.
fn privileged(report: &mut Report) {
    if skips_paravirtual(report, "ring 0") {
        return;
    }
    expect_done(report, "INVD", catch!(["invd"]));
    expect_done(report, "WBINVD", catch!(["wbinvd"]));
    expect_done(report, "INVLPG", catch!(["invlpg [{}]"], in(reg) 0x60_0000_u64));
    expect_done(report, "INVLPG of an address that is not canonical", catch!(["invlpg [{}]"], in(reg) 1_u64 << 63));
    expect_done(report, "SWAPGS", catch!(["swapgs", "swapgs"]));
    if cpu::cpuid(7, 0).ebx & 1 << 10 == 0 {
        let descriptor = [0_u64; 2];
        expect(
            report,
            "INVPCID",
            catch!(["invpcid {kind}, [{at}]"], kind = in(reg) 2_u64, at = in(reg) &raw const descriptor),
            vector::UD,
        );
    }
    // Counter 0xffff exists nowhere.
    match catch!(["rdpmc"], in("ecx") 0xffff, out("eax") _, out("edx") _) {
        Some(fault) => report.expect_of_cpu(fault.is_gp0(), format_args!("RDPMC: {fault}")),
        None => report.fail(format_args!("RDPMC of counter 0xffff is carried out")),
    }
    if cpu::has_xsave() {
        let before = cpu::cr4();
        let _ = cpu::try_set_cr4(before | cpu::cr4::OSXSAVE);
        for (index, value) in [(0, 0), (0, 2), (0, u64::MAX), (1, 1), (u32::MAX, 1)] {
            expect(report, "XSETBV of nonsense", cpu::try_xsetbv(index, value).err(), vector::GP);
        }
        let _ = cpu::try_set_cr4(before);
    }
}

/// What CPUID does not offer, or what exists in another mode only, raises #UD.
fn undefined(report: &mut Report) {
    expect(report, "UD2", catch!(["ud2"]), vector::UD);
    expect(report, "RSM", catch!(["rsm"]), vector::UD);
    let here = 0_u64;
    if cpu::cpuid(1, 0).ecx & 1 << 3 == 0 {
        // Some hypervisors carry them out as NOP.
        for fault in [
            catch!([".byte 0x0f, 0x01, 0xc8"], in("rax") &raw const here, in("ecx") 0, in("edx") 0),
            catch!([".byte 0x0f, 0x01, 0xc9"], in("eax") 0, in("ecx") 0),
        ] {
            expect(report, "MONITOR or MWAIT", fault, vector::UD);
        }
    }
    // Nothing keeps ring 3 from what a CPU offers that CPUID does not.
    if cpu::cpuid(0x8000_0008, 0).ebx & 1 << 4 == 0 && !xen::active() {
        expect(
            report,
            "RDPRU",
            catch!([".byte 0x0f, 0x01, 0xfd"], in("ecx") 0, out("eax") _, out("edx") _),
            vector::UD,
        );
    }
}

/// LGDT and LIDT refuse bases that are not canonical by #GP (APM vol. 3), LTR and LLDT selectors behind the table. A CPU
/// that takes such a base (QEMU's own) gets the right table back at once.
fn descriptor_tables(report: &mut Report) {
    let wrong = TablePointer { limit: 0xffff, base: 0x8000_0000_0000_0000 };
    let (gdt, idt) = (stored_gdt(), stored_idt());
    for (name, raised) in [
        ("LGDT", catch!(["lgdt [{0}]", "lgdt [{1}]"], in(reg) &raw const wrong, in(reg) &raw const gdt)),
        ("LIDT", catch!(["lidt [{0}]", "lidt [{1}]"], in(reg) &raw const wrong, in(reg) &raw const idt)),
    ] {
        match raised {
            Some(fault) => report.expect(fault.is_gp0(), format_args!("{name}: {fault}")),
            None => report.note(format_args!("{name} takes a base that is not canonical")),
        }
    }
    expect(report, "LTR", catch!(["ltr {0:x}"], in(reg) 0xfff8_u64), vector::GP);
    expect(report, "LLDT", catch!(["lldt {0:x}"], in(reg) 0xfff8_u64), vector::GP);
    expect(report, "MOV DS", catch!(["mov ds, {0:e}"], in(reg) 0xfff8_u64), vector::GP);
    let _ = cpu::cpuid(0, 0);
    for (name, before, after) in [("GDT", gdt, stored_gdt()), ("IDT", idt, stored_idt())] {
        let (old, new) = (before.base, after.base);
        report.expect(old == new, format_args!("{name} moved from {old:#x} to {new:#x}"));
    }
}

/// SGDT.
fn stored_gdt() -> TablePointer {
    let mut pointer = TablePointer { limit: 0, base: 0 };
    // SAFETY: stores GDTR.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags)) }
    pointer
}

/// SIDT.
fn stored_idt() -> TablePointer {
    let mut pointer = TablePointer { limit: 0, base: 0 };
    // SAFETY: stores IDTR.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags)) }
    pointer
}

/// CLTS, LMSW and SMSW work on CR0's low bits (APM vol. 3).
fn machine_status_word(report: &mut Report) {
    if skips_paravirtual(report, "control registers of its own") {
        return;
    }
    let before = cpu::cr0();
    if let Err(fault) = cpu::try_set_cr0(before | cr0::TS) {
        return report.fail(format_args!("CR0.TS: {fault}"));
    }
    report.expect(cpu::cr0() & cr0::TS != 0, format_args!("CR0.TS is not set"));
    expect(report, "FNINIT with CR0.TS", catch!(["fld1"]), vector::NM);
    expect_done(report, "CLTS", catch!(["clts"]));
    report.expect(cpu::cr0() & cr0::TS == 0, format_args!("CLTS leaves CR0.TS set"));
    expect_done(report, "LMSW", catch!(["lmsw {0:x}"], in(reg) before & 0xffff | cr0::TS));
    report.expect(cpu::cr0() & cr0::TS != 0, format_args!("LMSW does not set CR0.TS"));
    expect_done(report, "LMSW", catch!(["lmsw {0:x}"], in(reg) 0_u64));
    report.expect(cpu::cr0() & cr0::PE != 0, format_args!("LMSW clears CR0.PE"));
    let word: u64;
    // SAFETY: stores a register.
    unsafe { asm!("smsw {}", out(reg) word) }
    report.expect(word & 0xffff == cpu::cr0() & 0xffff, format_args!("SMSW {word:#x}, CR0 {:#x}", cpu::cr0()));
    let _ = cpu::try_set_cr0(before);
}

/// ICEBP (0xf1) raises #DB, a trap (APM vol. 2, 8.2.2): RIP is behind it.
fn icebp(report: &mut Report) {
    match catch!([".byte 0xf1"]) {
        Some(fault) => report.expect_of_cpu(fault.vector == vector::DB, format_args!("{fault}")),
        None => report.fail(format_args!("nothing is raised")),
    }
    cpu::clear_dr6();
}

/// Name of the one that loads a segment of the kernel's.
const KERNEL_SEGMENT: &str = "MOV DS of the kernel";

/// Instructions and what they raise in ring 3 (APM vol. 3).
const RING_3: &[(&str, &[u8], Option<u8>)] = &[
    ("CLI", &[0xfa], Some(vector::GP)),
    ("STI", &[0xfb], Some(vector::GP)),
    ("HLT", &[0xf4], Some(vector::GP)),
    ("IN", &[0xec], Some(vector::GP)),
    ("OUT", &[0xee], Some(vector::GP)),
    ("INSB", &[0x6c], Some(vector::GP)),
    ("RDMSR", &[0x0f, 0x32], Some(vector::GP)),
    ("WRMSR", &[0x0f, 0x30], Some(vector::GP)),
    ("MOV from CR0", &[0x0f, 0x20, 0xc0], Some(vector::GP)),
    ("MOV to CR3", &[0x0f, 0x22, 0xd8], Some(vector::GP)),
    ("MOV to CR4", &[0x0f, 0x22, 0xe0], Some(vector::GP)),
    ("MOV from DR7", &[0x0f, 0x21, 0xf8], Some(vector::GP)),
    ("CLTS", &[0x0f, 0x06], Some(vector::GP)),
    ("LMSW", &[0x0f, 0x01, 0xf0], Some(vector::GP)),
    ("INVD", &[0x0f, 0x08], Some(vector::GP)),
    ("WBINVD", &[0x0f, 0x09], Some(vector::GP)),
    ("INVLPG", &[0x0f, 0x01, 0x38], Some(vector::GP)),
    ("SWAPGS", &[0x0f, 0x01, 0xf8], Some(vector::GP)),
    ("SYSRET", &[0x0f, 0x07], Some(vector::GP)),
    ("RDPMC", &[0x0f, 0x33], Some(vector::GP)),
    ("UD2", &[0x0f, 0x0b], Some(vector::UD)),
    ("INT 0x80", &[0xcd, 0x80], Some(vector::GP)),
    (KERNEL_SEGMENT, &[0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8], Some(vector::GP)),
    ("a kernel address", &[0x48, 0xa1, 0, 0, 0x20, 0, 0, 0, 0, 0], Some(vector::PF)),
    ("CPUID", &[0x0f, 0xa2], None),
    ("RDTSC", &[0x0f, 0x31], None),
    ("NOP", &[0x90], None),
];

/// Ring 3 gets its faults from the CPU and from whatever intercepts there are alike.
fn ring_3(report: &mut Report) {
    // A paravirtual kernel's segments are of ring 3, too.
    for (name, code, wanted) in RING_3.iter().filter(|(name, ..)| !xen::active() || *name != KERNEL_SEGMENT) {
        let raised = user::raised(code);
        let same = raised.map(|fault| fault.vector) == *wanted;
        match raised {
            Some(fault) => report.expect(same, format_args!("{name}: {fault}")),
            None => report.expect(same, format_args!("{name} is carried out")),
        }
    }
}
