//! Programs of a paravirtual guest: their system calls come to its kernel, and nothing of theirs is a hypercall.

use super::super::Check;
use super::expect;
use crate::exception;
use crate::exception::selector;
use crate::exception::vector;
use crate::layout;
use crate::report::Report;
use crate::user;
use crate::xen::abi::call;
use crate::xen::abi::callback;
use crate::xen::abi::sched;
use crate::xen::info;
use crate::xen::traps;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-syscall", run: syscall },
    Check { name: "xen-syscall-mask", run: mask },
    Check { name: "xen-syscall-32-bit", run: compatibility },
    Check { name: "xen-user-hypercalls", run: hypercalls },
    Check { name: "xen-user-int80", run: int80 },
];

/// SYSCALL.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// SYSENTER.
const SYSENTER: [u8; 2] = [0x0f, 0x34];
/// Carry, and the bit that is always set.
const RFLAGS: u64 = 3;

/// The callback's frame: where the program goes on in RIP and RCX, its flags in RFLAGS and R11, its stack.
fn syscall(report: &mut Report) {
    // MOV EAX, 5; SYSCALL.
    let code = [0xb8, 5, 0, 0, 0, SYSCALL[0], SYSCALL[1]];
    for _ in 0..3 {
        let came = user::run_as(&code, selector::USER_CODE, RFLAGS);
        let frame = exception::caught_frame();
        report.expect(came.is_some_and(|fault| fault.vector == traps::SYSCALL), format_args!("{came:?}"));
        let behind = layout::USER_PAGE + 7;
        report.expect(
            frame.rip == behind && frame.gprs[13] == behind,
            format_args!("RIP {:#x}, RCX {:#x}", frame.rip, frame.gprs[13]),
        );
        report.expect(frame.gprs[14] == 5, format_args!("RAX {:#x}", frame.gprs[14]));
        report.expect(frame.rsp == user::STACK, format_args!("RSP {:#x}", frame.rsp));
        report.expect(
            frame.rflags & 1 == 1 && frame.gprs[4] & 1 == 1,
            format_args!("RFLAGS {:#x}, R11 {:#x}", frame.rflags, frame.gprs[4]),
        );
        report.expect(frame.cs & 3 == 3, format_args!("CS {:#x}", frame.cs));
    }
}

/// The callback masks events if it was registered so.
fn mask(report: &mut Report) {
    for flags in [0, callback::MASK_EVENTS] {
        expect(report, "the callback", traps::register(callback::SYSCALL, flags, traps::stub(traps::SYSCALL)), 0);
        // User mode runs with events unmasked.
        let came = user::run_as(&SYSCALL, selector::USER_CODE, RFLAGS | 1 << 9);
        let within = exception::caught_mask();
        report.expect(came.is_some_and(|fault| fault.vector == traps::SYSCALL), format_args!("{came:?}"));
        report.expect(u16::from(within) == flags, format_args!("flags {flags}: the mask is {within} in the handler"));
    }
    traps::register_all();
    report.expect(
        info::vcpu().mask.load(core::sync::atomic::Ordering::SeqCst) == 1,
        format_args!("events are not masked"),
    );
}

/// From 32-bit code: #UD without a callback; with one, if that can be registered, the callback, where the CPU has the instruction
/// (Intel's do not).
fn compatibility(report: &mut Report) {
    let came = user::run_as(&SYSCALL, selector::USER_CODE32, RFLAGS);
    let refused = came.is_some_and(|fault| matches!(fault.vector, vector::UD | vector::GP));
    report.expect(refused, format_args!("SYSCALL without a callback: {came:?}"));
    for (name, segment) in [("64-bit", selector::USER_CODE), ("32-bit", selector::USER_CODE32)] {
        let came = user::run_as(&SYSENTER, segment, RFLAGS);
        let refused = came.is_some_and(|fault| matches!(fault.vector, vector::UD | vector::GP));
        report.expect(refused, format_args!("SYSENTER in {name} code: {came:?}"));
    }
    if traps::register(callback::SYSCALL32, callback::MASK_EVENTS, traps::stub(traps::SYSCALL32)) == 0 {
        let came = user::run_as(&SYSCALL, selector::USER_CODE32, RFLAGS);
        let right = came.is_some_and(|fault| matches!(fault.vector, traps::SYSCALL32 | vector::UD));
        report.expect(right, format_args!("SYSCALL with a callback: {came:?}"));
        if came.is_some_and(|fault| fault.vector == traps::SYSCALL32) {
            let frame = exception::caught_frame();
            report.expect(frame.cs & 3 == 3 && frame.rip == layout::USER_PAGE + 2, format_args!("{frame:x?}"));
        }
    } else {
        report.note(format_args!("no callback for SYSCALL in 32-bit code"));
    }
}

/// Hypercalls' numbers in user mode are system calls' numbers.
fn hypercalls(report: &mut Report) {
    for (number, argument) in
        [(call::SCHED_OP, sched::SHUTDOWN), (call::IRET, 0), (call::MMU_UPDATE, 0), (call::SET_TRAP_TABLE, 0)]
    {
        let [number_byte, argument_byte] = [number, argument].map(|value| value.to_le_bytes()[0]);
        // MOV EDI, argument; XOR ESI, ESI; MOV EAX, number; SYSCALL.
        let code = [0xbf, argument_byte, 0, 0, 0, 0x31, 0xf6, 0xb8, number_byte, 0, 0, 0, SYSCALL[0], SYSCALL[1]];
        let came = user::run_as(&code, selector::USER_CODE, RFLAGS);
        report.expect(
            came.is_some_and(|fault| fault.vector == traps::SYSCALL),
            format_args!("number {number}: {came:?}"),
        );
    }
}

/// INT 0x80, Linux's system call of 32-bit programs, where the kernel has a handler that lets user mode in.
fn int80(report: &mut Report) {
    let code = [0xcd, traps::INT80];
    let open = [traps::handler(traps::INT80, 3, traps::stub(traps::INT80)), [0; 2]];
    expect(report, "the handler", traps::set_table(&open), 0);
    for (name, segment) in [("64-bit", selector::USER_CODE), ("32-bit", selector::USER_CODE32)] {
        let came = user::run_as(&code, segment, RFLAGS);
        let right = came.is_some_and(|fault| fault.vector == traps::INT80 && fault.rip == layout::USER_PAGE + 2);
        report.expect(right, format_args!("in {name} code: {came:?}"));
    }
    traps::fill();
}
