//! Queues of drivers that are sound, careless or hostile.

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::testing::AVAILABLE;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::DESCRIPTORS;
use crate::devices::virtio::testing::INDIRECT;
use crate::devices::virtio::testing::NEXT;
use crate::devices::virtio::testing::RAM;
use crate::devices::virtio::testing::TestQueue;
use crate::devices::virtio::testing::USED;
use crate::devices::virtio::testing::WRITE;

/// Takes one chain.
fn pop(test: &TestQueue) -> Result<Option<Chain>, QueueError> {
    let mut chain = Chain::default();
    Ok(test.queue(false).pop(&mut chain)?.then_some(chain))
}

fn flagged(address: u64, length: u32, flags: u16) -> Buffer {
    Buffer { address, length, flags }
}

#[test]
fn test_a_chain_is_split_by_direction() {
    let test = TestQueue::new(16);
    test.offer(3, &[Buffer::readable(0x8000, 16), Buffer::readable(0x9000, 0), Buffer::writable(0xa000, 513)]);
    let chain = pop(&test).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 16, 513));
    assert!(pop(&TestQueue::new(16)).unwrap().is_none());
}

#[test]
fn test_an_indirect_table_is_followed() {
    let test = TestQueue::new(16);
    test.descriptor_at(0x8000, 0, flagged(0x9000, 16, NEXT), 1);
    test.descriptor_at(0x8000, 1, flagged(0xa000, 8, WRITE), 0);
    test.offer(0, &[Buffer::readable(0xb000, 4), flagged(0x8000, 32, INDIRECT)]);
    let chain = pop(&test).unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (20, 8));
}

#[test]
fn test_completion_interrupts_as_the_driver_wants() {
    let test = TestQueue::new(16);
    let mut queue = test.queue(false);
    queue.complete(5, 7).unwrap();
    assert_eq!((test.take_used(), test.signals.take()), (vec![(5, 7)], vec![0]));
    test.write(AVAILABLE, NO_INTERRUPT);
    queue.complete(6, 0).unwrap();
    assert_eq!((test.take_used(), test.signals.take()), (vec![(6, 0)], vec![]));
}

#[test]
fn test_completion_with_event_index_interrupts_at_the_index() {
    let test = TestQueue::new(16);
    let mut queue = test.queue(true);
    // used_event, behind the available ring.
    test.write(AVAILABLE + 4 + 16 * 2, 1_u16);
    queue.complete(0, 0).unwrap();
    assert!(test.signals.take().is_empty());
    queue.complete(1, 0).unwrap();
    assert_eq!(test.signals.take(), [0]);
    queue.complete(2, 0).unwrap();
    assert!(test.signals.take().is_empty());
}

#[test]
fn test_a_chain_that_comes_while_arming_is_not_missed() {
    let test = TestQueue::new(16);
    for event_idx in [false, true] {
        let mut queue = test.queue(event_idx);
        queue.disarm().unwrap();
        assert!(!queue.arm().unwrap());
        test.offer(0, &[Buffer::readable(0x8000, 1)]);
        assert!(queue.arm().unwrap());
        test.set_available_index(0);
    }
}

#[test]
fn test_a_closed_gate_lets_nothing_through() {
    let test = TestQueue::new(16);
    let gate = Arc::new(Gate::default());
    let (memory, signal) = (Arc::clone(&test.memory), test.signals.clone());
    let mut queue = VirtQueue::new(0, &test.layout(), 256, false, memory, signal, Arc::clone(&gate)).unwrap();
    test.offer(0, &[Buffer::readable(0x8000, 1)]);
    assert!(!queue.pop(&mut Chain::default()).unwrap());
    assert!(!queue.arm().unwrap());
    gate.set_bus_master(true);
    assert!(queue.pop(&mut Chain::default()).unwrap());
}

/// Attack F2 1: a descriptor chain that loops.
#[test]
fn test_attack_1_chain_loop() {
    let test = TestQueue::new(16);
    test.descriptor(0, flagged(0x8000, 16, NEXT), 1);
    test.descriptor(1, flagged(0x8000, 16, NEXT), 0);
    test.make_available(0);
    assert!(matches!(pop(&test), Err(QueueError::BrokenChain { head: 0, .. })));
}

/// Attack F2 1: a chain that leaves its table, at its head or later.
#[test]
fn test_attack_1_next_out_of_table() {
    for next in [16, 0xffff] {
        let test = TestQueue::new(16);
        test.descriptor(0, flagged(0x8000, 16, NEXT), next);
        test.make_available(0);
        assert!(matches!(pop(&test), Err(QueueError::BrokenChain { .. })));
        let test = TestQueue::new(16);
        test.make_available(next);
        assert!(matches!(pop(&test), Err(QueueError::BrokenChain { .. })));
    }
}

/// Attack F2 1: a chain longer than any queue.
#[test]
fn test_attack_1_chain_too_long() {
    let test = TestQueue::new(16);
    let entries = u16::try_from(MAX_CHAIN).unwrap() + 1;
    for index in 0..entries {
        let flags = if index + 1 == entries { 0 } else { NEXT };
        test.descriptor_at(0x10_0000, index, flagged(0x8000, 1, flags), index + 1);
    }
    test.offer(0, &[flagged(0x10_0000, u32::from(entries) * 16, INDIRECT)]);
    assert!(matches!(pop(&test), Err(QueueError::LongChain { .. })));
}

/// Attack F2 1: an indirect table in an indirect table, or in itself.
#[test]
fn test_attack_1_nested_indirect_tables() {
    let test = TestQueue::new(16);
    test.descriptor_at(0x8000, 0, flagged(0x8000, 16, INDIRECT), 0);
    test.offer(0, &[flagged(0x8000, 16, INDIRECT)]);
    assert!(matches!(pop(&test), Err(QueueError::BrokenChain { .. })));
    let test = TestQueue::new(16);
    test.descriptor_at(0x8000, 0, flagged(0x9000, 4, NEXT), 1);
    test.descriptor_at(0x8000, 1, flagged(0x8000, 16, INDIRECT), 0);
    test.offer(0, &[flagged(0x8000, 32, INDIRECT)]);
    assert!(matches!(pop(&test), Err(QueueError::BrokenChain { .. })));
}

/// Attack F2 1: indirect tables of impossible sizes or places.
#[test]
fn test_attack_1_bad_indirect_tables() {
    for (address, length) in [
        (0x8000, 0),
        (0x8000, 17),
        (0x8000, 65_536 * 16),
        (0x8000, u32::MAX),
        (0x8000_0000, 32),
        (u64::MAX - 15, 32),
        (u64::MAX, 16),
    ] {
        let test = TestQueue::new(16);
        test.offer(0, &[flagged(address, length, INDIRECT)]);
        assert!(matches!(pop(&test), Err(QueueError::BrokenChain { .. })), "{address:#x} {length:#x}");
    }
}

#[test]
fn test_a_readable_buffer_behind_a_writable_one_is_refused() {
    let test = TestQueue::new(16);
    test.offer(0, &[Buffer::writable(0x8000, 16), Buffer::readable(0x9000, 16)]);
    assert!(matches!(pop(&test), Err(QueueError::BadOrder { .. })));
}

/// Attack F2 2: an available index that jumps.
#[test]
fn test_attack_2_available_index_jump() {
    for index in [17, 0x8000, 0xffff] {
        let test = TestQueue::new(16);
        test.set_available_index(index);
        assert!(matches!(pop(&test), Err(QueueError::AvailableJump { queue: 0 })));
    }
}

/// Attack F2 4: rings at addresses that wrap around, cross RAM's end or lie in a hole.
#[test]
fn test_attack_4_rings_outside_ram() {
    let (low_end, high) = (RAM[0].0 + RAM[0].1 as u64, RAM[1].0);
    let good = TestQueue::new(16).layout();
    let bad = [0, 0x1001, low_end - 16, low_end, 0x8000_0000, high - 16, u64::MAX - 15, !0xf];
    for address in bad {
        for layout in [
            QueueLayout { descriptors: address, ..good },
            QueueLayout { available: address, ..good },
            QueueLayout { used: address, ..good },
        ] {
            let test = TestQueue::new(16);
            let (memory, signal) = (Arc::clone(&test.memory), test.signals.clone());
            let made = VirtQueue::new(0, &layout, 256, false, memory, signal, Arc::new(Gate::opened()));
            assert!(matches!(made, Err(QueueError::BadRing { .. })), "{layout:x?}");
        }
    }
    for size in [0, 3, 512, 0xffff] {
        let made = TestQueue::new(size).try_queue(false);
        assert!(matches!(made, Err(QueueError::BadSize { max: 256, .. })));
    }
    // One that ends exactly where RAM does is good.
    let test = TestQueue::new(16);
    let layout = QueueLayout { descriptors: low_end - 256, ..good };
    let (memory, signal) = (Arc::clone(&test.memory), test.signals.clone());
    VirtQueue::new(0, &layout, 256, false, memory, signal, Arc::new(Gate::opened())).unwrap();
}

/// Attack F2 4: buffers at such addresses.
#[test]
fn test_attack_4_buffers_outside_ram() {
    let low_end = RAM[0].0 + RAM[0].1 as u64;
    for (address, length) in [
        (low_end - 1, 2),
        (low_end, 1),
        (0, u32::MAX),
        (0xfee0_0000, 4),
        (RAM[1].0 - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 0xffff, u32::MAX),
    ] {
        for buffer in [Buffer::readable(address, length), Buffer::writable(address, length)] {
            let test = TestQueue::new(16);
            test.offer(0, &[buffer]);
            let result = pop(&test);
            let refused = matches!(result, Err(QueueError::BufferOutsideRam { .. } | QueueError::BrokenChain { .. }));
            assert!(refused, "{address:#x} {length:#x}: {result:?}");
        }
    }
}

/// Attack F2 4: a buffer on the rings themselves. The device writes what the driver asked for, and stays sound.
#[test]
fn test_attack_4_buffer_over_its_own_ring() {
    let test = TestQueue::new(16);
    test.offer(0, &[Buffer::writable(DESCRIPTORS, 0x4000)]);
    let mut queue = test.queue(false);
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain).unwrap());
    chain.writable.write(&test.memory, &[0xff; 0x4000]).unwrap();
    queue.complete(chain.head, 0x4000).unwrap();
    assert!(matches!(queue.pop(&mut chain), Err(QueueError::AvailableJump { .. })));
    assert_eq!(test.bytes(USED + 2, 2), [1, 0]);
}

/// Attack F2 6: the driver changes a chain after it was taken.
#[test]
fn test_attack_6_descriptors_changed_after_the_check() {
    let test = TestQueue::new(16);
    test.offer(0, &[Buffer::readable(0x8000, 16), Buffer::writable(0x9000, 16)]);
    let mut queue = test.queue(false);
    let mut chain = Chain::default();
    assert!(queue.pop(&mut chain).unwrap());
    test.descriptor(0, flagged(0x8000_0000, u32::MAX, NEXT | WRITE), 0);
    test.descriptor(1, flagged(u64::MAX, u32::MAX, 0), 0);
    let mut bytes = [0; 16];
    assert_eq!(chain.readable.read(&test.memory, &mut bytes).unwrap(), 16);
    assert_eq!(chain.writable.slices(&test.memory).unwrap()[0].len(), 16);
}

#[test]
fn test_segments_are_cut_anywhere() {
    let test = TestQueue::new(16);
    test.fill(0x8000, b"abcdef");
    test.offer(0, &[Buffer::readable(0x8000, 2), Buffer::readable(0x8002, 4), Buffer::writable(0x9000, 1)]);
    let mut chain = pop(&test).unwrap().unwrap();
    let mut bytes = [0; 8];
    let front = chain.readable.split_front(3);
    assert_eq!(front.read(&test.memory, &mut bytes).unwrap(), 3);
    assert_eq!(chain.readable.read(&test.memory, &mut bytes[3..]).unwrap(), 3);
    assert_eq!(&bytes[..6], b"abcdef");
    assert_eq!(chain.readable.split_front(100).len(), 3);
    assert!(chain.readable.is_empty());
    assert_eq!((chain.writable.split_last_byte(), chain.writable.split_last_byte()), (Some(0x9000), None));
    assert_eq!(chain.writable.write(&test.memory, b"x").unwrap(), 0);
}

proptest! {
    /// Attacks F2 1, 2 and 4: whatever is in the rings, taking chains ends, and every buffer taken is RAM.
    #[test]
    fn test_any_ring_is_survived(
        descriptors in prop::collection::vec(
            (
                prop_oneof![0u64..0x21_0000, 0xffff_f000u64..0x1_0020_0000, any::<u64>()],
                prop_oneof![0u32..0x200, any::<u32>()],
                0u16..8,
                0u16..20,
            ),
            16,
        ),
        heads in prop::collection::vec(0u16..18, 16),
        index in 0u16..20,
        event_idx in any::<bool>(),
    ) {
        let test = TestQueue::new(16);
        for (number, (address, length, flags, next)) in (0..).zip(descriptors) {
            test.descriptor(number, Buffer { address, length, flags }, next);
        }
        for (number, head) in (0..).zip(heads) {
            test.write(AVAILABLE + 4 + number * 2, head);
        }
        test.set_available_index(index);
        let mut queue = test.queue(event_idx);
        let mut chain = Chain::default();
        let mut taken = 0;
        while let Ok(true) = queue.pop(&mut chain) {
            prop_assert!(chain.readable.slices(&test.memory).is_ok());
            prop_assert!(chain.writable.slices(&test.memory).is_ok());
            if queue.complete(chain.head, 0).is_err() {
                break;
            }
            taken += 1;
            prop_assert!(taken <= 16);
        }
    }
}
