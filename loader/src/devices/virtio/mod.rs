//! Virtio devices (Virtual I/O Device 1.2): what they have in common, their queues, their threads, their transport.
//!
//! A [`VirtioDevice`] is what a device says of itself and a [`QueueHandler`] that serves its queues. [`VirtioPci`] makes a
//! PCI function of it: it negotiates on the vCPU's thread, and hands the queues to a worker thread when the driver says
//! that it is ready. From then on until the worker has stopped nothing that the driver writes reaches queues in use.

pub mod balloon;
pub mod block;
pub mod console;
pub mod entropy;
pub mod fs;
pub mod input;
pub mod net;
mod pci;
mod queue;
#[cfg(test)]
mod testing;
mod worker;

use std::fmt;
use std::sync::Arc;

pub use pci::VirtioPci;
pub use pci::VirtioResources;
pub use queue::Chain;
pub use queue::MAX_CHAIN;
pub use queue::QueueError;
pub use queue::QueueLayout;
pub use queue::Segments;
pub use queue::VirtQueue;
pub use worker::Gate;
pub use worker::QueueHandler;
pub use worker::Rings;
#[cfg(test)]
pub(crate) use worker::STACK as WORKER_STACK;

use crate::platform::Event;

/// Feature bits that any device may have (virtio 1.2, 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`: descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`: each side says at which index it wants to hear of the other.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;

    /// What our queues do for every device.
    pub(super) const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Kinds of devices, by their virtio id (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network device.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Traditional memory balloon.
    Balloon = 5,
    /// Input device.
    Input = 18,
    /// File system.
    FileSystem = 26,
}

impl DeviceKind {
    /// The PCI class that fits it (PCI 3.0, appendix D).
    const fn pci_class(self) -> [u8; 3] {
        match self {
            // Network controller, Ethernet.
            Self::Network => [0x02, 0x00, 0x00],
            // Mass storage, other.
            Self::Block | Self::FileSystem => [0x01, 0x80, 0x00],
            // Simple communication, other.
            Self::Console => [0x07, 0x80, 0x00],
            // Fits in no class.
            Self::Entropy | Self::Balloon => [0xff, 0x00, 0x00],
            // Input device controller, other.
            Self::Input => [0x09, 0x80, 0x00],
        }
    }
}

/// The device's own part of configuration, as the driver sees it. Works on vCPUs' threads.
pub trait DeviceConfig: Send {
    /// Bytes of it, at most 64; 0 for none.
    fn size(&self) -> u8;

    /// Reads at `offset`; what is past the end reads 0.
    fn read(&self, offset: usize, data: &mut [u8]);

    /// Writes at `offset`; what cannot be written stays as it is.
    fn write(&mut self, _offset: usize, _data: &[u8]) {}

    /// A number that differs whenever what the driver read may have changed (virtio 1.2, 4.1.4.3.1).
    fn generation(&self) -> u8 {
        0
    }
}

/// Reads part of `bytes`, as [`DeviceConfig::read`] does.
pub(crate) fn read_bytes(bytes: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset)) {
        *to = *from;
    }
}

/// A device without configuration of its own.
#[derive(Debug)]
pub(crate) struct NoConfig;

impl DeviceConfig for NoConfig {
    fn size(&self) -> u8 {
        0
    }

    fn read(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }
}

/// A device, for a transport to offer to the guest.
pub struct VirtioDevice {
    /// What it is.
    pub kind: DeviceKind,
    /// What to call it in messages, and its thread.
    pub name: String,
    /// Features that it offers, besides those of its queues.
    pub features: u64,
    /// For each queue the most entries that it can have, a power of two.
    pub queue_sizes: Vec<u16>,
    /// Its configuration.
    pub config: Box<dyn DeviceConfig>,
    /// What serves its queues.
    pub handler: Box<dyn QueueHandler>,
    /// Wakes the handler.
    pub event: Arc<Event>,
}

impl fmt::Debug for VirtioDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("VirtioDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a queue reaches its driver.
pub trait DriverSignal: Send + Sync {
    /// Queue `queue` has used buffers.
    fn used(&self, queue: u16);

    /// The device's configuration, or its status, has changed.
    fn config_changed(&self);
}
