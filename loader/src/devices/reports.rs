//! Messages about a device to the user: a few, so that a hostile guest cannot fill the terminal or a log.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

/// Most messages of one kind about a device.
const MOST: u32 = 4;

/// Counts messages.
#[derive(Debug)]
pub(crate) struct Reports {
    name: String,
    count: AtomicU32,
}

impl Reports {
    /// Messages about the device of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), count: AtomicU32::new(0) }
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Tells the user, unless that has been too often.
    pub(crate) fn warn(&self, message: &dyn fmt::Display) {
        // Saturates, so that the count does not wrap around.
        let counted =
            self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count <= MOST).then_some(count + 1));
        match counted {
            Ok(0..MOST) => log::warn!("{}: {message}", self.name),
            Ok(_) => log::warn!("{}: this happens again and again; saying no more", self.name),
            Err(_) => {}
        }
    }
}
