//! A network interface of the host's, a TAP device: the host routes or bridges the guest's frames as it is set up to.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Backend;
use super::Deliver;
use super::FrameHeader;
use super::MAX_FRAME;
use super::Offloads;
use super::offload::HEADER_SIZE;
use crate::devices::reports::Reports;
use crate::platform::Event;
use crate::sys::tap::Tap;
pub use crate::sys::tap::TapError;

/// The host's end of an adapter.
pub struct TapLink {
    tap: Tap,
    /// What is to be read, until the device says that there is no more.
    readable: bool,
    /// What the host leaves to the guest, as its own headers are checked: by the host's words for a sender.
    from_host: Offloads,
    buffer: Vec<u8>,
    /// Bytes of the frame that is in the buffer because the guest had no room for it.
    kept: Option<usize>,
    reports: Reports,
}

impl TapLink {
    /// Takes or makes the device called `name`: see [`Tap::open`].
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn new(name: Option<&str>, mtu: Option<u16>, bridge: Option<&str>) -> Result<Self, TapError> {
        let tap = Tap::open(name, mtu, bridge)?;
        let reports = Reports::new(tap.name());
        let buffer = vec![0; HEADER_SIZE + MAX_FRAME];
        Ok(Self { tap, readable: true, from_host: Offloads::default(), buffer, kept: None, reports })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.tap.name()
    }

    fn read(&mut self) -> Option<usize> {
        while self.readable {
            match self.tap.read(&mut self.buffer) {
                Ok(count) => return Some(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readable = false;
                    // Reading one that is down, or was taken away, is an error; nothing else says so.
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.reports.warn(&format_args!("the host's interface cannot be read: {error}"));
                    }
                }
            }
        }
        None
    }
}

impl Backend for TapLink {
    fn offloads(&self) -> Offloads {
        Tap::OFFLOADS
    }

    fn mtu(&self) -> u16 {
        self.tap.mtu()
    }

    fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.tap.attach(event)
    }

    fn start(&mut self, agreed: Offloads) {
        self.from_host = Offloads {
            host_checksum: agreed.guest_checksum,
            host_tcp4: agreed.guest_tcp4,
            host_tcp6: agreed.guest_tcp6,
            ..Offloads::default()
        };
        if let Err(error) = self.tap.set_offloads(agreed) {
            self.reports.warn(&format_args!("the host does not take what the guest agreed to: {error}"));
        }
        self.readable = true;
    }

    fn send(&mut self, header: &FrameHeader, frame: &[u8]) {
        // What an interface that is down does not take is lost, as on a cable that is out.
        let _ = self.tap.write(&header.encode(0), frame);
    }

    fn receive(&mut self, room: usize, deliver: Deliver<'_>) -> bool {
        while let Some(count) = self.kept.take().or_else(|| self.read()) {
            let Some((head, frame)) = self.buffer[..count].split_first_chunk::<HEADER_SIZE>() else { continue };
            // The host is believed, but its interface may have been given another size since.
            match FrameHeader::parse(head, frame.len(), self.from_host, self.tap.mtu()) {
                Ok(_) if frame.len() > room => {
                    self.kept = Some(count);
                    return false;
                }
                Ok(header) => {
                    deliver(&header, &[frame]);
                    return true;
                }
                Err(error) => self.reports.warn(&error),
            }
        }
        false
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.readable |= self.tap.wait(timeout);
    }

    fn next_deadline(&self) -> Option<Duration> {
        None
    }

    fn reset(&mut self) {
        self.kept = None;
        self.start(Offloads::default());
    }
}

impl fmt::Debug for TapLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TapLink").field("tap", &self.tap).finish_non_exhaustive()
    }
}
