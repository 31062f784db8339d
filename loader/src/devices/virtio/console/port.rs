//! A port's two byte streams, between queues and pipes.

use crate::devices::pipe::DeviceInput;
use crate::devices::pipe::DeviceOutput;
use crate::devices::virtio::Chain;
use crate::devices::virtio::QueueError;
use crate::devices::virtio::VirtQueue;

/// Bytes that are copied at once.
const BLOCK: usize = 4096;

/// A port.
pub(super) struct Port {
    to_host: DeviceOutput,
    from_host: DeviceInput,
    /// A chain of the guest's that the host had not room enough for: what is left of it.
    unsent: Option<Chain>,
    spare: Chain,
}

impl Port {
    pub(super) fn new(to_host: DeviceOutput, from_host: DeviceInput) -> Self {
        Self { to_host, from_host, unsent: None, spare: Chain::default() }
    }

    /// Moves what the guest sends to the host, as far as there is room. The rest stays in the queue until the host has
    /// taken something, so a flood fills only the guest's own queue.
    pub(super) fn transmit(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        loop {
            queue.disarm()?;
            loop {
                let mut chain = match self.unsent.take() {
                    Some(chain) => chain,
                    None => {
                        let mut chain = std::mem::take(&mut self.spare);
                        if !queue.pop(&mut chain)? {
                            self.spare = chain;
                            break;
                        }
                        chain
                    }
                };
                if !self.send(&mut chain, queue) {
                    self.unsent = Some(chain);
                    return Ok(());
                }
                queue.complete(chain.head, 0)?;
                self.spare = chain;
            }
            if !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// Sends a chain's bytes, and says whether all were.
    fn send(&self, chain: &mut Chain, queue: &VirtQueue) -> bool {
        let mut block = [0; BLOCK];
        while !chain.readable.is_empty() {
            if !queue.is_open() {
                return false;
            }
            // The buffers were checked when the chain came.
            let count = chain.readable.read(queue.memory(), &mut block).unwrap_or(0);
            let sent = self.to_host.send(&block[..count]);
            chain.readable.skip(u32::try_from(sent).unwrap_or(u32::MAX));
            if sent < count {
                return false;
            }
        }
        true
    }

    /// Moves what the host sends into buffers of the guest's, as far as there are any.
    pub(super) fn receive(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let mut block = [0; BLOCK];
        loop {
            queue.disarm()?;
            while !self.from_host.is_empty() {
                if !queue.pop(&mut self.spare)? {
                    break;
                }
                let room = usize::try_from(self.spare.writable.len()).unwrap_or(BLOCK).min(BLOCK);
                let count = self.from_host.receive(&mut block[..room]);
                let written = self.spare.writable.write(queue.memory(), &block[..count]).unwrap_or(0);
                queue.complete(self.spare.head, u32::try_from(written).unwrap_or(0))?;
            }
            // Only when there is something for them do the guest's buffers matter.
            if self.from_host.is_empty() || !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// The driver has reset the device: its chains are gone.
    pub(super) fn reset(&mut self) {
        self.unsent = None;
    }
}
