//! Control messages of a device with one named port (virtio 1.2, 5.3.6.2).

use std::collections::VecDeque;

use super::PortState;
use crate::devices::virtio::Chain;
use crate::devices::virtio::QueueError;
use crate::devices::virtio::VirtQueue;

/// Most messages that wait for the driver. A sound driver makes us send four; one that asks without end, and does not
/// listen, gets no more.
pub(super) const MOST_PENDING: usize = 16;

/// Bytes of a message: port, event, value.
const SIZE: usize = 8;
/// The port's number.
const PORT: u32 = 0;

/// Events.
pub(super) mod event {
    pub(in crate::devices::virtio::console) const DEVICE_READY: u16 = 0;
    pub(in crate::devices::virtio::console) const PORT_ADD: u16 = 1;
    pub(in crate::devices::virtio::console) const PORT_READY: u16 = 3;
    pub(in crate::devices::virtio::console) const PORT_OPEN: u16 = 6;
    pub(in crate::devices::virtio::console) const PORT_NAME: u16 = 7;
}

/// The control queues' state.
pub(super) struct Control {
    name: String,
    state: PortState,
    /// The driver uses the control queues.
    active: bool,
    pending: VecDeque<Vec<u8>>,
    chain: Chain,
}

impl Control {
    pub(super) fn new(name: &str, state: PortState) -> Self {
        Self { name: name.to_owned(), state, active: false, pending: VecDeque::new(), chain: Chain::default() }
    }

    /// The driver starts; `active` is whether it knows of control queues.
    pub(super) fn start(&mut self, active: bool) {
        self.active = active;
    }

    pub(super) fn reset(&mut self) {
        self.active = false;
        self.pending.clear();
        self.state.set(false);
    }

    /// Whether a program in the guest has the port open. Before, the driver would drop what it gets.
    pub(super) fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Takes the driver's messages.
    pub(super) fn hear(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let mut chain = std::mem::take(&mut self.chain);
        let result = queue.serve(&mut chain, |chain, memory| {
            let mut message = [0; SIZE];
            // What is too short to be a message is none.
            if chain.readable.read(memory, &mut message).is_ok_and(|count| count == SIZE) {
                self.take(message);
            }
            Ok(0)
        });
        self.chain = chain;
        result
    }

    fn take(&mut self, message: [u8; SIZE]) {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
        let value = u16::from_le_bytes([v0, v1]);
        if !self.active {
            return;
        }
        match (u16::from_le_bytes([e0, e1]), u32::from_le_bytes([p0, p1, p2, p3])) {
            (event::DEVICE_READY, _) if value == 1 => self.say(event::PORT_ADD, 0, &[]),
            (event::PORT_READY, PORT) if value == 1 => {
                let name = self.name.clone();
                self.say(event::PORT_NAME, 1, name.as_bytes());
                // Our end is open all the time.
                self.say(event::PORT_OPEN, 1, &[]);
            }
            (event::PORT_OPEN, PORT) => self.state.set(value == 1),
            _ => {}
        }
    }

    fn say(&mut self, event: u16, value: u16, rest: &[u8]) {
        if self.pending.len() < MOST_PENDING {
            let mut message = Vec::with_capacity(SIZE + rest.len());
            message.extend(PORT.to_le_bytes());
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            message.extend(rest);
            self.pending.push_back(message);
        }
    }

    /// Gives the driver our messages, as far as it has buffers for them.
    pub(super) fn speak(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        loop {
            queue.disarm()?;
            while let Some(message) = self.pending.front() {
                if !queue.pop(&mut self.chain)? {
                    break;
                }
                // One that does not fit the driver's buffer is cut, as the driver wants it.
                let written = self.chain.writable.write(queue.memory(), message).unwrap_or(0);
                self.pending.pop_front();
                queue.complete(self.chain.head, u32::try_from(written).unwrap_or(0))?;
            }
            if self.pending.is_empty() || !queue.arm()? {
                return Ok(());
            }
        }
    }
}
