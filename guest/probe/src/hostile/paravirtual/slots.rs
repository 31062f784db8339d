//! The monitor's part of the address space: entries of the guest's for it, and programs that read it.

use super::broke_through;
use super::check;
use super::in_user_mode;
use super::load;
use super::store;
use crate::cmdline::CommandLine;
use crate::exception::vector;
use crate::xen::abi::HYPERVISOR_SLOTS;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::mmuext;
use crate::xen::frames;
use crate::xen::frames::WORDS;
use crate::xen::hypercall::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::tables;
use crate::xen::tables::RW;
use crate::xen::tables::TABLE;

/// What the guest's own page has that its entries lead to.
const MARK: u64 = 0x5151_5151_1515_1515;

/// Tables of the guest's of every level below a root, by which every address leads to one page.
fn tree() -> u64 {
    let page = frames::take();
    for index in 0..WORDS as u64 {
        frames::write(page + index * 8, MARK);
    }
    let mut below = frames::machine(page) | RW;
    for _ in 0..3 {
        let table = frames::take();
        for index in 0..WORDS as u64 {
            frames::write(table + index * 8, below);
        }
        tables::make(table);
        below = frames::machine(table) | TABLE;
    }
    below
}

/// A copy of a root with the guest's own tables in all of the monitor's slots.
fn root(of: u64, tree: u64) -> u64 {
    let copy = frames::take();
    for index in 0..WORDS as u64 {
        let own = HYPERVISOR_SLOTS.contains(&index);
        frames::write(copy + index * 8, if own { tree } else { frames::read(of + index * 8) });
    }
    tables::make(copy)
}

/// Addresses all over the slots.
fn addresses() -> impl Iterator<Item = u64> {
    const STEPS: [u64; 12] = [
        0,
        0x1000,
        0x10_0000,
        0x11_0000,
        0x12_0000,
        0x13_0000,
        0x14_0000,
        0x16_0000,
        1 << 30,
        2 << 30,
        0x10_0000_0000,
        0x20_0000_0000,
    ];
    HYPERVISOR_SLOTS
        .flat_map(|slot| STEPS.map(|step| HYPERVISOR_START + ((slot - HYPERVISOR_SLOTS.start) << 39) + step))
}

/// In the kernel's root: another root that has them, and updates of the one in use.
pub(super) fn kernels(_: &CommandLine) {
    let tree = tree();
    let look = |name: &str| {
        for address in addresses() {
            // The table of frames by frames can be read, and has no marks.
            let seen = load(address);
            if seen == Some(MARK) || seen.is_some() && address >= HYPERVISOR_START + (1 << 39) {
                broke_through(format_args!("monitor-slots: {name}: {address:#x} has {seen:x?}"));
            }
            if store(address, MARK) {
                broke_through(format_args!("monitor-slots: {name}: {address:#x} can be written"));
            }
            // As an argument.
            let result = hypercall(call::XEN_VERSION, [1, address]);
            if result == 0 {
                broke_through(format_args!("monitor-slots: {name}: a hypercall writes to {address:#x}"));
            }
        }
        check();
    };
    let other = root(tables::kernel(), tree);
    println!("probe: monitor-slots: pinned: {}", mmuext(mmuext::PIN_L4, tables::frame(other), 0));
    println!("probe: monitor-slots: the root: {}", mmuext(mmuext::NEW_BASEPTR, tables::frame(other), 0));
    look("another root");
    mmuext(mmuext::NEW_BASEPTR, tables::frame(tables::kernel()), 0);
    mmuext(mmuext::UNPIN, tables::frame(other), 0);
    for slot in HYPERVISOR_SLOTS {
        let result = tables::set(tables::kernel() + slot * 8, tree);
        if slot == HYPERVISOR_SLOTS.start {
            println!("probe: monitor-slots: an update: {result}");
        }
    }
    look("the root in use");
    for slot in HYPERVISOR_SLOTS {
        tables::set(tables::kernel() + slot * 8, 0);
    }
}

/// In the root of user mode.
pub(super) fn users(_: &CommandLine) {
    let tree = tree();
    let other = root(tables::users(), tree);
    println!("probe: monitor-slots-user: the root: {}", mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(other), 0));
    read_all("monitor-slots-user");
    mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(tables::users()), 0);
    for slot in HYPERVISOR_SLOTS {
        tables::set(tables::users() + slot * 8, tree);
    }
    read_all("monitor-slots-user");
    for slot in HYPERVISOR_SLOTS {
        tables::set(tables::users() + slot * 8, 0);
    }
}

/// A program that reads, writes and executes the monitor.
pub(super) fn user_reads(_: &CommandLine) {
    read_all("user-reads-monitor");
}

fn read_all(name: &str) {
    for address in addresses() {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        // MOV AL from there; MOV AL to there; MOV RCX, address; JMP RCX.
        let codes: [&[u8]; 3] = [
            &[0xa0, a, b, c, d, e, f, g, h],
            &[0xa2, a, b, c, d, e, f, g, h],
            &[0x48, 0xb9, a, b, c, d, e, f, g, h, 0xff, 0xe1],
        ];
        for (index, code) in codes.into_iter().enumerate() {
            let raised = in_user_mode(code);
            if raised.is_none_or(|fault| fault.vector != vector::PF) {
                broke_through(format_args!("{name}: way {index} at {address:#x}: {raised:?}"));
            }
        }
    }
    check();
}
