//! A console's queues.

use std::thread;

use super::control::event;
use super::*;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::Signals;
use crate::devices::virtio::testing::TestQueue;
use crate::devices::virtio::testing::ram;

/// A device with the driver's sides of its queues.
struct Test {
    device: VirtioDevice,
    queues: Vec<TestQueue>,
    rings: Rings,
}

impl Test {
    fn new(device: VirtioDevice) -> Self {
        let memory = ram();
        let queues: Vec<TestQueue> = (0..device.queue_sizes.len())
            .map(|index| {
                let index = u16::try_from(index).unwrap();
                TestQueue::at(Arc::clone(&memory), u64::from(index) * 0x1_0000, 16, index)
            })
            .collect();
        let rings = queues.iter().map(|queue| Some(queue.queue(false))).collect();
        let mut test = Self { device, queues, rings: Rings::new(rings, Arc::new(Signals::default())) };
        test.device.handler.start(test.device.features);
        test.process();
        test
    }

    fn process(&mut self) {
        assert_eq!(self.device.handler.process(&mut self.rings).unwrap(), None);
    }

    /// The driver sends a control message.
    fn control(&mut self, event: u16, value: u16) {
        let queue = &self.queues[CONTROL_TRANSMIT];
        queue.write(0x10_0000, 0_u32);
        queue.write(0x10_0004, event);
        queue.write(0x10_0006, value);
        queue.offer(0, &[Buffer::readable(0x10_0000, 8)]);
        self.process();
        assert_eq!(self.queues[CONTROL_TRANSMIT].take_used(), [(0, 0)]);
    }

    /// The driver offers a buffer for a control message, and gets one.
    fn hear(&mut self) -> Option<(u16, u16, Vec<u8>)> {
        let queue = &self.queues[CONTROL_RECEIVE];
        queue.offer(0, &[Buffer::writable(0x11_0000, 64)]);
        self.process();
        let queue = &self.queues[CONTROL_RECEIVE];
        let (_, count) = *queue.take_used().first()?;
        let bytes = queue.bytes(0x11_0000, count as usize);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!(bytes[..4], [0; 4]);
        Some((word(4), word(6), bytes[8..].to_vec()))
    }
}

#[test]
fn test_a_terminal_carries_bytes_both_ways() {
    let (device, handle) = console("console").unwrap();
    let mut test = Test::new(device);
    test.queues[TRANSMIT].fill(0x10_0000, b"login: ");
    test.queues[TRANSMIT].offer(0, &[Buffer::readable(0x10_0000, 5), Buffer::readable(0x10_0005, 2)]);
    test.process();
    let mut bytes = [0; 16];
    assert_eq!(handle.output.receive(&mut bytes), 7);
    assert_eq!(&bytes[..7], b"login: ");
    assert_eq!(test.queues[TRANSMIT].take_used(), [(0, 0)]);

    // Typed before the guest has a buffer.
    handle.input.send(b"root\n");
    test.process();
    test.queues[RECEIVE].offer(0, &[Buffer::writable(0x11_0000, 3)]);
    test.queues[RECEIVE].offer(1, &[Buffer::writable(0x11_0003, 0x1000)]);
    test.process();
    assert_eq!(test.queues[RECEIVE].take_used(), [(0, 3), (1, 2)]);
    assert_eq!(test.queues[RECEIVE].bytes(0x11_0000, 5), b"root\n");
}

#[test]
fn test_a_terminals_size_is_in_its_configuration() {
    let (device, handle) = console("console").unwrap();
    let mut bytes = [0xff; 12];
    let before = device.config.generation();
    handle.size.set(132, 43);
    device.config.read(0, &mut bytes);
    assert_eq!(bytes, [132, 0, 43, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_ne!(device.config.generation(), before);
    assert!(device.event.wait(Some(Duration::ZERO)));
}

#[test]
fn test_a_named_port_is_found_and_opened() {
    let (device, handle) = named_port("exec", "org.example.port").unwrap();
    let mut test = Test::new(device);
    handle.input.send(b"early");
    test.queues[RECEIVE].offer(0, &[Buffer::writable(0x12_0000, 64)]);
    test.control(event::DEVICE_READY, 1);
    assert_eq!(test.hear(), Some((event::PORT_ADD, 0, vec![])));
    test.control(event::PORT_READY, 1);
    assert_eq!(test.hear(), Some((event::PORT_NAME, 1, b"org.example.port".to_vec())));
    assert_eq!(test.hear(), Some((event::PORT_OPEN, 1, vec![])));
    assert_eq!(test.hear(), None);
    // Nothing is given to a port that nobody has open: the driver would drop it.
    assert!(!handle.state.is_open() && test.queues[RECEIVE].take_used().is_empty());
    test.control(event::PORT_OPEN, 1);
    assert!(handle.state.wait(true, Duration::ZERO));
    assert_eq!(test.queues[RECEIVE].take_used(), [(0, 5)]);
    test.control(event::PORT_OPEN, 0);
    assert!(handle.state.wait(false, Duration::ZERO));
    assert!(!handle.state.wait(true, Duration::from_millis(5)));
}

#[test]
fn test_a_reset_closes_the_port() {
    let (device, handle) = named_port("exec", "name").unwrap();
    let mut test = Test::new(device);
    test.control(event::PORT_OPEN, 1);
    assert!(handle.state.is_open());
    test.device.handler.reset();
    assert!(!handle.state.is_open());
}

/// Attack F2 8: output without end while the host does not read. It stays in the guest, and all of it arrives in the end.
#[test]
fn test_attack_8_console_flood() {
    let (device, handle) = console("console").unwrap();
    let mut test = Test::new(device);
    let block: Vec<u8> = (0..0x8000_u32).map(|index| index.to_le_bytes()[1]).collect();
    test.queues[TRANSMIT].fill(0x10_0000, &block);
    for head in 0..16 {
        test.queues[TRANSMIT].offer(head, &[Buffer::readable(0x10_0000, 0x8000)]);
    }
    test.process();
    // As many chains as fit are done; the next waits, half sent.
    assert_eq!(test.queues[TRANSMIT].take_used().len(), CAPACITY / 0x8000);
    test.process();
    assert!(test.queues[TRANSMIT].take_used().is_empty());
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        let mut bytes = [0; 1000];
        while all.len() < 16 * 0x8000 {
            let count = handle.output.receive(&mut bytes);
            all.extend_from_slice(&bytes[..count]);
        }
        all
    });
    let mut used = CAPACITY / 0x8000;
    while used < 16 {
        test.device.event.wait(None);
        test.process();
        used += test.queues[TRANSMIT].take_used().len();
    }
    assert_eq!(reader.join().unwrap(), block.repeat(16));
}

/// Attack F2 8: control messages without end, and none taken.
#[test]
fn test_attack_8_control_flood() {
    let (device, _handle) = named_port("exec", "name").unwrap();
    let mut test = Test::new(device);
    for _ in 0..1000 {
        test.control(event::PORT_READY, 1);
    }
    let mut count = 0;
    while test.hear().is_some() {
        count += 1;
    }
    assert_eq!(count, control::MOST_PENDING);
}

#[test]
fn test_messages_that_are_none_are_ignored() {
    let (device, handle) = named_port("exec", "name").unwrap();
    let mut test = Test::new(device);
    for (event, value) in [(0, 0), (3, 0), (2, 1), (99, 1), (0xffff, 0xffff)] {
        test.control(event, value);
    }
    let queue = &test.queues[CONTROL_TRANSMIT];
    queue.offer(0, &[Buffer::readable(0x10_0000, 7)]);
    test.process();
    assert_eq!(test.hear(), None);
    assert!(!handle.state.is_open());
}
