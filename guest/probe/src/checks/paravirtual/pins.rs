//! Tables that come, are roots, and go: pinning, and the two roots of kernel and user mode.

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::layout;
use crate::report::Report;
use crate::user;
use crate::xen::abi::errno;
use crate::xen::abi::mmuext;
use crate::xen::abi::uvmf;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::frames::WORDS;
use crate::xen::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::tables;
use crate::xen::tables::RW;
use crate::xen::tables::TABLE;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-pin", run: pin },
    Check { name: "xen-pin-refused", run: refused },
    Check { name: "xen-table-life", run: life },
    Check { name: "xen-kernel-root", run: kernel_root },
    Check { name: "xen-user-root", run: user_root },
];

/// The operations that pin a table, by its level.
const PINS: [(u32, u32); 4] = [(1, mmuext::PIN_L1), (2, mmuext::PIN_L2), (3, mmuext::PIN_L3), (4, mmuext::PIN_L4)];

/// An empty table of each level can be pinned and unpinned, and is memory again.
fn pin(report: &mut Report) {
    let loan = Loan::new();
    for (level, operation) in PINS {
        let page = tables::make(loan.take());
        for round in 0..2 {
            let result = mmuext(operation, tables::frame(page), 0);
            report.expect(result == 0, format_args!("pin of level {level}, round {round}: {result}"));
            let result = mmuext(mmuext::UNPIN, tables::frame(page), 0);
            report.expect(result == 0, format_args!("unpin of level {level}, round {round}: {result}"));
        }
        let result = hypercall::update_va_mapping(page, frames::machine(page) | RW, uvmf::INVLPG);
        report.expect(result == 0, format_args!("a former table of level {level} cannot be writable: {result}"));
        frames::write(page, 5);
        let seen = frames::read(page);
        report.expect(seen == 5, format_args!("a former table of level {level} has {seen}"));
    }
}

/// What is none of the guest's frames is not pinned, and what is not pinned is not unpinned.
fn refused(report: &mut Report) {
    let loan = Loan::new();
    for frame in [frames::count() + (1 << 28), u64::MAX >> 12, u64::MAX] {
        for (level, operation) in PINS {
            let result = mmuext(operation, frame, 0);
            report.expect(result < 0, format_args!("pin of level {level} of frame {frame:#x}: {result}"));
        }
        expect_error(report, "unpin of no frame", mmuext(mmuext::UNPIN, frame, 0), errno::EINVAL);
        expect_error(report, "a root of no frame", mmuext(mmuext::NEW_BASEPTR, frame, 0), errno::EINVAL);
        expect_error(report, "a user's root of no frame", mmuext(mmuext::NEW_USER_BASEPTR, frame, 0), errno::EINVAL);
    }
    let page = loan.take();
    let result = mmuext(mmuext::UNPIN, tables::frame(page), 0);
    // A frame that is not pinned: Xen says so, covisor has nothing to undo.
    report.expect(result <= 0, format_args!("unpin of what is not pinned: {result}"));
    frames::write(page, 7);
    report.expect(frames::read(page) == 7, format_args!("the page has {}", frames::read(page)));
}

/// A frame is a table of one level, then memory, then a table of another level: every time what it is for.
fn life(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let [page, below, below_that, target] = [(); 4].map(|()| loan.take());
    frames::write(target, 0xfeed);
    // Far from everything else: a slot of its own at each level.
    let address = Window::BASE + (1 << 30) + (5 << 21) + (6 << 12);
    let directory = tables::reach(tables::kernel(), address, 3);
    let slot = |table: u64, level| tables::slot(table, address, level);
    for round in 0..3 {
        // As the lowest level, hung where `below` is later.
        frames::clear(page);
        frames::write(slot(page, 1), frames::machine(target) | RW);
        tables::make(page);
        frames::clear(below);
        frames::write(slot(below, 2), frames::machine(page) | TABLE);
        tables::make(below);
        expect(report, "hanging it in", tables::set(directory, frames::machine(below) | TABLE), 0);
        let seen = frames::read(address);
        report.expect(seen == 0xfeed, format_args!("round {round}, as the lowest level: {seen:#x}"));
        expect(report, "taking it out", tables::set(directory, 0), 0);
        hypercall::flush();
        let raised = catch!(["mov {1}, [{0}]"], in(reg) address, out(reg) _);
        report.expect(raised.is_some(), format_args!("round {round}: what was taken out is still there"));
        // As memory, with what would be an entry.
        for page in [page, below] {
            tables::protect(page, RW);
            frames::write(page, 0x1234_5000 + round);
            report.expect(frames::read(page) == 0x1234_5000 + round, format_args!("round {round}: as memory"));
        }
        // As the level above.
        frames::clear(below_that);
        frames::write(slot(below_that, 1), frames::machine(target) | RW);
        tables::make(below_that);
        frames::clear(page);
        frames::write(slot(page, 2), frames::machine(below_that) | TABLE);
        tables::make(page);
        expect(report, "hanging it in above", tables::set(directory, frames::machine(page) | TABLE), 0);
        let seen = frames::read(address);
        report.expect(seen == 0xfeed, format_args!("round {round}, as the level above: {seen:#x}"));
        expect(report, "taking it out again", tables::set(directory, 0), 0);
        hypercall::flush();
        for page in [page, below, below_that] {
            tables::protect(page, RW);
        }
    }
    let _ = window;
}

/// A second root for the kernel: what differs in it differs at once, here and there.
fn kernel_root(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let [page, other_page] = [loan.take(), loan.take()];
    frames::write(page, 1);
    frames::write(other_page, 2);
    // The window's tables anew, and a root that has them.
    let [root, level_3, level_2, level_1] = [(); 4].map(|()| loan.take());
    let copy = |to: u64, from: u64| {
        for index in 0..WORDS as u64 {
            frames::write(to + index * 8, frames::read(from + index * 8));
        }
    };
    copy(root, tables::kernel());
    for slot in crate::xen::abi::HYPERVISOR_SLOTS {
        frames::write(root + slot * 8, 0);
    }
    let table_of = |level| tables::find(tables::kernel(), Window::BASE, level).unwrap_or(0) & !0xfff;
    copy(level_3, table_of(3));
    copy(level_2, table_of(2));
    let place = Window::page(4);
    frames::write(tables::slot(level_1, place, 1), frames::machine(other_page) | RW);
    frames::write(tables::slot(level_2, place, 2), frames::machine(level_1) | TABLE);
    frames::write(tables::slot(level_3, place, 3), frames::machine(level_2) | TABLE);
    frames::write(tables::slot(root, place, 4), frames::machine(level_3) | TABLE);
    for table in [level_1, level_2, level_3, root] {
        tables::make(table);
    }
    window.map(4, page, RW);
    expect(report, "pinning the other root", mmuext(mmuext::PIN_L4, tables::frame(root), 0), 0);
    for round in 0..5 {
        for (root, wanted) in [(root, 2), (tables::kernel(), 1)] {
            expect(report, "the root", mmuext(mmuext::NEW_BASEPTR, tables::frame(root), 0), 0);
            let seen = frames::read(place);
            report.expect(seen == wanted, format_args!("round {round}: {seen}, not {wanted}"));
        }
    }
    expect(report, "unpinning the other root", mmuext(mmuext::UNPIN, tables::frame(root), 0), 0);
    window.set(4, 0);
}

/// User mode's root: none, another, and back; the kernel's mappings of the same addresses are not touched.
fn user_root(report: &mut Report) {
    // MOV EAX from a fixed address.
    let place = layout::USER_PAGE + 0x10_0000;
    let [a, b, c, d, ..] = place.to_le_bytes();
    let load = [0x8b, 0x04, 0x25, a, b, c, d];
    frames::write(place, 0x55);
    report.expect(user::raised(&load).is_none(), format_args!("user mode cannot read its page"));
    let users = tables::users();
    for round in 0..3 {
        expect(report, "no root", mmuext(mmuext::NEW_USER_BASEPTR, 0, 0), 0);
        expect(report, "the root again", mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(users), 0), 0);
        let raised = user::raised(&load);
        report.expect(raised.is_none(), format_args!("round {round}: {raised:?}"));
    }
    // An entry of user mode's root alone: the kernel goes on to have the page.
    let entry = tables::find(users, place, 3).unwrap_or(0);
    let before = frames::read(entry);
    expect(report, "taking the page away", tables::set(entry, 0), 0);
    hypercall::flush();
    let raised = user::raised(&load);
    report.expect(raised.is_some(), format_args!("user mode reads what was taken away"));
    let seen = frames::read(place);
    report.expect(seen == 0x55, format_args!("the kernel reads {seen:#x}"));
    expect(report, "giving it back", tables::set(entry, before), 0);
    let raised = user::raised(&load);
    report.expect(raised.is_none(), format_args!("after it was given back: {raised:?}"));
}
