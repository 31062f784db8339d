//! Tables that are what they are not: their own tables, tables of two levels, memory, pinned without end, more than there is room for.

use super::check;
use super::foreign_frames;
use super::load;
use super::look;
use super::store;
use crate::cmdline::CommandLine;
use crate::xen::abi::mmuext;
use crate::xen::abi::uvmf;
use crate::xen::frames;
use crate::xen::frames::PAGE;
use crate::xen::frames::WORDS;
use crate::xen::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::tables;
use crate::xen::tables::PRESENT;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::tables::TABLE;
use crate::xen::tables::USER;
use crate::xen::tables::WRITABLE;
use crate::xen::window::Window;

/// A slot of the root that nobody needs.
const SLOT: u64 = 128;

/// The root as its own table (XSA-182): first so that it can only be read, then with nothing changed but the bit that it can be written.
/// By it, the root's own entries are memory.
pub(super) fn self_linear(_: &CommandLine) {
    let root = tables::kernel();
    let entry = root + SLOT * 8;
    for level in 1..=4_u64 {
        // The address by which the walk ends after `level` rounds through the root.
        let address = (4 - level..4).fold(0, |address, round| address | SLOT << (12 + 9 * round));
        for flags in [RO, RO | WRITABLE, RW, TABLE, PRESENT | USER] {
            let result = tables::set(entry, frames::machine(root) | flags);
            hypercall::flush();
            let seen = load(address + SLOT * 8);
            println!("probe: self-linear: {level} rounds, flags {flags:#x}: {result}, {seen:x?}");
            // An entry of the root's for a slot that nobody needs.
            for frame in foreign_frames() {
                let written = store(address + (SLOT + 1) * 8, frame << 12 | TABLE);
                look("a slot that was written by the root's own entry", (SLOT + 1) << 39);
                if written {
                    hypercall::flush();
                    look("a slot that was written by the root's own entry", (SLOT + 1) << 39);
                    let _ = store(address + (SLOT + 1) * 8, 0);
                }
            }
            check();
            tables::set(root + (SLOT + 1) * 8, 0);
            tables::set(entry, 0);
            hypercall::flush();
        }
    }
}

/// One frame as a table of all levels at once, and each of its entries as an entry of all levels.
pub(super) fn two_levels(_: &CommandLine) {
    let window = Window::new();
    let table = frames::take();
    for index in 0..WORDS as u64 {
        frames::write(table + index * 8, frames::machine(table) | TABLE | tables::DIRTY);
    }
    tables::make(table);
    let base = 130_u64 << 39;
    let places = [(4, base), (3, Window::BASE + (72 << 30)), (2, Window::BASE + (42 << 21))];
    for (level, address) in places {
        let Some(entry) = tables::find(tables::kernel(), address, level) else { continue };
        let result = tables::set(entry, frames::machine(table) | TABLE);
        hypercall::flush();
        println!("probe: two-levels: as level {}: {result}, {:x?}", level - 1, load(address));
        check();
    }
    for (_, address) in places {
        for index in [0, 1, 5, 511] {
            for shift in [12, 21, 30] {
                let _ = load(address + (index << shift));
            }
        }
    }
    check();
    // It is its own memory now, if it is anything: entries of others by it.
    for frame in foreign_frames() {
        for (_, address) in places {
            let _ = store(address + 7 * 8, frame << 12 | TABLE | tables::DIRTY);
            tables::set(table + 7 * 8, frame << 12 | TABLE | tables::DIRTY);
            for shift in [12, 21, 30] {
                look("an entry of all levels", address + (7 << shift));
            }
            check();
        }
    }
    for operation in [mmuext::PIN_L1, mmuext::PIN_L2, mmuext::PIN_L3, mmuext::PIN_L4, mmuext::UNPIN] {
        mmuext(operation, tables::frame(table), 0);
        for (_, address) in places {
            let _ = load(address);
            check();
        }
    }
    let result = mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(table), 0);
    println!("probe: two-levels: as the root of user mode: {result}");
    let _ = super::in_user_mode(&[0x90]);
    check();
    mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(tables::users()), 0);
    for (level, address) in places {
        if let Some(entry) = tables::find(tables::kernel(), address, level) {
            tables::set(entry, 0);
        }
    }
    window.set(0, 0);
    hypercall::flush();
}

/// Roots and tables in use as pages that can be written.
pub(super) fn root_as_leaf(_: &CommandLine) {
    let window = Window::new();
    let path = |level| tables::find(tables::kernel(), Window::BASE, level).unwrap_or(0) & !0xfff;
    let all = [tables::kernel(), tables::users(), path(3), path(2), path(1)];
    for (number, table) in (0..).zip(all) {
        let result = window.map(20 + number, table, RW);
        println!("probe: root-as-leaf: table {number}: {result}");
    }
    for (number, _) in (0..).zip(all) {
        for frame in foreign_frames() {
            // Slot 202 of roots, and what it is below.
            let _ = store(Window::page(20 + number) + 202 * 8, frame << 12 | TABLE | tables::DIRTY);
            for address in [202 << 39, 202 << 30, Window::BASE + (202 << 21), Window::page(202)] {
                // In the lowest GiB is the probe itself.
                if address >= Window::BASE {
                    look("an entry of a table that is a page as well", address);
                }
            }
            check();
        }
        let _ = store(Window::page(20 + number) + 202 * 8, 0);
        tables::set(all[usize::try_from(number).unwrap_or(0)] + 202 * 8, 0);
        window.set(20 + number, 0);
    }
    hypercall::flush();
}

/// Loops of every length: the root in the root's slots, tables in each other, walked by addresses of every form.
pub(super) fn deep_loops(_: &CommandLine) {
    let root = tables::kernel();
    let [first, second, third] = [(); 3].map(|()| frames::take());
    for index in 0..WORDS as u64 {
        frames::write(first + index * 8, frames::machine(second) | TABLE);
        frames::write(second + index * 8, frames::machine(third) | TABLE);
        frames::write(third + index * 8, frames::machine(first) | TABLE);
    }
    for table in [first, second, third] {
        tables::make(table);
    }
    let slots = 140..160_u64;
    for slot in slots.clone() {
        let to = if slot % 2 == 0 { root } else { first };
        tables::set(root + slot * 8, frames::machine(to) | TABLE);
    }
    hypercall::flush();
    let mut rng = crate::rng::Rng::new(1);
    for round in 0..5000 {
        let slot = 140 + rng.below(20);
        let index = |rng: &mut crate::rng::Rng| if rng.below(2) == 0 { 140 + rng.below(20) } else { rng.below(512) };
        let address = slot << 39 | index(&mut rng) << 30 | index(&mut rng) << 21 | index(&mut rng) << 12;
        match rng.below(4) {
            0 => _ = load(address),
            1 => _ = store(address + 300 * 8, 0),
            2 => _ = hypercall::update_va_mapping(address, 0, uvmf::INVLPG),
            _ => _ = hypercall::hypercall(crate::xen::abi::call::XEN_VERSION, [1, address + 200 * 8]),
        }
        if round % 100 == 0 {
            check();
        }
    }
    for slot in slots {
        tables::set(root + slot * 8, 0);
    }
    hypercall::flush();
}

/// More references to one table than a counter may have room for, and then fewer than none.
pub(super) fn pin_many(_: &CommandLine) {
    /// More than 16 bits.
    const COUNT: u64 = 70_000;
    const LIST: usize = 500;
    let table = tables::make(frames::take());
    let frame = tables::frame(table);
    let operate = |operation: u32, count: u64| {
        let list = [[u64::from(operation), frame, 0]; LIST];
        for _ in 0..count / LIST as u64 {
            let argument = [hypercall::at(list.as_ptr()), LIST as u64, 0, crate::xen::abi::DOMID_SELF];
            hypercall::hypercall(crate::xen::abi::call::MMUEXT_OP, argument);
        }
    };
    operate(mmuext::PIN_L1, COUNT);
    // And as many entries that lead to it.
    let directories = [(); 8].map(|()| frames::take());
    for (number, directory) in (0..).zip(directories) {
        for index in 0..WORDS as u64 {
            frames::write(directory + index * 8, frames::machine(table) | TABLE);
        }
        tables::make(directory);
        let address = Window::BASE + ((80 + number) << 30);
        tables::set(tables::reach(tables::kernel(), address, 3), frames::machine(directory) | TABLE);
        for index in 0..WORDS as u64 {
            let _ = load(address + (index << 21));
        }
        check();
    }
    operate(mmuext::UNPIN, 2 * COUNT);
    check();
    tables::set(table + 8, frames::machine(table) | RW);
    hypercall::flush();
    let _ = store(Window::BASE + (80 << 30) + PAGE, 0x1234_5000 | RW);
    look("a table with too many references", Window::BASE + (80 << 30));
    check();
    for number in 0..8 {
        let address = Window::BASE + ((80 + number) << 30);
        tables::set(tables::reach(tables::kernel(), address, 3), 0);
    }
    hypercall::flush();
}

/// The roots in use are unpinned, their frames made writable and used otherwise; and they stay in use.
pub(super) fn unpin_live(_: &CommandLine) {
    let window = Window::new();
    for (name, root) in [("the kernel's", tables::kernel()), ("user mode's", tables::users())] {
        for _ in 0..3 {
            let result = mmuext(mmuext::UNPIN, tables::frame(root), 0);
            let mapped = window.map(30, root, RW);
            let written = store(Window::page(30) + 203 * 8, 0xdead_b000 | TABLE);
            println!("probe: unpin-live: {name}: {result}, mapped {mapped}, written {written}");
            look("a slot of a root that is pinned no more", 203 << 39);
            let _ = super::in_user_mode(&[0x90]);
            check();
            // As a table of another level, while it is a root.
            let entry = tables::reach(tables::kernel(), Window::BASE + (43 << 21), 2);
            let result = tables::set(entry, frames::machine(root) | TABLE);
            println!("probe: unpin-live: {name}, as a page table: {result}, {:x?}", load(Window::BASE + (43 << 21)));
            for operation in [mmuext::PIN_L1, mmuext::PIN_L2, mmuext::PIN_L3] {
                mmuext(operation, tables::frame(root), 0);
                check();
            }
            tables::set(entry, 0);
            let _ = store(Window::page(30) + 203 * 8, 0);
            tables::set(root + 203 * 8, 0);
            window.set(30, 0);
            mmuext(mmuext::PIN_L4, tables::frame(root), 0);
            hypercall::flush();
        }
    }
    mmuext(mmuext::NEW_BASEPTR, tables::frame(tables::kernel()), 0);
    mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(tables::users()), 0);
}

/// More tables than a hypervisor may have room for, all of them in use, again and again.
pub(super) fn flood(_: &CommandLine) {
    /// Tables of the lowest level.
    const TABLES: u64 = 700;
    let base = 150_u64 << 39;
    let page = frames::take();
    frames::write(page, 0x4242);
    for number in 0..TABLES {
        let table = frames::take();
        frames::write(table, frames::machine(page) | RW);
        tables::make(table);
        let entry = tables::reach(tables::kernel(), base + (number << 21), 2);
        if tables::set(entry, frames::machine(table) | TABLE) != 0 {
            println!("probe: shadow-flood: table {number} is refused");
        }
        if number % 100 == 0 {
            check();
        }
    }
    for round in 0..5 {
        for number in 0..TABLES {
            let seen = load(base + (number << 21));
            assert!(seen == Some(0x4242), "round {round}, table {number}: {seen:x?}");
        }
        check();
    }
    // The same tables in many directories.
    for number in 0..100 {
        let directory = tables::find(tables::kernel(), base, 2).unwrap_or(0) & !0xfff;
        let entry = tables::reach(tables::kernel(), base + ((4 + number) << 30), 3);
        tables::set(entry, frames::machine(directory) | TABLE);
        let _ = load(base + ((4 + number) << 30));
        if number % 10 == 0 {
            check();
        }
    }
    tables::set(tables::kernel() + 150 * 8, 0);
    hypercall::flush();
}
