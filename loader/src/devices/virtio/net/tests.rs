//! Frames between queues of drivers that are sound or not, and a back end that remembers.

use std::sync::Mutex;

use super::*;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::TestQueue;
use crate::devices::virtio::testing::USED;
use crate::net::Deliver;
use crate::net::ETHERNET_HEADER;
use crate::platform::lock;

/// What a back end was sent, and what it has to give.
#[derive(Default)]
struct Memory {
    sent: Vec<(FrameHeader, Vec<u8>)>,
    waiting: Vec<Vec<u8>>,
}

struct Remembering(Arc<Mutex<Memory>>);

impl Backend for Remembering {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn mtu(&self) -> u16 {
        1500
    }

    fn attach(&mut self, _event: &Arc<Event>) -> io::Result<()> {
        Ok(())
    }

    fn start(&mut self, _agreed: Offloads) {}

    fn send(&mut self, header: &FrameHeader, frame: &[u8]) {
        lock(&self.0).sent.push((*header, frame.to_vec()));
    }

    fn receive(&mut self, room: usize, deliver: Deliver<'_>) -> bool {
        let mut memory = lock(&self.0);
        if memory.waiting.first().is_none_or(|frame| frame.len() > room) {
            return false;
        }
        let frame = memory.waiting.remove(0);
        let (first, second) = frame.split_at(frame.len() / 3);
        deliver(&FrameHeader::default(), &[first, &[], second]);
        true
    }

    fn wait(&mut self, _timeout: Option<Duration>) {}

    fn next_deadline(&self) -> Option<Duration> {
        None
    }

    fn reset(&mut self) {}
}

fn handler(features: u64) -> (NetHandler, Arc<Mutex<Memory>>) {
    let memory = Arc::<Mutex<Memory>>::default();
    let mut handler = NetHandler::new("net0", Box::new(Remembering(Arc::clone(&memory))));
    handler.start(features);
    (handler, memory)
}

#[test]
fn test_a_frame_of_the_guests_is_sent() {
    let test = TestQueue::new(16);
    let (mut handler, memory) = handler(0);
    test.fill(0x8000 + HEADER_SIZE as u64, &[7; 60]);
    test.offer(0, &[Buffer::readable(0x8000, 12), Buffer::readable(0x800c, 20), Buffer::readable(0x8020, 40)]);
    assert!(!handler.transmit(&mut test.queue(false)).unwrap());
    assert_eq!(lock(&memory).sent, [(FrameHeader::default(), vec![7; 60])]);
    assert_eq!(test.take_used(), [(0, 0)]);
}

/// Attack F2 5: frames without a header, of a header only, larger than any; with offloads that were not agreed to.
#[test]
fn test_attack_5_frames() {
    let test = TestQueue::new(16);
    let (mut handler, memory) = handler(0);
    test.fill(0x9000, &[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    for (address, length) in [(0x8000, 0), (0x8000, 11), (0x8000, 12), (0x8000, 25), (0x8000, 0x1_5000), (0x9000, 600)]
    {
        test.offer(0, &[Buffer::readable(address, length)]);
    }
    let mut queue = test.queue(false);
    while handler.transmit(&mut queue).unwrap() {}
    assert!(lock(&memory).sent.is_empty());
}

#[test]
fn test_a_frame_for_the_guest_lies_in_as_many_buffers_as_it_needs() {
    let test = TestQueue::new(64);
    let (mut handler, memory) = handler(bit::MERGEABLE);
    let frame: Vec<u8> = (0..3000_u32).map(|index| index.to_le_bytes()[0]).collect();
    lock(&memory).waiting.push(frame.clone());
    let mut queue = test.queue(false);
    // Not enough for a frame of the link's size: nothing is taken of the host.
    test.offer(0, &[Buffer::writable(0x1_0000, 1000)]);
    handler.receive(&mut queue).unwrap();
    assert!(test.take_used().is_empty());
    for head in 1..6_u16 {
        test.offer(head, &[Buffer::writable(0x1_0000 + u64::from(head) * 1000, 1000)]);
    }
    handler.receive(&mut queue).unwrap();
    assert_eq!(test.take_used(), [(0, 1000), (1, 1000), (2, 1000), (3, 12)]);
    // Once for all of them.
    assert_eq!(test.signals.take(), [0]);
    assert_eq!(test.bytes(0x1_0000 + 10, 2), [4, 0]);
    assert_eq!(test.bytes(0x1_0000 + 12, 3000), frame);
}

#[test]
fn test_without_merging_a_frame_has_one_buffer() {
    let test = TestQueue::new(16);
    let (mut handler, memory) = handler(0);
    lock(&memory).waiting.push(vec![9; 100]);
    let mut queue = test.queue(true);
    test.offer(0, &[Buffer::writable(0x8000, 12), Buffer::writable(0x9000, 1514)]);
    handler.receive(&mut queue).unwrap();
    assert_eq!(test.take_used(), [(0, 112)]);
    assert_eq!(test.bytes(0x8000, 12), FrameHeader::default().encode(1));
    assert_eq!(test.bytes(0x9000, 100), [9; 100]);
}

/// Attack F2 5: buffers for frames that nothing can be written to.
#[test]
fn test_attack_5_buffers_without_room() {
    for features in [0, bit::MERGEABLE] {
        for buffers in [&[Buffer::readable(0x8000, 1526)][..], &[Buffer::writable(0x8000, 0)][..]] {
            let test = TestQueue::new(16);
            let (mut handler, memory) = handler(features);
            lock(&memory).waiting.push(vec![9; 100]);
            test.offer(0, &[Buffer::writable(0x9000, 64)]);
            test.offer(1, buffers);
            let error = handler.receive(&mut test.queue(false)).unwrap_err();
            assert!(matches!(error, QueueError::NoRoom { head: 1, .. }), "{error}");
            assert_eq!(lock(&memory).waiting.len(), 1);
        }
    }
}

/// A frame may have to wait for more room than there is, and comes when there is.
#[test]
fn test_a_frame_waits_for_room() {
    let test = TestQueue::new(64);
    let (mut handler, memory) = handler(bit::MERGEABLE);
    lock(&memory).waiting.push(vec![9; 20_000]);
    let mut queue = test.queue(false);
    for head in 0..2_u16 {
        test.offer(head, &[Buffer::writable(0x1_0000 + u64::from(head) * 0x1000, 0x1000)]);
    }
    handler.receive(&mut queue).unwrap();
    assert!(test.take_used().is_empty());
    assert_eq!(test.bytes(USED, 2), [0, 0], "the guest would not say that it has more");
    for head in 2..6_u16 {
        test.offer(head, &[Buffer::writable(0x1_0000 + u64::from(head) * 0x1000, 0x1000)]);
    }
    handler.receive(&mut queue).unwrap();
    assert_eq!(test.take_used().len(), 5);
}

#[test]
fn test_what_needs_another_feature_counts_with_it_only() {
    assert_eq!(agreed(bit::HOST_TSO4 | bit::GUEST_TSO6), Offloads::default());
    assert_eq!(agreed(features(Offloads::ALL)), Offloads::ALL);
    assert_eq!(ETHERNET_HEADER + 1500, LEAST_ROOM);
}
