//! INT n, INT3, INTO and INT1: each is delivered once, with RIP behind it (APM vol. 2, 8.2 and 8.9; SDM vol. 3, 6.4 and
//! 6.12). They are told apart from interrupts and exceptions of the same vectors wherever a delivery is intercepted.

use super::Check;
use crate::cpu;
use crate::exception;
use crate::exception::Fault;
use crate::exception::IDT;
use crate::exception::selector;
use crate::exception::vector;
use crate::kernel;
use crate::layout;
use crate::report::Report;
use crate::user;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "software-interrupts", run: delivered },
    Check { name: "software-interrupts-refused", run: refused },
];

/// A vector whose gate ring 3 may use in these checks.
const OPEN: u8 = 0x84;
/// One whose gate is ring 0's.
const CLOSED: u8 = 0x81;
/// RFLAGS: overflow, and the bit that is always set.
const OVERFLOW: u64 = 1 << 11 | 2;

/// Expects one delivery of a vector and where it returns to. A paravirtual guest's INT n is #GP first; which n it was, the hypervisor
/// has from the error code, in which QEMU's CPU counts wrong.
fn expect(report: &mut Report, name: &str, number: u8, came: Option<Fault>, wanted_rip: u64) {
    let count = exception::count(number);
    let rip = came.map_or(exception::last_rip(), |fault| fault.rip);
    let right_vector = came.is_none_or(|fault| fault.vector == number);
    match came {
        Some(fault) if !right_vector => expect_of_gate(report, false, format_args!("{name}: {fault}")),
        _ => {
            expect_of_gate(report, count == 1, format_args!("{name}: delivered {count} times"));
            expect_of_gate(report, rip == wanted_rip, format_args!("{name}: RIP {rip:#x}, not {wanted_rip:#x}"));
        }
    }
}

/// See [`expect`].
fn expect_of_gate(report: &mut Report, holds: bool, text: core::fmt::Arguments<'_>) {
    if xen::active() { report.expect_of_cpu(holds, text) } else { report.expect(holds, text) }
}

/// Each instruction with a gate that lets it in, in ring 0 and in ring 3.
fn delivered(report: &mut Report) {
    let in_ring_0 = |report: &mut Report, name: &str, code: &[u8], number: u8| {
        exception::forget_interrupts();
        let came = kernel::raised(code);
        expect(report, name, number, came, kernel::CODE + code.len() as u64);
    };
    let in_ring_3 = |report: &mut Report, name: &str, code: &[u8], number: u8, segment: u16, flags: u64| {
        exception::forget_interrupts();
        let came = user::run_as(code, segment, flags);
        expect(report, name, number, came, layout::USER_PAGE + code.len() as u64);
    };
    in_ring_0(report, "INT 0x81", &[0xcd, CLOSED], CLOSED);
    in_ring_0(report, "INT3", &[0xcc], vector::BP);
    in_ring_0(report, "INT 3", &[0xcd, vector::BP], vector::BP);
    in_ring_0(report, "INT 1", &[0xcd, vector::DB], vector::DB);
    in_ring_0(report, "INT 2", &[0xcd, vector::NMI], vector::NMI);
    in_ring_0(report, "INT 6", &[0xcd, vector::UD], vector::UD);
    exception::open_gate(OPEN, 3);
    exception::open_gate(vector::OF, 3);
    for (segment, bits) in [(selector::USER_CODE, 64), (selector::USER_CODE32, 32)] {
        in_ring_3(report, "INT 0x84 in ring 3", &[0xcd, OPEN], OPEN, segment, 2);
        in_ring_3(report, "INT3 in ring 3", &[0xcc], vector::BP, segment, 2);
        in_ring_3(report, "INT 3 in ring 3", &[0xcd, vector::BP], vector::BP, segment, 2);
        if bits == 32 {
            in_ring_3(report, "INTO", &[0xce], vector::OF, segment, OVERFLOW);
            // Without overflow it comes to the INT3 behind.
            let came = user::run_as(&[0xce], segment, 2);
            report.expect(
                came.is_some_and(|fault| fault.vector == vector::BP),
                format_args!("INTO without OF: {came:?}"),
            );
        }
    }
    exception::fill_idt();
    // INT1 asks for no privilege of the gate. QEMU's CPU does not have it below a hypervisor.
    for (name, ring, start) in [("INT1", 0, kernel::CODE), ("INT1 in ring 3", 3, layout::USER_PAGE)] {
        exception::forget_interrupts();
        let came = if ring == 0 { kernel::raised(&[0xf1]) } else { user::run(&[0xf1]) };
        let right = came.is_some_and(|fault| fault.vector == vector::DB && fault.rip == start + 1);
        report.expect_of_cpu(right && exception::count(vector::DB) == 1, format_args!("{name}: {came:?}"));
    }
    cpu::clear_dr6();
}

/// Gates that are not there or not for ring 3: #NP and #GP, whose error codes name the gate (APM vol. 2, 8.4.1), with RIP
/// at the instruction. QEMU's CPU counts wrong in the error code.
fn refused(report: &mut Report) {
    let judge = |report: &mut Report, name: &str, came: Option<Fault>, number: u8, wanted: u8, rip: u64| match came {
        Some(fault) => {
            report.expect(fault.vector == wanted && fault.rip == rip, format_args!("{name}: {fault}"));
            report.expect_of_cpu(fault.error == u64::from(number) * 8 + 2, format_args!("{name}: {fault}"));
        }
        None => report.fail(format_args!("{name} is carried out")),
    };
    for number in [vector::DB, CLOSED] {
        let came = user::run(&[0xcd, number]);
        judge(report, "INT n in ring 3", came, number, vector::GP, layout::USER_PAGE);
    }
    if xen::active() {
        // INTO asks for no privilege there, and a gate that is not there is like one that is ring 0's.
        let came = kernel::raised(&[0xcd, xen::traps::INT80]);
        return judge(report, "INT 0x80 without a handler", came, xen::traps::INT80, vector::GP, kernel::CODE);
    }
    let came = user::run_as(&[0xce], selector::USER_CODE32, OVERFLOW);
    judge(report, "INTO with ring 0's gate", came, vector::OF, vector::GP, layout::USER_PAGE);
    const GATE_PRESENT: u64 = 1 << 47;
    let low = IDT.get(usize::from(CLOSED) * 2);
    IDT.set(usize::from(CLOSED) * 2, low & !GATE_PRESENT);
    let came = kernel::raised(&[0xcd, CLOSED]);
    judge(report, "INT n without a gate", came, CLOSED, vector::NP, kernel::CODE);
    exception::fill_idt();
}
