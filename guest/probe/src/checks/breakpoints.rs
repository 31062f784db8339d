//! Hardware breakpoints that are switched on and off one right after the other (APM vol. 2, 13.1.1; SDM vol. 3, 18.2):
//! those that are on hit, those that are off do not, and nothing but the MOVs to the debug registers comes between.

use core::arch::asm;
use core::arch::global_asm;

use super::Check;
use crate::cpu;
use crate::exception;
use crate::exception::Fault;
use crate::report::Report;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "breakpoint-switching", run: switching }, Check { name: "breakpoint-ranges", run: ranges }];

global_asm!(
    r#"
    .section .text.probe_breakpoint, "ax"
    .globl probe_breakpoint, probe_breakpoint_at
probe_breakpoint:
    nop
probe_breakpoint_at:
    nop
    ret
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_breakpoint();
    fn probe_breakpoint_at();
}

/// DR7 with nothing on.
const OFF: u64 = 1 << 10;
/// DR7: exact.
const EXACT: u64 = 3 << 8;

/// What a breakpoint is for; with the length, DR7's field for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Execute,
    Write,
    ReadWrite,
}

impl Kind {
    const fn field(self) -> u64 {
        match self {
            Self::Execute => 0b00,
            Self::Write => 0b01,
            Self::ReadWrite => 0b11,
        }
    }
}

/// DR7 with one breakpoint on: locally, globally for every other one.
fn dr7(number: usize, kind: Kind, bytes: u64) -> u64 {
    let length = match bytes {
        1 => 0b00,
        2 => 0b01,
        8 => 0b10,
        _ => 0b11,
    };
    OFF | EXACT | 1 << (number * 2 + number % 2) | (length << 2 | kind.field()) << (16 + number * 4)
}

/// Sets a breakpoint's address.
fn set_address(number: usize, address: u64) -> Result<(), Fault> {
    match number {
        0 => cpu::try_set_dr0(address),
        1 => cpu::try_set_dr1(address),
        2 => cpu::try_set_dr2(address),
        _ => cpu::try_set_dr3(address),
    }
}

/// Executes the code, writes the word, reads the word; gives a bit for each that came: 1, 2, 4.
fn hits(word: *mut u32) -> u64 {
    let mut came = 0;
    let mut seen = exception::debug_count();
    let mut note = |bit: u64| {
        let now = exception::debug_count();
        if now > seen {
            came |= bit;
        }
        seen = now;
    };
    // SAFETY: two NOPs and a RET.
    unsafe { asm!("call {}", sym probe_breakpoint, clobber_abi("C")) }
    note(1);
    // SAFETY: the caller's word.
    unsafe { asm!("mov dword ptr [{}], 5", "nop", in(reg) word) }
    note(2);
    // SAFETY: as above.
    unsafe { asm!("mov {1:e}, [{0}]", "nop", in(reg) word, out(reg) _) }
    note(4);
    came
}

/// Each of the four for each purpose, on, off, on and off again.
fn switching(report: &mut Report) {
    let mut word = 0_u32;
    let data = &raw mut word;
    for number in 0..4 {
        for (kind, wanted) in [(Kind::Execute, 1), (Kind::Write, 2), (Kind::ReadWrite, 6)] {
            let (address, bytes) =
                if kind == Kind::Execute { (probe_breakpoint_at as *const () as u64, 1) } else { (data as u64, 4) };
            let _ = set_address(number, address);
            for round in 0..3 {
                exception::record_debug(true);
                let _ = cpu::try_set_dr7(dr7(number, kind, bytes));
                let on = hits(data);
                let _ = cpu::try_set_dr7(OFF);
                let off = hits(data);
                exception::record_debug(false);
                let name = format_args!("DR{number}, {kind:?}, round {round}");
                report.expect_of_cpu(on == wanted, format_args!("{name}: on it hits {on:#b}, not {wanted:#b}"));
                report.expect(on & !wanted == 0, format_args!("{name}: on it hits {on:#b}, of {wanted:#b}"));
                report.expect(off == 0, format_args!("{name}: off it hits {off:#b}"));
                for (rip, dr6) in (0..exception::debug_count()).filter_map(exception::debug_event) {
                    report.expect(dr6 & 0xf == 1 << number, format_args!("{name}: DR6 {dr6:#x} at {rip:#x}"));
                    let code = probe_breakpoint_at as *const () as u64;
                    report.expect(kind != Kind::Execute || rip == code, format_args!("{name}: at {rip:#x}"));
                }
            }
            let _ = set_address(number, 0);
        }
    }
    cpu::clear_dr6();
}

/// A breakpoint on data is as long as DR7 says, and no longer.
fn ranges(report: &mut Report) {
    #[repr(align(16))]
    struct Words([u32; 8]);
    let mut words = Words([0; 8]);
    let first = words.0.as_mut_ptr();
    for (bytes, covered) in [(4, 1), (8, 2)] {
        for number in 0..4 {
            // SAFETY: the third word of eight.
            let _ = set_address(number, unsafe { first.add(2) } as u64);
            exception::record_debug(true);
            let _ = cpu::try_set_dr7(dr7(number, Kind::Write, bytes));
            for index in 0..8 {
                // SAFETY: in bounds.
                let came = hits(unsafe { first.add(index) }) & 2 != 0;
                let wanted = (2..2 + covered).contains(&index);
                let name = format_args!("DR{number}, {bytes} bytes, word {index}");
                report.expect_of_cpu(came == wanted, format_args!("{name}: hits: {came}"));
                report.expect(wanted || !came, format_args!("{name}: hits"));
            }
            let _ = cpu::try_set_dr7(OFF);
            exception::record_debug(false);
            let _ = set_address(number, 0);
        }
    }
    cpu::clear_dr6();
}
