//! Input device (virtio 1.2, 5.8) with one key, that of power: how a guest without ACPI is asked to shut down. What listens to
//! an ACPI button, such as systemd-logind, listens to this key as well.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::Chain;
use super::DeviceConfig;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use super::read_bytes;
use crate::platform::Event;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Queues, by number (virtio 1.2, 5.8.2).
const EVENTS: usize = 0;
const STATUS: usize = 1;

/// Types and codes of events (Linux `input-event-codes.h`, which virtio 1.2, 5.8 refers to).
const EV_SYN: u16 = 0;
const SYN_REPORT: u16 = 0;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// The name that the guest shows.
const NAME: &[u8] = b"covisor power button";

/// What the configuration can be asked for (virtio 1.2, 5.8.4).
mod select {
    pub(super) const NAME: u8 = 0x01;
    /// The codes of a type of events, as bits.
    pub(super) const EVENT_BITS: u8 = 0x11;
}

/// `struct virtio_input_event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
struct InputEvent {
    kind: u16,
    code: u16,
    value: u32,
}

/// Down, and up again.
const PRESS: [InputEvent; 4] = [
    InputEvent { kind: EV_KEY, code: KEY_POWER, value: 1 },
    InputEvent { kind: EV_SYN, code: SYN_REPORT, value: 0 },
    InputEvent { kind: EV_KEY, code: KEY_POWER, value: 0 },
    InputEvent { kind: EV_SYN, code: SYN_REPORT, value: 0 },
];

/// The key, from the host's side.
#[derive(Clone)]
pub struct PowerKey {
    pressed: Arc<AtomicBool>,
    is_heard: Arc<AtomicBool>,
    event: Arc<Event>,
}

impl PowerKey {
    /// Presses it. Where no driver uses the device, nothing happens.
    pub fn press(&self) {
        self.pressed.store(true, Ordering::SeqCst);
        self.event.signal();
    }

    /// Whether a driver uses the device.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for PowerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PowerKey").field("pressed", &self.pressed).finish_non_exhaustive()
    }
}

/// An input device, and its key.
///
/// # Errors
///
/// The system has no event left.
pub fn power_key(name: &str) -> io::Result<(VirtioDevice, PowerKey)> {
    let event = Arc::new(Event::new()?);
    let pressed = Arc::new(AtomicBool::new(false));
    let is_heard = Arc::new(AtomicBool::new(false));
    let handler = InputHandler {
        pressed: Arc::clone(&pressed),
        is_heard: Arc::clone(&is_heard),
        pending: VecDeque::new(),
        chain: Chain::default(),
    };
    let device = VirtioDevice {
        kind: DeviceKind::Input,
        name: name.to_owned(),
        features: 0,
        queue_sizes: vec![QUEUE_SIZE; 2],
        config: Box::new(Config::default()),
        handler: Box::new(handler),
        event: Arc::clone(&event),
    };
    Ok((device, PowerKey { pressed, is_heard, event }))
}

/// `struct virtio_input_config`: the driver writes what it asks for, then reads the answer.
#[derive(Debug, Default)]
struct Config {
    select: u8,
    subselect: u8,
}

impl Config {
    /// Offset of the answer's size, and of the answer.
    const ANSWER_SIZE: usize = 2;
    const ANSWER: usize = 8;
    /// Bytes of all: no answer has more than 56.
    const SIZE: u8 = 64;

    fn answer(&self) -> Vec<u8> {
        match (self.select, self.subselect) {
            (select::NAME, 0) => NAME.to_vec(),
            (select::EVENT_BITS, kind) if u16::from(kind) == EV_KEY => {
                let mut bits = vec![0; usize::from(KEY_POWER / 8) + 1];
                bits[usize::from(KEY_POWER / 8)] = 1 << (KEY_POWER % 8);
                bits
            }
            // A size of 0 says that there is none.
            _ => Vec::new(),
        }
    }
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        Self::SIZE
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        let answer = self.answer();
        let mut bytes = [0; Self::SIZE as usize];
        bytes[..2].copy_from_slice(&[self.select, self.subselect]);
        bytes[Self::ANSWER_SIZE] = u8::try_from(answer.len()).unwrap_or(0);
        bytes[Self::ANSWER..Self::ANSWER + answer.len()].copy_from_slice(&answer);
        read_bytes(&bytes, offset, data);
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &byte) in (offset..).zip(data) {
            match at {
                0 => self.select = byte,
                1 => self.subselect = byte,
                _ => {}
            }
        }
    }
}

struct InputHandler {
    pressed: Arc<AtomicBool>,
    is_heard: Arc<AtomicBool>,
    /// Events that found no buffer yet, of one press.
    pending: VecDeque<InputEvent>,
    chain: Chain,
}

impl InputHandler {
    /// Gives the driver its events, as far as it has buffers.
    fn tell(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        loop {
            queue.disarm()?;
            while let Some(event) = self.pending.front() {
                if !queue.pop(&mut self.chain)? {
                    break;
                }
                let written = self.chain.writable.write(queue.memory(), event.as_bytes()).unwrap_or(0);
                queue.complete(self.chain.head, u32::try_from(written).unwrap_or(0))?;
                self.pending.pop_front();
            }
            // Only when there is something for them do the guest's buffers matter.
            if self.pending.is_empty() || !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// Gives back what the driver says, which is about lights that the device does not have.
    fn ignore(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        loop {
            queue.disarm()?;
            while queue.pop(&mut self.chain)? {
                queue.complete(self.chain.head, 0)?;
            }
            if !queue.arm()? {
                return Ok(());
            }
        }
    }
}

impl QueueHandler for InputHandler {
    fn start(&mut self, _features: u64) {
        // Pressed before anybody listened.
        self.pressed.store(false, Ordering::SeqCst);
        self.is_heard.store(true, Ordering::SeqCst);
    }

    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        if self.pressed.swap(false, Ordering::SeqCst) && self.pending.is_empty() {
            self.pending.extend(PRESS);
        }
        if let Some(queue) = rings.get(EVENTS) {
            self.tell(queue)?;
        }
        if let Some(queue) = rings.get(STATUS) {
            self.ignore(queue)?;
        }
        Ok(None)
    }

    fn reset(&mut self) {
        self.is_heard.store(false, Ordering::SeqCst);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::Buffer;
    use crate::devices::virtio::testing::Signals;
    use crate::devices::virtio::testing::TestQueue;

    fn ask(config: &mut Config, select: u8, subselect: u8) -> Vec<u8> {
        config.write(0, &[select]);
        config.write(1, &[subselect]);
        let mut size = [0];
        config.read(2, &mut size);
        let mut answer = vec![0; size[0].into()];
        config.read(8, &mut answer);
        answer
    }

    #[test]
    fn test_the_driver_learns_of_one_key() {
        let mut config = Config::default();
        assert_eq!(ask(&mut config, 1, 0), b"covisor power button");
        let keys = ask(&mut config, 0x11, 1);
        assert_eq!((keys.len(), keys[14]), (15, 0x10));
        assert!(keys[..14].iter().all(|&byte| byte == 0));
        for (select, subselect) in [(0, 0), (2, 0), (3, 0), (0x10, 0), (0x11, 0), (0x11, 2), (0x12, 0), (0xff, 0xff)] {
            assert_eq!(ask(&mut config, select, subselect), b"", "{select:#x}");
        }
        config.write(62, &[0xff; 8]);
        let mut all = [0xff; 80];
        config.read(0, &mut all);
        assert_eq!(all, [&[0xff, 0xff][..], &[0; 78]].concat()[..]);
    }

    #[test]
    fn test_a_press_is_told_when_there_are_buffers() {
        let (device, key) = power_key("power").unwrap();
        let test = TestQueue::new(16);
        let mut rings = Rings::new(vec![Some(test.queue(false)), None], Arc::new(Signals::default()));
        let mut handler = device.handler;
        key.press();
        handler.start(0);
        handler.process(&mut rings).unwrap();
        let buffer = |head: u16| Buffer::writable(0x8000 + u64::from(head) * 8, 8);
        for head in 0..3 {
            test.offer(head, &[buffer(head)]);
        }
        handler.process(&mut rings).unwrap();
        assert!(test.take_used().is_empty(), "nobody listened when it was pressed");
        key.press();
        handler.process(&mut rings).unwrap();
        assert_eq!(test.take_used(), [(0, 8), (1, 8), (2, 8)]);
        // Another press before the first one is told is the same press.
        key.press();
        for head in 3..8 {
            test.offer(head, &[buffer(head)]);
        }
        handler.process(&mut rings).unwrap();
        assert_eq!(test.take_used(), [(3, 8)]);
        let events =
            [1, 0, 116, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 116, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(test.bytes(0x8000, 40), [&events[..], &[0; 8]].concat());
    }

    #[test]
    fn test_a_reset_forgets_a_press_and_what_the_driver_says_comes_back() {
        let (device, key) = power_key("power").unwrap();
        let (events, status) = (TestQueue::new(16), TestQueue::new(16));
        let queues = vec![Some(events.queue(false)), Some(status.queue(false))];
        let mut rings = Rings::new(queues, Arc::new(Signals::default()));
        let mut handler = device.handler;
        handler.start(0);
        key.press();
        status.offer(0, &[Buffer::readable(0x8000, 8)]);
        handler.process(&mut rings).unwrap();
        assert_eq!(status.take_used(), [(0, 0)]);
        handler.reset();
        events.offer(0, &[Buffer::writable(0x8000, 8)]);
        handler.process(&mut rings).unwrap();
        assert!(events.take_used().is_empty());
    }
}
