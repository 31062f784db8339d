//! File system device (virtio 1.2, 5.11): a folder of the host's, by FUSE's messages.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::devices::virtio::Chain;
use crate::devices::virtio::DeviceConfig;
use crate::devices::virtio::DeviceKind;
use crate::devices::virtio::QueueError;
use crate::devices::virtio::QueueHandler;
use crate::devices::virtio::Rings;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::read_bytes;
use crate::platform::Event;
use crate::platform::GuestRam;
use crate::share::FileSystem;
use crate::share::MOST_REPLY;
use crate::share::MOST_REQUEST;
use crate::share::Server;
use crate::share::Tag;

/// Entries of the queue for what is to be forgotten, and of the one for everything else.
const QUEUE_SIZES: [u16; 2] = [64, 256];

/// A file system device for `files`, which the guest knows by `tag`.
///
/// # Errors
///
/// The system has no event left.
pub fn device(name: &str, tag: &Tag, files: Box<dyn FileSystem>, read_only: bool) -> io::Result<VirtioDevice> {
    Ok(VirtioDevice {
        kind: DeviceKind::FileSystem,
        name: name.to_owned(),
        features: 0,
        queue_sizes: QUEUE_SIZES.to_vec(),
        config: Box::new(Config::new(tag)),
        handler: Box::new(FsHandler::new(Server::new(files, read_only))),
        event: Arc::new(Event::new()?),
    })
}

/// `struct virtio_fs_config` without what is for notifications (virtio 1.2, 5.11.4).
const CONFIG_SIZE: usize = 40;
/// Where it says how many queues for requests there are.
const REQUEST_QUEUES: usize = 36;

struct Config {
    bytes: [u8; CONFIG_SIZE],
}

impl Config {
    fn new(tag: &Tag) -> Self {
        let mut bytes = [0; CONFIG_SIZE];
        bytes[..REQUEST_QUEUES].copy_from_slice(&tag.bytes());
        bytes[REQUEST_QUEUES] = 1;
        Self { bytes }
    }
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        40
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.bytes, offset, data);
    }
}

/// Serves the queues of a file system device.
#[derive(Debug)]
pub struct FsHandler {
    server: Server,
    chain: Chain,
    message: Vec<u8>,
    answer: Vec<u8>,
}

impl FsHandler {
    /// Has `server` answer.
    #[must_use]
    pub fn new(server: Server) -> Self {
        Self { server, chain: Chain::default(), message: Vec::new(), answer: Vec::new() }
    }

    /// Serves all messages of queue `index`.
    ///
    /// # Errors
    ///
    /// The driver broke the queue.
    pub fn serve(&mut self, index: u16, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let Self { server, chain, message, answer } = self;
        queue.serve(chain, |chain, memory| respond(server, index, chain, memory, message, answer))
    }
}

fn respond(
    server: &mut Server,
    queue: u16,
    chain: &Chain,
    memory: &GuestRam,
    message: &mut Vec<u8>,
    answer: &mut Vec<u8>,
) -> Result<u32, QueueError> {
    // One byte more than the longest message, so that one that is longer is seen to be.
    let size = chain.readable.len().min(MOST_REQUEST as u64 + 1);
    message.clear();
    message.resize(usize::try_from(size).unwrap_or(0), 0);
    let broken = |_| QueueError::NoRoom { queue, head: chain.head };
    // Copied once: what the driver does to it from now on changes nothing. The buffers were checked when the chain came.
    if chain.readable.read(memory, message).is_err() {
        message.clear();
    }
    let room = usize::try_from(chain.writable.len()).unwrap_or(MOST_REPLY);
    server.serve(message, room, answer).map_err(broken)?;
    let written = chain.writable.write(memory, answer).unwrap_or(0);
    Ok(u32::try_from(written).unwrap_or(0))
}

impl QueueHandler for FsHandler {
    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        for index in 0..QUEUE_SIZES.len() {
            if let Some(queue) = rings.get(index) {
                self.serve(u16::try_from(index).unwrap_or(0), queue)?;
            }
        }
        Ok(None)
    }

    fn reset(&mut self) {
        self.server.reset();
    }
}

#[cfg(test)]
mod tests;
