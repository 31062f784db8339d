//! Single-stepping and breakpoints over instructions that the hypervisor carries out (APM vol. 2, 13.1).

use core::arch::asm;
use core::arch::global_asm;

use super::Check;
use super::skips_paravirtual;
use crate::apic;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::layout;
use crate::port;
use crate::report::Report;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "single-step", run: single_step },
    Check { name: "single-step-mov-ss", run: single_step_mov_ss },
    Check { name: "single-step-sti", run: single_step_sti },
    Check { name: "breakpoints", run: breakpoints },
];

/// The vector of the interrupt behind STI.
const STI_VECTOR: u8 = 0x4c;
/// DR6: single step.
const DR6_BS: u64 = 1 << 14;

/// Executes instructions with the trap flag set. Gives the addresses before and behind them; #DB is noted after every
/// instruction from the NOP before them on.
macro_rules! step {
    ([$($line:literal),+] $(, $($operand:tt)+)?) => {{
        let (before, behind): (u64, u64);
        exception::record_debug(true);
        // SAFETY: the trap flag is set around the instructions, and the handler notes #DB; the instructions change only
        // what is named, and devices.
        unsafe {
            asm!(
                "lea r12, [rip + 2f]", "lea r13, [rip + 3f]", "mov r14, rbx",
                "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                "nop",
                "2:", $($line,)+
                "3: nop",
                "pushfq", "and qword ptr [rsp], ~0x100", "popfq",
                "mov rbx, r14",
                $($($operand)+,)?
                out("r12") before, out("r13") behind, out("r14") _,
            );
        }
        exception::record_debug(false);
        (before, behind)
    }};
}

/// Finds the #DB before and behind the instruction one right after the other, both by single-step.
fn judge(report: &mut Report, name: &str, (before, behind): (u64, u64)) {
    let events = (0..exception::debug_count()).filter_map(exception::debug_event);
    let mut previous = None;
    let mut found = false;
    for (rip, dr6) in events {
        report.expect(dr6 & DR6_BS != 0, format_args!("{name}: DR6 {dr6:#x} at {rip:#x}"));
        found |= previous == Some(before) && rip == behind;
        previous = Some(rip);
    }
    report
        .expect_of_covisor(found, format_args!("{name}: no #DB right behind it, {} in all", exception::debug_count()));
}

/// #DB comes right behind an instruction that was emulated, with RIP at the next one.
fn single_step(report: &mut Report) {
    judge(report, "NOP", step!(["nop"]));
    judge(report, "CPUID", step!(["cpuid"], inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _));
    /// The hypercall instruction.
    macro_rules! hypercall {
        ($name:literal, $line:literal) => {
            judge(report, $name, step!([$line], inout("rax") 1_u64 => _))
        };
    }
    if !xen::active() {
        with_hypercall!(hypercall);
    }
    judge(report, "RDMSR", step!(["rdmsr"], in("ecx") msr::APIC_BASE, out("eax") _, out("edx") _));
    judge(report, "WRMSR", step!(["wrmsr"], in("ecx") msr::TSC_AUX, in("eax") 0, in("edx") 0));
    judge(report, "IN from user mode", step!(["in al, dx"], in("dx") port::scratch(), out("al") _));
    judge(report, "OUT to user mode", step!(["out dx, al"], in("dx") port::scratch(), in("al") 0_u8));
    judge(report, "OUT to port 0x80", step!(["out 0x80, al"], in("al") 0_u8));
    if xen::active() {
        // No APIC, and registers that are reached by hypercalls.
        return judge(report, "nobody's memory", step!(["mov eax, [{0}]"], in(reg) layout::HOLE, out("eax") _));
    }
    judge(report, "device memory in the driver", step!(["mov eax, [{0}]"], in(reg) apic::BASE + 0x30, out("eax") _));
    judge(report, "device memory in user mode", step!(["mov eax, [{0}]"], in(reg) layout::HOLE, out("eax") _));
    judge(report, "MOV to CR0", step!(["mov cr0, {0}"], in(reg) cpu::cr0()));
    judge(report, "MOV from DR7", step!(["mov {0}, dr7"], out(reg) _));
    judge(report, "WBINVD", step!(["wbinvd"]));
}

/// MOV SS holds #DB back until behind the next instruction, also when that one is emulated (APM vol. 2, 8.5; the source of
/// CVE-2018-8897).
fn single_step_mov_ss(report: &mut Report) {
    let (_, behind) = step!(["mov r15, ss", "mov ss, r15d", "cpuid"], inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _, out("r15") _);
    let came = (0..exception::debug_count()).filter_map(exception::debug_event).any(|(rip, _)| rip == behind);
    report.expect(came, format_args!("no #DB behind the instruction after MOV SS"));
    // CPUID's two bytes lie before `behind`: no #DB may come there.
    let early =
        (0..exception::debug_count()).filter_map(exception::debug_event).any(|(rip, _)| rip == behind.wrapping_sub(2));
    report.expect_of_cpu(!early, format_args!("#DB between MOV SS and the next instruction"));
}

/// STI holds interrupts back behind the next instruction, but not #DB (SDM vol. 3, 6.8.3 and 27.3.1.5): it comes behind
/// STI, which QEMU's CPU forgets, and behind the next instruction, also when that one leaves the guest. An interrupt that
/// is due comes once.
fn single_step_sti(report: &mut Report) {
    if skips_paravirtual(report, "an interrupt flag of its own") {
        return;
    }
    if let Err(fault) = apic::enter_xapic() {
        return report.error(format_args!("xAPIC mode: {fault}"));
    }
    for due in [false, true] {
        /// Steps over STI and instructions behind it, with an interrupt due where there is to be one.
        macro_rules! step_sti {
            ($name:literal, [$($line:literal),*] $(, $($operand:tt)+)?) => {{
                exception::forget_interrupts();
                if due {
                    apic::send_self(STI_VECTOR);
                }
                let (sti, behind) = step!(["sti" $(, $line)*] $(, $($operand)+)?);
                cpu::disable_interrupts();
                let came = |at: u64| {
                    (0..exception::debug_count()).filter_map(exception::debug_event).any(|(rip, _)| rip == at)
                };
                report.expect_of_cpu(came(sti + 1), format_args!("STI, {}: no #DB behind STI", $name));
                if behind != sti + 1 {
                    report.expect(came(behind), format_args!("STI, {}: no #DB behind it", $name));
                }
                let taken = exception::count(STI_VECTOR);
                report.expect(taken == u32::from(due), format_args!("STI, {}: {taken} interrupts", $name));
            }};
        }
        step_sti!("nothing", []);
        step_sti!("NOP", ["nop"]);
        step_sti!("CPUID", ["cpuid"], inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _);
        step_sti!("IN", ["in al, dx"], in("dx") port::scratch(), out("al") _);
        step_sti!("WRMSR", ["wrmsr"], in("ecx") msr::TSC_AUX, in("eax") 0, in("edx") 0);
    }
}

global_asm!(
    r#"
    .section .text.probe_debug, "ax"
    .globl probe_cpuid
probe_cpuid:
    cpuid
    ret
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_cpuid();
}

/// Breakpoints on execution come before the instruction, also when it is one that leaves the guest; breakpoints on data
/// come behind it.
fn breakpoints(report: &mut Report) {
    /// DR7: breakpoint 0 enabled, exactly.
    const ENABLED: u64 = 1 << 10 | 1 << 9 | 1 << 1;
    /// DR7: breakpoint 0 is for writes of eight bytes.
    const WRITES: u64 = 0b1001 << 16;
    let mut word = 0_u64;
    let data = (&raw mut word) as u64;
    let behind: u64;
    exception::record_debug(true);
    let _ = cpu::try_set_dr0(data);
    let _ = cpu::try_set_dr7(ENABLED | WRITES);
    // SAFETY: writes a local.
    unsafe { asm!("lea {0}, [rip + 2f]", "mov qword ptr [{1}], 5", "2: nop", out(reg) behind, in(reg) data) }
    let _ = cpu::try_set_dr7(1 << 10);
    expect_event(report, "data breakpoint", behind);

    let at = probe_cpuid as *const () as u64;
    exception::record_debug(true);
    let _ = cpu::try_set_dr0(at);
    let _ = cpu::try_set_dr7(ENABLED);
    // SAFETY: executes the CPUID with a breakpoint at it; the handler notes it and lets it pass.
    unsafe { asm!("mov r14, rbx", "call {}", "mov rbx, r14", sym probe_cpuid, out("r14") _, clobber_abi("C")) }
    let _ = cpu::try_set_dr7(1 << 10);
    expect_event(report, "code breakpoint", at);
    let _ = cpu::try_set_dr0(0);
    cpu::clear_dr6();
}

/// Expects exactly one #DB, at `address`, by breakpoint 0. QEMU's CPU does not arm the breakpoints that VMRUN loads.
fn expect_event(report: &mut Report, name: &str, address: u64) {
    exception::record_debug(false);
    let count = exception::debug_count();
    report.expect_of_cpu(count >= 1, format_args!("{name}: no #DB"));
    report.expect(count <= 1, format_args!("{name}: {count} #DB"));
    if let Some((rip, dr6)) = exception::debug_event(0) {
        report.expect(rip == address, format_args!("{name} at {rip:#x}, not {address:#x}"));
        report.expect(dr6 & 1 != 0, format_args!("{name}: DR6 {dr6:#x}"));
    }
}
