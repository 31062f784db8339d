//! Control, debug and extended control registers: values are taken or raise #GP as the manual says.

use super::Check;
use super::skips_paravirtual;
use crate::cpu;
use crate::cpu::cr0;
use crate::cpu::cr4;
use crate::cpu::msr;
use crate::exception::Fault;
use crate::exception::vector;
use crate::report::Report;
use crate::rng::Rng;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "cr0-random", run: cr0_random },
    Check { name: "cr4-random", run: cr4_random },
    Check { name: "cr8", run: cr8 },
    Check { name: "efer-random", run: efer_random },
    Check { name: "xcr0-random", run: xcr0_random },
    Check { name: "debug-registers", run: debug_registers },
];

/// Values tried of each register.
const ROUNDS: usize = 500;

/// Compares what happened with what should: `wanted` says whether the value is valid.
fn judge(report: &mut Report, name: &str, value: u64, wanted: bool, result: Result<(), Fault>) {
    match result {
        Ok(()) => report.expect(wanted, format_args!("{name} = {value:#x} is taken")),
        Err(fault) if fault.is_gp0() => report.expect(!wanted, format_args!("{name} = {value:#x} raises #GP")),
        Err(fault) => report.fail(format_args!("{name} = {value:#x}: {fault}")),
    }
}

/// CR0 (APM vol. 2, 3.1.1): bits 63 to 32 are 0, paging needs protected mode and cannot be left in 64-bit mode, NW needs
/// CD. Other reserved bits are ignored.
fn cr0_random(report: &mut Report) {
    if skips_paravirtual(report, "control registers of its own") {
        return;
    }
    let before = cpu::cr0();
    let mut rng = Rng::new(0);
    for _ in 0..ROUNDS {
        let value = before ^ rng.few_bits();
        let valid = value >> 32 == 0
            && value & cr0::PG != 0
            && value & cr0::PE != 0
            && (value & cr0::NW == 0 || value & cr0::CD != 0);
        let result = cpu::try_set_cr0(value);
        let _ = cpu::cpuid(0, 0);
        let _ = cpu::try_set_cr0(before);
        if value >> 32 != 0 && result.is_ok() {
            report.expect_of_cpu(false, format_args!("CR0 = {value:#x} is taken"));
        } else {
            judge(report, "CR0", value, valid, result);
        }
    }
    report.expect(cpu::cr0() == before, format_args!("CR0 is {:#x}, was {before:#x}", cpu::cr0()));
}

/// CR4's bits and the CPUID bits that they need (APM vol. 2, 3.1.3): leaf, whether ECX (else EBX or EDX), bit.
pub(super) fn cr4_mask() -> u64 {
    let (one, seven) = (cpu::cpuid(1, 0), cpu::cpuid(7, 0));
    let bit = |register: u32, bit: u32, target: u32| u64::from(register >> bit & 1) << target;
    bit(one.edx, 1, 0) | bit(one.edx, 1, 1)  // VME, PVI
        | bit(one.edx, 4, 2)                 // TSD
        | bit(one.edx, 2, 3)                 // DE
        | bit(one.edx, 3, 4)                 // PSE
        | bit(one.edx, 6, 5)                 // PAE
        | bit(one.edx, 7, 6)                 // MCE
        | bit(one.edx, 13, 7)                // PGE
        | 1 << 8                             // PCE
        | bit(one.edx, 24, 9)                // OSFXSR
        | bit(one.edx, 25, 10)               // OSXMMEXCPT
        | bit(seven.ecx, 2, 11)              // UMIP
        | bit(seven.ecx, 16, 12)             // LA57, which cannot change in long mode
        | bit(seven.ebx, 0, 16)              // FSGSBASE
        | bit(one.ecx, 17, 17)               // PCIDE
        | bit(one.ecx, 26, 18)               // OSXSAVE
        | bit(seven.ebx, 7, 20)              // SMEP
        | bit(seven.ebx, 20, 21)             // SMAP
        | bit(seven.ecx, 3, 22) // PKE
}

/// CR4: a bit that CPUID does not promise raises #GP, as does leaving PAE in long mode.
fn cr4_random(report: &mut Report) {
    if skips_paravirtual(report, "control registers of its own") {
        return;
    }
    let before = cpu::cr4();
    let mask = cr4_mask() & !(1 << 12);
    let mut rng = Rng::new(4);
    for _ in 0..ROUNDS {
        let value = before ^ rng.few_bits();
        let valid = value & !mask == 0 && value & cr4::PAE != 0;
        let result = cpu::try_set_cr4(value);
        let _ = cpu::cpuid(0, 0);
        let _ = cpu::try_set_cr4(before);
        judge(report, "CR4", value, valid, result);
    }
    report.expect(cpu::cr4() == before, format_args!("CR4 is {:#x}, was {before:#x}", cpu::cr4()));
}

/// CR8 has four bits (APM vol. 2, 3.1.5).
fn cr8(report: &mut Report) {
    if skips_paravirtual(report, "an APIC") {
        return;
    }
    for value in 0..16 {
        judge(report, "CR8", value, true, cpu::try_set_cr8(value));
        let _ = cpu::cpuid(0, 0);
        report.expect(cpu::cr8() == value, format_args!("CR8 is {:#x}, not {value:#x}", cpu::cr8()));
    }
    let _ = cpu::try_set_cr8(0);
    for value in [16, 0xff, 1 << 32, u64::MAX] {
        match cpu::try_set_cr8(value) {
            Ok(()) => report.expect_of_cpu(false, format_args!("CR8 = {value:#x} is taken")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("CR8 = {value:#x}: {fault}")),
        }
    }
    let _ = cpu::try_set_cr8(0);
}

/// EFER (APM vol. 2, 3.1.7): SCE and NXE are the guest's, others as CPUID says, LME stays. A change of LMA raises #GP or
/// is ignored.
fn efer_random(report: &mut Report) {
    if skips_paravirtual(report, "control registers of its own") {
        return;
    }
    const LMA: u64 = 1 << 10;
    const OPTIONAL: u64 = 1 << 13;
    let features = cpu::cpuid(0x8000_0001, 0);
    let fast_fxsave = u64::from(features.edx >> 25 & 1) << 14;
    let translation_cache = u64::from(features.ecx >> 17 & 1) << 15;
    let known = 1 | 1 << 8 | LMA | 1 << 11 | fast_fxsave | translation_cache;
    let before = cpu::rdmsr(msr::EFER);
    let mut rng = Rng::new(5);
    for _ in 0..ROUNDS {
        let value = before ^ rng.few_bits();
        let valid = value & !known == 0 && value & 1 << 8 != 0;
        let result = cpu::try_wrmsr(msr::EFER, value);
        let _ = cpu::cpuid(0, 0);
        let _ = cpu::try_wrmsr(msr::EFER, before);
        if (value ^ before) & (LMA | OPTIONAL) == 0 {
            judge(report, "EFER", value, valid, result);
        } else if let Err(fault) = result {
            report.expect(fault.is_gp0(), format_args!("EFER = {value:#x}: {fault}"));
        }
    }
    report
        .expect(cpu::rdmsr(msr::EFER) == before, format_args!("EFER is {:#x}, was {before:#x}", cpu::rdmsr(msr::EFER)));
}

/// Whether XCR0 may have this value on a CPU with these components (Intel SDM vol. 1, 13.3; APM vol. 2, 11.5.2).
const fn xcr0_valid(value: u64, supported: u64) -> bool {
    const AVX: u64 = 1 << 2;
    const MPX: u64 = 3 << 3;
    const AVX512: u64 = 7 << 5;
    const AMX: u64 = 3 << 17;
    value & !supported == 0
        && value & 1 != 0
        && (value & AVX == 0 || value & 2 != 0)
        && (value & MPX == 0 || value & MPX == MPX)
        && (value & AVX512 == 0 || value & AVX512 == AVX512 && value & AVX != 0)
        && (value & AMX == 0 || value & AMX == AMX)
}

/// XCR0 takes the values that leaf 0xd promises and refuses all others by #GP.
fn xcr0_random(report: &mut Report) {
    if !cpu::has_xsave() {
        return report.skip(format_args!("no XSAVE"));
    }
    let old_cr4 = cpu::cr4();
    if let Err(fault) = cpu::try_set_cr4(old_cr4 | cr4::OSXSAVE) {
        return report.fail(format_args!("CR4.OSXSAVE: {fault}"));
    }
    let leaf = cpu::cpuid(0xd, 0);
    let supported = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    let before = cpu::xcr0();
    let mut rng = Rng::new(6);
    let small = 0..1024_u64;
    let random = core::iter::repeat_with(|| before ^ rng.few_bits()).take(ROUNDS);
    for value in small.chain(random) {
        let result = cpu::try_xsetbv(0, value);
        let taken = result.is_ok();
        judge(report, "XCR0", value, xcr0_valid(value, supported), result);
        if taken {
            report.expect(cpu::xcr0() == value, format_args!("XCR0 is {:#x}, not {value:#x}", cpu::xcr0()));
        }
    }
    let _ = cpu::try_xsetbv(0, before);
    let _ = cpu::try_set_cr4(old_cr4);
}

/// Debug registers (APM vol. 2, 13.1.1): DR0 to DR3 keep addresses over exits, DR6 and DR7 refuse an upper half by #GP, DR4
/// is DR6 or #UD by CR4.DE, DR7.GD raises #DB at any access.
fn debug_registers(report: &mut Report) {
    if skips_paravirtual(report, "debug registers of its own") {
        return;
    }
    let values = [0x1111_2222_3333_u64, 0x2222, 0x7fff_ffff_fff0, 0xffff_8000_0000_0000];
    let results = [
        cpu::try_set_dr0(values[0]),
        cpu::try_set_dr1(values[1]),
        cpu::try_set_dr2(values[2]),
        cpu::try_set_dr3(values[3]),
    ];
    for fault in results.into_iter().filter_map(Result::err) {
        report.fail(format_args!("DR0 to DR3: {fault}"));
    }
    let _ = crate::port::in8(crate::port::scratch());
    let _ = cpu::cpuid(0, 0);
    let read = [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()];
    report.expect(read == values, format_args!("DR0 to DR3 are {read:x?}, not {values:x?}"));
    for (name, result) in
        [("DR6", cpu::try_set_dr6(1 << 32)), ("DR7", cpu::try_set_dr7(1 << 32)), ("DR7", cpu::try_set_dr7(1 << 63))]
    {
        judge(report, name, 1 << 32, false, result);
    }
    let before = cpu::cr4();
    let _ = cpu::try_set_cr4(before & !cr4::DE);
    if let Some(fault) = catch!([".byte 0x0f, 0x21, 0xe0"], out("rax") _) {
        report.fail(format_args!("DR4 without CR4.DE: {fault}"));
    }
    let _ = cpu::try_set_cr4(before | cr4::DE);
    match catch!([".byte 0x0f, 0x21, 0xe0"], out("rax") _) {
        Some(fault) => report.expect(fault.vector == vector::UD, format_args!("DR4 with CR4.DE: {fault}")),
        None => report.fail(format_args!("DR4 with CR4.DE can be read")),
    }
    let _ = cpu::try_set_cr4(before);
    // DR7.GD, bit 13; the exception clears it (APM vol. 2, 13.1.1.4).
    let _ = cpu::try_set_dr7(1 << 13 | 1 << 10);
    match catch!(["mov {}, dr0"], out(reg) _) {
        Some(fault) => report.expect(fault.vector == vector::DB, format_args!("DR7.GD: {fault}")),
        None => report.expect_of_cpu(false, format_args!("DR7.GD does not protect DR0")),
    }
    report.expect_of_cpu(cpu::dr7() & 1 << 13 == 0, format_args!("DR7.GD is still set after #DB"));
    for result in
        [cpu::try_set_dr7(1 << 10), cpu::try_set_dr0(0), cpu::try_set_dr1(0), cpu::try_set_dr2(0), cpu::try_set_dr3(0)]
    {
        if let Err(fault) = result {
            report.fail(format_args!("debug registers cannot be cleared: {fault}"));
        }
    }
    cpu::clear_dr6();
}
