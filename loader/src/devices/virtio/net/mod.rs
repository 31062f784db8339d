//! Network device (virtio 1.2, 5.1).
//!
//! Frames go between queues and a [`Backend`]. Those from the guest are copied out of its memory and checked as a whole before the back
//! end sees them; those to the guest are asked for only when there are buffers for them.

mod config;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::config::Config;
use super::Chain;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use crate::devices::reports::Reports;
use crate::net::Backend;
use crate::net::FrameHeader;
use crate::net::LEAST_ROOM;
use crate::net::MAX_FRAME;
use crate::net::Mac;
use crate::net::Offloads;
use crate::net::offload::HEADER_SIZE;
use crate::platform::Event;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Pairs of queues. Nothing but this number and who tells pairs apart in [`Backend`] is for one only.
const PAIRS: u16 = 1;
/// Frames from the guest after which those to it have their turn.
const BURST: usize = 64;

/// Feature bits (virtio 1.2, 5.1.3).
mod bit {
    pub(super) const CHECKSUM: u64 = 1 << 0;
    pub(super) const GUEST_CHECKSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MERGEABLE: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// The features for what a back end can do.
fn features(offloads: Offloads) -> u64 {
    [
        (offloads.host_checksum, bit::CHECKSUM),
        (offloads.host_tcp4, bit::HOST_TSO4),
        (offloads.host_tcp6, bit::HOST_TSO6),
        (offloads.guest_checksum, bit::GUEST_CHECKSUM),
        (offloads.guest_tcp4, bit::GUEST_TSO4),
        (offloads.guest_tcp6, bit::GUEST_TSO6),
    ]
    .into_iter()
    .fold(0, |features, (offered, bit)| if offered { features | bit } else { features })
}

/// What the accepted features mean; those that need another one count with that only (virtio 1.2, 5.1.3.1).
fn agreed(features: u64) -> Offloads {
    let has = |bit: u64| features & bit != 0;
    let (host, guest) = (has(bit::CHECKSUM), has(bit::GUEST_CHECKSUM));
    Offloads {
        host_checksum: host,
        host_tcp4: host && has(bit::HOST_TSO4),
        host_tcp6: host && has(bit::HOST_TSO6),
        guest_checksum: guest,
        guest_tcp4: guest && has(bit::GUEST_TSO4),
        guest_tcp6: guest && has(bit::GUEST_TSO6),
    }
}

/// A network adapter with address `mac`, whose frames `backend` carries.
///
/// # Errors
///
/// The system has no event left.
pub fn device(name: &str, mac: Mac, mut backend: Box<dyn Backend>) -> io::Result<VirtioDevice> {
    let event = Arc::new(Event::new()?);
    backend.attach(&event)?;
    let mtu = backend.mtu();
    Ok(VirtioDevice {
        kind: DeviceKind::Network,
        name: name.to_owned(),
        features: bit::MAC | bit::MTU | bit::MERGEABLE | bit::STATUS | features(backend.offloads()),
        queue_sizes: vec![QUEUE_SIZE; usize::from(2 * PAIRS)],
        config: Box::new(Config::new(mac, PAIRS, mtu)),
        handler: Box::new(NetHandler::new(name, backend)),
        event,
    })
}

/// Buffers of the guest's for frames, taken off the queue and not yet used.
#[derive(Debug, Default)]
struct Buffers {
    chains: Vec<Chain>,
    /// Bytes that all of them have.
    bytes: usize,
    spare: Vec<Chain>,
}

impl Buffers {
    /// Takes buffers until there is room for a frame of any length, or no buffer more.
    fn gather(&mut self, queue: &mut VirtQueue, mergeable: bool) -> Result<(), QueueError> {
        while if mergeable { self.bytes < HEADER_SIZE + MAX_FRAME } else { self.chains.is_empty() } {
            let mut chain = self.spare.pop().unwrap_or_default();
            if !queue.pop(&mut chain)? {
                self.spare.push(chain);
                break;
            }
            if chain.writable.is_empty() {
                return Err(QueueError::NoRoom { queue: queue.index(), head: chain.head });
            }
            self.bytes += usize::try_from(chain.writable.len()).unwrap_or(0);
            self.chains.push(chain);
        }
        Ok(())
    }

    /// How large a frame they take.
    fn room(&self) -> usize {
        self.bytes.saturating_sub(HEADER_SIZE).min(MAX_FRAME)
    }

    /// Puts a frame into them, and gives those that it lies in back.
    fn put(&mut self, queue: &mut VirtQueue, header: &FrameHeader, parts: &[&[u8]]) -> Result<(), QueueError> {
        let total = HEADER_SIZE + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut needed = 0;
        let mut bytes = 0;
        while bytes < total && needed < self.chains.len() {
            bytes += usize::try_from(self.chains[needed].writable.len()).unwrap_or(0);
            needed += 1;
        }
        let head = header.encode(u16::try_from(needed).unwrap_or(0));
        let mut chains = self.chains.iter_mut();
        let mut used: Vec<(u16, u32)> = Vec::with_capacity(needed);
        let mut current = chains.next();
        let mut written = 0;
        for mut part in std::iter::once(&head[..]).chain(parts.iter().copied()) {
            while let Some(chain) = current.as_mut().filter(|_| !part.is_empty()) {
                // The buffers were checked when the chain came.
                let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
                let count = chain.writable.write(queue.memory(), part).unwrap_or(room).min(part.len());
                part = &part[count..];
                written += u32::try_from(count).unwrap_or(0);
                chain.writable.skip(u32::try_from(count).unwrap_or(0));
                if chain.writable.is_empty() {
                    used.push((chain.head, std::mem::take(&mut written)));
                    current = chains.next();
                }
            }
        }
        if let Some(chain) = current.filter(|_| written > 0) {
            used.push((chain.head, written));
        }
        self.bytes -= bytes;
        self.spare.extend(self.chains.drain(..needed));
        queue.complete_all(&used)
    }

    fn clear(&mut self) {
        self.spare.append(&mut self.chains);
        self.bytes = 0;
    }
}

/// Serves the queues of a network device.
struct NetHandler {
    backend: Box<dyn Backend>,
    agreed: Offloads,
    mtu: u16,
    /// A frame may lie in several buffers.
    mergeable: bool,
    /// A frame of the guest's.
    frame: Vec<u8>,
    chain: Chain,
    buffers: Buffers,
    reports: Reports,
}

impl NetHandler {
    fn new(name: &str, backend: Box<dyn Backend>) -> Self {
        let mtu = backend.mtu();
        Self {
            backend,
            agreed: Offloads::default(),
            mtu,
            mergeable: false,
            frame: vec![0; HEADER_SIZE + MAX_FRAME],
            chain: Chain::default(),
            buffers: Buffers::default(),
            reports: Reports::new(name),
        }
    }

    /// Gives the back end frames of the guest's, and says whether there may be more.
    fn transmit(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        queue.disarm()?;
        for _ in 0..BURST {
            if !queue.pop(&mut self.chain)? {
                return queue.arm();
            }
            self.transmit_one(queue);
            queue.complete(self.chain.head, 0)?;
        }
        Ok(true)
    }

    fn transmit_one(&mut self, queue: &VirtQueue) {
        // What is longer than any frame is cut here, and then refused for its length.
        let length = usize::try_from(self.chain.readable.len()).unwrap_or(usize::MAX);
        let count = self.chain.readable.read(queue.memory(), &mut self.frame).unwrap_or(0);
        let Some((header, frame)) = self.frame[..count].split_first_chunk::<HEADER_SIZE>() else {
            self.reports.warn(&format_args!("a frame of {length} bytes has no room for its header"));
            return;
        };
        match FrameHeader::parse(header, length - HEADER_SIZE, self.agreed, self.mtu) {
            Ok(header) => self.backend.send(&header, frame),
            Err(error) => self.reports.warn(&error),
        }
    }

    /// Gives the guest frames, as far as it has buffers.
    fn receive(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        queue.disarm()?;
        loop {
            self.buffers.gather(queue, self.mergeable)?;
            let room = self.buffers.room();
            if room < LEAST_ROOM.max(self.least()) {
                // A guest whose every buffer is too small for a frame gets none.
                if !queue.arm()? {
                    return Ok(());
                }
                if !self.mergeable && !self.buffers.chains.is_empty() {
                    self.reports
                        .warn(&format_args!("a buffer of {} bytes is too small for a frame", self.buffers.bytes));
                    let chains: Vec<(u16, u32)> = self.buffers.chains.iter().map(|chain| (chain.head, 0)).collect();
                    self.buffers.clear();
                    queue.complete_all(&chains)?;
                }
                continue;
            }
            let buffers = &mut self.buffers;
            let mut result = Ok(());
            let more = self.backend.receive(room, &mut |header, parts| result = buffers.put(queue, header, parts));
            result?;
            if more {
                continue;
            }
            // What waits may be larger than what there is room for now: then more buffers are news.
            let is_short = self.mergeable && room < MAX_FRAME;
            if !is_short || !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// The least room that any frame needs that is not divided.
    fn least(&self) -> usize {
        usize::from(self.mtu) + crate::net::ETHERNET_HEADER
    }
}

impl QueueHandler for NetHandler {
    fn start(&mut self, features: u64) {
        self.agreed = agreed(features);
        self.mergeable = features & bit::MERGEABLE != 0;
        self.backend.start(self.agreed);
    }

    fn wait(&mut self, _event: &Event, timeout: Option<Duration>) {
        self.backend.wait(timeout);
    }

    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        let mut more = true;
        while more {
            more = rings.get(1).map_or(Ok(false), |queue| self.transmit(queue))?;
            rings.get(0).map_or(Ok(()), |queue| self.receive(queue))?;
        }
        Ok(self.backend.next_deadline())
    }

    fn reset(&mut self) {
        self.buffers.clear();
        self.backend.reset();
    }
}
