//! An open folder's entries, by numbers that stay: FUSE asks for some from a number on, NT gives the next ones of a handle.

use std::fs::File;

use super::calls;
use crate::share::Errno;
use crate::sys::nt::files::entries::Entry;

/// What was read last.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The number of the first of these.
    first: u64,
    entries: Vec<Entry>,
    /// Something was read.
    begun: bool,
}

impl Listing {
    /// Some entries from this number on; none at the end. The entry 0 begins anew, with what is there by then.
    pub(super) fn from(&mut self, folder: &File, number: u64) -> Result<&[Entry], Errno> {
        if !self.begun || number == 0 || number < self.first {
            *self = Self { begun: true, ..Self::default() };
            self.entries = calls::list(folder, None, true)?.unwrap_or_default();
        }
        loop {
            let end = self.first + self.entries.len() as u64;
            if number < end {
                let skipped = usize::try_from(number - self.first).unwrap_or(usize::MAX);
                return Ok(self.entries.get(skipped..).unwrap_or_default());
            }
            let Some(next) = calls::list(folder, None, false)? else { return Ok(&[]) };
            (self.first, self.entries) = (end, next);
        }
    }
}
