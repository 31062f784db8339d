//! Non-maskable interrupts: when they come, and what blocks them (APM vol. 2, 8.2.3; SDM vol. 3, 6.7.1, and 28.2.3 for what
//! of it is the hypervisor's to do). NMIs are sent to oneself by the local APIC in x2APIC mode, by one WRMSR.

use core::arch::asm;
use core::arch::global_asm;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::Check;
use crate::apic;
use crate::apic::register;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::exception::Fault;
use crate::exception::RFLAGS_TF;
use crate::exception::selector;
use crate::exception::vector;
use crate::layout;
use crate::paging::Window;
use crate::port;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "nmi-shadow", run: |report| in_x2apic_mode(report, shadow) },
    Check { name: "nmi-blocked", run: |report| in_x2apic_mode(report, blocked) },
    Check { name: "nmi-after-iret", run: |report| in_x2apic_mode(report, after_iret) },
    Check { name: "nmi-iret-faults", run: |report| in_x2apic_mode(report, iret_faults) },
];

/// ICR: an NMI for the sender.
const ICR_VALUE: u32 = apic::ICR_NMI | apic::ICR_ASSERT;
/// ICR in x2APIC mode.
const ICR: u32 = msr::X2APIC + register::ICR / 16;
/// Rounds of a loop without exits in which an NMI that is due must come: two instructions each.
const ROUNDS: u64 = 20_000;

/// Runs a check in x2APIC mode.
fn in_x2apic_mode(report: &mut Report, check: fn(&mut Report)) {
    if !apic::has_x2() {
        return report.skip(format_args!("no x2APIC"));
    }
    if let Err(fault) = apic::enter_x2apic() {
        return report.error(format_args!("x2APIC mode: {fault}"));
    }
    exception::forget_interrupts();
    check(report);
    exception::on_nmi(None);
    exception::fill_idt();
    if let Err(fault) = apic::enter_xapic() {
        report.error(format_args!("back to xAPIC mode: {fault}"));
    }
}

/// Sends an NMI.
pub(crate) fn send() {
    // SAFETY: x2APIC mode is on, and NMIs have a handler.
    unsafe { asm!("wrmsr", in("ecx") ICR, in("eax") ICR_VALUE, in("edx") apic::read(register::ID), options(nostack)) }
}

/// Spins without an exit; gives how many NMIs there were by then.
fn count_without_exit() -> u32 {
    // SAFETY: a loop.
    unsafe { asm!("2: dec {0}", "jnz 2b", inout(reg) ROUNDS => _, options(nostack)) }
    exception::count(vector::NMI)
}

/// An NMI that comes while STI or MOV SS hold interrupts back is taken behind the instruction after it, that is behind the
/// WRMSR that sends it, and once.
fn shadow(report: &mut Report) {
    let id = apic::read(register::ID);
    /// Sends an NMI behind the instructions, and spins.
    macro_rules! send_behind {
        ($($line:literal),*) => {{
            exception::forget_interrupts();
            let (behind, end): (u64, u64);
            // SAFETY: NMIs have a handler, every other vector too; SS is loaded with what it has.
            unsafe {
                asm!(
                    "lea {behind}, [rip + 2f]", "lea {end}, [rip + 4f]", "mov {ss:e}, ss",
                    $($line,)*
                    "wrmsr",
                    "2: mov {ss}, {rounds}", "3: dec {ss}", "jnz 3b",
                    "4: cli",
                    behind = out(reg) behind, end = out(reg) end, ss = out(reg) _, rounds = const ROUNDS,
                    in("ecx") ICR, in("eax") ICR_VALUE, in("edx") id,
                );
            }
            let at_once = exception::count(vector::NMI);
            let rip = exception::last_rip();
            let name = concat!($($line, "; ",)* "WRMSR");
            report.expect(at_once == 1, format_args!("{name}: {at_once} NMIs before the next exit"));
            report.expect((behind..end).contains(&rip), format_args!("{name}: came at {rip:#x}, not from {behind:#x} on"));
            let _ = cpu::cpuid(0, 0);
            let all = exception::count(vector::NMI);
            report.expect(all == 1, format_args!("{name}: {all} NMIs"));
        }};
    }
    send_behind!();
    send_behind!("sti");
    send_behind!("cli");
    send_behind!("mov ss, {ss:e}");
    send_behind!("sti", "mov ss, {ss:e}");
}

/// What the handler saw while it was blocked.
static SEEN_IN_HANDLER: AtomicU32 = AtomicU32::new(0);
/// Where the first NMI came.
static FIRST_RIP: AtomicU64 = AtomicU64::new(0);

/// In the first NMI's handler: sends further ones, exits in every way, and lets pass what does not belong to the handler.
fn send_more() {
    if exception::count(vector::NMI) > 1 {
        return;
    }
    FIRST_RIP.store(exception::last_rip(), Relaxed);
    for _ in 0..3 {
        send();
        let _ = cpu::cpuid(0, 0);
        let _ = port::in8(port::scratch());
    }
    SEEN_IN_HANDLER.store(exception::count(vector::NMI), Relaxed);
}

/// In an NMI's handler further ones wait, whatever exits there are; of several, one is kept.
fn blocked(report: &mut Report) {
    exception::on_nmi(Some(send_more));
    send();
    count_without_exit();
    let _ = cpu::cpuid(0, 0);
    let _ = cpu::cpuid(0, 0);
    let seen = SEEN_IN_HANDLER.load(Relaxed);
    report.expect(seen == 1, format_args!("{seen} NMIs in the handler of the first"));
    let all = exception::count(vector::NMI);
    report.expect(all == 2, format_args!("{all} NMIs in all, not 2"));
}

/// The NMI that waits comes with the IRET, not with some exit later: before the interrupted code has gone far. How a hypervisor
/// finds the IRET's end does not show.
fn after_iret(report: &mut Report) {
    cpu::clear_dr6();
    let dr6 = cpu::dr6();
    exception::on_nmi(Some(send_more));
    send();
    let before_an_exit = count_without_exit();
    let first = FIRST_RIP.load(Relaxed);
    let distance = exception::last_rip().wrapping_sub(first);
    let _ = cpu::cpuid(0, 0);
    report.expect(before_an_exit == 2, format_args!("{before_an_exit} NMIs before the next exit, not 2"));
    let flags = exception::nmi_rflags();
    report.expect(flags & RFLAGS_TF == 0, format_args!("flags {flags:#x} at the second NMI"));
    report.expect(cpu::dr6() == dr6, format_args!("DR6 {:#x}, was {dr6:#x}", cpu::dr6()));
    report.note(format_args!("{distance} bytes behind the first"));
}

/// NMIs that came to the handler below.
#[unsafe(no_mangle)]
static PROBE_NMI_COUNT: AtomicU32 = AtomicU32::new(0);
/// The stack that it returns by.
#[unsafe(no_mangle)]
static PROBE_NMI_RETURN: AtomicU64 = AtomicU64::new(0);

// The first time it sends an NMI, which waits, exits, and returns by the stack given; it does not come back from there,
// so registers do not matter. The next times it just returns.
global_asm!(
    r#"
    .section .text.probe_nmi, "ax"
    .globl probe_nmi_bad_return, probe_nmi_bad_iret
probe_nmi_bad_return:
    lock incl PROBE_NMI_COUNT(%rip)
    cmpl $1, PROBE_NMI_COUNT(%rip)
    jne probe_nmi_good_iret
    movl ${id}, %ecx
    rdmsr
    movl %eax, %edx
    movl ${icr}, %ecx
    movl ${value}, %eax
    wrmsr
    xorl %eax, %eax
    cpuid
    movq PROBE_NMI_RETURN(%rip), %rsp
probe_nmi_bad_iret:
    iretq
probe_nmi_good_iret:
    iretq
    "#,
    id = const msr::X2APIC + register::ID / 16,
    icr = const ICR,
    value = const ICR_VALUE,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_nmi_bad_return();
    fn probe_nmi_bad_iret();
}

/// Has an NMI whose handler's IRET faults. Gives the fault, and how many NMIs there were when its handler had run and when
/// another IRET had been executed and some time had gone by.
fn bad_return(stack: u64) -> (Option<Fault>, u32, u32) {
    PROBE_NMI_COUNT.store(0, Relaxed);
    PROBE_NMI_RETURN.store(stack, Relaxed);
    exception::set_gate(vector::NMI, probe_nmi_bad_return as *const () as u64, 0);
    // The stack that IRET faults on may not be one to deliver the fault on.
    for number in [vector::GP, vector::SS, vector::PF] {
        exception::set_gate(number, exception::stub(number), 1);
    }
    let fault = exception::guarded(|| {
        send();
        count_without_exit();
    });
    // `guarded` comes back by the IRET of the fault's handler.
    let after_fault = PROBE_NMI_COUNT.load(Relaxed);
    count_without_exit();
    let _ = cpu::cpuid(0, 0);
    let _ = cpu::cpuid(0, 0);
    let in_the_end = PROBE_NMI_COUNT.load(Relaxed);
    exception::fill_idt();
    (fault, after_fault, in_the_end)
}

/// The handler's IRET faults: by a stack that is not mapped, by a code segment that does not exist, by an instruction
/// pointer that is not canonical. The fault is the IRET's. Intel's CPUs unblock NMIs in spite of it, before the fault's
/// handler is entered (SDM vol. 3, 6.7.1); AMD's manual leaves that open. The NMI that waits comes in the end, once.
fn iret_faults(report: &mut Report) {
    let window = Window::new();
    for (name, stack, wanted) in bad_returns() {
        let (fault, after_fault, in_the_end) = bad_return(stack);
        match fault {
            Some(fault) if fault.vector == wanted => {
                // An address that is not canonical may fault at itself, behind the IRET.
                let at = probe_nmi_bad_iret as *const () as u64;
                let flags = exception::caught_rflags();
                report.expect(flags & RFLAGS_TF == 0, format_args!("{name}: flags {flags:#x} at the fault"));
                report.expect(fault.rip == at || fault.rip == 1 << 63, format_args!("{name}: {fault}, not at {at:#x}"));
            }
            other => report.fail(format_args!("{name}: {other:?}")),
        }
        if cpu::is_intel() {
            report
                .expect(after_fault == 2, format_args!("{name}: {after_fault} NMIs behind the fault's handler, not 2"));
        }
        report.expect(in_the_end == 2, format_args!("{name}: {in_the_end} NMIs in the end, not 2"));
    }
    drop(window);
}

/// Stacks that an IRET faults on, and what it raises. A [`Window`] has to be there, with nothing in it.
fn bad_returns() -> [(&'static str, u64, u8); 3] {
    let frames = core::ptr::with_exposed_provenance_mut::<[u64; 5]>(0x62_0000);
    let good =
        [0x62_1000, u64::from(selector::KERNEL_CODE), 2, layout::SCRATCH + 0x2_2000, u64::from(selector::KERNEL_DATA)];
    let bad_segment = [good[0], 0xfff8, good[2], good[3], good[4]];
    let bad_address = [1 << 63, good[1], good[2], good[3], good[4]];
    // SAFETY: scratch memory.
    unsafe {
        frames.write_volatile(bad_segment);
        frames.add(1).write_volatile(bad_address);
    }
    let frame = |index: u64| layout::SCRATCH + 0x2_0000 + index * 40;
    [
        ("a stack that is not mapped", Window::page(3) + 0x800, vector::PF),
        ("a code segment that does not exist", frame(0), vector::GP),
        ("an address that is not canonical", frame(1), vector::GP),
    ]
}

/// NMIs whose handlers' IRETs fault, without end. The APIC is in x2APIC mode.
pub(crate) fn flood_with_bad_returns() -> ! {
    let _window = Window::new();
    loop {
        for (_, stack, _) in bad_returns() {
            let _ = bad_return(stack);
        }
    }
}
