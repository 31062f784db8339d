//! Block device (virtio 1.2, 5.2).
//!
//! [`request`] parses and checks a request completely, [`batch`] puts together what is there at a time, and
//! [`execute`](BlockHandler) then carries it out on a [`BlockBackend`]; nothing of a request is looked at twice.

mod batch;
mod request;

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use vm_memory::VolatileSlice;

use self::batch::Batch;
use super::Chain;
use super::DeviceConfig;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::Segments;
use super::VirtQueue;
use super::VirtioDevice;
use super::read_bytes;
use crate::devices::reports::Reports;
use crate::disk::BlockBackend;
use crate::disk::SECTOR;
use crate::platform::Event;
use crate::platform::GuestRam;
use crate::run::describe;

pub use request::Disk;
pub use request::Operation;
pub use request::Request;
pub use request::RequestError;
pub use request::parse;

// The unit of everything in the protocol (virtio 1.2, 5.2.4) is a disk's.
const _: () = assert!(SECTOR == 512);

/// Bytes of the device's id (virtio 1.2, 5.2.6).
pub const ID_SIZE: usize = 20;

/// Queues. All that is said of a queue is said of each; guests of this version have one CPU, which needs no more.
const QUEUES: usize = 1;
/// Entries of a queue.
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
        queue_sizes: vec![QUEUE_SIZE; QUEUES],
        config: Box::new(Config { bytes: config_bytes(&disk, backend.discard_alignment()) }),
        handler: Box::new(BlockHandler::new(name, id, backend)),
        event: Arc::new(Event::new()?),
    })
}

/// Bytes of `struct virtio_blk_config` up to what we offer (virtio 1.2, 5.2.4).
const CONFIG_SIZE: usize = 60;

struct Config {
    bytes: [u8; CONFIG_SIZE],
}

fn config_bytes(disk: &Disk, discard_alignment: u32) -> [u8; CONFIG_SIZE] {
    let mut bytes = [0; CONFIG_SIZE];
    let mut set = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    set(0, &disk.sectors.to_le_bytes());
    set(8, &LARGEST_SEGMENT.to_le_bytes());
    set(12, &MOST_SEGMENTS.to_le_bytes());
    set(20, &512_u32.to_le_bytes());
    // Discard: sectors, ranges, alignment; then write zeroes: sectors, ranges, and that it may give storage back.
    set(36, &MOST_ZEROED.to_le_bytes());
    set(40, &1_u32.to_le_bytes());
    set(44, &discard_alignment.to_le_bytes());
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
    batch: Batch,
    messages: Messages,
}

/// How long a host's disk has to have had room until it is told again that it is full.
const FULL_AGAIN: Duration = Duration::from_secs(60);

/// What the user hears of errors of the host's.
struct Messages {
    reports: Reports,
    /// When the host had no room last, which the user knows.
    full: Option<Instant>,
}

impl Messages {
    /// An operation failed.
    fn failed(&mut self, operation: &Operation, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.reports.warn(&format_args!("{operation} failed on the host: {}", describe(error)));
            return;
        }
        let now = Instant::now();
        // A guest that tries again is no news.
        if self.full.replace(now).is_none_or(|last| now - last > FULL_AGAIN) {
            self.reports.warn(&format_args!(
                "the host's disk is full ({operation} failed); the guest gets I/O errors until there is room"
            ));
        }
    }
}

impl BlockHandler {
    /// Serves `backend`, with `name` in messages and `id` (cut to 20 bytes) for guests that ask.
    #[must_use]
    pub fn new(name: &str, id: &str, backend: Box<dyn BlockBackend>) -> Self {
        let mut bytes = [0; ID_SIZE];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let messages = Messages { reports: Reports::new(name), full: None };
        Self { backend, id: bytes, write_through: true, batch: Batch::default(), messages }
    }

    /// Serves all requests of `queue`.
    ///
    /// # Errors
    ///
    /// The driver broke the queue.
    pub fn serve(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let Self { backend, id, write_through, batch, messages } = self;
        let disk = Disk { sectors: backend.sectors(), read_only: backend.is_read_only() };
        let name = messages.reports.name().to_owned();
        loop {
            queue.disarm()?;
            loop {
                let (some, broken) = batch.take(queue, &disk);
                if some {
                    let execute = |operation: &Operation, chains: &[&Chain], memory: &GuestRam| {
                        let result = execute(operation, chains, memory, backend.as_mut(), id, *write_through);
                        // What failed together is tried again, each for itself.
                        result.inspect_err(|error| {
                            if chains.len() == 1 {
                                messages.failed(operation, error);
                            }
                        })
                    };
                    batch.carry_out(queue, execute, |error| log::debug!("{name}: refused a request: {error}"))?;
                }
                broken?;
                if !some {
                    break;
                }
            }
            if !queue.arm()? {
                return Ok(());
            }
        }
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
        for index in 0..QUEUES {
            if let Some(queue) = rings.get(index) {
                self.serve(queue)?;
            }
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

fn memory_error(error: vm_memory::GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

/// Carries out `operation`, whose data buffers are what is left in `chains`. Gives the bytes written to them.
fn execute(
    operation: &Operation,
    chains: &[&Chain],
    memory: &GuestRam,
    backend: &mut dyn BlockBackend,
    id: &[u8; ID_SIZE],
    write_through: bool,
) -> io::Result<u32> {
    match *operation {
        Operation::Read { offset, length } => {
            backend.read_at(offset, &slices(chains.iter().map(|chain| &chain.writable), memory)?)?;
            return Ok(length);
        }
        Operation::GetId => {
            let written =
                chains.first().map_or(Ok(0), |chain| chain.writable.write(memory, id)).map_err(memory_error)?;
            return Ok(u32::try_from(written).unwrap_or(0));
        }
        Operation::Flush => return backend.flush().map(|()| 0),
        Operation::Write { offset, .. } => {
            backend.write_at(offset, &slices(chains.iter().map(|chain| &chain.readable), memory)?)?;
        }
        Operation::Discard { offset, length } => backend.discard(offset, length)?,
        Operation::WriteZeroes { offset, length, unmap } => backend.write_zeroes(offset, length, unmap)?,
    }
    if write_through {
        backend.flush()?;
    }
    Ok(0)
}

/// Buffers of several requests, one behind the other.
fn slices<'a>(segments: impl Iterator<Item = &'a Segments>, memory: &GuestRam) -> io::Result<Vec<VolatileSlice<'_>>> {
    let mut slices = Vec::new();
    for segments in segments {
        slices.extend(segments.slices(memory).map_err(memory_error)?);
    }
    Ok(slices)
}

#[cfg(test)]
mod tests;
