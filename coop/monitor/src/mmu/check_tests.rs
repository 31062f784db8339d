//! What the checker finds: it is to see each way in which shadows can lead out of the guest, or let it write to tables.

use std::sync::atomic::Ordering::Relaxed;

use super::entry::Entry;
use super::entry::Flags;
use super::space::SHARED_INFO;
use super::test_machine::*;
use crate::frame::Kind;
use crate::layout;
use crate::layout::PAGE;

/// The kernel's address of the page that the entry `index` of the table in frame 4 maps.
const fn high(index: u64) -> u64 {
    KERNEL + index * PAGE
}

/// What the checker says.
fn check(machine: &mut Machine) -> Result<(), u64> {
    let (mmu, space, _) = machine.parts();
    mmu.check(&space)
}

/// A machine with a table of each kind in use, checked and found right.
fn machine_with_all_kinds() -> Machine {
    let mut machine = Machine::new(64, 32, true);
    machine.build();
    machine.set(4, 4, 4, RO);
    machine.set(4, 7, 20, RW);
    machine.set(4, 8, 21, RO | NX);
    machine.set(4, 9, SHARED_INFO, RW);
    machine.start();
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(high(4), Access::Read), machine.host_of(4));
    assert_eq!(machine.user(7 * PAGE, Access::Read), machine.host_of(20));
    machine
}

/// Where the shadow of a guest frame's table is in the pool.
fn place_of(machine: &Machine, frame: usize) -> u32 {
    machine.frames[frame].shadow.place().unwrap()
}

/// The checker tells of an entry that is this for a while, and of none when it is what it was.
#[track_caller]
fn finds(machine: &mut Machine, place: u32, index: usize, value: Entry) {
    let (mmu, space, _) = machine.parts();
    let before = space.entry(place, index);
    space.set_entry(place, index, value);
    let address = layout::POOL + u64::from(place) * PAGE + index as u64 * 8;
    assert_eq!(mmu.check(&space), Err(address), "{value:x?} for {before:x?}");
    space.set_entry(place, index, before);
    assert_eq!(mmu.check(&space), Ok(()));
}

#[test]
fn test_the_checker_finds_records_that_are_wrong() {
    let mut machine = machine_with_all_kinds();
    let first = place_of(&machine, 4) as usize;
    machine.shadows[first].references += 1;
    assert_eq!(check(&mut machine), Err(layout::SHADOWS));
    machine.shadows[first].references -= 1;
    machine.shadows[first].kind = Kind::L2 as u16;
    assert!(check(&mut machine).is_err());
    machine.shadows[first].kind = Kind::L1 as u16;
    machine.frames[20].uses = machine.frames[20].uses.with_writer();
    assert_eq!(check(&mut machine), Err(layout::FRAMES));
}

#[test]
fn test_the_checker_finds_leaves_to_what_is_not_the_guests() {
    let mut machine = machine_with_all_kinds();
    let first = place_of(&machine, 4);
    let right = machine.parts().1.entry(first, 7);
    assert!(right.has(Flags::WRITABLE));
    let flags = right.only(Flags::all());
    let of_monitor = machine.config.kernel_slots[0] / PAGE;
    let of_pool = machine.shadows[first as usize].host;
    let [top, _] = machine.config.top_tables;
    // With the tag of the guest's frame that was there, and with those of others.
    for host in [0, 1, of_monitor, of_pool, top, right.frame() ^ 1 << 39, (1 << 40) - 1] {
        for tag in [20, 0, 63, 64, 1 << 13] {
            finds(&mut machine, first, 7, Entry::shadow(host, tag, flags));
            finds(&mut machine, first, 500, Entry::shadow(host, tag, Flags::PRESENT | Flags::USER | Flags::ACCESSED));
        }
    }
    // Not present, yet there would be something to speculate with.
    finds(&mut machine, first, 500, Entry(of_monitor * PAGE));
    finds(&mut machine, first, 7, Entry(right.0 & !Flags::PRESENT.bits()));
}

#[test]
fn test_the_checker_finds_leaves_that_let_the_guest_write_to_tables() {
    let mut machine = machine_with_all_kinds();
    let first = place_of(&machine, 4);
    let to_itself = machine.parts().1.entry(first, 4);
    assert!(to_itself.has(Flags::PRESENT) && !to_itself.has(Flags::WRITABLE));
    finds(&mut machine, first, 4, Entry(to_itself.0 | W | D));
    finds(&mut machine, first, 4, Entry(to_itself.0 | W));
    for table in [1, 2, 3, 5] {
        let host = machine.frames[table].host;
        let flags = Flags::PRESENT | Flags::USER | Flags::ACCESSED | Flags::WRITABLE | Flags::DIRTY;
        finds(&mut machine, first, 30, Entry::shadow(host, table as u64, flags));
    }
}

#[test]
fn test_the_checker_finds_bits_that_are_not_the_guests_to_choose() {
    let mut machine = machine_with_all_kinds();
    let first = place_of(&machine, 4);
    for index in [7, 8, 9] {
        let right = machine.parts().1.entry(first, index);
        // Memory types, the global bit, a page that is not for ring 3, a tag that names another frame.
        for bit in [3, 4, 7, 8, 2, 9, 52] {
            finds(&mut machine, first, index, Entry(right.0 ^ 1 << bit));
        }
    }
    for table in [1, 2, 3] {
        let place = place_of(&machine, table);
        let right = machine.parts().1.entry(place, 0);
        for bit in [3, 4, 6, 7, 8, 2, 9, 52] {
            finds(&mut machine, place, 0, Entry(right.0 ^ 1 << bit));
        }
    }
}

#[test]
fn test_the_checker_finds_links_to_what_is_no_table_of_the_level_below() {
    let mut machine = machine_with_all_kinds();
    let [root, third, second, first, user] = [1, 2, 3, 4, 5].map(|frame| place_of(&machine, frame));
    let free = (0..).find(|place| machine.shadows[*place as usize].kind == Kind::Free as u16).unwrap();
    // As an entry of any level may have them.
    let flags = Flags::PRESENT | Flags::USER | Flags::ACCESSED | Flags::WRITABLE;
    let levels = [(root, third), (third, second), (second, first)];
    for (table, below) in levels {
        for other in [root, third, second, first, user, free].into_iter().filter(|place| *place != below) {
            for index in [0, 9] {
                let host = machine.shadows[other as usize].host;
                finds(&mut machine, table, index, Entry::shadow(host, other.into(), flags));
            }
        }
        // Memory of the guest's, whose contents it chooses, under the table's name.
        let of_guest = machine.frames[20].host;
        finds(&mut machine, table, 0, Entry::shadow(of_guest, below.into(), flags));
        finds(&mut machine, table, 0, Entry::shadow(of_guest, 20, flags));
    }
}

#[test]
fn test_the_checker_finds_monitors_slots_that_changed() {
    let mut machine = machine_with_all_kinds();
    let [root, third, user] = [1, 2, 5].map(|frame| place_of(&machine, frame));
    let of_guest = entry(machine.shadows[third as usize].host, TABLE);
    for slot in 0..layout::SLOTS {
        let index = layout::FIRST_SLOT + slot;
        for table in [root, user] {
            let right = machine.parts().1.entry(table, index);
            for wrong in [of_guest, right.0 ^ U, right.0 ^ P, right.0 ^ 1 << 12] {
                finds(&mut machine, table, index, Entry(wrong));
            }
        }
        // What only the kernel's root has.
        if machine.config.user_slots[slot] == 0 {
            let of_kernel = machine.config.kernel_slots[slot];
            finds(&mut machine, user, index, Entry(of_kernel));
        }
    }
}

#[test]
fn test_the_checker_finds_ways_from_cr3_to_others() {
    let mut machine = machine_with_all_kinds();
    for which in 0..2 {
        for index in [0, 1, 255, 256, 511] {
            let top = machine.parts().1.top_table(which).map(|top| top[index].fetch_xor(1 << 13 | P, Relaxed));
            let address = layout::TOP_TABLES + which as u64 * PAGE + index as u64 * 8;
            assert_eq!(check(&mut machine), Err(address));
            machine.parts().1.top_table(which).unwrap()[index].store(top.unwrap(), Relaxed);
            assert_eq!(check(&mut machine), Ok(()));
        }
    }
    let right = (machine.mmu.kernel_cr3, machine.mmu.user_cr3);
    for wrong in [(right.1, right.1), (right.0, right.0), (right.0, 0), (20 * PAGE, right.1)] {
        (machine.mmu.kernel_cr3, machine.mmu.user_cr3) = wrong;
        assert_eq!(check(&mut machine), Err(layout::STATE));
    }
    (machine.mmu.kernel_cr3, machine.mmu.user_cr3) = right;
    // The user mode's root for the kernel, without the monitor's own slots in it.
    machine.mmu.kernel = machine.mmu.user;
    assert_eq!(check(&mut machine), Err(layout::SHADOWS + u64::from(place_of(&machine, 5)) * 24));
}
