//! Frames into a file that Wireshark and tcpdump read.
//!
//! The format is libpcap's, with the magic number for nanoseconds (draft-ietf-opsawg-pcap). A frame that one side would have had the
//! other divide is in the file as one.

use std::fmt;
use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use super::Backend;
use super::Deliver;
use super::FrameHeader;
use super::MAX_FRAME;
use super::Offloads;
use crate::devices::reports::Reports;
use crate::platform::Event;

/// Magic number of a file with nanoseconds, in our byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Version 2.4 of the format.
const VERSION: [u16; 2] = [2, 4];
/// The link is Ethernet.
const ETHERNET: u32 = 1;

/// A file of frames.
#[derive(Debug)]
struct Capture {
    file: BufWriter<File>,
    reports: Reports,
    /// The file could not be written: it ends there.
    ended: bool,
}

impl Capture {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&MAGIC.to_le_bytes())?;
        for part in VERSION {
            file.write_all(&part.to_le_bytes())?;
        }
        // The time zone and the accuracy of times, which nobody sets.
        file.write_all(&[0; 8])?;
        file.write_all(&u32::try_from(MAX_FRAME).unwrap_or(u32::MAX).to_le_bytes())?;
        file.write_all(&ETHERNET.to_le_bytes())?;
        file.flush()?;
        Ok(Self { file, reports: Reports::new("capture"), ended: false })
    }

    fn add(&mut self, parts: &[&[u8]]) {
        if self.ended {
            return;
        }
        if let Err(error) = self.write(parts) {
            self.reports.warn(&format_args!("it ends here, for its file cannot be written: {error}"));
            self.ended = true;
        }
    }

    fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let length = u32::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).unwrap_or(u32::MAX);
        // The format has 32 bits for seconds.
        let seconds = (time.as_secs() & u64::from(u32::MAX)).try_into().unwrap_or(0);
        for word in [seconds, time.subsec_nanos(), length, length] {
            self.file.write_all(&u32::to_le_bytes(word))?;
        }
        parts.iter().try_for_each(|part| self.file.write_all(part))
    }

    fn flush(&mut self) {
        if !self.ended && self.file.flush().is_err() {
            self.ended = true;
        }
    }
}

/// A back end whose frames are captured.
pub struct Captured {
    inner: Box<dyn Backend>,
    capture: Capture,
}

impl Captured {
    /// Captures `inner`'s frames to the file at `path`, which is made new.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn new(inner: Box<dyn Backend>, path: &Path) -> io::Result<Self> {
        Ok(Self { inner, capture: Capture::create(path)? })
    }
}

impl Backend for Captured {
    fn offloads(&self) -> Offloads {
        self.inner.offloads()
    }

    fn mtu(&self) -> u16 {
        self.inner.mtu()
    }

    fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.inner.attach(event)
    }

    fn start(&mut self, agreed: Offloads) {
        self.inner.start(agreed);
    }

    fn send(&mut self, header: &FrameHeader, frame: &[u8]) {
        self.capture.add(&[frame]);
        self.inner.send(header, frame);
    }

    fn receive(&mut self, room: usize, deliver: Deliver<'_>) -> bool {
        let Self { inner, capture } = self;
        inner.receive(room, &mut |header, parts| {
            capture.add(parts);
            deliver(header, parts);
        })
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        // Whoever reads the file finds all that happened so far.
        self.capture.flush();
        self.inner.wait(timeout);
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.inner.next_deadline()
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Captured").field("capture", &self.capture).finish_non_exhaustive()
    }
}
