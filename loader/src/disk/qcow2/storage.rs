//! The library's view of what an image is made of.

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::path::PathBuf;
use std::sync::Arc;

use imago::Storage;
use imago::io_buffers::IoVector;
use imago::io_buffers::IoVectorMut;
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use vm_memory::VolatileSlice;

use super::deferred::Deferred;
use super::header::INCOMPATIBLE_AT;
use super::header::Incompatible;
use crate::disk::buffers::total;
use crate::disk::medium::Medium;

/// A medium under the library.
pub(super) struct Store {
    medium: Arc<dyn Medium>,
    /// What the library need not know of, and would refuse.
    hidden: Incompatible,
    /// Bytes of a cluster, the last of which may be cut off; 1 where there are none.
    cluster: u64,
    /// Writes of tables that the host has refused.
    deferred: Arc<Deferred>,
    helper: CommonStorageHelper,
}

impl Store {
    /// `medium`, which is made of clusters of so many bytes, without the features `hidden` when its header is read.
    pub(super) fn new(medium: Arc<dyn Medium>, cluster: u64, hidden: Incompatible) -> Self {
        Self { medium, hidden, cluster, deferred: Arc::default(), helper: CommonStorageHelper::default() }
    }

    /// The writes of tables that the host has refused.
    pub(super) fn deferred(&self) -> Arc<Deferred> {
        Arc::clone(&self.deferred)
    }

    /// Fills `buffers` from `offset` on, with zeroes where the last cluster is cut off.
    pub(super) fn read(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        // What the host has refused may be behind the file's end.
        let end = self.medium.size()?.max(self.deferred.end());
        let end = end.checked_next_multiple_of(self.cluster).unwrap_or(u64::MAX);
        if offset.checked_add(total(buffers)).is_none_or(|last| last > end) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image is cut off, or damaged"));
        }
        self.medium.read_padded(offset, buffers)?;
        self.deferred.lay_over(offset, buffers);
        Ok(())
    }

    /// Stores `buffers` from `offset` on.
    pub(super) fn write(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.deferred.forget(offset, total(buffers));
        self.medium.write_at(offset, buffers)
    }

    /// Takes the features that are hidden out of what was read from `offset` on.
    fn hide(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) {
        let hidden = self.hidden.bits().to_be_bytes();
        if offset >= INCOMPATIBLE_AT + 8 || self.hidden.is_empty() {
            return;
        }
        let bytes = buffers.iter_mut().flat_map(|buffer| buffer.iter_mut());
        for (byte, at) in bytes.zip(offset..INCOMPATIBLE_AT + 8) {
            let mask = at.checked_sub(INCOMPATIBLE_AT).and_then(|index| hidden.get(usize::try_from(index).ok()?));
            *byte &= !mask.copied().unwrap_or(0);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("medium", &self.medium).finish_non_exhaustive()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the image")
    }
}

impl Storage for Store {
    fn size(&self) -> io::Result<u64> {
        self.medium.size()
    }

    fn get_filename(&self) -> Option<PathBuf> {
        None
    }

    unsafe fn pure_readv(&self, vector: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut buffers = vector.into_inner();
        let slices: Vec<_> = buffers.iter_mut().map(|buffer| VolatileSlice::from(&mut **buffer)).collect();
        self.read(offset, &slices)?;
        drop(slices);
        self.hide(offset, &mut buffers);
        Ok(())
    }

    unsafe fn pure_writev(&self, vector: IoVector<'_>, offset: u64) -> io::Result<()> {
        let buffers: Vec<IoSlice<'_>> = vector.into_inner();
        let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        self.deferred.write(self.medium.as_ref(), offset, &bytes)
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.deferred.forget(offset, length);
        self.medium.write_zeroes(offset, length, true)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.deferred.forget(offset, length);
        self.medium.write_zeroes(offset, length, false)
    }

    /// There is nothing between us and the host.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.medium.sync()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, size: u64, _preallocate: PreallocateMode) -> io::Result<()> {
        self.medium.set_size(size)
    }
}
