//! Each bit of CR0 and CR4 in turn, by every instruction that writes or reads it: what the guest reads is what it wrote,
//! whatever of the register belongs to the hypervisor.

use core::arch::asm;

use super::Check;
use super::control::cr4_mask;
use crate::cpu;
use crate::cpu::cr0;
use crate::cpu::cr4;
use crate::report::Report;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "cr0-bits", run: cr0_bits }, Check { name: "cr4-bits", run: cr4_bits }];

/// CR0's bits that are not reserved (APM vol. 2, 3.1.1; SDM vol. 3, 2.5).
const CR0_DEFINED: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// The bits that LMSW writes.
const MACHINE_STATUS: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;

/// Expects a value of CR0 from MOV and from SMSW in each of its sizes, before and after an exit.
fn expect_cr0(report: &mut Report, wanted: u64, what: core::fmt::Arguments<'_>) {
    for time in ["at once", "after an exit"] {
        let (whole, half, mut word): (u64, u64, u16);
        word = 0;
        let read = cpu::cr0();
        // SAFETY: stores a register.
        unsafe {
            asm!("smsw {0}", "smsw {1:e}", "smsw word ptr [{2}]", out(reg) whole, out(reg) half, in(reg) &raw mut word);
        }
        report.expect(read == wanted, format_args!("{what}, {time}: MOV reads CR0 as {read:#x}, not {wanted:#x}"));
        // Of the upper bits APM and SDM agree that they are CR0's; the 32-bit form may leave them out.
        report.expect(whole == wanted, format_args!("{what}, {time}: SMSW gives {whole:#x}, not {wanted:#x}"));
        report
            .expect(half & 0xffff == wanted & 0xffff, format_args!("{what}, {time}: SMSW gives {half:#x} in 32 bits"));
        report.expect(u64::from(word) == wanted & 0xffff, format_args!("{what}, {time}: SMSW stores {word:#x}"));
        let _ = cpu::cpuid(0, 0);
    }
}

/// CR0 by MOV, LMSW and CLTS. NE, which VMX itself needs set, is a guest's as all others are; reserved bits are ignored
/// and ET stays 1.
fn cr0_bits(report: &mut Report) {
    let before = cpu::cr0();
    for bit in (0..32).map(|bit| 1_u64 << bit).filter(|bit| bit & (cr0::PE | cr0::PG) == 0) {
        // NW needs CD.
        let value = if bit == cr0::NW { before ^ bit | cr0::CD } else { before ^ bit };
        match cpu::try_set_cr0(value) {
            Ok(()) => expect_cr0(report, value & CR0_DEFINED | cr0::ET, format_args!("CR0 = {value:#x}")),
            Err(fault) => report.fail(format_args!("CR0 = {value:#x}: {fault}")),
        }
        let _ = cpu::try_set_cr0(before);
        expect_cr0(report, before, format_args!("back from {value:#x}"));
    }
    for first in (0..16).map(|bits| before & !MACHINE_STATUS | bits | cr0::PE) {
        for second in 0..16 {
            let _ = cpu::try_set_cr0(first);
            let raised = catch!(["lmsw {0:x}"], in(reg) 0xfff0_u64 | second);
            let now = cpu::cr0();
            let wanted = first & !MACHINE_STATUS | second | cr0::PE;
            report.expect(
                raised.is_none() && now == wanted,
                format_args!("LMSW of {second:#x} at {first:#x}: CR0 is {now:#x}, raised {raised:?}"),
            );
        }
        let _ = cpu::try_set_cr0(first);
        let raised = catch!(["clts"]);
        expect_cr0(report, first & !cr0::TS, format_args!("CLTS at {first:#x}, which raised {raised:?}"));
    }
    let _ = cpu::try_set_cr0(before);
}

/// CR4 by MOV: each bit that CPUID promises can be set and cleared, but for those that hold in long mode (PAE, LA57);
/// each other one raises #GP and changes nothing. VMXE, which VMX itself needs set, reads as 0.
fn cr4_bits(report: &mut Report) {
    const FIXED: u64 = cr4::PAE | cr4::LA57;
    let before = cpu::cr4();
    let mask = cr4_mask() & !FIXED;
    for bit in (0..64).map(|bit| 1_u64 << bit) {
        let value = before ^ bit;
        let (taken, wanted) = match cpu::try_set_cr4(value) {
            Ok(()) => (true, value),
            Err(fault) => {
                report.expect(fault.is_gp0(), format_args!("CR4 = {value:#x}: {fault}"));
                (false, before)
            }
        };
        report.expect(taken == (bit & mask != 0), format_args!("CR4 = {value:#x} is taken: {taken}"));
        for time in ["at once", "after an exit"] {
            let now = cpu::cr4();
            report.expect(now == wanted, format_args!("CR4 = {value:#x}, {time}: reads as {now:#x}"));
            let _ = cpu::cpuid(0, 0);
        }
        let _ = cpu::try_set_cr4(before);
        let now = cpu::cr4();
        report.expect(now == before, format_args!("CR4 back from {value:#x}: {now:#x}, was {before:#x}"));
    }
}
