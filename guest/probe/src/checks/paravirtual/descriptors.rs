//! Segment descriptors: what the guest hands over becomes a segment of ring 3, or none.

use core::arch::asm;

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::exception::selector;
use crate::report::Report;
use crate::xen::abi;
use crate::xen::abi::errno;
use crate::xen::abi::mmuext;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::segments;
use crate::xen::tables;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-gdt", run: table },
    Check { name: "xen-descriptors", run: descriptors },
    Check { name: "xen-gates", run: gates },
    Check { name: "xen-segments", run: loaded },
    Check { name: "xen-ldt", run: local_table },
    Check { name: "xen-ldt-refused", run: local_table_refused },
];

/// Descriptor: present.
const PRESENT: u64 = 1 << 47;
/// Descriptor: code or data.
const SEGMENT: u64 = 1 << 44;
/// Flat, in pages, with 32-bit operands.
const FLAT: u64 = 0x00cf_0000_0000_ffff;
/// Data that can be written.
const DATA: u64 = FLAT | PRESENT | SEGMENT | 3 << 45 | 2 << 40;
/// Data at a base.
const fn data_at(base: u64) -> u64 {
    DATA | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56
}

/// The access rights of a segment, from descriptor bit 32 on, if ring 3 may know them (LAR).
fn access_rights(selector: u16) -> Option<u32> {
    let (rights, found): (u32, u8);
    // SAFETY: reads a descriptor, or not.
    unsafe {
        asm!(
            "lar {rights:e}, {selector:e}", "setz {found}",
            rights = inout(reg) 0_u32 => rights, selector = in(reg) u32::from(selector), found = out(reg_byte) found,
            options(nomem, nostack),
        );
    }
    (found != 0).then_some(rights)
}

/// Whether access rights are those of code or data in ring 3.
const fn is_of_ring_3(rights: u32) -> bool {
    rights >> 13 & 3 == 3 && rights >> 12 & 1 == 1
}

/// `set_gdt`: tables of the guest's own frames, of up to 14 pages; the segments that every guest has stay.
fn table(report: &mut Report) {
    let loan = Loan::new();
    for selector in [abi::selector::CODE32, abi::selector::DATA, abi::selector::CODE64] {
        let rights = access_rights(selector);
        report.expect(rights.is_some_and(is_of_ring_3), format_args!("selector {selector:#x}: {rights:x?}"));
    }
    // Those behind them are the monitor's.
    for selector in (0xe000..=0xe0f8).step_by(8).map(|selector: u16| selector | 3) {
        let rights = access_rights(selector);
        report.expect(rights.is_none_or(is_of_ring_3), format_args!("selector {selector:#x}: {rights:x?}"));
    }
    let page = tables::make(loan.take());
    expect(report, "an empty table", segments::set_gdt(&[tables::frame(page)], 512), 0);
    let rights = access_rights(selector::USER_DATA);
    report.expect(rights.is_none(), format_args!("in an empty table: {rights:x?}"));
    expect(report, "no table", segments::set_gdt(&[], 0), 0);
    let frames = [tables::frame(page); 16];
    expect(report, "14 pages", segments::set_gdt(&frames, 14 * 512), 0);
    expect_error(report, "more than 14 pages", segments::set_gdt(&frames, 14 * 512 + 1), errno::EINVAL);
    expect_error(report, "far more", segments::set_gdt(&frames, 0xffff_ffff), errno::EINVAL);
    for frame in [frames::count() + (1 << 28), u64::MAX >> 12, u64::MAX] {
        expect_error(report, "no frame of the guest's", segments::set_gdt(&[frame], 512), errno::EINVAL);
    }
    expect(report, "the probe's table", segments::load(), 0);
    let rights = access_rights(selector::USER_DATA);
    report.expect(rights.is_some_and(is_of_ring_3), format_args!("afterwards: {rights:x?}"));
}

/// Code and data of every type and privilege level.
fn descriptors(report: &mut Report) {
    for kind in 0..16_u64 {
        for privilege in 0..4_u64 {
            let descriptor = FLAT & !(1 << 54) | PRESENT | SEGMENT | privilege << 45 | kind << 40;
            let result = segments::set_spare(descriptor);
            let rights = access_rights(selector::SPARE | 3);
            let right =
                rights.map_or(result < 0, |rights| is_of_ring_3(rights) && u64::from(rights >> 8 & 0xe) == kind & 0xe);
            report.expect(right, format_args!("type {kind:#x}, ring {privilege}: {result}, {rights:x?}"));
        }
    }
    // One that is not present is kept, or not, but cannot be loaded.
    let _ = segments::set_spare(DATA & !PRESENT);
    let raised = catch!(["mov es, {0:e}"], in(reg) u64::from(selector::SPARE | 3));
    report.expect(raised.is_some(), format_args!("a segment that is not present is loaded"));
    let page = Loan::new().take();
    let address = frames::machine(page);
    for address in [address + 1, address + 4, address + 7] {
        let result = hypercall::update_descriptor(address, DATA);
        expect_error(report, "a descriptor between two", result, errno::EINVAL);
    }
    for address in [(frames::count() + (1 << 28)) << 12, !7] {
        let result = hypercall::update_descriptor(address, DATA);
        expect_error(report, "a descriptor in no memory of the guest's", result, errno::EINVAL);
    }
    expect(report, "no descriptor", segments::set_spare(0), 0);
}

/// Gates, tasks and descriptor tables of every type and privilege level are none.
fn gates(report: &mut Report) {
    for kind in 0..16_u64 {
        for privilege in 0..4_u64 {
            // To the monitor's code, with the monitor's segment.
            let descriptor = 0xe008_0000 | PRESENT | privilege << 45 | kind << 40;
            let result = segments::set_spare(descriptor);
            let rights = access_rights(selector::SPARE | 3);
            report.expect(rights.is_none(), format_args!("type {kind:#x}, ring {privilege}: {result}, {rights:x?}"));
            let raised = crate::exception::guarded(|| {
                // SAFETY: a far call that faults.
                unsafe {
                    asm!(
                        "sub rsp, 16", "mov qword ptr [rsp], 0", "mov [rsp + 4], {0:x}", "call fword ptr [rsp]", "add rsp, 16",
                        in(reg) u64::from(selector::SPARE | 3), clobber_abi("C"),
                    );
                }
            });
            report.expect(raised.is_some(), format_args!("a call by type {kind:#x}, ring {privilege}, is carried out"));
        }
    }
    expect(report, "no descriptor", segments::set_spare(0), 0);
}

/// A segment that was handed over is used: base and limit are its own.
fn loaded(report: &mut Report) {
    let loan = Loan::new();
    let page = loan.take();
    for round in 1..4_u64 {
        frames::write(page + 8 * round, round);
        expect(report, "the descriptor", segments::set_spare(data_at(page + 8 * round)), 0);
        let value: u64;
        // SAFETY: loads a segment that is there, and leaves none behind.
        unsafe {
            asm!("mov fs, {0:e}", "mov {1}, fs:[0]", "mov fs, {2:e}", in(reg) u32::from(selector::SPARE | 3), out(reg) value, in(reg) 0);
        }
        report.expect(value == round, format_args!("by FS: {value}, not {round}"));
    }
    // What is loaded stays over exits, and what it was loaded from may change meanwhile.
    let _ = segments::set_spare(DATA);
    let (ds, es): (u16, u16);
    // SAFETY: loads segments that are there, and loads others afterwards; 64-bit code uses neither.
    unsafe {
        asm!(
            "mov ds, {0:e}", "mov es, {0:e}", "xor eax, eax", "mov r14, rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e", "cpuid",
            "mov rbx, r14", "mov {1:e}, ds", "mov {2:e}, es", "mov ds, {3:e}", "mov es, {3:e}",
            in(reg) u32::from(selector::SPARE | 3), out(reg) ds, out(reg) es, in(reg) u32::from(selector::USER_DATA),
            out("rax") _, inout("ecx") 0 => _, out("edx") _, out("r14") _,
        );
    }
    report.expect([ds, es] == [selector::SPARE | 3; 2], format_args!("DS and ES over an exit: {ds:#x}, {es:#x}"));
    expect(report, "no descriptor", segments::set_spare(0), 0);
}

/// Selector `index` of the LDT.
const fn local(index: u16) -> u16 {
    (index << 3) | 4 | 3
}

/// `MMUEXT_SET_LDT`: the table's segments are there, follow `update_descriptor`, and go with the table.
fn local_table(report: &mut Report) {
    let loan = Loan::new();
    let [page, target] = [loan.take(), loan.take()];
    frames::write(target, 0x77);
    frames::write(page + 8, data_at(target));
    // A gate among them: it is none, or the table is refused, but nothing more.
    tables::make(page);
    for round in 0..3 {
        let result = mmuext(mmuext::SET_LDT, page, 8);
        report.expect(result == 0, format_args!("round {round}, the table: {result}"));
        let mut value = 0_u64;
        let raised = catch!(["mov fs, {0:e}", "mov {1}, fs:[0]"], in(reg) u32::from(local(1)), inout(reg) value);
        report.expect(raised.is_none() && value == 0x77, format_args!("round {round}: {raised:?}, {value:#x}"));
        let result = hypercall::update_descriptor(frames::machine(page + 16), data_at(target - 8));
        report.expect(result == 0, format_args!("round {round}, a descriptor: {result}"));
        let raised = catch!(["mov fs, {0:e}", "mov {1}, fs:[8]"], in(reg) u32::from(local(2)), inout(reg) value);
        report
            .expect(raised.is_none() && value == 0x77, format_args!("round {round}, updated: {raised:?}, {value:#x}"));
        let rights = access_rights(local(2));
        report.expect(rights.is_some_and(is_of_ring_3), format_args!("round {round}: {rights:x?}"));
        // Behind the table's end there is nothing.
        let rights = access_rights(local(9));
        report.expect(rights.is_none(), format_args!("round {round}, behind the end: {rights:x?}"));
        let _ = catch!(["mov fs, {0:e}"], in(reg) 0);
        expect(report, "no table", mmuext(mmuext::SET_LDT, 0, 0), 0);
        let rights = access_rights(local(1));
        report.expect(rights.is_none(), format_args!("round {round}, without a table: {rights:x?}"));
        let raised = catch!(["mov fs, {0:e}"], in(reg) u32::from(local(1)));
        report.expect(raised.is_some(), format_args!("round {round}: a segment of no table is loaded"));
        hypercall::update_descriptor(frames::machine(page + 16), 0);
    }
}

/// Tables that are too long, not at a page's begin, or not there.
fn local_table_refused(report: &mut Report) {
    let page = tables::make(Loan::new().take());
    expect_error(report, "a table between pages", mmuext(mmuext::SET_LDT, page + 8, 8), errno::EINVAL);
    expect_error(report, "too many entries", mmuext(mmuext::SET_LDT, page, 8193), errno::EINVAL);
    expect_error(report, "far too many", mmuext(mmuext::SET_LDT, page, u64::MAX), errno::EINVAL);
    for address in [0x1234_5678_9000, abi::HYPERVISOR_START + (1 << 39), 0x8000_0000_0000_0000] {
        // Refused at once, or empty when it is used.
        let result = mmuext(mmuext::SET_LDT, address, 8);
        report.expect(result <= 0, format_args!("a table at {address:#x}: {result}"));
        let raised = catch!(["mov fs, {0:e}"], in(reg) u32::from(local(1)));
        report.expect(raised.is_some(), format_args!("a segment of a table at {address:#x} is loaded"));
    }
    expect(report, "no table", mmuext(mmuext::SET_LDT, 0, 0), 0);
}
