//! Split virtqueues (virtio 1.2, 2.7): `virtio_queue` walks the rings, and here every chain is checked as a whole before
//! anything is done with it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use thiserror::Error;
use virtio_queue::Queue;
use virtio_queue::QueueOwnedT;
use virtio_queue::QueueT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryRegion;
use vm_memory::VolatileSlice;

use super::DriverSignal;
use super::Gate;
use crate::platform::GuestRam;

/// Most descriptors of a chain, indirect ones included; more than any queue of ours has.
pub const MAX_CHAIN: usize = 256;

/// Bytes of a descriptor, an available entry, a used entry; and of the rings around them (virtio 1.2, 2.7).
const DESCRIPTOR_SIZE: u64 = 16;
const AVAILABLE_ENTRY_SIZE: u64 = 2;
const USED_ENTRY_SIZE: u64 = 8;
const RING_OVERHEAD: u64 = 6;
/// Bytes of a ring before its entries: flags and index.
const USED_HEADER: u64 = 4;

/// Flag of the available ring: the driver wants no interrupts (`VIRTQ_AVAIL_F_NO_INTERRUPT`, virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// What a driver did to a queue that ends its use until the driver resets the device.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The number of entries is none that the queue can have.
    #[error("the size of queue {queue} is {size}: it must be a power of two of at most {max}")]
    BadSize {
        /// The queue.
        queue: u16,
        /// What the driver set.
        size: u16,
        /// What the device offered.
        max: u16,
    },
    /// A part of the queue is not in RAM as a whole, or not aligned.
    #[error("the {part} of queue {queue} at {address:#x} is not aligned or not in RAM")]
    BadRing {
        /// The queue.
        queue: u16,
        /// Which part.
        part: &'static str,
        /// What the driver set.
        address: u64,
    },
    /// The available index is further ahead than the queue has entries.
    #[error("the available index of queue {queue} is ahead by more than the queue's size")]
    AvailableJump {
        /// The queue.
        queue: u16,
    },
    /// A chain is none.
    #[error("descriptor chain {head} of queue {queue} loops, leaves its table, or nests tables")]
    BrokenChain {
        /// The queue.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A chain has too many descriptors.
    #[error("descriptor chain {head} of queue {queue} has more than {MAX_CHAIN} descriptors")]
    LongChain {
        /// The queue.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer is not in RAM as a whole.
    #[error("queue {queue} has a buffer outside RAM: {length:#x} bytes at {address:#x}")]
    BufferOutsideRam {
        /// The queue.
        queue: u16,
        /// The buffer's address.
        address: u64,
        /// Its bytes.
        length: u32,
    },
    /// A buffer for the device to read follows one to write.
    #[error("descriptor chain {head} of queue {queue} has a readable buffer behind a writable one")]
    BadOrder {
        /// The queue.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A request leaves no room for its answer.
    #[error("request {head} of queue {queue} has no room for its status")]
    NoStatus {
        /// The queue.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer to be filled has no room at all.
    #[error("descriptor chain {head} of queue {queue} has nothing that can be written to")]
    NoRoom {
        /// The queue.
        queue: u16,
        /// The chain's first descriptor.
        head: u16,
    },
    /// The rings could not be used.
    #[error("queue {queue}: {error}")]
    Ring {
        /// The queue.
        queue: u16,
        /// Why.
        error: virtio_queue::Error,
    },
}

/// Where the driver put a queue, copied when the device starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

impl QueueLayout {
    /// Checks that all of it is in RAM: `max` is the device's limit of the size.
    fn check(&self, queue: u16, max: u16, memory: &GuestRam) -> Result<(), QueueError> {
        let size = self.size;
        if !size.is_power_of_two() || size > max {
            return Err(QueueError::BadSize { queue, size, max });
        }
        let entries = u64::from(size);
        let parts = [
            ("descriptor table", self.descriptors, 16, DESCRIPTOR_SIZE * entries),
            ("available ring", self.available, 2, RING_OVERHEAD + AVAILABLE_ENTRY_SIZE * entries),
            ("used ring", self.used, 4, RING_OVERHEAD + USED_ENTRY_SIZE * entries),
        ];
        for (part, address, alignment, bytes) in parts {
            // Address 0 is what an unset register holds.
            if address == 0 || !address.is_multiple_of(alignment) || !in_ram(memory, address, bytes) {
                return Err(QueueError::BadRing { queue, part, address });
            }
        }
        Ok(())
    }
}

/// Whether `bytes` from `address` are RAM.
fn in_ram(memory: &GuestRam, address: u64, bytes: u64) -> bool {
    usize::try_from(bytes).is_ok_and(|bytes| memory.check_range(GuestAddress(address), bytes))
}

/// Buffers of guest memory one after another, checked to be RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    parts: Vec<(u64, u32)>,
}

impl Segments {
    /// All bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.1)).sum()
    }

    /// The buffers: address and bytes of each.
    pub fn parts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.parts.iter().map(|&(address, length)| (address, length.into()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cuts `bytes` off the front and gives them, as far as there are so many.
    #[must_use]
    pub fn split_front(&mut self, bytes: u32) -> Self {
        let mut wanted = bytes;
        let mut front = Self::default();
        while wanted > 0 && !self.parts.is_empty() {
            let (address, length) = self.parts[0];
            let taken = wanted.min(length);
            front.parts.push((address, taken));
            wanted -= taken;
            if taken == length {
                self.parts.remove(0);
            } else {
                self.parts[0] = (address + u64::from(taken), length - taken);
            }
        }
        front
    }

    /// Drops the first `bytes`, as far as there are so many.
    pub fn skip(&mut self, bytes: u32) {
        _ = self.split_front(bytes);
    }

    /// Cuts the last byte off and gives its address.
    #[must_use]
    pub fn split_last_byte(&mut self) -> Option<u64> {
        while let Some((address, length)) = self.parts.pop() {
            if let Some(rest) = length.checked_sub(1) {
                if rest > 0 {
                    self.parts.push((address, rest));
                }
                return Some(address + u64::from(rest));
            }
        }
        None
    }

    /// Copies the first bytes out; gives how many there were for `into`.
    ///
    /// # Errors
    ///
    /// None that the checks at the chain's arrival leave possible.
    pub fn read(&self, memory: &GuestRam, into: &mut [u8]) -> Result<usize, vm_memory::GuestMemoryError> {
        let mut rest = &mut *into;
        for &(address, length) in &self.parts {
            let count = rest.len().min(length as usize);
            let (now, later) = rest.split_at_mut(count);
            memory.read_slice(now, GuestAddress(address))?;
            rest = later;
        }
        let left = rest.len();
        Ok(into.len() - left)
    }

    /// Copies `bytes` in from the start; gives how many there was room for.
    ///
    /// # Errors
    ///
    /// None that the checks at the chain's arrival leave possible.
    pub fn write(&self, memory: &GuestRam, bytes: &[u8]) -> Result<usize, vm_memory::GuestMemoryError> {
        let mut rest = bytes;
        for &(address, length) in &self.parts {
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            memory.write_slice(now, GuestAddress(address))?;
            rest = later;
        }
        Ok(bytes.len() - rest.len())
    }

    /// The buffers as host memory, for system calls to read or write; a buffer over several regions of RAM is several.
    ///
    /// # Errors
    ///
    /// None that the checks at the chain's arrival leave possible.
    pub fn slices<'a>(&self, memory: &'a GuestRam) -> Result<Vec<VolatileSlice<'a>>, vm_memory::GuestMemoryError> {
        let mut slices = Vec::with_capacity(self.parts.len());
        for &(address, length) in &self.parts {
            let mut address = GuestAddress(address);
            let mut left = u64::from(length);
            while left > 0 {
                let error = vm_memory::GuestMemoryError::InvalidGuestAddress(address);
                let Some((region, offset)) = memory.to_region_addr(address) else { return Err(error) };
                let count = left.min(region.len() - offset.0);
                let bytes = usize::try_from(count).map_err(|_| error)?;
                slices.push(region.get_slice(offset, bytes)?);
                address.0 += count;
                left -= count;
            }
        }
        Ok(slices)
    }
}

/// A descriptor chain, copied out of guest memory and checked as a whole: what the driver does to the descriptors
/// afterwards changes nothing here.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Its first descriptor, which is its name.
    pub head: u16,
    /// What the device reads.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
}

/// A queue in use by a device.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: Arc<GuestRam>,
    signal: Arc<dyn DriverSignal>,
    gate: Arc<Gate>,
}

impl VirtQueue {
    /// Queue `index`, of at most `max` entries, where the driver put it. `event_idx` is whether
    /// [`super::feature::EVENT_IDX`] was negotiated.
    ///
    /// # Errors
    ///
    /// The layout is none.
    pub fn new(
        index: u16,
        layout: &QueueLayout,
        max: u16,
        event_idx: bool,
        memory: Arc<GuestRam>,
        signal: Arc<dyn DriverSignal>,
        gate: Arc<Gate>,
    ) -> Result<Self, QueueError> {
        layout.check(index, max, &memory)?;
        let ring = |error| QueueError::Ring { queue: index, error };
        let mut queue = Queue::new(max).map_err(ring)?;
        queue.try_set_size(layout.size).map_err(ring)?;
        queue.try_set_desc_table_address(GuestAddress(layout.descriptors)).map_err(ring)?;
        queue.try_set_avail_ring_address(GuestAddress(layout.available)).map_err(ring)?;
        queue.try_set_used_ring_address(GuestAddress(layout.used)).map_err(ring)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Self { index, queue, memory, signal, gate })
    }

    /// Its number in the device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The RAM that its buffers are in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    /// Whether so many bytes from `address` on are RAM.
    #[must_use]
    pub fn is_ram(&self, address: u64, bytes: u64) -> bool {
        in_ram(&self.memory, address, bytes)
    }

    /// Whether the device may use it now: else chains in work are to be left alone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// Takes the next available chain into `chain` and says whether there was one. A closed gate lets none through.
    ///
    /// # Errors
    ///
    /// The driver broke the queue.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if !self.gate.is_open() {
            return Ok(false);
        }
        let queue = self.index;
        let memory = &*self.memory;
        let mut available = self.queue.iter(memory).map_err(|error| match error {
            virtio_queue::Error::InvalidAvailRingIndex => QueueError::AvailableJump { queue },
            error => QueueError::Ring { queue, error },
        })?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        let head = descriptors.head_index();
        chain.head = head;
        chain.readable.parts.clear();
        chain.writable.parts.clear();
        // The iterator ends in silence at whatever is wrong: at a descriptor that says it has a successor, or at once.
        let mut unfinished = true;
        for (count, descriptor) in descriptors.enumerate() {
            if count == MAX_CHAIN {
                return Err(QueueError::LongChain { queue, head });
            }
            unfinished = descriptor.has_next();
            let (address, length) = (descriptor.addr().0, descriptor.len());
            let parts = if descriptor.is_write_only() {
                &mut chain.writable.parts
            } else if chain.writable.parts.is_empty() {
                &mut chain.readable.parts
            } else {
                return Err(QueueError::BadOrder { queue, head });
            };
            if length == 0 {
                continue;
            }
            if !in_ram(memory, address, u64::from(length)) {
                return Err(QueueError::BufferOutsideRam { queue, address, length });
            }
            parts.push((address, length));
        }
        if unfinished {
            return Err(QueueError::BrokenChain { queue, head });
        }
        Ok(true)
    }

    /// Gives chain `head` back to the driver with `written` bytes in its writable buffers, and interrupts the driver if it
    /// wants to know.
    ///
    /// # Errors
    ///
    /// None that the checks at the start leave possible.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let queue = self.index;
        let ring = |error| QueueError::Ring { queue, error };
        self.queue.add_used(&*self.memory, head, written).map_err(ring)?;
        if self.wants_interrupt().map_err(ring)? {
            self.signal.used(self.index);
        }
        Ok(())
    }

    /// Gives chains back to the driver at once, each with the bytes written, as it must be for a frame in several of them (virtio 1.2,
    /// 5.1.6.4.1): the driver sees all or none. Interrupts it once, if it wants to know.
    ///
    /// # Errors
    ///
    /// None that the checks at the start leave possible.
    pub fn complete_all(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(head, written), before)) = chains.split_last() else { return Ok(()) };
        let queue = self.index;
        let ring = |error| QueueError::Ring { queue, error };
        let first = self.queue.next_used();
        let mut next = first;
        for &(head, written) in before {
            let entry = USED_HEADER + u64::from(next % self.queue.size()) * USED_ENTRY_SIZE;
            let entry = GuestAddress(self.queue.used_ring() + entry);
            let bytes = u64::from(head) | u64::from(written) << 32;
            self.memory
                .write_obj(bytes.to_le(), entry)
                .map_err(|error| ring(virtio_queue::Error::GuestMemory(error)))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.queue.add_used(&*self.memory, head, written).map_err(ring)?;
        let wanted = if self.queue.event_idx_enabled() {
            self.event_is_among(first, next.wrapping_add(1)).map_err(ring)?
        } else {
            self.wants_interrupt().map_err(ring)?
        };
        if wanted {
            self.signal.used(self.index);
        }
        Ok(())
    }

    /// Whether the driver wants to hear of one of the used entries from `first` to before `next` (virtio 1.2, 2.7.7.2).
    fn event_is_among(&self, first: u16, next: u16) -> Result<bool, virtio_queue::Error> {
        // The used index must be out before the driver's word is read.
        fence(Ordering::SeqCst);
        let place = self.queue.avail_ring() + USED_HEADER + u64::from(self.queue.size()) * AVAILABLE_ENTRY_SIZE;
        let event: u16 =
            self.memory.load(GuestAddress(place), Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
        let event = u16::from_le(event);
        Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(first))
    }

    fn wants_interrupt(&mut self) -> Result<bool, virtio_queue::Error> {
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(&*self.memory);
        }
        // The used index must be out before the flag is read (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while the device works anyway.
    ///
    /// # Errors
    ///
    /// None that the checks at the start leave possible.
    pub fn disarm(&mut self) -> Result<(), QueueError> {
        let memory = &*self.memory;
        self.queue.disable_notification(memory).map_err(|error| QueueError::Ring { queue: self.index, error })
    }

    /// Asks the driver to notify of the next chain, and says whether one came in the meantime: then look again.
    ///
    /// # Errors
    ///
    /// None that the checks at the start leave possible.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        let memory = &*self.memory;
        let more = self.queue.enable_notification(memory);
        let more = more.map_err(|error| QueueError::Ring { queue: self.index, error })?;
        Ok(more && self.gate.is_open())
    }

    /// Serves all available chains: `serve` gives the bytes that it wrote.
    ///
    /// # Errors
    ///
    /// The driver broke the queue, or `serve` says so.
    pub fn serve(
        &mut self,
        chain: &mut Chain,
        mut serve: impl FnMut(&mut Chain, &GuestRam) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        loop {
            self.disarm()?;
            while self.pop(chain)? {
                let written = serve(chain, &self.memory)?;
                self.complete(chain.head, written)?;
            }
            if !self.arm()? {
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for VirtQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtQueue")
            .field("index", &self.index)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
