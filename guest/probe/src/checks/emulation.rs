//! Instructions on device memory, which no CPU decodes for every hypervisor: the local APIC's page in the driver, and memory
//! that is nobody's in user mode (APM vol. 3 for what each instruction does).

use core::arch::asm;

use super::Check;
use super::skips_paravirtual;
use crate::apic;
use crate::apic::BASE;
use crate::apic::register;
use crate::layout;
use crate::report::Report;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "emulate-moves", run: moves },
    Check { name: "emulate-arithmetic", run: arithmetic },
    Check { name: "emulate-strings", run: strings },
    Check { name: "emulate-addressing", run: addressing },
    Check { name: "emulate-nobody", run: nobody },
];

/// A register of the APIC that keeps all bits of its value below bit 8 and means nothing here: LINT0's vector.
const CELL: u64 = BASE + 0x350;

/// Sets the register, which is masked.
fn set(value: u32) {
    apic::write(register::LVT_LINT0, apic::MASKED | value);
}

/// What it has.
fn get() -> u32 {
    apic::read(register::LVT_LINT0)
}

/// Goes to xAPIC mode, where registers are memory.
fn prepare(report: &mut Report) -> bool {
    if skips_paravirtual(report, "the APIC's registers in memory") {
        return false;
    }
    match apic::enter_xapic() {
        Ok(()) => true,
        Err(fault) => {
            report.error(format_args!("xAPIC mode: {fault}"));
            false
        }
    }
}

/// Executes one instruction with RDI at the register, RAX and RBX at given values; gives the register, RAX, RBX and flags
/// (CF, PF, AF, ZF, SF, OF).
macro_rules! run {
    ($line:literal, $cell:expr, $rax:expr, $rbx:expr) => {{
        set($cell);
        let (mut rax, mut rbx, mut flags): (u64, u64, u64) = ($rax, $rbx, 0);
        // SAFETY: works on the APIC's register and the registers named.
        unsafe {
            asm!(
                "xchg r14, rbx", "push 2", "popfq", $line, "pushfq", "pop r13", "xchg r14, rbx",
                inout("rax") rax, inout("r14") rbx, inout("r13") flags, in("rdi") CELL, out("rcx") _,
            );
        }
        flags &= 0x8d5;
        (get(), rax, rbx, flags)
    }};
}

/// As [`run!`], on memory: what the CPU itself makes of it.
macro_rules! run_native {
    ($line:literal, $cell:expr, $rax:expr, $rbx:expr) => {{
        let mut cell: u32 = apic::MASKED | $cell;
        let (mut rax, mut rbx, mut flags): (u64, u64, u64) = ($rax, $rbx, 0);
        // SAFETY: works on a local and the registers named.
        unsafe {
            asm!(
                "xchg r14, rbx", "push 2", "popfq", $line, "pushfq", "pop r13", "xchg r14, rbx",
                inout("rax") rax, inout("r14") rbx, inout("r13") flags, in("rdi") &raw mut cell, out("rcx") _,
            );
        }
        flags &= 0x8d5;
        (cell, rax, rbx, flags)
    }};
}

/// Compares both for each instruction; only the register's vector and mask count.
macro_rules! compare {
    ($report:ident, $($line:literal),+ $(,)?) => { $(
        for (cell, rax, rbx) in [(0x35_u32, 0x1_0042_u64, 0x1_0017_u64), (0xff, 0x1_0000, 0xffff_ffff_0001_00ff), (0, 0x1_0001, 0x1_0080)] {
            let (got, want) = (run!($line, cell, rax, rbx), run_native!($line, cell, rax, rbx));
            let kept = |cell: u32| cell & (apic::MASKED | 0xff);
            $report.expect(
                kept(got.0) == kept(want.0) && got.1 == want.1 && got.2 == want.2 && got.3 == want.3,
                format_args!("{} with {cell:#x}: {got:x?}, not {want:x?}", $line),
            );
        }
    )+ };
}

/// MOV in its forms, MOVZX and MOVSX are for other sizes, XCHG, CMPXCHG, XADD, PUSH and POP.
fn moves(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    compare!(
        report,
        "mov eax, [rdi]",
        "mov ebx, [rdi]",
        "mov [rdi], eax",
        "mov [rdi], ebx",
        "mov dword ptr [rdi], 0x10077",
        "xchg [rdi], eax",
        "lock xchg [rdi], ebx",
        "cmpxchg [rdi], ebx",
        "lock cmpxchg [rdi], ebx",
        "xadd [rdi], ebx",
    );
    let mut value: u64 = 0;
    set(0x66);
    // SAFETY: reads the register by the form of MOV that has the whole address.
    unsafe { asm!("movabs eax, [0xfee00350]", inout("rax") value) }
    report.expect(value == u64::from(apic::MASKED | 0x66), format_args!("MOV with a whole address: {value:#x}"));
    // SAFETY: writes it likewise.
    unsafe { asm!("movabs [0xfee00350], eax", in("eax") apic::MASKED | 0x67) }
    report.expect(get() & 0xff == 0x67, format_args!("MOV to a whole address: {:#x}", get()));
}

/// Arithmetic and logic with the register as source or target, with their flags.
fn arithmetic(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    compare!(
        report,
        "add eax, [rdi]",
        "sub eax, [rdi]",
        "and ebx, [rdi]",
        "or ebx, [rdi]",
        "xor ebx, [rdi]",
        "cmp [rdi], eax",
        "cmp eax, [rdi]",
        "cmp dword ptr [rdi], 0x10035",
        "test [rdi], ebx",
        "test dword ptr [rdi], 0x80",
        "or [rdi], ebx",
        "lock or dword ptr [rdi], 0x10081",
        "and dword ptr [rdi], 0x1000f",
        "xor dword ptr [rdi], 0x3c",
        "inc dword ptr [rdi]",
        "bt dword ptr [rdi], 4",
        "bts dword ptr [rdi], 3",
        "lock btr dword ptr [rdi], 0",
        "btc dword ptr [rdi], 5",
    );
}

/// MOVS between register and memory, STOS, LODS.
fn strings(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    let mut memory = [0_u32; 4];
    set(0x21);
    // SAFETY: copies the register into a local.
    unsafe { asm!("cld", "movsd", inout("rsi") CELL => _, inout("rdi") &raw mut memory => _) }
    report.expect(memory[0] == apic::MASKED | 0x21, format_args!("MOVSD from the register: {memory:x?}"));
    memory[0] = apic::MASKED | 0x22;
    // SAFETY: copies a local into the register.
    unsafe { asm!("movsd", inout("rsi") &raw const memory => _, inout("rdi") CELL => _) }
    report.expect(get() & 0xff == 0x22, format_args!("MOVSD to the register: {:#x}", get()));
    // SAFETY: stores into the register.
    unsafe { asm!("stosd", inout("rdi") CELL => _, in("eax") apic::MASKED | 0x23) }
    report.expect(get() & 0xff == 0x23, format_args!("STOSD: {:#x}", get()));
    let value: u32;
    // SAFETY: loads from the register.
    unsafe { asm!("lodsd", inout("rsi") CELL => _, out("eax") value) }
    report.expect(value == apic::MASKED | 0x23, format_args!("LODSD: {value:#x}"));
    // Nobody's memory, four times: all ones.
    let mut ones = [0_u32; 4];
    let mut count = 4_u64;
    // SAFETY: copies nobody's memory into a local.
    unsafe { asm!("rep movsd", inout("rsi") layout::HOLE => _, inout("rdi") &raw mut ones => _, inout("rcx") count) }
    report.expect(count == 0 && ones == [u32::MAX; 4], format_args!("REP MOVSD from nobody: {ones:x?}, RCX {count}"));
}

/// Addresses by base, index, displacement, instruction pointer, segment base and 32-bit registers.
fn addressing(report: &mut Report) {
    if !prepare(report) {
        return;
    }
    set(0x5b);
    let wanted = u64::from(apic::MASKED | 0x5b);
    let value: u64;
    // SAFETY: reads the register.
    unsafe { asm!("mov eax, [r8 + r9 * 8 + 0x50]", in("r8") BASE, in("r9") 0x60_u64, out("rax") value) }
    report.expect(value == wanted, format_args!("base, index and displacement: {value:#x}"));
    let value: u64;
    // SAFETY: reads the register.
    unsafe { asm!("mov r15d, [r13 - 0x10]", in("r13") CELL + 0x10, out("r15") value) }
    report.expect(value == wanted, format_args!("negative displacement: {value:#x}"));
    let value: u64;
    // SAFETY: reads the register; the upper half of RSI does not count.
    unsafe { asm!("mov eax, [esi]", in("rsi") CELL | 1 << 40, out("rax") value) }
    report.expect(value == wanted, format_args!("32-bit address: {value:#x}"));
    let before = crate::cpu::rdmsr(crate::cpu::msr::GS_BASE);
    let _ = crate::cpu::try_wrmsr(crate::cpu::msr::GS_BASE, BASE);
    let value: u64;
    // SAFETY: reads the register.
    unsafe { asm!("mov eax, gs:[0x350]", out("rax") value) }
    let _ = crate::cpu::try_wrmsr(crate::cpu::msr::GS_BASE, before);
    report.expect(value == wanted, format_args!("segment base: {value:#x}"));
}

/// Memory that is nobody's reads as ones in every size, and takes writes.
fn nobody(report: &mut Report) {
    if xen::active() && !xen::is_covisor() {
        // Who knows what a machine has there whose owner the probe is.
        return report.skip(format_args!("needs memory that is nobody's"));
    }
    /// Reads with RAX at zero.
    macro_rules! read {
        ($line:literal, $wanted:expr) => {{
            let mut rax = 0_u64;
            // SAFETY: reads nobody's memory.
            unsafe { asm!($line, inout("rax") rax, in("rdi") layout::HOLE) }
            report.expect(rax == $wanted, format_args!("{}: {rax:#x}", $line));
        }};
    }
    read!("mov al, [rdi]", 0xff);
    read!("mov ax, [rdi]", 0xffff);
    read!("mov eax, [rdi]", 0xffff_ffff);
    read!("mov rax, [rdi]", u64::MAX);
    read!("movzx eax, byte ptr [rdi + 3]", 0xff);
    read!("movzx eax, word ptr [rdi + 1]", 0xffff);
    read!("movsx rax, byte ptr [rdi]", u64::MAX);
    read!("movsx eax, word ptr [rdi]", 0xffff_ffff);
    read!("movsxd rax, dword ptr [rdi]", u64::MAX);
    // SAFETY: writes nobody's memory.
    unsafe {
        asm!(
            "mov [rdi], al", "mov [rdi], ax", "mov [rdi], eax", "mov [rdi], rax", "mov byte ptr [rdi], 5",
            "mov word ptr [rdi + 1], 5", "mov qword ptr [rdi + 8], -5", "or byte ptr [rdi], 1",
            in("rdi") layout::HOLE, in("rax") 0_u64,
        );
    }
}
