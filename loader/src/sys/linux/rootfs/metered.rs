//! A reader that lets only so much through until it is told to go on.

use std::cell::Cell;
use std::io;
use std::io::Read;
use std::rc::Rc;

/// How much more may be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Rc<Cell<u64>>);

impl Meter {
    pub(super) fn set(&self, bytes: u64) {
        self.0.set(bytes);
    }
}

/// The reader.
pub(super) struct Metered<R> {
    pub(super) reader: R,
    pub(super) meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.0.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what is said of one file is too long"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..most])?;
        self.meter.0.set(left - count as u64);
        Ok(count)
    }
}
