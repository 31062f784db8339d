//! Privileged instructions in a paravirtual kernel: Linux uses some as if it were in ring 0, and gets them; the others are #GP.

use super::super::Check;
use crate::cpu;
use crate::cpu::cr0;
use crate::cpu::msr;
use crate::exception::Fault;
use crate::exception::vector;
use crate::report::Report;
use crate::xen;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::events;
use crate::xen::hypercall::hypercall;
use crate::xen::info;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-instructions", run: instructions },
    Check { name: "xen-cli", run: cli },
    Check { name: "xen-task-switched", run: task_switched },
    Check { name: "xen-msrs", run: registers },
];

fn instructions(report: &mut Report) {
    for (name, raised) in [("WBINVD", catch!(["wbinvd"])), ("CLTS", catch!(["clts"]))] {
        report.expect(raised.is_none(), format_args!("{name}: {raised:?}"));
    }
    if let Some(fault) = catch!(["invd"]) {
        // Xen does not have it.
        report.expect_of_covisor(false, format_args!("INVD: {fault}"));
    }
    let memory = [0_u64; 2];
    let pointer = &raw const memory;
    let refused: [(&str, Option<Fault>); 8] = [
        ("LGDT", catch!(["lgdt [{}]"], in(reg) pointer)),
        ("LIDT", catch!(["lidt [{}]"], in(reg) pointer)),
        ("LTR", catch!(["ltr {0:x}"], in(reg) 0x38_u64)),
        ("LLDT", catch!(["lldt {0:x}"], in(reg) 0_u64)),
        ("SWAPGS", catch!(["swapgs"])),
        ("SYSRET", catch!(["sysretq"], out("rcx") _)),
        ("MOV to CR8", catch!(["mov cr8, {0}"], in(reg) 0_u64)),
        ("MOV from CR8", catch!(["mov {0}, cr8"], out(reg) _)),
    ];
    for (name, raised) in refused {
        let right = raised.is_some_and(|fault| matches!(fault.vector, vector::GP | vector::UD));
        report.expect(right, format_args!("{name}: {raised:?}"));
    }
    // What a kernel reads of control registers is what a kernel in ring 0 has: protection, paging, write protection, long mode.
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    report.expect(cr0 & (cr0::PE | cr0::PG) == cr0::PE | cr0::PG, format_args!("CR0 is {cr0:#x}"));
    report.expect(cr4 & cpu::cr4::PAE != 0, format_args!("CR4 is {cr4:#x}"));
    let root = xen::tables::frame(xen::tables::kernel()) * xen::frames::PAGE;
    report.expect_of_covisor(cpu::cr3() & !0xfff == root, format_args!("CR3 is {:#x}, not {root:#x}", cpu::cr3()));
}

/// CLI and STI do nothing: Linux executes `pushf; cli; …; popf`, and POPF in ring 3 would not undo a CLI that does anything.
fn cli(report: &mut Report) {
    for masked in [0, 1] {
        info::vcpu().mask.store(masked, core::sync::atomic::Ordering::SeqCst);
        for (name, raised) in [("CLI", catch!(["cli"])), ("STI", catch!(["sti"]))] {
            report.expect(raised.is_none(), format_args!("{name}: {raised:?}"));
            let now = info::vcpu().mask.load(core::sync::atomic::Ordering::SeqCst);
            report.expect_of_covisor(now == masked, format_args!("{name}: the mask is {now}, was {masked}"));
        }
    }
    events::mask();
}

/// `fpu_taskswitch`, MOV to CR0 and CLTS: with CR0.TS the next use of extended state is #NM, once, for the bit is clear then.
fn task_switched(report: &mut Report) {
    let set: [(&str, fn()); 2] = [
        ("fpu_taskswitch", || _ = hypercall(call::FPU_TASKSWITCH, [1])),
        ("MOV to CR0", || _ = cpu::try_set_cr0(cpu::cr0() | cr0::TS)),
    ];
    for (name, set) in set {
        set();
        report.expect(cpu::cr0() & cr0::TS != 0, format_args!("{name}: CR0 is {:#x}", cpu::cr0()));
        let raised = catch!(["fninit"]);
        let right = raised.is_some_and(|fault| fault.vector == vector::NM);
        report.expect(right, format_args!("{name}: {raised:?}"));
        report.expect(cpu::cr0() & cr0::TS == 0, format_args!("{name}: CR0.TS is still set"));
        let raised = catch!(["fninit"]);
        report.expect(raised.is_none(), format_args!("{name}, the second time: {raised:?}"));
        set();
        let raised = catch!(["clts", "fninit"]);
        report.expect(raised.is_none(), format_args!("{name}, CLTS: {raised:?}"));
        set();
        hypercall(call::FPU_TASKSWITCH, [0]);
        let raised = catch!(["fninit"]);
        report.expect(raised.is_none(), format_args!("{name}, undone by the call: {raised:?}"));
    }
}

/// Registers of the machine's that a paravirtual guest must not change: what it writes is refused or ignored.
fn registers(report: &mut Report) {
    const MTRR_DEFAULT: u32 = 0x2ff;
    const SYSENTER_CS: u32 = 0x174;
    const DEBUG_CONTROL: u32 = 0x1d9;
    const SYSCALL_MASK: u32 = 0xc000_0084;
    let all = [
        msr::TSC,
        msr::APIC_BASE,
        msr::FEATURE_CONTROL,
        SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
        DEBUG_CONTROL,
        msr::PAT,
        MTRR_DEFAULT,
        msr::TSC_DEADLINE,
        msr::X2APIC + 0x30,
        msr::EFER,
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        SYSCALL_MASK,
        msr::VM_CR,
        msr::VM_HSAVE_PA,
    ];
    for index in all {
        let before = cpu::try_rdmsr(index).ok();
        for value in [0, 1, u64::MAX, 0x600, HYPERVISOR_START] {
            let _ = cpu::try_wrmsr(index, value);
            let now = cpu::try_rdmsr(index).ok();
            // The time stamp counter goes on by itself.
            let same = if index == msr::TSC { now.is_some() == before.is_some() } else { now == before };
            report.expect(same, format_args!("MSR {index:#x} is {now:x?} after {value:#x}, was {before:x?}"));
        }
    }
    // Hypercalls go where they went.
    let number = hypercall(call::XEN_VERSION, [0]);
    report.expect(number > 0, format_args!("xen_version: {number}"));
}
