//! Block device (virtio 1.2, 5.2).
//!
//! [`request`] parses and checks a request completely, [`execute`](BlockHandler) then carries it out on a
//! [`BlockBackend`]; nothing of a request is looked at twice.

mod backend;
mod file;
mod request;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Chain;
use super::DeviceConfig;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use super::read_bytes;
use super::reports::Reports;
use crate::platform::EventFd;
use crate::platform::GuestRam;

pub use backend::BlockBackend;
pub use backend::MemoryBackend;
pub use file::DiskError;
pub use file::FileBackend;
pub use request::Disk;
pub use request::Operation;
pub use request::Request;
pub use request::RequestError;
pub use request::parse;

/// Bytes of a sector, the unit of everything in the protocol (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of the device's id (virtio 1.2, 5.2.6).
pub const ID_SIZE: usize = 20;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 256;
/// Most data buffers of a request: a chain without header and status.
const MOST_SEGMENTS: u32 = 254;
const _: () = assert!(MOST_SEGMENTS as usize + 2 == super::MAX_CHAIN);
/// Largest data buffer, so that no request keeps the disk busy for long.
const LARGEST_SEGMENT: u32 = 1 << 20;
/// Most sectors to discard or zero at once: 64 MiB, for where that means to write them.
const MOST_ZEROED: u32 = 1 << 17;

/// Feature bits (virtio 1.2, 5.2.3).
mod bit {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// A block device over `backend`. `name` is for messages, `id` what the guest can ask for.
///
/// # Errors
///
/// The system has no event left.
pub fn device(name: &str, id: &str, backend: Box<dyn BlockBackend>) -> io::Result<VirtioDevice> {
    let disk = Disk { sectors: backend.sectors(), read_only: backend.is_read_only() };
    let mut features = bit::SIZE_MAX | bit::SEG_MAX | bit::BLOCK_SIZE | bit::FLUSH;
    features |= if disk.read_only { bit::READ_ONLY } else { bit::DISCARD | bit::WRITE_ZEROES };
    Ok(VirtioDevice {
        kind: DeviceKind::Block,
        name: name.to_owned(),
        features,
        queue_sizes: vec![QUEUE_SIZE],
        config: Box::new(Config { bytes: config_bytes(&disk) }),
        handler: Box::new(BlockHandler::new(name, id, backend)),
        event: Arc::new(EventFd::new(0)?),
    })
}

/// Bytes of `struct virtio_blk_config` up to what we offer (virtio 1.2, 5.2.4).
const CONFIG_SIZE: usize = 60;

struct Config {
    bytes: [u8; CONFIG_SIZE],
}

fn config_bytes(disk: &Disk) -> [u8; CONFIG_SIZE] {
    let mut bytes = [0; CONFIG_SIZE];
    let mut set = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    set(0, &disk.sectors.to_le_bytes());
    set(8, &LARGEST_SEGMENT.to_le_bytes());
    set(12, &MOST_SEGMENTS.to_le_bytes());
    set(20, &512_u32.to_le_bytes());
    // Discard: sectors, ranges, alignment; then write zeroes: sectors, ranges, and that it may give storage back.
    set(36, &MOST_ZEROED.to_le_bytes());
    set(40, &1_u32.to_le_bytes());
    set(44, &1_u32.to_le_bytes());
    set(48, &MOST_ZEROED.to_le_bytes());
    set(52, &1_u32.to_le_bytes());
    set(56, &[1]);
    bytes
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        60
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.bytes, offset, data);
    }
}

/// Serves the queue of a block device.
pub struct BlockHandler {
    backend: Box<dyn BlockBackend>,
    id: [u8; ID_SIZE],
    /// The driver does not flush, so every write must last when it is done (virtio 1.2, 5.2.6.2).
    write_through: bool,
    chain: Chain,
    reports: Reports,
}

impl BlockHandler {
    /// Serves `backend`, with `name` in messages and `id` (cut to 20 bytes) for guests that ask.
    #[must_use]
    pub fn new(name: &str, id: &str, backend: Box<dyn BlockBackend>) -> Self {
        let mut bytes = [0; ID_SIZE];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Self { backend, id: bytes, write_through: true, chain: Chain::default(), reports: Reports::new(name) }
    }

    /// Serves all requests of `queue`.
    ///
    /// # Errors
    ///
    /// The driver broke the queue.
    pub fn serve(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let Self { backend, id, write_through, chain, reports } = self;
        let disk = Disk { sectors: backend.sectors(), read_only: backend.is_read_only() };
        let index = queue.index();
        queue.serve(chain, |chain, memory| {
            let head = chain.head;
            let request = parse(chain, memory, &disk).ok_or(QueueError::NoStatus { queue: index, head })?;
            let (status, written) = match &request.operation {
                Ok(operation) => match execute(operation, chain, memory, backend.as_mut(), id, *write_through) {
                    Ok(written) => (Status::Ok, written),
                    Err(error) => {
                        reports.warn(&format_args!("{operation:?} failed on the host: {error}"));
                        (Status::IoError, 0)
                    }
                },
                Err(error) => {
                    log::debug!("{}: refused a request: {error}", reports.name());
                    (error.status(), 0)
                }
            };
            answer(memory, request.status, status, index)?;
            Ok(written + 1)
        })
    }
}

impl std::fmt::Debug for BlockHandler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BlockHandler").field("sectors", &self.backend.sectors()).finish_non_exhaustive()
    }
}

impl QueueHandler for BlockHandler {
    fn start(&mut self, features: u64) {
        self.write_through = features & bit::FLUSH == 0;
    }

    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        if let Some(queue) = rings.get(0) {
            self.serve(queue)?;
        }
        Ok(None)
    }
}

/// What a request's status byte says (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done.
    IoError = 1,
    /// Not a request that the device knows.
    Unsupported = 2,
}

fn answer(memory: &GuestRam, address: u64, status: Status, queue: u16) -> Result<(), QueueError> {
    use vm_memory::Bytes;
    memory
        .write_obj(status as u8, vm_memory::GuestAddress(address))
        .map_err(|error| QueueError::Ring { queue, error: virtio_queue::Error::GuestMemory(error) })
}

fn memory_error(error: vm_memory::GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

/// Carries out `operation`, whose data buffers are what is left in `chain`. Gives the bytes written to them.
fn execute(
    operation: &Operation,
    chain: &Chain,
    memory: &GuestRam,
    backend: &mut dyn BlockBackend,
    id: &[u8; ID_SIZE],
    write_through: bool,
) -> io::Result<u32> {
    match *operation {
        Operation::Read { offset, length } => {
            backend.read_at(offset, &chain.writable.slices(memory).map_err(memory_error)?)?;
            return Ok(length);
        }
        Operation::GetId => {
            let written = chain.writable.write(memory, id).map_err(memory_error)?;
            return Ok(u32::try_from(written).unwrap_or(0));
        }
        Operation::Flush => return backend.flush().map(|()| 0),
        Operation::Write { offset, .. } => {
            backend.write_at(offset, &chain.readable.slices(memory).map_err(memory_error)?)?;
        }
        Operation::Discard { offset, length } => backend.discard(offset, length)?,
        Operation::WriteZeroes { offset, length, unmap } => backend.write_zeroes(offset, length, unmap)?,
    }
    if write_through {
        backend.flush()?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
