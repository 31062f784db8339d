//! `mmu_update` and `update_va_mapping`.

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::report::Report;
use crate::xen::abi::DOMID_SELF;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::abi::mmu_update;
use crate::xen::abi::mmuext;
use crate::xen::abi::uvmf;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::frames::PAGE;
use crate::xen::hypercall;
use crate::xen::hypercall::at;
use crate::xen::tables;
use crate::xen::tables::ACCESSED;
use crate::xen::tables::DIRTY;
use crate::xen::tables::PRESENT;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::tables::USER;
use crate::xen::tables::WRITABLE;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-mmu-update", run: update },
    Check { name: "xen-mmu-update-lists", run: lists },
    Check { name: "xen-mmu-update-refused", run: refused },
    Check { name: "xen-preserve-ad", run: preserve },
    Check { name: "xen-accessed-dirty", run: accessed_dirty },
    Check { name: "xen-update-va-mapping", run: va_mapping },
    Check { name: "xen-flush", run: flush },
    Check { name: "xen-alias", run: alias },
    Check { name: "xen-self-modifying", run: self_modifying },
];

/// Marks of pages.
const MARKS: [u64; 3] = [0xaaaa_0001, 0xbbbb_0002, 0xcccc_0003];

/// Three pages with their marks.
fn marked(loan: &Loan) -> [u64; 3] {
    MARKS.map(|mark| {
        let page = loan.take();
        frames::write(page, mark);
        page
    })
}

/// An entry leads where it says, from the next access on that follows the flush.
fn update(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    for (page, mark) in pages.into_iter().zip(MARKS).cycle().take(12) {
        expect(report, "the update", window.map(5, page, RW), 0);
        let seen = frames::read(Window::page(5));
        report.expect(seen == mark, format_args!("{mark:#x} reads as {seen:#x}"));
        let entry = window.get(5);
        let wanted = frames::machine(page) | RW;
        report.expect(entry == wanted, format_args!("the entry is {entry:#x}, not {wanted:#x}"));
    }
    window.set(5, 0);
    let raised = catch!(["mov {1}, [{0}]"], in(reg) Window::page(5), out(reg) _);
    report.expect(raised.is_some(), format_args!("what is mapped no more can be read"));
}

/// Lists of updates: all are made, in their order, and their number is told; one that is refused ends the list, and how many came
/// before is told.
fn lists(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    let mut list = [[0_u64; 2]; 200];
    for (number, update) in (0..).zip(&mut list) {
        *update = [frames::machine(window.entry(number)), frames::machine(pages[0]) | RW];
    }
    // Twice the same entry: the second counts.
    list[199] = [frames::machine(window.entry(0)), frames::machine(pages[1]) | RW];
    let call = |list: &[[u64; 2]], done: &mut u32| {
        hypercall::hypercall(call::MMU_UPDATE, [at(list.as_ptr()), list.len() as u64, at(&raw mut *done), DOMID_SELF])
    };
    for count in [1, 2, 63, 64, 65, 128, 200] {
        let mut done = u32::MAX;
        let result = call(list.get(..count).unwrap_or(&[]), &mut done);
        report.expect(result == 0 && done as usize == count, format_args!("{count} updates: {result}, {done} done"));
    }
    let seen = frames::read(Window::page(0));
    report.expect(seen == MARKS[1], format_args!("the entry that comes twice leads to {seen:#x}"));
    for number in 1..199 {
        let seen = frames::read(Window::page(number));
        report.expect(seen == MARKS[0], format_args!("entry {number} leads to {seen:#x}"));
    }
    let mut done = u32::MAX;
    expect(report, "no updates", call(&[], &mut done), 0);
    report.expect(done == 0, format_args!("no updates: {done} done"));
    for (_, update) in (0..).zip(&mut list).filter(|(number, _)| *number != 70) {
        update[1] = frames::machine(pages[2]) | RW;
    }
    list[70][0] = frames::count() * PAGE + (1 << 40);
    let mut done = u32::MAX;
    let result = call(&list, &mut done);
    report.expect(result < 0 && done == 70, format_args!("the seventy-first of 200 is wrong: {result}, {done} done"));
    hypercall::flush();
    for (number, mark) in [(69, MARKS[2]), (71, MARKS[0])] {
        let seen = frames::read(Window::page(number));
        report.expect(seen == mark, format_args!("entry {number} around a wrong one leads to {seen:#x}"));
    }
    // Without a place for the number of updates.
    let result = hypercall::hypercall(call::MMU_UPDATE, [at(list.as_ptr()), 3, 0, DOMID_SELF]);
    expect(report, "without a count", result, 0);
    let _ = Window::new();
}

/// What is no entry, or none of the guest's, is refused.
fn refused(report: &mut Report) {
    let window = Window::new();
    let entry = frames::machine(window.entry(3));
    let beyond = frames::count() * PAGE + (1 << 40);
    expect_error(report, "memory beyond the guest's", hypercall::mmu_update(beyond, 0), errno::EINVAL);
    expect_error(report, "memory far beyond", hypercall::mmu_update(!7, 0), errno::EINVAL);
    let result = hypercall::mmu_update((entry + 4) | mmu_update::NORMAL, 0);
    // Between two entries: refused, or one of them.
    report.expect(result <= 0, format_args!("an address between two entries: {result}"));
    let machphys = frames::machine(0x80_0000) & !0xfff | mmu_update::MACHPHYS;
    expect(report, "an update of the table of frames", hypercall::mmu_update(machphys, 0x800), 0);
    let found = frames::physical(frames::machine(0x80_0000));
    report.expect(found == Some(0x80_0000), format_args!("afterwards the frame is {found:x?}"));
    let _ = Window::new();
}

/// `MMU_PT_UPDATE_PRESERVE_AD`: the entry keeps the accessed and dirty bits that it has, and takes the rest.
fn preserve(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    let pointer = frames::machine(window.entry(9));
    for touched in [false, true] {
        window.map(9, pages[0], PRESENT | WRITABLE | USER);
        if touched {
            frames::write(Window::page(9), MARKS[0]);
        }
        let value = frames::machine(pages[0]) | PRESENT | USER | 1 << 9;
        let result = hypercall::mmu_update(pointer | mmu_update::PRESERVE_AD, value);
        hypercall::mmuext(mmuext::INVLPG_LOCAL, Window::page(9), 0);
        let entry = window.get(9);
        let wanted = value | if touched { ACCESSED | DIRTY } else { 0 };
        report.expect(
            result == 0 && entry == wanted,
            format_args!("touched {touched}: {result}, the entry is {entry:#x}, not {wanted:#x}"),
        );
        let raised = catch!(["mov qword ptr [{0}], 1"], in(reg) Window::page(9));
        report.expect(raised.is_some(), format_args!("touched {touched}: still writable"));
        // Without it they are as given.
        hypercall::mmu_update(pointer, value);
        let entry = window.get(9);
        report.expect(entry == value, format_args!("touched {touched}: the entry is {entry:#x}, not {value:#x}"));
    }
    window.set(9, 0);
}

/// Loads set the accessed bit, stores the dirty bit as well, and nothing else does; what the guest clears comes back with the next
/// access after a flush. (Linux's memory reclaim lives by it, and a lost dirty bit is lost data.)
fn accessed_dirty(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    let page = Window::page(17);
    let fresh = PRESENT | WRITABLE | USER;
    for round in 0..3 {
        window.map(17, pages[0], fresh);
        let bits = |wanted: u64, what: &str, report: &mut Report| {
            let bits = window.get(17) & (ACCESSED | DIRTY);
            report.expect(bits == wanted, format_args!("round {round}, {what}: {bits:#x}, not {wanted:#x}"));
        };
        bits(0, "untouched", report);
        let _ = frames::read(page);
        bits(ACCESSED, "after a load", report);
        frames::write(page + 8, 5);
        bits(ACCESSED | DIRTY, "after a store", report);
        window.map(17, pages[0], fresh | ACCESSED);
        let _ = frames::read(page);
        bits(ACCESSED, "after a load of a clean page", report);
        frames::write(page + 8, 6);
        bits(ACCESSED | DIRTY, "after a store to a clean page", report);
        // A store first.
        window.map(17, pages[0], fresh);
        frames::write(page + 8, 7);
        bits(ACCESSED | DIRTY, "after a store first", report);
        // The hypervisor's own stores are stores.
        window.map(17, pages[0], fresh);
        let result = hypercall::hypercall(call::XEN_VERSION, [1, page + 64]);
        report.expect(result == 0, format_args!("extra version: {result}"));
        let dirty = window.get(17) & DIRTY != 0;
        report.expect(dirty, format_args!("round {round}: a hypercall's store leaves no dirty bit"));
        // A page that cannot be written does not become dirty by trying.
        window.map(17, pages[0], PRESENT | USER);
        let _ = catch!(["mov qword ptr [{0}], 1"], in(reg) page);
        let bits = window.get(17) & DIRTY;
        report.expect(bits == 0, format_args!("round {round}: a store that faults leaves {bits:#x}"));
    }
    window.set(17, 0);
}

/// `update_va_mapping` in each form of flush; where there is no table it is refused.
fn va_mapping(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    let page = Window::page(33);
    let flags = [
        uvmf::INVLPG,
        uvmf::TLB_FLUSH,
        uvmf::INVLPG | uvmf::ALL,
        uvmf::TLB_FLUSH | uvmf::ALL,
        uvmf::INVLPG,
        uvmf::TLB_FLUSH,
    ];
    for (flags, (page_behind, mark)) in flags.into_iter().zip(pages.into_iter().zip(MARKS).cycle()) {
        let result = hypercall::update_va_mapping(page, frames::machine(page_behind) | RW, flags);
        let seen = frames::read(page);
        report.expect(result == 0 && seen == mark, format_args!("flags {flags}: {result}, {seen:#x}, not {mark:#x}"));
    }
    let result = hypercall::update_va_mapping(page, frames::machine(pages[0]) | RO, uvmf::INVLPG);
    let raised = catch!(["mov qword ptr [{0}], 1"], in(reg) page);
    report.expect(result == 0 && raised.is_some(), format_args!("read-only: {result}, {raised:?}"));
    let result = hypercall::update_va_mapping(page, frames::machine(pages[0]) | RW, uvmf::NONE);
    hypercall::flush();
    let raised = catch!(["mov qword ptr [{0}], 1"], in(reg) page);
    report.expect(result == 0 && raised.is_none(), format_args!("writable again: {result}, {raised:?}"));
    expect(report, "unmap", hypercall::update_va_mapping(page, 0, uvmf::INVLPG), 0);
    let raised = catch!(["mov {1}, [{0}]"], in(reg) page, out(reg) _);
    report.expect(raised.is_some(), format_args!("what is mapped no more can be read"));
    for address in [1 << 45, 0x8000_0000_0000_0000, HYPERVISOR_START, HYPERVISOR_START + (1 << 39), 0xffff_ffff_f000] {
        let result = hypercall::update_va_mapping(address, frames::machine(pages[0]) | RW, uvmf::INVLPG);
        report.expect(result < 0, format_args!("{address:#x} can be mapped: {result}"));
    }
    window.set(33, 0);
}

/// Every kind of flush is there; what is flushed is looked up anew.
fn flush(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = marked(&loan);
    let page = Window::page(40);
    let cpus = 1_u64;
    let kinds = [
        (mmuext::TLB_FLUSH_LOCAL, 0, 0),
        (mmuext::INVLPG_LOCAL, page, 0),
        (mmuext::TLB_FLUSH_MULTI, 0, at(&raw const cpus)),
        (mmuext::INVLPG_MULTI, page, at(&raw const cpus)),
        (mmuext::TLB_FLUSH_ALL, 0, 0),
        (mmuext::INVLPG_ALL, page, 0),
    ];
    for ((kind, first, second), (behind, mark)) in kinds.into_iter().zip(pages.into_iter().zip(MARKS).cycle()) {
        tables::set(window.entry(40), frames::machine(behind) | RW);
        expect(report, "the flush", hypercall::mmuext(kind, first, second), 0);
        let seen = frames::read(page);
        report.expect(seen == mark, format_args!("mmuext_op {kind}: {seen:#x}, not {mark:#x}"));
    }
    for address in [HYPERVISOR_START, 0x8000_0000_0000_0000, u64::MAX] {
        expect(report, "INVLPG of any address", hypercall::mmuext(mmuext::INVLPG_LOCAL, address, 0), 0);
    }
    expect_error(report, "mmuext_op 100", hypercall::mmuext(100, 0, 0), errno::ENOSYS);
    for kind in [12, 14, 16, 17, 18, 19, 20] {
        let result = hypercall::mmuext(kind, 0, 0);
        report.expect_of_covisor(result == errno::ENOSYS, format_args!("mmuext_op {kind}: {result}"));
    }
    window.set(40, 0);
}

/// A frame at several addresses is one frame.
fn alias(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let page = loan.take();
    for number in 50..60 {
        window.map(number, page, if number % 2 == 0 { RW } else { RO });
    }
    for round in 1..20_u64 {
        frames::write(Window::page(50 + round % 5 * 2) + round * 8, round);
        for number in 50..60 {
            let seen = frames::read(Window::page(number) + round * 8);
            report.expect(seen == round, format_args!("page {number} has {seen}, not {round}"));
        }
        let seen = frames::read(page + round * 8);
        report.expect(seen == round, format_args!("the frame has {seen}, not {round}"));
    }
    let _ = Window::new();
}

/// Code that was changed is executed as it is now: by the same address, by another one of the same frame, by another frame.
fn self_modifying(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = [loan.take(), loan.take()];
    window.map(60, pages[0], RW);
    // MOV EAX, number; RET.
    let write_code = |page: u64, number: u8| frames::write(page, 0xc300_0000_00b8 | u64::from(number) << 8);
    let call = || {
        let result: u64;
        // SAFETY: calls the code that was just written.
        unsafe { core::arch::asm!("call {}", in(reg) Window::page(60), out("rax") result, clobber_abi("C")) }
        result
    };
    for number in 0..20 {
        let target = if number % 2 == 0 { Window::page(60) } else { pages[0] };
        write_code(target, number);
        let seen = call();
        report.expect(seen == number.into(), format_args!("{seen}, not {number}"));
    }
    write_code(pages[1], 99);
    window.map(60, pages[1], RW);
    let seen = call();
    report.expect(seen == 99, format_args!("{seen} from another frame"));
    window.set(60, 0);
}
