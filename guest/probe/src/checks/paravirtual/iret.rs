//! The hypercall `iret`: it restores what its frame says, as far as that is a guest's, and ends in a fault where it cannot.

use core::sync::atomic::Ordering::SeqCst;

use super::super::Check;
use crate::exception;
use crate::exception::Fault;
use crate::exception::selector;
use crate::exception::vector;
use crate::report::Report;
use crate::xen::abi;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::events;
use crate::xen::info;
use crate::xen::iret::CODE;
use crate::xen::iret::Context;
use crate::xen::iret::STACK;
use crate::xen::segments;
use crate::xen::traps;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-iret", run: kernel },
    Check { name: "xen-iret-flags", run: flags },
    Check { name: "xen-iret-32-bit", run: compatibility },
    Check { name: "xen-iret-addresses", run: addresses },
    Check { name: "xen-iret-segments", run: bad_segments },
    Check { name: "xen-iret-failsafe", run: failsafe },
];

/// Flags (SDM vol. 1, 3.4.3).
const FIXED: u64 = 1 << 1;
const INTERRUPTS: u64 = 1 << 9;

/// To kernel mode: all registers of the frame.
fn kernel(report: &mut Report) {
    for privilege in 0..3 {
        let context = Context { cs: Context::KERNEL.cs | privilege, ..Context::KERNEL };
        let raised = context.go();
        let frame = exception::caught_frame();
        let wanted = Fault { vector: vector::UD, error: 0, rip: CODE };
        report.expect(raised == Some(wanted), format_args!("level {privilege}: {raised:?}"));
        let seen = [frame.gprs[14], frame.gprs[4], frame.gprs[13], frame.rsp];
        let wanted = [context.rax, context.r11, context.rcx, context.rsp];
        report.expect(seen == wanted, format_args!("level {privilege}: {seen:x?}, not {wanted:x?}"));
        report.expect(frame.cs & 3 == 0, format_args!("level {privilege}: CS is {:#x}", frame.cs));
    }
}

/// IF is the mask of events; I/O privilege, virtual-8086 mode and virtual interrupts are not a guest's to set, the others are.
fn flags(report: &mut Report) {
    const STATUS: u64 = 0x8d5;
    const DIRECTION: u64 = 1 << 10;
    const PRIVILEGE: u64 = 3 << 12;
    const NESTED: u64 = 1 << 14;
    const RESUME: u64 = 1 << 16;
    const VIRTUAL_8086: u64 = 1 << 17;
    const ALIGNMENT: u64 = 1 << 18;
    const VIRTUAL_INTERRUPTS: u64 = 3 << 19;
    const IDENTIFICATION: u64 = 1 << 21;
    let free = [STATUS, DIRECTION, NESTED, RESUME, ALIGNMENT, IDENTIFICATION];
    let bound = [PRIVILEGE, VIRTUAL_8086, VIRTUAL_INTERRUPTS, 1 << 63, 0xffff_ffff << 32, 1 << 15 | 1 << 5 | 1 << 3];
    for context in [Context::KERNEL, Context::USER] {
        for given in free.into_iter().chain(bound).chain([0, !(1 << 8)]) {
            for interrupts in [0, INTERRUPTS] {
                let rflags = given & !INTERRUPTS | FIXED | interrupts;
                let raised = Context { rflags, ..context }.go();
                let masked = exception::caught_frame().cs >> 32 & 0xff;
                events::mask();
                let got = exception::caught_frame().rflags;
                let name = format_args!("flags {rflags:#x} to {:#x}", context.cs);
                let right = raised.is_some_and(|fault| fault.vector == vector::UD && fault.rip == context.rip);
                report.expect(right, format_args!("{name}: {raised:?}"));
                let never = PRIVILEGE | VIRTUAL_8086 | VIRTUAL_INTERRUPTS | 0xffff_ffff << 32;
                report.expect(got & never == 0, format_args!("{name}: {got:#x}"));
                let kept = STATUS | DIRECTION;
                report.expect(got & kept == rflags & kept, format_args!("{name}: {got:#x}"));
                report.expect(got & INTERRUPTS == interrupts, format_args!("{name}: IF is {got:#x}"));
                report.expect((masked == 0) == (interrupts != 0), format_args!("{name}: the mask is {masked}"));
            }
        }
    }
    let masked = info::vcpu().mask.load(SeqCst);
    report.expect(masked == 1, format_args!("the mask is {masked}"));
}

/// To 32-bit code, of kernel and of user mode.
fn compatibility(report: &mut Report) {
    let cases = [
        ("the kernel's own", Context { cs: selector::CODE32.into(), ..Context::KERNEL }),
        ("every guest's, kernel mode", Context { cs: u64::from(abi::selector::CODE32) & !3, ..Context::KERNEL }),
        ("user mode", Context { cs: selector::USER_CODE32.into(), ..Context::USER }),
        ("every guest's, user mode", Context { cs: abi::selector::CODE32.into(), ..Context::USER }),
    ];
    for (name, context) in cases {
        let raised = context.go();
        let wanted = Fault { vector: vector::UD, error: 0, rip: context.rip };
        report.expect(raised == Some(wanted), format_args!("{name}: {raised:?}"));
        let cs = exception::caught_frame().cs & 0xffff;
        report.expect(cs & !3 == context.cs & !3, format_args!("{name}: CS is {cs:#x}"));
    }
}

/// Whether the guest was told of a return that failed.
fn is_failure(raised: Option<Fault>) -> bool {
    raised.is_some_and(|fault| matches!(fault.vector, vector::GP | vector::NP | vector::SS | traps::FAILSAFE))
}

/// Where no code is, it is a fault: of the return (not canonical) or of the fetch.
fn addresses(report: &mut Report) {
    for context in [Context::KERNEL, Context::USER] {
        for rip in [0x8000_0000_0000, 0xffff_0000_0000_0000, 0x8000_0000_0000_0000, 0x0123_4567_89ab_cdef] {
            let raised = Context { rip, ..context }.go();
            report.expect(is_failure(raised), format_args!("{rip:#x} to {:#x}: {raised:?}", context.cs));
        }
        for rip in [0x1234_5678_9000, HYPERVISOR_START + (1 << 39), HYPERVISOR_START + (1 << 39) + (1 << 30), u64::MAX]
        {
            let raised = Context { rip, ..context }.go();
            let right = raised.is_some_and(|fault| fault.vector == vector::PF && fault.rip == rip);
            // The fetch from the last byte goes over the end.
            let right = right || rip == u64::MAX && raised.is_some();
            report.expect(right, format_args!("{rip:#x} to {:#x}: {raised:?}", context.cs));
        }
    }
}

/// Segments that cannot be loaded, or are the monitor's.
fn bad_segments(report: &mut Report) {
    let _ = segments::set_spare(0);
    let data = u64::from(selector::USER_DATA);
    for context in [Context::KERNEL, Context::USER] {
        let level = context.cs & 3;
        // Null, data, nothing, the monitor's code, data, task and table, behind the end, a table that is not there.
        for cs in [0, data & !3, u64::from(selector::SPARE), 0xe008, 0xe010, 0xe040, 0xe050, 0xfff8, 0x0c] {
            let raised = Context { cs: cs | level, ..context }.go();
            report.expect(is_failure(raised), format_args!("CS {cs:#x}, level {level}: {raised:?}"));
        }
        for ss in
            [0_u64, u64::from(selector::USER_CODE), u64::from(selector::SPARE), 0xe008, 0xe010, 0xe040, 0xfff8, 0x0c]
        {
            for privilege in 0..4 {
                let raised = Context { ss: ss & !3 | privilege, ..context }.go();
                // Some are repaired instead.
                let repaired = raised.is_some_and(|fault| fault.vector == vector::UD && fault.rip == context.rip);
                let stack = exception::caught_frame().ss & 0xffff;
                report.expect(
                    is_failure(raised) || repaired && stack & !3 != 0xe010,
                    format_args!("SS {ss:#x}, level {level}: {raised:?}, SS is {stack:#x}"),
                );
            }
        }
    }
    // Afterwards all is well.
    let raised = Context::KERNEL.go();
    report.expect(raised.is_some_and(|fault| fault.rip == CODE), format_args!("afterwards: {raised:?}"));
}

/// The failure is told as #GP, or by the failsafe callback, with what could not be returned to.
fn failsafe(report: &mut Report) {
    let context = Context { cs: 0xfff8, ..Context::KERNEL };
    let raised = context.go();
    let frame = exception::caught_frame();
    report.expect(is_failure(raised), format_args!("{raised:?}"));
    report.expect(frame.rip == CODE, format_args!("RIP is {:#x}", frame.rip));
    report.expect(frame.cs & 0xfff8 == 0xfff8, format_args!("CS is {:#x}", frame.cs));
    report.expect(frame.rsp == STACK, format_args!("RSP is {:#x}", frame.rsp));
    report.note(format_args!(
        "{}",
        if frame.vector == u64::from(traps::FAILSAFE) { "by the callback" } else { "by #GP" }
    ));
}
