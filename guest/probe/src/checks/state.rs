//! The guest's state outlives exits of every depth: those that the driver answers, those that go to user mode, and waiting.

use core::arch::asm;

use super::Check;
use super::skips_paravirtual;
use crate::apic;
use crate::apic::register;
use crate::cpu;
use crate::cpu::cr4;
use crate::cpu::msr;
use crate::port;
use crate::report::Report;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "state-general", run: general },
    Check { name: "state-vector", run: vector_registers },
    Check { name: "state-x87", run: x87 },
    Check { name: "state-system", run: system },
];

/// How long [`exits`] waits: counts of the timer, which are nanoseconds.
const TIMER_COUNTS: u32 = 300_000;

/// Exits of every depth.
fn exits() {
    let _ = cpu::cpuid(0, 0);
    let _ = cpu::try_rdmsr(msr::APIC_BASE);
    let _ = port::in8(port::scratch());
    port::out8(port::scratch(), 1);
    // SAFETY: device memory, or nothing.
    let _ = unsafe { core::ptr::with_exposed_provenance::<u32>(0xd000_0000).read_volatile() };
    if xen::active() {
        xen::timer::after(TIMER_COUNTS.into());
        return cpu::wait_for_interrupt();
    }
    // Periodic: where a wake-up is lost (see `halt-wake-many`), the next one comes.
    apic::write(register::LVT_TIMER, apic::TIMER_PERIODIC | 0x4a);
    apic::write(register::TIMER_INITIAL, TIMER_COUNTS);
    cpu::wait_for_interrupt();
    apic::write(register::TIMER_INITIAL, 0);
    cpu::take_interrupts();
}

/// The general registers keep their values over an exit of each kind, but for those that the instruction changes.
fn general(report: &mut Report) {
    /// Fills the registers, executes, stores them; RAX, RDX and RSP are the instruction's.
    macro_rules! survive {
        ($name:literal, $line:literal, $port:expr) => {{
            let mut after = [0_u64; 12];
            // SAFETY: all registers that are changed are named or restored.
            unsafe {
                asm!(
                    "push rbx", "push rbp", "push r15",
                    "mov rbx, 0x0101010101010101", "mov rbp, 0x0202020202020202", "mov rsi, 0x0303030303030303",
                    "mov rdi, 0x0404040404040404", "mov r8, 0x0505050505050505", "mov r9, 0x0606060606060606",
                    "mov r10, 0x0707070707070707", "mov r11, 0x0808080808080808", "mov r12, 0x0909090909090909",
                    "mov r13, 0x0a0a0a0a0a0a0a0a", "mov r14, 0x0b0b0b0b0b0b0b0b", "mov rcx, 0x0c0c0c0c0c0c0c0c",
                    $line,
                    "mov r15, [rsp]",
                    "mov [r15], rbx", "mov [r15 + 8], rbp", "mov [r15 + 16], rsi", "mov [r15 + 24], rdi",
                    "mov [r15 + 32], r8", "mov [r15 + 40], r9", "mov [r15 + 48], r10", "mov [r15 + 56], r11",
                    "mov [r15 + 64], r12", "mov [r15 + 72], r13", "mov [r15 + 80], r14", "mov [r15 + 88], rcx",
                    "pop r15", "pop rbp", "pop rbx",
                    inout("r15") &raw mut after => _, inout("rax") 1_u64 => _, inout("rdx") u64::from($port) => _,
                    out("rcx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                    out("r12") _, out("r13") _, out("r14") _,
                );
            }
            for (value, byte) in after.into_iter().zip(1_u8..) {
                let wanted = u64::from_le_bytes([byte; 8]);
                report.expect(value == wanted, format_args!("{}: register {byte} is {value:#x}", $name));
            }
        }};
    }
    survive!("IN from user mode", "in al, dx", port::scratch());
    survive!("OUT to user mode", "out dx, al", port::scratch());
    survive!("IN from the driver", "in eax, dx", 0x608_u16);
    survive!("device memory", "mov eax, [0xd0000000]", 0_u16);
    if xen::active() {
        // Its hypercall has its own check, and it has no APIC.
        return survive!("WBINVD", "wbinvd", 0_u16);
    }
    with_hypercall!(survive, 0_u16);
    survive!("the APIC", "mov eax, [0xfee00030]", 0_u16);
    survive!("WBINVD", "wbinvd", 0_u16);
}

/// A pattern that differs in every byte of every register.
fn pattern(index: usize) -> u8 {
    u8::try_from(index * 7 % 251).unwrap_or(0)
}

/// 16 vector registers in memory.
#[repr(C, align(64))]
struct Vectors([u8; 512]);

/// Goes to xAPIC mode where there is an APIC.
fn prepare(report: &mut Report) -> bool {
    let entered = if xen::active() { Ok(()) } else { apic::enter_xapic() };
    if let Err(fault) = entered {
        report.error(format_args!("xAPIC mode: {fault}"));
    }
    entered.is_ok()
}

/// XMM or YMM registers, and MXCSR.
fn vector_registers(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    let old_cr4 = cpu::cr4();
    let avx = cpu::has_xsave()
        && cpu::cpuid(1, 0).ecx & 1 << 28 != 0
        && cpu::try_set_cr4(old_cr4 | cr4::OSXSAVE).is_ok()
        && cpu::try_xsetbv(0, 7).is_ok();
    let mut before = Vectors([0; 512]);
    before.0.iter_mut().enumerate().for_each(|(index, byte)| *byte = pattern(index));
    let mut after = Vectors([0; 512]);
    let (mxcsr, mut mxcsr_after) = (0x1fc0_u32, 0_u32);
    /// Loads or stores the 16 registers, `$step` bytes each.
    macro_rules! move_all {
        (load, $instruction:literal, $register:literal, $step:literal, $at:expr) => {
            asm!(
                concat!($instruction, " ", $register, "0, [{0}]"), concat!($instruction, " ", $register, "1, [{0} + 1 * ", $step, "]"),
                concat!($instruction, " ", $register, "2, [{0} + 2 * ", $step, "]"), concat!($instruction, " ", $register, "3, [{0} + 3 * ", $step, "]"),
                concat!($instruction, " ", $register, "4, [{0} + 4 * ", $step, "]"), concat!($instruction, " ", $register, "5, [{0} + 5 * ", $step, "]"),
                concat!($instruction, " ", $register, "6, [{0} + 6 * ", $step, "]"), concat!($instruction, " ", $register, "7, [{0} + 7 * ", $step, "]"),
                concat!($instruction, " ", $register, "8, [{0} + 8 * ", $step, "]"), concat!($instruction, " ", $register, "9, [{0} + 9 * ", $step, "]"),
                concat!($instruction, " ", $register, "10, [{0} + 10 * ", $step, "]"), concat!($instruction, " ", $register, "11, [{0} + 11 * ", $step, "]"),
                concat!($instruction, " ", $register, "12, [{0} + 12 * ", $step, "]"), concat!($instruction, " ", $register, "13, [{0} + 13 * ", $step, "]"),
                concat!($instruction, " ", $register, "14, [{0} + 14 * ", $step, "]"), concat!($instruction, " ", $register, "15, [{0} + 15 * ", $step, "]"),
                in(reg) $at
            )
        };
        (store, $instruction:literal, $register:literal, $step:literal, $at:expr) => {
            asm!(
                concat!($instruction, " [{0}], ", $register, "0"), concat!($instruction, " [{0} + 1 * ", $step, "], ", $register, "1"),
                concat!($instruction, " [{0} + 2 * ", $step, "], ", $register, "2"), concat!($instruction, " [{0} + 3 * ", $step, "], ", $register, "3"),
                concat!($instruction, " [{0} + 4 * ", $step, "], ", $register, "4"), concat!($instruction, " [{0} + 5 * ", $step, "], ", $register, "5"),
                concat!($instruction, " [{0} + 6 * ", $step, "], ", $register, "6"), concat!($instruction, " [{0} + 7 * ", $step, "], ", $register, "7"),
                concat!($instruction, " [{0} + 8 * ", $step, "], ", $register, "8"), concat!($instruction, " [{0} + 9 * ", $step, "], ", $register, "9"),
                concat!($instruction, " [{0} + 10 * ", $step, "], ", $register, "10"), concat!($instruction, " [{0} + 11 * ", $step, "], ", $register, "11"),
                concat!($instruction, " [{0} + 12 * ", $step, "], ", $register, "12"), concat!($instruction, " [{0} + 13 * ", $step, "], ", $register, "13"),
                concat!($instruction, " [{0} + 14 * ", $step, "], ", $register, "14"), concat!($instruction, " [{0} + 15 * ", $step, "], ", $register, "15"),
                in(reg) $at
            )
        };
    }
    // SAFETY: the probe's code uses no vector registers, the CPU's support for them is on, and memory and sizes fit.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr);
        if avx {
            move_all!(load, "vmovups", "ymm", "32", &raw const before);
        } else {
            move_all!(load, "movups", "xmm", "16", &raw const before);
        }
    }
    for _ in 0..20 {
        exits();
    }
    // SAFETY: as above.
    unsafe {
        if avx {
            move_all!(store, "vmovups", "ymm", "32", &raw mut after);
        } else {
            move_all!(store, "movups", "xmm", "16", &raw mut after);
        }
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr_after);
    }
    let bytes = if avx { 512 } else { 256 };
    let wrong = (0..bytes).find(|index| before.0.get(*index) != after.0.get(*index));
    if let Some(index) = wrong {
        report.fail(format_args!("byte {index} of {bytes} changed"));
    }
    report.expect(mxcsr_after == mxcsr, format_args!("MXCSR {mxcsr_after:#x}, not {mxcsr:#x}"));
    if avx {
        report.expect(cpu::xcr0() == 7, format_args!("XCR0 is {:#x}", cpu::xcr0()));
    }
    report.note(format_args!("{}", if avx { "YMM" } else { "XMM" }));
    let _ = cpu::try_set_cr4(old_cr4);
}

/// The x87 stack and control word.
fn x87(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    let (control, mut control_after, mut value) = (0x027f_u16, 0_u16, 0_u64);
    // SAFETY: the probe's code uses no x87 registers.
    unsafe { asm!("fninit", "fldcw [{}]", "fldpi", "fld1", in(reg) &raw const control) }
    for _ in 0..20 {
        exits();
    }
    // SAFETY: as above; the two values are popped.
    unsafe {
        asm!("fnstcw [{}]", "fstp st(0)", "fstp qword ptr [{}]", in(reg) &raw mut control_after, in(reg) &raw mut value)
    }
    report.expect(control_after == control, format_args!("control word {control_after:#x}"));
    report.expect(value == core::f64::consts::PI.to_bits(), format_args!("pi is {value:#x}"));
}

/// Registers that VMLOAD and VMSAVE or the host's own switch carry (APM vol. 2, 15.5.2), and others that a host uses too.
fn system(report: &mut Report) {
    if skips_paravirtual(report, "ring 0") {
        return;
    }
    if let Err(fault) = apic::enter_xapic() {
        return report.error(format_args!("xAPIC mode: {fault}"));
    }
    let registers = [
        (msr::FS_BASE, 0x1000_2000_3000_u64),
        (msr::GS_BASE, 0xffff_8000_1234_5000),
        (msr::KERNEL_GS_BASE, 0x7fff_0000_1000),
        (0xc000_0081, 0x0023_0010_0000_0000),
        (msr::LSTAR, 0xffff_ffff_8100_0000),
        (msr::CSTAR, 0xffff_ffff_8200_0000),
        (0xc000_0084, 0x4_7700),
        (0x174, 0x10),
        (msr::SYSENTER_ESP, 0xfff0),
        (msr::SYSENTER_EIP, 0xfff8),
        (msr::PAT, 0x0007_0406_0007_0106),
    ];
    let before = registers.map(|(index, _)| cpu::rdmsr(index));
    for (index, value) in registers {
        if let Err(fault) = cpu::try_wrmsr(index, value) {
            report.fail(format_args!("WRMSR {index:#x}: {fault}"));
        }
    }
    let _ = cpu::try_set_cr8(3);
    // A fault to an address that CR2 keeps.
    let _ = catch!(["mov al, [{0}]"], in(reg) 0x7_1234_5678_u64, out("al") _);
    for _ in 0..5 {
        let _ = cpu::cpuid(0, 0);
        let _ = port::in8(port::scratch());
        let _ = cpu::try_rdmsr(msr::APIC_BASE);
    }
    report.expect(cpu::cr2() == 0x7_1234_5678, format_args!("CR2 is {:#x}", cpu::cr2()));
    report.expect(cpu::cr8() == 3, format_args!("CR8 is {:#x}", cpu::cr8()));
    let _ = cpu::try_set_cr8(0);
    exits();
    for ((index, value), before) in registers.into_iter().zip(before) {
        let now = cpu::rdmsr(index);
        report.expect(now == value, format_args!("MSR {index:#x} is {now:#x}, not {value:#x}"));
        let _ = cpu::try_wrmsr(index, before);
    }
    let task: u64;
    // SAFETY: reads the task register.
    unsafe { asm!("str {}", out(reg) task, options(nomem, nostack)) }
    report.expect(task & 0xffff == 0x38, format_args!("TR is {task:#x}"));
}
