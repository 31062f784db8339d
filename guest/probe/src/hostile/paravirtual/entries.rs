//! Entries of page tables: of tables that the guest made writable for itself, with bits that it must not have, and such that a translation
//! outlives.

use super::broke_through;
use super::check;
use super::foreign_frames;
use super::load;
use super::look;
use super::store;
use crate::cmdline::CommandLine;
use crate::xen::abi::mmuext;
use crate::xen::abi::uvmf;
use crate::xen::frames;
use crate::xen::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::tables;
use crate::xen::tables::CACHE_DISABLE;
use crate::xen::tables::GLOBAL;
use crate::xen::tables::LARGE;
use crate::xen::tables::NO_EXECUTE;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::tables::TABLE;
use crate::xen::tables::WRITE_THROUGH;
use crate::xen::window::Window;

/// An address, far from everything that is used, whose entry of `level` nobody needs, and that entry's table.
fn unused(level: u32) -> (u64, u64) {
    let address = match level {
        1 => Window::page(300),
        2 => Window::BASE + (37 << 21),
        3 => Window::BASE + (70 << 30),
        _ => 200 << 39,
    };
    let entry = tables::find(tables::kernel(), address, level).unwrap_or(0);
    (address, entry)
}

/// A writable mapping of live page tables (what all of PV paging is built on); through it, entries that name frames of others.
pub(super) fn table_writable(_: &CommandLine) {
    let window = Window::new();
    for level in 1..=4 {
        let (address, entry) = unused(level);
        let table = entry & !0xfff;
        for way in 0..3 {
            let result = match way {
                0 => window.map(100, table, RW),
                1 => hypercall::update_va_mapping(Window::page(100), frames::machine(table) | RW, uvmf::INVLPG),
                // Where it always is.
                _ => hypercall::update_va_mapping(table, frames::machine(table) | RW, uvmf::INVLPG),
            };
            let alias = if way == 2 { table } else { Window::page(100) };
            let place = alias + entry % frames::PAGE;
            let written = store(place, 0);
            println!("probe: table-writable: level {level}, way {way}: {result}, a store is carried out: {written}");
            for frame in foreign_frames() {
                let flags = if level == 1 { RW } else { TABLE };
                let _ = store(place, frame << 12 | flags);
                look("a table that was written", address);
                hypercall::flush();
                look("a table that was written", address);
            }
            check();
            let _ = store(place, 0);
            tables::set(entry, 0);
            window.set(100, 0);
            hypercall::update_va_mapping(table, frames::machine(table) | RO, uvmf::INVLPG);
        }
    }
}

/// Large pages (XSA-148): a guest that has one has whatever lies beside its frame.
pub(super) fn superpages(_: &CommandLine) {
    let _ = Window::new();
    for level in [2, 3] {
        let (address, entry) = unused(level);
        let frames = [0, tables::frame(crate::layout::SCRATCH) & !511, 512, tables::frame(crate::layout::USER_PAGE)];
        for frame in frames.into_iter().chain(foreign_frames()) {
            for flags in [LARGE, LARGE | GLOBAL, LARGE | 1 << 12] {
                let result = tables::set(entry, frame << 12 | TABLE | tables::DIRTY | flags);
                for offset in [0, 0x1000, 0x5000, 0x1f_f000] {
                    if let Some(value) = load(address + offset).filter(|value| *value != u64::MAX) {
                        broke_through(format_args!("superpages: level {level}, {result}: {offset:#x} has {value:#x}"));
                    }
                }
                check();
                tables::set(entry, 0);
                hypercall::flush();
            }
        }
    }
    // By a table that has it before it is handed over.
    let (address, entry) = unused(3);
    let table = frames::take();
    for index in 0..512 {
        frames::write(table + index * 8, index << 21 | TABLE | LARGE | tables::DIRTY);
    }
    tables::make(table);
    let result = tables::set(entry, frames::machine(table) | TABLE);
    for index in 0..512 {
        if let Some(value) = load(address + (index << 21)) {
            broke_through(format_args!("superpages: a table of them, {result}: entry {index} has {value:#x}"));
        }
    }
    check();
    tables::set(entry, 0);
}

/// Changes of nothing but flags in the upper levels, which are tempting to take without a check (XSA-182 was one).
pub(super) fn flag_tricks(_: &CommandLine) {
    /// In a slot of the root of its own: the probe does without it.
    const PLACE: u64 = 204 << 39;
    let page = frames::take();
    tables::map(PLACE, frames::machine(page), RW);
    let flags = (0..12).chain(52..64).map(|bit| 1_u64 << bit);
    for level in [4, 3, 2] {
        let Some(entry) = tables::find(tables::kernel(), PLACE, level) else { continue };
        let before = frames::read(entry) & !GLOBAL;
        for flag in flags.clone() {
            let result = tables::set(entry, before ^ flag);
            hypercall::flush();
            let (read, written) = (load(PLACE), store(PLACE + 8, 1));
            check();
            tables::set(entry, before);
            hypercall::flush();
            println!("probe: flag-tricks: level {level}, flag {flag:#x}: {result}, read {read:x?}, written {written}");
            if read.is_some_and(|value| value != 0) {
                broke_through(format_args!("flag-tricks: level {level}, flag {flag:#x}: {read:x?}"));
            }
        }
        if load(PLACE).is_none() {
            println!("probe: flag-tricks: level {level}: the page is gone");
        }
    }
    tables::set(tables::kernel() + 204 * 8, 0);
    hypercall::flush();
}

/// Memory types that contradict those that the host has of the same memory (XSA-154 and its like), in every combination.
pub(super) fn cache_attributes(_: &CommandLine) {
    let window = Window::new();
    let page = frames::take();
    for combination in 0..64_u64 {
        let bits = [WRITE_THROUGH, CACHE_DISABLE, LARGE, GLOBAL, 1 << 59, NO_EXECUTE];
        let flags = (0..)
            .zip(bits)
            .fold(0, |flags, (index, bit)| if combination >> index & 1 == 1 { flags | bit } else { flags });
        let result = window.map(5, page, RW | flags);
        let written = store(Window::page(5), combination);
        let seen = frames::read(page);
        check();
        if written && seen != combination {
            println!("probe: cache-attributes: flags {flags:#x}: {result}, {seen} is there, not {combination}");
        }
    }
    window.set(5, 0);
}

/// A store to a page table by an instruction that nobody emulates.
pub(super) fn exotic_store(_: &CommandLine) {
    let window = Window::new();
    let raised = catch!(["fxsave [{0}]"], in(reg) window.table());
    println!("probe: exotic-table-store: {raised:?}");
}

/// A translation of a page that was given away: the frame becomes a page table, and the guest writes to it by where it was (XSA-286 was
/// about walks of tables that were gone already).
pub(super) fn stale(_: &CommandLine) {
    const MARK: u64 = 0x7777;
    let window = Window::new();
    let (page, target) = (frames::take(), frames::take());
    frames::write(target, MARK);
    let (address, entry) = unused(2);
    let mut written = 0;
    for frame in foreign_frames() {
        frames::clear(page);
        window.map(6, page, RW);
        // The translation is there, and it is writable.
        frames::write(Window::page(6), 0);
        tables::set(window.entry(6), 0);
        hypercall::update_va_mapping(page, frames::machine(page) | RO, uvmf::NONE);
        tables::set(entry, frames::machine(page) | TABLE);
        let _ = load(address);
        let by_old = store(Window::page(6), frame << 12 | RW);
        let by_own = store(page, frame << 12 | RW);
        written += u32::from(by_old) + u32::from(by_own);
        look("a table that was written by an old translation", address);
        check();
        tables::set(entry, 0);
        hypercall::flush();
        hypercall::update_va_mapping(page, frames::machine(page) | RW, uvmf::INVLPG);
    }
    println!("probe: stale-tlb: {written} stores to tables were carried out");
    // The other way round: a table that was freed and is memory now is still walked.
    frames::clear(page);
    frames::write(page, frames::machine(target) | RW);
    tables::make(page);
    tables::set(entry, frames::machine(page) | TABLE);
    let _ = load(address);
    tables::set(entry, 0);
    hypercall::update_va_mapping(page, frames::machine(page) | RW, uvmf::NONE);
    for frame in foreign_frames() {
        let _ = store(page, frame << 12 | RW);
        // Until it is flushed, the guest may see its own page there.
        if load(address) != Some(MARK) {
            look("a table that is no more", address);
        }
        check();
    }
    hypercall::flush();
}

/// Updates of tables that are pinned, by every way that there is, with entries that name frames of others.
pub(super) fn pinned_update(_: &CommandLine) {
    let (address, entry) = unused(2);
    let table = frames::take();
    tables::make(table);
    mmuext(mmuext::PIN_L1, tables::frame(table), 0);
    tables::set(entry, frames::machine(table) | TABLE);
    for frame in foreign_frames() {
        for way in 0..4 {
            let value = frame << 12 | RW;
            match way {
                0 => _ = tables::set(table, value),
                1 => _ = hypercall::mmu_update(frames::machine(table) | 2, value),
                2 => _ = hypercall::update_va_mapping(address, value, uvmf::INVLPG),
                _ => _ = store(table, value),
            }
            look("a pinned table", address);
            hypercall::flush();
            look("a pinned table", address);
            check();
            tables::set(table, 0);
        }
    }
    tables::set(entry, 0);
    mmuext(mmuext::UNPIN, tables::frame(table), 0);
}
