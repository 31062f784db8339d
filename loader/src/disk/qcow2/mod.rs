//! QEMU's format, qcow2: read and written, also over a backing file.
//!
//! The library `imago` maps and allocates. [`header`] has checked before that the image is one that it can take, and data does
//! not pass through it: it says where a piece lies, and the host moves it from or to guest memory.
//!
//! An image that is written is marked as dirty (version 3), and not any more when it is closed in good order. Who opens one that
//! is dirty counts the clusters anew ([`refcounts`]): what the host had not yet stored of the counts when it went down could
//! otherwise give a cluster away that has data, and who crashed has not given back what was not used yet.

mod deferred;
mod header;
mod refcounts;
mod storage;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use imago::DenyImplicitOpenGate;
use imago::FormatAccess;
use imago::FormatCreateBuilder;
use imago::FormatDriverBuilder;
use imago::Mapping;
use imago::qcow2::Qcow2 as Driver;
use imago::raw::Raw;
use vm_memory::VolatileSlice;

use self::deferred::Deferred;
use self::header::INCOMPATIBLE_AT;
use self::storage::Store;
use super::BlockBackend;
use super::Run;
use super::SECTOR;
use super::buffers::Pieces;
use super::buffers::copy_in;
use super::buffers::fill_with_zeroes;
use super::buffers::total;
use super::buffers::write_zero_bytes;
use super::medium::Medium;
use super::medium::is_unsupported;

pub use header::Backing;
pub use header::Header;
pub use header::Incompatible;
pub use header::Qcow2Error;
pub use refcounts::Findings;
pub use refcounts::check;
pub use refcounts::repair;

/// Most bytes that are unpacked at once: a cluster has no more.
const MOST_UNPACKED: u64 = 2 << 20;
/// Bytes of a cluster of a new image.
pub const CLUSTER: u64 = 64 << 10;

/// What the library makes of an image, and of what that is based on.
pub struct Base(FormatAccess<Store>);

impl Base {
    /// A raw image that others can be based on.
    ///
    /// # Errors
    /// The host's.
    pub fn raw(medium: Arc<dyn Medium>) -> io::Result<Self> {
        Ok(Self(FormatAccess::new(Raw::open_image(Store::new(medium, 1, Incompatible::empty()), false)?)))
    }

    /// A qcow2 image that others can be based on, over `backing`.
    ///
    /// # Errors
    /// It is damaged, or the host's.
    pub fn qcow2(medium: Arc<dyn Medium>, header: &Header, backing: Option<Self>) -> io::Result<Self> {
        access(Store::new(medium, header.cluster(), header.incompatible), backing, false).map(Self)
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Base").field(&self.0.size()).finish()
    }
}

fn access(store: Store, backing: Option<Base>, write: bool) -> io::Result<FormatAccess<Store>> {
    let builder = Driver::<Store>::builder(store);
    let builder = builder.write(write).backing(backing.map(|Base(access)| access)).data_file(None);
    Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default())?))
}

/// An image.
pub struct Qcow2 {
    access: FormatAccess<Store>,
    medium: Arc<dyn Medium>,
    deferred: Arc<Deferred>,
    sectors: u64,
    cluster: u64,
    read_only: bool,
    /// It can be marked as dirty, and is.
    marked: bool,
    /// Something has failed on the host since it was opened.
    failed: bool,
    /// Clusters were given back by this table (its number), and the tables are not stored yet.
    freed_by: Option<u64>,
}

impl Qcow2 {
    /// The image in `medium`, whose header is `header`, over `backing` if it has one.
    ///
    /// # Errors
    /// It is damaged, or the host's.
    pub fn new(
        medium: Arc<dyn Medium>,
        header: &Header,
        backing: Option<Base>,
        read_only: bool,
    ) -> Result<Self, Qcow2Error> {
        if !read_only {
            if header.incompatible.contains(Incompatible::CORRUPT) {
                return Err(Qcow2Error::Corrupt);
            }
            // Where the first block of refcounts is missing, the library would look for room for it in that block for ever.
            if header.incompatible.contains(Incompatible::DIRTY)
                || !refcounts::has_first_block(medium.as_ref(), header)?
            {
                refcounts::repair(medium.as_ref(), header)?;
            }
        }
        let hidden = if read_only { header.incompatible } else { Incompatible::empty() };
        let store = Store::new(Arc::clone(&medium), header.cluster(), hidden);
        let deferred = store.deferred();
        let access = access(store, backing, !read_only)?;
        let marked = !read_only && header.version >= 3;
        if marked {
            mark(medium.as_ref(), Incompatible::DIRTY)?;
        }
        let (sectors, cluster) = (header.size / SECTOR, header.cluster());
        Ok(Self { access, medium, deferred, sectors, cluster, read_only, marked, failed: false, freed_by: None })
    }

    /// Makes an image of a disk of `size` bytes, all zero, or what `backing` has: a name and a format.
    ///
    /// # Errors
    /// The host's.
    pub fn create(
        medium: Arc<dyn Medium>,
        size: u64,
        cluster: u64,
        backing: Option<(String, String)>,
    ) -> io::Result<()> {
        let store = Store::new(Arc::clone(&medium), cluster, Incompatible::empty());
        let cluster = usize::try_from(cluster).map_err(|_| io::ErrorKind::InvalidInput)?;
        let builder = Driver::<Store>::create_builder(store).size(size).cluster_size(cluster);
        let builder = match backing {
            Some((name, format)) => builder.backing(name, format),
            None => builder,
        };
        builder.create()?;
        medium.sync()
    }

    fn write_pieces(&mut self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut pieces = Pieces::new(buffers);
        while pieces.left() > 0 {
            let (mapping, length) = self.access.get_mapping(offset, pieces.left())?;
            let mut is_packed = false;
            let mut length = length.clamp(1, pieces.left());
            match mapping {
                Mapping::Raw { storage, offset: at, writable: true, .. } => {
                    let part = pieces.take(length);
                    storage.write(at, &part)?;
                    offset += total(&part);
                    continue;
                }
                Mapping::Special { .. } => is_packed = true,
                // Clusters that read zero may have kept their places. The library would free those that are not behind one another to
                // have all of them in one piece.
                Mapping::Zero { explicit: true, .. } => length = length.min(self.cluster - offset % self.cluster),
                _ => {}
            }
            self.store_before_reuse(None)?;
            let mapping = self.access.prepare_data_mapping(offset, length, true)?;
            let part = pieces.take(mapping.length());
            mapping.storage().write(mapping.offset(), &part)?;
            self.access.commit_data_mapping(mapping)?;
            if is_packed {
                // What was packed is elsewhere now, and its place is free.
                self.freed_by = Some(self.table_of(offset));
            }
            offset += total(&part);
        }
        Ok(())
    }

    /// The number of the table that says where the cluster at `offset` is.
    fn table_of(&self, offset: u64) -> u64 {
        offset / self.table_reach()
    }

    /// Bytes of the disk that one table is about: an entry has eight bytes, a table is a cluster.
    fn table_reach(&self) -> u64 {
        self.cluster / 8 * self.cluster
    }

    /// Before a cluster is taken, the tables must be stored that do not have it any more: else a crash leaves it to two. No cluster
    /// is taken for what concerns the table `next` alone.
    fn store_before_reuse(&mut self, next: Option<u64>) -> io::Result<()> {
        if self.freed_by.is_none() || self.freed_by == next {
            return Ok(());
        }
        self.flush()
    }

    /// Has the library do something to these whole clusters that may free them, table by table: for a table that is not there yet it
    /// takes a cluster. `gives_back` is whether the host is to have their storage.
    fn release(
        &mut self,
        Range { mut start, end }: Range<u64>,
        gives_back: bool,
        release: impl Fn(&mut FormatAccess<Store>, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        while start < end {
            let table = self.table_of(start);
            let part = end.min((table + 1) * self.table_reach()) - start;
            self.store_before_reuse(Some(table))?;
            let own = if gives_back { self.own_clusters(start, part)? } else { Vec::new() };
            self.freed_by = Some(table);
            let result = release(&mut self.access, start, part);
            self.failed |= result.is_err() && !is_unsupported(&result);
            result?;
            self.give_back(&own);
            start += part;
        }
        Ok(())
    }

    /// The whole clusters among these bytes; empty where there are none.
    fn whole_clusters(&self, offset: u64, length: u64) -> Range<u64> {
        let end = offset + length;
        let first = offset.next_multiple_of(self.cluster);
        // The disk's last cluster may be cut off, and is whole then as well.
        let last = if end == self.sectors * SECTOR { end } else { end - end % self.cluster };
        first..last.max(first)
    }

    /// Where these clusters are in the medium, as far as no snapshot has them, too.
    fn own_clusters(&self, mut at: u64, length: u64) -> io::Result<Vec<Range<u64>>> {
        let last = at + length;
        let mut own: Vec<Range<u64>> = Vec::new();
        while at < last {
            let (mapping, length) = self.access.get_mapping(at, last - at)?;
            if let Mapping::Raw { offset: place, writable: true, .. } = mapping {
                match own.last_mut() {
                    Some(before) if before.end == place => before.end += length,
                    _ => own.push(place..place + length),
                }
            }
            at += length.max(1);
        }
        Ok(own)
    }

    /// Gives the host the storage of clusters that hold nothing any more. It is only a saving, so that it does not matter if the host
    /// cannot. If the machine ends before the tables are stored, the clusters are still the disk's and read zero, which is what was asked
    /// for, or as good as anything.
    fn give_back(&self, clusters: &[Range<u64>]) {
        for clusters in clusters {
            let result = self.medium.punch_hole(clusters.start, clusters.end - clusters.start);
            if result.is_err() {
                return;
            }
        }
    }

    /// Writes zeroes where the format has no better way.
    fn write_zero_bytes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        write_zero_bytes(offset, length, |offset, zeroes| self.write_at(offset, zeroes))
    }
}

/// Sets the features that an image cannot be used without; it lasts when this returns.
fn mark(medium: &dyn Medium, features: Incompatible) -> io::Result<()> {
    medium.write(INCOMPATIBLE_AT, &features.bits().to_be_bytes())?;
    medium.sync()
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Qcow2").field("sectors", &self.sectors).finish_non_exhaustive()
    }
}

impl BlockBackend for Qcow2 {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut pieces = Pieces::new(buffers);
        while pieces.left() > 0 {
            let (mapping, length) = self.access.get_mapping(offset, pieces.left())?;
            let part = match mapping {
                Mapping::Raw { storage, offset: at, .. } => {
                    let part = pieces.take(length);
                    storage.read(at, &part)?;
                    part
                }
                Mapping::Special { layer, offset: at, .. } => {
                    let count = length.min(MOST_UNPACKED);
                    let part = pieces.take(count);
                    let mut bytes = vec![0; usize::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?];
                    layer.read(bytes.as_mut_slice(), at)?;
                    copy_in(&part, &bytes);
                    part
                }
                // The end is that of the disk, of which nobody asks for more.
                Mapping::Zero { .. } | Mapping::Eof { .. } => {
                    let part = pieces.take(if length == 0 { u64::MAX } else { length });
                    fill_with_zeroes(&part);
                    part
                }
                _ => return Err(io::ErrorKind::Unsupported.into()),
            };
            offset += total(&part);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let result = self.write_pieces(offset, buffers);
        self.failed |= result.is_err();
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let medium = self.medium.as_ref();
        let result = self.access.flush().and_then(|()| self.deferred.settle(medium)).and_then(|()| medium.sync());
        self.failed |= result.is_err() || self.deferred.has_failed();
        if result.is_ok() {
            self.freed_by = None;
        }
        result
    }

    /// A hint: what the format cannot give back stays.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let whole = self.whole_clusters(offset, length);
        let result = self.release(whole, true, |access, offset, length| access.discard_to_any(offset, length));
        if is_unsupported(&result) { Ok(()) } else { result }
    }

    /// The library has a way for whole clusters; what it does with parts of them can go wrong (version 0.2.6), so they are written.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let whole = self.whole_clusters(offset, length);
        if whole.is_empty() {
            return self.write_zero_bytes(offset, length);
        }
        self.write_zero_bytes(offset, whole.start - offset)?;
        let result = if unmap {
            self.release(whole.clone(), true, |access, offset, length| access.discard_to_zero(offset, length))
        } else {
            self.release(whole.clone(), false, |access, offset, length| access.write_zeroes(offset, length))
        };
        if is_unsupported(&result) { self.write_zero_bytes(whole.start, whole.end - whole.start) } else { result }?;
        self.write_zero_bytes(whole.end, offset + length - whole.end)
    }

    fn discard_alignment(&self) -> u32 {
        u32::try_from(self.cluster / SECTOR).unwrap_or(1)
    }

    fn run(&mut self, offset: u64, length: u64) -> io::Result<Run> {
        let (mapping, length) = self.access.get_mapping(offset, length)?;
        Ok(Run { length, zeroes: matches!(mapping, Mapping::Zero { .. }) })
    }
}

impl Drop for Qcow2 {
    /// What was not flushed is, and then the image is not dirty any more. What failed on the way may have left clusters that nobody
    /// has: then they are counted.
    fn drop(&mut self) {
        if self.read_only {
            return;
        }
        let flushed = self.flush();
        if let Err(error) = &flushed {
            log::warn!(
                "the last writes to a qcow2 image failed: {error}; its counts are looked after when it is opened next"
            );
            return;
        }
        let medium = self.medium.as_ref();
        let closed = if self.failed {
            // It says that the image is not dirty, too.
            Header::read(medium).and_then(|header| repair(medium, &header))
        } else if self.marked {
            mark(medium, Incompatible::empty()).map_err(Qcow2Error::from)
        } else {
            Ok(())
        };
        if let Err(error) = closed {
            log::warn!("a qcow2 image could not be marked as closed: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
