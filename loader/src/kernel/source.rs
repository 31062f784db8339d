//! A file as a source of guest memory: the host reads into the guest's RAM without a copy in between.

use std::fs::File;
use std::io::Seek;
use std::io::SeekFrom;

use vm_memory::ReadVolatile;
use vm_memory::VolatileMemoryError;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::sys::transfer;

/// Reads a file from where it is.
pub(super) struct FileSource<'a>(pub(super) &'a mut File);

impl ReadVolatile for FileSource<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the bytes of `buffer`, which the guard keeps mapped; guest RAM has no bitmap that would miss the writes.
        let plain = unsafe { VolatileSlice::new(guard.as_ptr(), guard.len()) };
        let mut read = || {
            let offset = self.0.stream_position()?;
            transfer::read_at(self.0, offset, &[plain])?;
            self.0.seek(SeekFrom::Start(offset + guard.len() as u64))
        };
        read().map_err(VolatileMemoryError::IOError)?;
        Ok(guard.len())
    }
}
