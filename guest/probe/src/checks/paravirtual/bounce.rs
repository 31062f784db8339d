//! Exceptions: what the kernel finds on its stack, and in which state it is entered.

use core::arch::asm;
use core::sync::atomic::Ordering::SeqCst;

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::exception;
use crate::exception::Fault;
use crate::exception::selector;
use crate::exception::vector;
use crate::layout;
use crate::report::Report;
use crate::user;
use crate::xen::abi;
use crate::xen::abi::errno;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::info;
use crate::xen::segments;
use crate::xen::tables;
use crate::xen::tables::ACCESSED;
use crate::xen::tables::DIRTY;
use crate::xen::traps;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-bounce-frame", run: frame },
    Check { name: "xen-bounce-mask", run: mask },
    Check { name: "xen-bounce-flags", run: flags },
    Check { name: "xen-bounce-user", run: from_user_mode },
    Check { name: "xen-bounce-stack", run: stack },
    Check { name: "xen-error-codes", run: error_codes },
    Check { name: "xen-trap-table", run: trap_table },
];

/// Flags (SDM vol. 1, 3.4.3).
const CARRY: u64 = 1 << 0;
const INTERRUPTS: u64 = 1 << 9;
const NESTED: u64 = 1 << 14;
const ALIGNMENT: u64 = 1 << 18;
const IDENTIFICATION: u64 = 1 << 21;

/// The frame of an exception in kernel mode: all registers, the instruction, the stack to the byte, flags whose IF tells whether events
/// were not masked, and a code segment of privilege level 0 with the former mask above it.
fn frame(report: &mut Report) {
    for offset in [0_u64, 1, 8, 15] {
        // SAFETY: UD2 unwinds to `guarded`, which restores what is changed here.
        let raised = exception::guarded(|| unsafe {
            asm!(
                "mov rbx, 0x0101010101010101", "mov rbp, 0x0202020202020202", "mov rsi, 0x0303030303030303",
                "mov rdi, 0x0404040404040404", "mov r8, 0x0505050505050505", "mov r9, 0x0606060606060606",
                "mov r10, 0x0707070707070707", "mov r11, 0x0808080808080808", "mov r12, 0x0909090909090909",
                "mov r13, 0x0a0a0a0a0a0a0a0a", "mov r14, 0x0b0b0b0b0b0b0b0b", "mov r15, 0x0c0c0c0c0c0c0c0c",
                "mov rcx, 0x0e0e0e0e0e0e0e0e", "mov rdx, 0x0d0d0d0d0d0d0d0d", "sub rsp, rax", "mov rax, rsp", "stc", "ud2",
                in("rax") offset, options(noreturn),
            );
        });
        let frame = exception::caught_frame();
        report.expect(raised.is_some_and(|fault| fault.vector == vector::UD), format_args!("{raised:?}"));
        let wanted = [12_u8, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 13, 14];
        for (value, byte) in frame.gprs.into_iter().zip(wanted) {
            report.expect(
                value == u64::from_le_bytes([byte; 8]),
                format_args!("a register is {value:#x}, not of {byte}"),
            );
        }
        let stack = frame.gprs[14];
        report.expect(frame.rsp == stack, format_args!("RSP is {:#x}, not {stack:#x}", frame.rsp));
        let (cs, ss) = (frame.cs & 0xffff, frame.ss & 0xffff);
        report.expect(cs == u64::from(abi::selector::KERNEL_CODE), format_args!("CS is {:#x}", frame.cs));
        report.expect(ss & !3 == u64::from(abi::selector::DATA) & !3, format_args!("SS is {:#x}", frame.ss));
        report.expect(frame.cs >> 32 & 0xff == 1, format_args!("CS with the mask is {:#x}", frame.cs));
        report.expect(frame.rflags & (CARRY | INTERRUPTS) == CARRY, format_args!("the flags are {:#x}", frame.rflags));
        let code = frames::read(frame.rip) & 0xffff;
        report.expect(code == 0x0b0f, format_args!("RIP leads to {code:#x}"));
        let place = exception::caught_at();
        report.expect(
            place < stack && stack - place < 512,
            format_args!("the frame is at {place:#x}, the stack at {stack:#x}"),
        );
    }
}

/// The mask in the frame is what it was; the handler is entered with events masked if it says so, and otherwise as it was; the return
/// puts it back.
fn mask(report: &mut Report) {
    for masked in [0_u8, 1] {
        for masks in [false, true] {
            let [first, address] = traps::handler(vector::UD, 0, traps::stub(vector::UD));
            let first = if masks { first } else { first & !(4 << 8) };
            expect(report, "the handler", traps::set_table(&[[first, address], [0; 2]]), 0);
            info::vcpu().mask.store(masked, SeqCst);
            let raised = catch!(["ud2"]);
            let within = exception::caught_mask();
            events::mask();
            let frame = exception::caught_frame();
            report.expect(raised.is_some(), format_args!("nothing is raised"));
            let wanted = if masks { 1 } else { masked };
            report.expect(within == wanted, format_args!("mask {masked}, masking {masks}: {within} in the handler"));
            let was = (frame.cs >> 32 & 0xff, frame.rflags & INTERRUPTS == 0);
            report.expect(was == (masked.into(), masked == 1), format_args!("mask {masked}: {was:?} in the frame"));
        }
    }
    traps::fill();
}

/// The handler is entered without the flags that would be in its way; the frame has them.
fn flags(report: &mut Report) {
    for flag in [NESTED, ALIGNMENT, IDENTIFICATION] {
        // Back to none of them, whatever comes.
        let raised = catch!(["push {flags}", "popfq", "ud2"], flags = in(reg) flag | 2);
        let frame = exception::caught_frame();
        let within = exception::caught_handler_flags();
        // SAFETY: sets flags to none.
        unsafe { asm!("push 2", "popfq") }
        report.expect(raised.is_some(), format_args!("flag {flag:#x}: nothing is raised"));
        report.expect(frame.rflags & flag != 0, format_args!("flag {flag:#x}: the frame has {:#x}", frame.rflags));
        if flag != IDENTIFICATION {
            report.expect(within & flag == 0, format_args!("flag {flag:#x}: the handler has {within:#x}"));
        }
    }
}

/// From user mode: the stack that the kernel has set, the kernel's page tables, and a frame that tells of user mode.
fn from_user_mode(report: &mut Report) {
    let top = exception::user_entry_stack();
    for (name, segment) in [("64-bit", selector::USER_CODE), ("32-bit", selector::USER_CODE32)] {
        let raised = user::run_as(&[0x0f, 0x0b], segment, 2 | CARRY);
        let frame = exception::caught_frame();
        let wanted = Fault { vector: vector::UD, error: 0, rip: layout::USER_PAGE };
        report.expect(raised == Some(wanted), format_args!("{name}: {raised:?}"));
        report.expect(frame.cs & 0xffff == segment.into(), format_args!("{name}: CS is {:#x}", frame.cs));
        report.expect(frame.ss & 0xffff == selector::USER_DATA.into(), format_args!("{name}: SS is {:#x}", frame.ss));
        report.expect(frame.rsp == user::STACK, format_args!("{name}: RSP is {:#x}", frame.rsp));
        report.expect(frame.rflags & CARRY != 0, format_args!("{name}: the flags are {:#x}", frame.rflags));
        let place = exception::caught_at();
        report
            .expect(place < top && top - place < 512, format_args!("{name}: the frame is at {place:#x}, not {top:#x}"));
    }
}

/// `stack_switch`: another stack, also one whose page nobody has used, and one that is not aligned.
fn stack(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let page = loan.take();
    for top in [Window::page(81), Window::page(81) - 8, Window::page(81) - 100] {
        window.map(80, page, tables::PRESENT | tables::WRITABLE | tables::USER);
        expect(report, "stack_switch", traps::set_stack(top), 0);
        let raised = user::run(&[0x0f, 0x0b]);
        let place = exception::caught_at();
        report.expect(raised.is_some_and(|fault| fault.vector == vector::UD), format_args!("{raised:?}"));
        report.expect(
            place < top && top - place < 512,
            format_args!("the frame is at {place:#x}, the stack at {top:#x}"),
        );
        let used = window.get(80) & (ACCESSED | DIRTY);
        report.expect(used == ACCESSED | DIRTY, format_args!("the stack's entry has {used:#x}"));
    }
    expect(report, "stack_switch", traps::set_stack(exception::user_entry_stack()), 0);
    window.set(80, 0);
}

/// Error codes, and where exceptions come.
fn error_codes(report: &mut Report) {
    let not_present = 0x00cf_7300_0000_ffff_u64;
    let _ = segments::set_spare(not_present);
    let spare = u64::from(selector::SPARE);
    let cases: [(&str, Option<Fault>, u8, u64); 6] = [
        ("a divide error", catch!(["div {0:e}"], in(reg) 0, inout("eax") 0 => _, inout("edx") 0 => _), vector::DE, 0),
        ("a selector behind the table", catch!(["mov es, {0:e}"], in(reg) 0xdff8), vector::GP, 0xdff8),
        ("the monitor's data segment", catch!(["mov es, {0:e}"], in(reg) 0xe013), vector::GP, 0xe010),
        (
            "an address that is not canonical",
            catch!(["mov al, [{0}]"], in(reg) 1_u64 << 63, out("al") _),
            vector::GP,
            0,
        ),
        ("a null stack segment", catch!(["mov ss, {0:e}"], in(reg) 0), vector::GP, 0),
        ("a segment that is not present", catch!(["mov es, {0:e}"], in(reg) spare | 3), vector::NP, spare),
    ];
    for (name, raised, vector, error) in cases {
        // A descriptor that is not present may be kept as none at all.
        let right = raised.is_some_and(|fault| {
            fault.error == error && (fault.vector == vector || vector == vector::NP && fault.vector == vector::GP)
        });
        report.expect(right, format_args!("{name}: {raised:?}"));
    }
    // SAFETY: faults, with the stack as it was.
    let raised = exception::guarded(|| unsafe {
        asm!("mov r9, rbp", "mov rbp, {0}", "mov al, [rbp]", "mov rbp, r9", in(reg) 1_u64 << 63, out("r9") _, out("al") _);
    });
    let right = raised.is_some_and(|fault| fault.vector == vector::SS && fault.error == 0);
    report.expect_of_cpu(right, format_args!("a stack address that is not canonical: {raised:?}"));
    let _ = segments::set_spare(0);
}

/// `set_trap_table`: tables merge, end at address 0, and refuse addresses where no kernel can begin.
fn trap_table(report: &mut Report) {
    let own = |number: u8| traps::handler(number, 0, traps::stub(number));
    // UD goes to another vector's stub now, and GP is as before.
    let [first, _] = own(vector::UD);
    let other = [first, traps::stub(vector::OF)];
    expect(report, "a table", traps::set_table(&[other, [0; 2], [u64::from(vector::GP), 1]]), 0);
    let raised = catch!(["ud2"]).map(|fault| fault.vector);
    report.expect(raised == Some(vector::OF), format_args!("UD2 goes to {raised:?}"));
    let raised = catch!(["mov al, [{0}]"], in(reg) 1_u64 << 63, out("al") _).map(|fault| fault.vector);
    report.expect(raised == Some(vector::GP), format_args!("#GP goes to {raised:?}"));
    let [first, _] = own(vector::UD);
    for address in [0x8000_0000_0000, 0x8000_0000_0000_0000] {
        let result = traps::set_table(&[[first, address], [0; 2]]);
        expect_error(report, "a handler at an address that is not canonical", result, errno::EINVAL);
    }
    traps::fill();
    let raised = catch!(["ud2"]).map(|fault| fault.vector);
    report.expect(raised == Some(vector::UD), format_args!("afterwards UD2 goes to {raised:?}"));
}
