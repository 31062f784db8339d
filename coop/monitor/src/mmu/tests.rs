use super::FEWEST_TABLES;
use super::Fault;
use super::Mmu;
use super::MmuError;
use super::entry::ErrorCode;
use super::space::SHARED_INFO;
use super::test_machine::*;
use crate::layout;
use crate::layout::PAGE;

/// Address of the page that the entry `index` of the table in frame 4 maps, for programs too.
const fn low(index: u64) -> u64 {
    index * PAGE
}

/// The kernel's address of the same.
const fn high(index: u64) -> u64 {
    KERNEL + index * PAGE
}

const PRESENT: u64 = ErrorCode::PRESENT.bits();
const WRITE: u64 = ErrorCode::WRITE.bits();
const USER: u64 = ErrorCode::USER.bits();
const RESERVED: u64 = ErrorCode::RESERVED.bits();
const FETCH: u64 = ErrorCode::FETCH.bits();

fn machine() -> Machine {
    Machine::started(64, 32)
}

#[test]
fn test_zeros_are_an_mmu() {
    let zeros: Mmu = zerocopy::FromZeros::new_zeroed();
    assert_eq!(format!("{zeros:?}"), format!("{:?}", Mmu::new()));
}

#[test]
fn test_a_mapped_page_is_reached() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(low(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(7), Access::Fetch), machine.host_of(20));
}

#[test]
fn test_the_first_fault_in_a_table_fills_it() {
    let mut machine = machine();
    (0..30).for_each(|index| machine.set(4, index, 20 + index as u64, RW));
    assert_eq!(machine.kernel(high(3), Access::Read), machine.host_of(23));
    let cr3 = machine.mmu.kernel_cr3();
    for index in 0..30 {
        let found = machine.walk(cr3, high(index as u64)).unwrap();
        assert_eq!((found.host, found.writable), (machine.frames[20 + index].host, true));
    }
}

#[test]
fn test_what_is_not_mapped_is_the_guests_fault() {
    let mut machine = machine();
    assert_eq!(machine.kernel(high(7), Access::Read), Outcome::Fault(0));
    assert_eq!(machine.kernel(high(7), Access::Write), Outcome::Fault(WRITE));
    assert_eq!(machine.kernel(KERNEL + (1 << 30), Access::Fetch), Outcome::Fault(FETCH));
    assert_eq!(machine.kernel(0x7000_0000_0000, Access::Fetch), Outcome::Fault(FETCH));
    assert_eq!(machine.live_tables(), 1, "nothing is made for that");
}

#[test]
fn test_rights_are_the_guests() {
    let mut machine = machine();
    machine.set(4, 7, 20, RO | NX);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(7), Access::Write), Outcome::Fault(PRESENT | WRITE));
    assert_eq!(machine.kernel(high(7), Access::Fetch), Outcome::Fault(PRESENT | FETCH));
}

#[test]
fn test_rights_of_higher_entries_count() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    machine.set(2, 0, 3, (TABLE & !W) | NX);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(7), Access::Write), Outcome::Fault(PRESENT | WRITE));
    assert_eq!(machine.kernel(high(7), Access::Fetch), Outcome::Fault(PRESENT | FETCH));
    machine.update(2, 0, 3, TABLE);
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(high(7), Access::Fetch), machine.host_of(20));
}

#[test]
fn test_the_user_root_has_what_is_in_it_and_no_more() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.user(low(7), Access::Read), Outcome::Fault(USER), "no root");
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.user(low(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.user(high(7), Access::Read), Outcome::Fault(USER));
    machine.set_user_root(0).unwrap();
    assert_eq!(machine.mmu.user_cr3(), 0);
}

#[test]
fn test_accessed_and_dirty_bits_are_set_by_the_access() {
    let mut machine = machine();
    machine.set(1, 0, 2, TABLE & !A);
    machine.set(2, 0, 3, TABLE & !(A | D));
    machine.set(4, 7, 20, P | W);
    assert_eq!(machine.kernel(low(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.guest_entry(1, 0), entry(2, TABLE));
    assert_eq!(machine.guest_entry(2, 0), entry(3, TABLE & !D));
    assert_eq!(machine.guest_entry(4, 7), entry(20, P | W | A));
    let cr3 = machine.mmu.kernel_cr3();
    assert!(!machine.walk(cr3, low(7)).unwrap().writable, "a write is still to be seen");
    assert_eq!(machine.kernel(low(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.guest_entry(4, 7), entry(20, RW));
}

#[test]
fn test_bits_taken_back_are_set_again() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    machine.update(4, 7, 20, P | W);
    machine.call(|mmu, _, cpu| mmu.flush(cpu));
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.guest_entry(4, 7), entry(20, RW));
}

#[test]
fn test_updates_show_at_once() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    machine.update(4, 7, 21, RW);
    machine.update(4, 8, 22, RO);
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)).unwrap().host, machine.frames[21].host);
    let read_only = machine.walk(cr3, high(8)).unwrap();
    assert_eq!((read_only.host, read_only.writable), (machine.frames[22].host, false));
    machine.update(4, 7, 0, 0);
    assert_eq!(machine.walk(cr3, high(7)), None);
    machine.update(3, 0, 0, 0);
    assert_eq!(machine.walk(cr3, high(8)), None);
    machine.update(3, 0, 4, TABLE);
    assert_eq!(machine.walk(cr3, high(8)).unwrap(), read_only, "the table was kept, and is linked again at once");
}

#[test]
fn test_updates_by_address() {
    let mut machine = machine();
    let update = |machine: &mut Machine, address, frame: u64, flags| {
        let value = entry(frame, RW);
        machine.call(|mmu, space, cpu| mmu.update_va_mapping(space, cpu, address, value, flags))
    };
    update(&mut machine, high(9), 20, 0).unwrap();
    assert_eq!(machine.guest_entry(4, 9), entry(20, RW));
    assert_eq!(machine.kernel(high(9), Access::Write), machine.host_of(20));
    let loads = machine.cpu.loads;
    update(&mut machine, high(9), 21, 2 | 4).unwrap();
    assert_eq!((machine.cpu.loads, machine.cpu.invalidated.as_slice()), (loads, [high(9)].as_slice()));
    assert_eq!(machine.kernel(high(9), Access::Write), machine.host_of(21));
    update(&mut machine, high(9), 22, 1).unwrap();
    assert_eq!(machine.cpu.loads, loads + 1);
    for address in [KERNEL + (1 << 30), layout::ENTRY, 1 << 47, 0x7000_0000_0000] {
        assert_eq!(update(&mut machine, address, 20, 0), Err(MmuError::NotMapped(address)));
    }
}

#[test]
fn test_preserving_updates_keep_accessed_and_dirty() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    machine.call(|mmu, space, cpu| mmu.mmu_update(space, cpu, 4 * PAGE + 7 * 8 + 2, entry(20, P))).unwrap();
    assert_eq!(machine.guest_entry(4, 7), entry(20, P | A | D));
    machine.call(|mmu, space, cpu| mmu.mmu_update(space, cpu, 4 * PAGE + 7 * 8 + 1, 3)).unwrap();
    assert_eq!(machine.guest_entry(4, 7), entry(20, P | A | D), "nothing to do for machine to physical");
}

#[test]
fn test_updates_that_make_no_sense_are_refused() {
    let mut machine = machine();
    let mut update = |pointer| machine.call(|mmu, space, cpu| mmu.mmu_update(space, cpu, pointer, !0));
    assert_eq!(update(4 * PAGE + 3), Err(MmuError::Command(3)));
    assert_eq!(update(4 * PAGE + 4), Err(MmuError::Misaligned(4 * PAGE + 4)));
    assert_eq!(update(64 * PAGE), Err(MmuError::NoMemory(64 * PAGE)));
    assert_eq!(update(!7), Err(MmuError::NoMemory(!7)));
    assert_eq!(machine.pin(0, 4), Err(MmuError::Level(0)));
    assert_eq!(machine.pin(5, 4), Err(MmuError::Level(5)));
    assert_eq!(machine.pin(1, 64), Err(MmuError::NoMemory(64 * PAGE)));
    assert!(machine.pin(1, !0).is_err() && machine.unpin(!0).is_err());
    assert!(machine.set_kernel_root(64).is_err() && machine.set_user_root(!0).is_err());
}

#[test]
fn test_memory_that_there_is_not_is_a_device() {
    let mut machine = machine();
    machine.set(4, 7, 64, RW);
    machine.set(4, 8, 1 << 27, RO);
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.kernel(high(7) + 0x123, Access::Write), Outcome::Device(64 * PAGE + 0x123));
    assert_eq!(machine.user(low(8) + 8, Access::Read), Outcome::Device((1 << 39) + 8));
    assert_eq!(machine.user(low(8), Access::Write), Outcome::Fault(PRESENT | WRITE | USER));
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)), None);
}

#[test]
fn test_shared_info_is_the_page_that_the_host_told() {
    let mut machine = machine();
    machine.set(4, 7, SHARED_INFO, RW);
    assert_eq!(machine.kernel(high(7), Access::Write), Outcome::Host(HOST_SHARED_INFO));
    machine.update(4, 7, 0, 0);
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)), None);
}

#[test]
fn test_reserved_bits_are_the_guests_fault() {
    let mut machine = machine();
    machine.set(4, 7, 1 << 28, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), Outcome::Fault(PRESENT | RESERVED));
    machine.set(3, 1, 8, TABLE | PS);
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Write), Outcome::Fault(PRESENT | RESERVED | WRITE));
    machine.set(3, 2, 64, TABLE);
    assert_eq!(machine.kernel(KERNEL + (4 << 20), Access::Read), Outcome::Fault(PRESENT | RESERVED));
}

#[test]
fn test_a_large_page_bit_unlinks_the_table() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    machine.update(3, 0, 4, TABLE | PS);
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)), None);
}

#[test]
fn test_memory_types_and_the_global_bit_are_not_the_guests_to_choose() {
    let mut machine = machine();
    let types_and_global = 1 << 3 | 1 << 4 | 1 << 7 | 1 << 8;
    machine.set(4, 7, 20, RW | types_and_global);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    let place = machine.frames[4].shadow.place().unwrap();
    let entry = machine.parts().1.entry(place, 7);
    assert_eq!(entry.0 & types_and_global, 0);
}

#[test]
fn test_the_monitors_slots_are_not_the_guests() {
    let mut machine = machine();
    machine.set(4, 0, 20, RW);
    machine.update(1, layout::FIRST_SLOT, 2, TABLE);
    machine.set_user_root(5).unwrap();
    machine.update(5, layout::FIRST_SLOT + 2, 2, TABLE);
    for address in [layout::FIRST, layout::ENTRY, layout::RAM + 8, layout::END - 1] {
        assert_eq!(machine.kernel_fault(address), Fault::Guest { error_code: 0 });
        let (mmu, space, _) = machine.parts();
        assert_eq!(mmu.translate(&space, address, false), None);
    }
    for address in [1 << 47, !0 << 47 ^ 1 << 60, (1 << 63) - 1] {
        assert_eq!(machine.kernel_fault(address), Fault::Guest { error_code: 0 });
    }
}

#[test]
fn test_a_store_to_a_read_only_table_is_a_table_store() {
    let mut machine = machine();
    machine.set(4, 4, 4, RO);
    machine.set(4, 7, 20, RW);
    machine.set(4, 8, 21, RO);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(4) + 0x38, Access::Write), Outcome::TableStore(4 * PAGE + 0x38));
    machine.set(4, 7, 30, RW);
    machine.call(|mmu, space, cpu| mmu.table_stored(space, cpu, 4 * PAGE + 0x38, 8));
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)).unwrap().host, machine.frames[30].host);
    assert_eq!(machine.kernel(high(8), Access::Write), Outcome::Fault(PRESENT | WRITE), "no table");
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.user(low(4), Access::Write), Outcome::Fault(PRESENT | WRITE | USER), "not the kernel");
}

#[test]
fn test_a_store_to_a_table_that_was_not_used_yet_is_a_table_store() {
    let mut machine = machine();
    machine.set(4, 10, 10, RO);
    machine.set(4, 11, 11, RO);
    machine.set(4, 12, 12, RO);
    machine.set(11, 0, 12, TABLE);
    machine.pin(1, 10).unwrap();
    machine.pin(2, 11).unwrap();
    for table in 10..13 {
        assert_eq!(machine.kernel(high(table), Access::Write), Outcome::TableStore(table * PAGE));
        assert!(!machine.has_shadow(usize::try_from(table).unwrap()));
    }
    machine.unpin(10).unwrap();
    assert_eq!(machine.kernel(high(10), Access::Write), Outcome::Fault(PRESENT | WRITE));
}

#[test]
fn test_a_table_linked_by_a_hypercall_is_a_table() {
    let mut machine = machine();
    machine.set(4, 10, 10, RO);
    machine.update(3, 1, 10, TABLE);
    assert_eq!(machine.kernel(high(10), Access::Write), Outcome::TableStore(10 * PAGE));
}

#[test]
fn test_a_table_that_may_be_written_to_is_none_any_more() {
    let mut machine = machine();
    machine.set(3, 1, 10, TABLE);
    machine.set(10, 0, 20, RW);
    machine.set(4, 10, 10, RO);
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(10), Access::Read), machine.host_of(10));
    machine.update(4, 10, 10, RW);
    assert!(!machine.has_shadow(10));
    assert_eq!(machine.kernel(high(10), Access::Write), machine.host_of(10));
    assert_eq!(machine.frames[20].uses.writers(), 0);
    // The guest breaks its protocol and uses it again: then it is a table again, and writes are seen.
    machine.call(|mmu, _, cpu| mmu.flush(cpu));
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Read), machine.host_of(20));
    assert!(machine.has_shadow(10));
    assert_eq!(machine.frames[10].uses.writers(), 0);
    assert_eq!(machine.kernel(high(10), Access::Write), machine.host_of(10));
    assert!(!machine.has_shadow(10));
}

#[test]
fn test_a_table_that_may_be_written_to_by_a_table_without_shadow_is_none_any_more() {
    let mut machine = machine();
    machine.set(3, 1, 10, TABLE);
    machine.set(10, 0, 20, RW);
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Read), machine.host_of(20));
    machine.unpin(4).unwrap();
    machine.call(|mmu, space, cpu| mmu.update_va_mapping(space, cpu, high(10), entry(10, RW), 0)).unwrap();
    assert!(!machine.has_shadow(10));
    let (mmu, space, _) = machine.parts();
    assert_eq!(mmu.translate(&space, high(10) + 8, true), Some(10 * PAGE + 8));
}

#[test]
fn test_a_table_cannot_be_written_to_by_itself() {
    let mut machine = machine();
    machine.set(4, 4, 4, RW);
    machine.set(4, 1, 1, RW);
    assert_eq!(machine.kernel(high(4), Access::Write), Outcome::TableStore(4 * PAGE));
    assert_eq!(machine.kernel(high(4), Access::Read), machine.host_of(4));
    assert_eq!(machine.kernel(high(4), Access::Write), Outcome::TableStore(4 * PAGE));
    assert_eq!(machine.kernel(high(1), Access::Write), Outcome::TableStore(PAGE), "nor a root in use");
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.user(low(4), Access::Write), Outcome::Fault(PRESENT | WRITE | USER));
    let (mmu, space, _) = machine.parts();
    assert_eq!(mmu.translate(&space, high(4), true), None);
    machine.update(4, 4, 4, RW);
}

#[test]
fn test_a_table_that_leads_to_itself_leads_nowhere() {
    let mut machine = machine();
    machine.set(1, 300, 1, TABLE);
    let recursive = !0 << 48 | 300 << 39;
    assert_eq!(machine.kernel(recursive, Access::Read), Outcome::Fault(PRESENT | RESERVED));
    machine.set(3, 3, 3, TABLE);
    machine.set(3, 4, 2, TABLE);
    assert_eq!(machine.kernel(KERNEL + (6 << 20), Access::Read), Outcome::Fault(PRESENT | RESERVED));
    assert_eq!(machine.kernel(KERNEL + (8 << 20), Access::Read), Outcome::Fault(PRESENT | RESERVED));
}

#[test]
fn test_a_frame_has_one_kind() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    machine.set(2, 1, 4, TABLE);
    machine.set(4, 0, 30, TABLE);
    machine.set(30, 0, 21, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    // Frame 4 as level 2.
    assert_eq!(machine.kernel(KERNEL + (1 << 30), Access::Read), machine.host_of(21));
    // And as level 1 again: nothing of level 2 is left.
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.pin(3, 1), Err(MmuError::InUse(1)));
    assert_eq!(machine.set_user_root(1), Err(MmuError::InUse(1)));
    assert_eq!(machine.mmu.user_cr3(), 0);
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.set_kernel_root(5), Err(MmuError::InUse(5)));
    assert_eq!(machine.mmu.guest_cr3(), PAGE);
}

#[test]
fn test_a_root_in_use_is_not_given_up() {
    let mut machine = machine();
    machine.set(6, index_of(KERNEL), 2, TABLE);
    machine.set(4, 7, 20, RW);
    machine.set(4, 1, 1, RO);
    machine.unpin(1).unwrap();
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    machine.update(4, 1, 1, RW);
    assert!(machine.has_shadow(1));
    machine.set_kernel_root(6).unwrap();
    assert_eq!(machine.mmu.guest_cr3(), 6 * PAGE);
    assert_eq!(machine.cpu.cr3, machine.mmu.kernel_cr3());
    assert_eq!(machine.kernel(high(1), Access::Write), machine.host_of(1), "now it is no longer a root");
    assert!(!machine.has_shadow(1));
}

#[test]
fn test_no_root_in_use_can_be_written_to() {
    let mut machine = machine();
    machine.set_user_root(5).unwrap();
    machine.set(4, 5, 5, RW);
    assert_eq!(machine.kernel(high(5) + 8, Access::Write), Outcome::TableStore(5 * PAGE + 8));
    assert_eq!(machine.user(low(5) + 8, Access::Write), Outcome::Fault(PRESENT | WRITE | USER));
    machine.set_user_root(0).unwrap();
    assert_eq!(machine.kernel(high(5) + 8, Access::Write), machine.host_of(5));
}

#[test]
fn test_writers_that_are_not_in_use_cost_no_other_tables() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    machine.set(3, 1, 10, TABLE);
    machine.set(10, 0, 11, RW);
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Write), machine.host_of(11));
    machine.update(3, 1, 0, 0);
    // Only the idle table in frame 10 would let frame 11 be written to.
    machine.update(3, 2, 11, TABLE);
    machine.set(11, 0, 21, RO);
    assert_eq!(machine.kernel(KERNEL + (4 << 20), Access::Read), machine.host_of(21));
    assert!(!machine.has_shadow(10) && machine.has_shadow(4));
    let cr3 = machine.mmu.kernel_cr3();
    assert!(machine.walk(cr3, high(7)).unwrap().writable);
}

#[test]
fn test_what_was_freed_after_a_flush_waits_for_the_next() {
    let mut machine = Machine::started(64, FEWEST_TABLES as usize);
    machine.set(4, 7, 20, RO);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    machine.call(|mmu, _, cpu| mmu.flush(cpu));
    let place = machine.frames[4].shadow.place();
    machine.unpin(4).unwrap();
    machine.update(3, 0, 0, 0);
    machine.update(3, 0, 4, TABLE);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_ne!(machine.frames[4].shadow.place(), place);
}

#[test]
fn test_a_new_root_has_what_is_known_already() {
    let mut machine = machine();
    machine.set(6, index_of(KERNEL), 2, TABLE);
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    machine.set_kernel_root(6).unwrap();
    let cr3 = machine.mmu.kernel_cr3();
    assert_eq!(machine.walk(cr3, high(7)).unwrap().host, machine.frames[20].host);
    assert_eq!(machine.walk(cr3, low(7)), None);
}

#[test]
fn test_unpinning_gives_the_table_up() {
    let mut machine = machine();
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.live_tables(), 4);
    machine.unpin(4).unwrap();
    assert!(!machine.has_shadow(4));
    assert_eq!(machine.live_tables(), 4, "an entry leads there still");
    machine.unpin(3).unwrap();
    assert_eq!(machine.live_tables(), 3, "none leads to the first any more, but one to the second");
    machine.update(2, 0, 0, 0);
    assert_eq!(machine.live_tables(), 2);
}

#[test]
fn test_tables_are_used_again_only_after_a_flush() {
    let mut machine = Machine::started(64, FEWEST_TABLES as usize);
    machine.set(4, 7, 20, RO);
    let loads = machine.cpu.loads;
    // Three tables at first, then one for each time that the last is given up.
    for _ in 0..13 {
        assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
        machine.cpu.tlb.clear();
        machine.unpin(4).unwrap();
        machine.update(3, 0, 0, 0);
        machine.update(3, 0, 4, TABLE);
    }
    assert_eq!(machine.cpu.loads, loads);
    assert_eq!(machine.kernel(high(7), Access::Read), machine.host_of(20));
    assert_eq!(machine.cpu.loads, loads + 1);
}

#[test]
fn test_a_small_pool_is_enough() {
    let mut machine = Machine::started(128, FEWEST_TABLES as usize);
    machine.set_user_root(5).unwrap();
    // 16 tables of level 1, in 4 of level 2.
    for second in 0..4_u64 {
        machine.set(2, usize::try_from(second).unwrap(), 30 + second, TABLE);
        for first in 0..16_u64 {
            let table = 40 + second * 16 + first;
            machine.set(usize::try_from(30 + second).unwrap(), usize::try_from(first).unwrap(), table, TABLE);
            machine.set(usize::try_from(table).unwrap(), 0, table, RO);
        }
    }
    for round in 0..3 {
        for table in 0..64_u64 {
            let address = ((table / 16) << 30) + ((table % 16) << 21);
            let expected = machine.host_of(40 + usize::try_from(table).unwrap());
            assert_eq!(machine.access(address, Access::Read, round % 2 == 0), expected);
        }
    }
}

#[test]
fn test_idle_tables_go_first() {
    let mut machine = Machine::started(128, 20);
    machine.set(4, 7, 20, RW);
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    // Processes come and go: their roots, and one table of each level.
    for process in 0..16 {
        let [root, third, second, first] = [0, 1, 2, 3].map(|level| 40 + process * 4 + level);
        machine.set(root, index_of(KERNEL), 2, TABLE);
        machine.set(root, 0, third as u64, TABLE);
        machine.set(third, 0, second as u64, TABLE);
        machine.set(second, 0, first as u64, TABLE);
        machine.set(first, 0, 30, RW);
        machine.set_kernel_root(root as u64).unwrap();
        assert_eq!(machine.kernel(0, Access::Write), machine.host_of(30));
        let cr3 = machine.mmu.kernel_cr3();
        assert!(machine.walk(cr3, high(7)).is_some(), "the kernel's own stay");
    }
}

#[test]
fn test_too_small_a_pool_is_refused() {
    let mut machine = Machine::new(64, FEWEST_TABLES as usize - 1, false);
    machine.build();
    let (mmu, mut space, _) = machine.parts();
    assert_eq!(mmu.start(&mut space, PAGE), Err(MmuError::PoolEmpty));
}

#[test]
fn test_a_root_outside_memory_is_refused() {
    let mut machine = Machine::new(64, 32, false);
    let (mmu, mut space, _) = machine.parts();
    assert_eq!(mmu.start(&mut space, 64 * PAGE), Err(MmuError::NoMemory(64 * PAGE)));
}

#[test]
fn test_five_levels_of_the_host_are_not_seen() {
    let mut machine = Machine::new(64, 32, true);
    machine.build();
    machine.set(4, 7, 20, RW);
    machine.set(6, 0, 2, TABLE);
    machine.start();
    assert_eq!(machine.kernel(high(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(low(7), Access::Write), machine.host_of(20));
    let cr3 = machine.mmu.kernel_cr3();
    machine.set_user_root(5).unwrap();
    assert_eq!(machine.user(low(7), Access::Write), machine.host_of(20));
    machine.set_kernel_root(6).unwrap();
    assert_eq!((machine.mmu.kernel_cr3(), machine.mmu.guest_cr3()), (cr3, 6 * PAGE));
    assert_eq!(machine.kernel(low(7), Access::Write), machine.host_of(20));
    assert_eq!(machine.kernel(high(7), Access::Write), Outcome::Fault(WRITE));
    machine.set_user_root(0).unwrap();
}

#[test]
fn test_a_new_table_makes_the_cpu_forget_that_it_could_be_written_to() {
    let mut machine = machine();
    machine.set(4, 10, 10, RW);
    machine.set(10, 0, 20, RW);
    assert_eq!(machine.kernel(high(10), Access::Write), machine.host_of(10));
    machine.update(4, 10, 10, RO);
    machine.pin(1, 10).unwrap();
    machine.update(3, 1, 10, TABLE);
    assert!(machine.cpu.tlb.values().any(|known| known.writable), "no flush yet");
    assert_eq!(machine.kernel(KERNEL + (2 << 20), Access::Read), machine.host_of(20));
    assert_eq!(machine.kernel(high(10), Access::Write), Outcome::TableStore(10 * PAGE));
}

#[test]
fn test_addresses_are_translated_for_the_monitor() {
    let mut machine = machine();
    machine.set(4, 7, 20, P | W);
    machine.set(4, 8, 21, RO);
    machine.set(4, 9, SHARED_INFO, RW);
    machine.set(4, 10, 64, RW);
    let (mmu, space, _) = machine.parts();
    let translate = |address, write| mmu.translate(&space, address, write);
    assert_eq!(translate(high(7) + 0x10, true), Some(20 * PAGE + 0x10));
    assert_eq!(translate(low(8) + 0xfff, false), Some(21 * PAGE + 0xfff));
    assert_eq!(translate(high(8), true), None);
    assert_eq!(translate(high(9) + 1, true), Some(SHARED_INFO * PAGE + 1));
    assert_eq!(translate(high(10), false), None);
    assert_eq!(translate(high(11), false), None);
    assert_eq!(machine.guest_entry(4, 7), entry(20, RW));
    machine.check();
}

fn index_of(address: u64) -> usize {
    super::entry::index(address, 4)
}

impl Machine {
    /// What a fault is that no CPU of the machine makes.
    fn kernel_fault(&mut self, address: u64) -> Fault {
        self.call(|mmu, space, cpu| mmu.fault(space, cpu, address, USER | PRESENT, true))
    }
}
