//! Blocks, and the loader's view of guest RAM.

use std::collections::HashSet;

use covisor_abi::Call;
use covisor_abi::MemoryAdd;
use covisor_abi::VmCreate;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::ORDER_2M;

use crate::Nt;
use crate::NtStatus;
use crate::tests::Open;
use crate::tests::end;
use crate::tests::kernel::Config;
use crate::tests::kernel::Fake;
use crate::tests::kernel::Kernel;
use crate::tests::machine;
use crate::tests::start;

type TestHost = Nt<Fake>;

fn bytes(block: &Block) -> &[u8] {
    // SAFETY: the block has that many, and the test has it.
    unsafe { std::slice::from_raw_parts(block.virt.as_ptr(), 4096 << block.order) }
}

fn dirty(block: &Block) {
    // SAFETY: as above.
    unsafe { block.virt.write_bytes(0xa5, 4096 << block.order) };
}

fn free(block: Block) {
    // SAFETY: each is freed once.
    unsafe { TestHost::free_block(block) };
}

#[test]
fn test_pages_are_zeros_and_no_two_are_the_same() {
    let kernel = machine();
    let before = kernel.allocations();
    let blocks: Vec<_> = (0..1500).map(|_| TestHost::alloc_block(0).expect("there is memory")).collect();
    assert_eq!(kernel.allocations() - before, 3, "512 by one call");
    let phys: HashSet<_> = blocks.iter().map(|block| block.phys).collect();
    let virt: HashSet<_> = blocks.iter().map(|block| block.virt).collect();
    assert_eq!((phys.len(), virt.len()), (1500, 1500));
    for block in &blocks {
        assert!(bytes(block).iter().all(|byte| *byte == 0));
        dirty(block);
    }
    // Every second one, which another gets then.
    let (gone, kept): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    gone.into_iter().for_each(|(_, block)| free(block));
    let again: Vec<_> = (0..700).map(|_| TestHost::alloc_block(0).expect("there is memory")).collect();
    assert_eq!(kernel.allocations() - before, 3);
    for block in &again {
        assert!(bytes(block).iter().all(|byte| *byte == 0));
    }
    kept.into_iter().map(|(_, block)| block).chain(again).for_each(free);
    end(kernel);
}

/// Whose addresses for mappings may be few.
#[test]
fn test_an_nt_before_windows_7_gives_pages_of_its_pool() {
    let kernel = Kernel::boot(Config { version: (5, 2), ..Config::default() });
    start(kernel).expect("it starts");
    let before = kernel.allocations();
    let blocks: Vec<_> = (0..600).map(|_| TestHost::alloc_block(0).expect("there is memory")).collect();
    assert_eq!((kernel.allocations(), kernel.port().pages().lock().slabs()), (before, 2));
    let phys: HashSet<_> = blocks.iter().map(|block| block.phys).collect();
    assert_eq!(phys.len(), 600);
    for block in &blocks {
        assert_eq!(Some(block.phys), TestHost::physical_address(block.virt.as_ptr()));
        assert!(bytes(block).iter().all(|byte| *byte == 0));
        dirty(block);
    }
    blocks.into_iter().for_each(free);
    assert_eq!(kernel.port().pages().lock().slabs(), 0);
    end(kernel);
}

#[test]
fn test_a_slab_may_be_smaller_than_wanted() {
    let kernel = Kernel::boot(Config { pages_at_once: 65, ..Config::default() });
    start(kernel).expect("it starts");
    let blocks: Vec<_> = (0..200).map(|_| TestHost::alloc_block(0).expect("there is memory")).collect();
    assert_eq!(kernel.port().pages().lock().slabs(), 4);
    assert!(TestHost::alloc_block(ORDER_2M).is_none(), "there is no chunk");
    blocks.into_iter().for_each(free);
    assert_eq!(kernel.port().pages().lock().slabs(), 0);
    end(kernel);
}

#[test]
fn test_a_chunk_is_one_where_this_nt_has_them() {
    let kernel = machine();
    let block = TestHost::alloc_block(ORDER_2M).expect("there is memory");
    assert!(block.phys.is_multiple_of(2 << 20));
    assert!(bytes(&block).iter().all(|byte| *byte == 0));
    free(block);
    end(kernel);

    let kernel = Kernel::boot(Config { version: (5, 2), ..Config::default() });
    start(kernel).expect("it starts");
    assert!(TestHost::alloc_block(ORDER_2M).is_none());
    end(kernel);
}

#[test]
fn test_a_chunk_in_the_wrong_place_is_none() {
    let kernel = Kernel::boot(Config { chunks_aligned: false, ..Config::default() });
    start(kernel).expect("it starts");
    assert!(TestHost::alloc_block(ORDER_2M).is_none());
    end(kernel);
}

#[test]
fn test_engines_blocks_are_contiguous_at_their_multiples() {
    let kernel = machine();
    for order in 1..5 {
        let block = TestHost::alloc_block(order).expect("there is memory");
        assert!(block.phys.is_multiple_of(4096 << order));
        assert!(bytes(&block).iter().all(|byte| *byte == 0));
        free(block);
    }
    end(kernel);
}

#[test]
fn test_memory_ends() {
    let kernel = machine();
    let mut blocks = Vec::new();
    while let Some(block) = TestHost::alloc_block(0) {
        blocks.push(block);
    }
    assert_eq!(TestHost::memory_available(), 0);
    blocks.into_iter().for_each(free);
    end(kernel);
}

/// Page frames of a mapping in one process, in the order of their addresses, and where it begins.
fn view(kernel: &Kernel, process: usize) -> (usize, Vec<u64>) {
    let mappings = kernel.mappings(process);
    let start = mappings[0].0;
    let mut next = start;
    let mut all = Vec::new();
    for (address, frames) in mappings {
        assert_eq!(address, next, "the parts are in a row");
        next += frames.len() * 4096;
        all.extend(frames.into_iter().map(|frame| frame as u64 * 4096));
    }
    (start, all)
}

fn vm(kernel: &'static Kernel) -> Open {
    let open = Open::new(kernel);
    open.greet();
    open.call(Call::VmCreate, VmCreate { vcpus: 1, ..VmCreate::default() }).expect("the engine is there");
    open
}

fn add(open: &Open, gpa: u64, size: u64) -> Result<u64, NtStatus> {
    open.call(Call::MemoryAdd, MemoryAdd { gpa, size, ..MemoryAdd::default() }).map(|memory| memory.map)
}

#[test]
fn test_the_loader_sees_the_guest_s_pages_in_their_order() {
    let kernel = machine();
    let open = vm(kernel);
    // More than one MDL describes, single pages and chunks.
    let size = 0x1f_e000 + (17 << 20);
    let map = add(&open, 0x2000, size).expect("there is memory");
    let (start, frames) = view(kernel, 1);
    assert_eq!((start as u64, frames.len() as u64), (map, size / 4096));
    assert_eq!(frames.iter().collect::<HashSet<_>>().len(), frames.len());
    open.cleanup();
    open.close();
    assert!(kernel.mappings(1).is_empty());
    end(kernel);
}

#[test]
fn test_room_that_another_thread_takes_is_looked_for_again() {
    let kernel = Kernel::boot(Config { stolen_rooms: 7, ..Config::default() });
    start(kernel).expect("it starts");
    let open = vm(kernel);
    add(&open, 0, 0x10000).expect("the eighth is free");
    open.close();
    end(kernel);
}

#[test]
fn test_a_mapping_that_fails_half_way_leaves_nothing() {
    let kernel = Kernel::boot(Config { maps_left: 1, ..Config::default() });
    start(kernel).expect("it starts");
    let open = vm(kernel);
    assert_eq!(add(&open, 0, 20 << 20), Err(NtStatus::NO_MEMORY));
    assert!(kernel.mappings(1).is_empty());
    open.close();
    end(kernel);
}

#[test]
fn test_attack_the_last_handle_is_closed_in_another_process() {
    let kernel = machine();
    let open = vm(kernel);
    add(&open, 0, 0x10000).expect("there is memory");
    Kernel::enter_process(2);
    open.cleanup();
    open.close();
    assert!(kernel.mappings(1).is_empty(), "it is gone from the opener's address space");
    end(kernel);
}

#[test]
fn test_attack_the_opener_ends_and_another_process_keeps_the_handle() {
    let kernel = machine();
    let open = vm(kernel);
    add(&open, 0, 0x10000).expect("there is memory");
    kernel.end_process(1);
    Kernel::enter_process(2);
    open.cleanup();
    open.close();
    end(kernel);
}
