//! A driver's side of a queue, for tests.

use std::mem;
use std::sync::Arc;
use std::sync::Mutex;

use vm_memory::Bytes;
use vm_memory::GuestAddress;

use super::DriverSignal;
use super::Gate;
use super::QueueError;
use super::QueueLayout;
use super::VirtQueue;
use crate::platform::GuestRam;
use crate::platform::lock;

/// Where the queue's parts are.
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x3000;
pub(crate) const USED: u64 = 0x4000;
/// Guest RAM: two regions with a hole between them.
pub(crate) const RAM: [(u64, usize); 2] = [(0, 0x20_0000), (0x1_0000_0000, 0x10_0000)];

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
}

impl Buffer {
    pub(crate) fn readable(address: u64, length: u32) -> Self {
        Self { address, length, flags: 0 }
    }

    pub(crate) fn writable(address: u64, length: u32) -> Self {
        Self { address, length, flags: WRITE }
    }
}

/// Remembers the device's signals.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    used: Mutex<Vec<u16>>,
}

impl Signals {
    pub(crate) fn take(&self) -> Vec<u16> {
        mem::take(&mut lock(&self.used))
    }
}

impl DriverSignal for Signals {
    fn used(&self, queue: u16) {
        lock(&self.used).push(queue);
    }

    fn config_changed(&self) {}
}

/// The RAM of tests.
pub(crate) fn ram() -> Arc<GuestRam> {
    let ranges = RAM.map(|(address, size)| (GuestAddress(address), size));
    Arc::new(crate::sys::memory::anonymous(&ranges))
}

/// A queue at [`DESCRIPTORS`], [`AVAILABLE`] and [`USED`], as its driver sees it.
pub(crate) struct TestQueue {
    pub(crate) memory: Arc<GuestRam>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) size: u16,
    pub(crate) index: u16,
    base: u64,
    /// The next used entry to look at.
    next: Mutex<u16>,
}

impl TestQueue {
    pub(crate) fn new(size: u16) -> Self {
        Self::at(ram(), 0, size, 0)
    }

    /// Queue `index` with everything moved up by `base`.
    pub(crate) fn at(memory: Arc<GuestRam>, base: u64, size: u16, index: u16) -> Self {
        Self { memory, signals: Arc::default(), size, index, base, next: Mutex::new(0) }
    }

    pub(crate) fn layout(&self) -> QueueLayout {
        QueueLayout {
            size: self.size,
            descriptors: self.base + DESCRIPTORS,
            available: self.base + AVAILABLE,
            used: self.base + USED,
        }
    }

    pub(crate) fn try_queue(&self, event_idx: bool) -> Result<VirtQueue, QueueError> {
        let (memory, signal) = (Arc::clone(&self.memory), self.signals.clone());
        VirtQueue::new(self.index, &self.layout(), 256, event_idx, memory, signal, Arc::new(Gate::opened()))
    }

    /// The device's side.
    pub(crate) fn queue(&self, event_idx: bool) -> VirtQueue {
        self.try_queue(event_idx).unwrap()
    }

    pub(crate) fn write<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes one descriptor of the table at `table`.
    pub(crate) fn descriptor_at(&self, table: u64, index: u16, buffer: Buffer, next: u16) {
        let at = table + u64::from(index) * 16;
        self.write(at, buffer.address);
        self.write(at + 8, buffer.length);
        self.write(at + 12, buffer.flags);
        self.write(at + 14, next);
    }

    pub(crate) fn descriptor(&self, index: u16, buffer: Buffer, next: u16) {
        self.descriptor_at(self.base + DESCRIPTORS, index, buffer, next);
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub(crate) fn make_available(&self, head: u16) {
        let available = self.base + AVAILABLE;
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).unwrap();
        self.write(available + 4 + u64::from(index % self.size) * 2, head);
        self.write(available + 2, index.wrapping_add(1));
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.write(self.base + AVAILABLE + 2, index);
    }

    /// Makes a chain of `buffers` in the descriptors from `head` on, and makes it available.
    pub(crate) fn offer(&self, head: u16, buffers: &[Buffer]) {
        for (index, buffer) in (head..).zip(buffers) {
            let last = usize::from(index - head) + 1 == buffers.len();
            let flags = buffer.flags | if last { 0 } else { NEXT };
            self.descriptor(index, Buffer { flags, ..*buffer }, index + 1);
        }
        self.make_available(head);
    }

    /// The used entries since the last call: head and bytes.
    pub(crate) fn take_used(&self) -> Vec<(u32, u32)> {
        let mut next = lock(&self.next);
        let used = self.base + USED;
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let mut entries = Vec::new();
        while *next != index {
            let at = used + 4 + u64::from(*next % self.size) * 8;
            let entry: [u32; 2] =
                [self.memory.read_obj(GuestAddress(at)).unwrap(), self.memory.read_obj(GuestAddress(at + 4)).unwrap()];
            entries.push((entry[0], entry[1]));
            *next = next.wrapping_add(1);
        }
        entries
    }
}
