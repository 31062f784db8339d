//! Who uses which cluster, and whether the refcounts say the same.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;
use std::io;

use vm_memory::VolatileSlice;

use super::header::Header;
use super::header::Incompatible;
use super::header::MOST_REFCOUNT_TABLE;
use super::header::Qcow2Error;
use super::header::REFCOUNT_TABLE_AT;
use super::mark;
use crate::disk::medium::Medium;

/// The bits of an L1 or L2 entry with an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The bit of an entry whose cluster nobody else uses.
const COPIED: u64 = 1 << 63;
/// The bit of an L2 entry whose cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The bit of an L2 entry whose cluster reads zero (version 3).
const ZERO: u64 = 1;
/// The bits of a refcount table's entry with an offset.
const BLOCK_OFFSET: u64 = !0x1ff;
/// Bytes of what a snapshot begins with.
const SNAPSHOT_HEADER: usize = 40;
/// Longest id, name and extra data of a snapshot, as with QEMU.
const LONGEST_SNAPSHOT: usize = 1 << 17;
/// How far a file can have ended before what it was to have when the host went down: much more than is written in a moment.
const MOST_UNSTORED: u64 = 1 << 30;
/// Problems that are told one by one.
const MOST_TOLD: usize = 20;
/// Clusters whose uses are counted in one piece of memory.
const PAGE: u64 = 4096;

/// What a check has found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What makes the image unsafe to use.
    pub errors: u64,
    /// Clusters that nobody uses and that are not free.
    pub leaks: u64,
    /// The first problems in words.
    pub told: Vec<String>,
    /// Clusters of the disk that have data here.
    pub data: u64,
    /// Those of them that are compressed.
    pub compressed: u64,
    /// It has bitmaps, whose clusters are not counted, so that leaks are not either.
    pub has_bitmaps: bool,
}

impl Findings {
    /// Notes what makes it unsafe to use.
    pub(in crate::disk) fn error(&mut self, text: String) {
        self.errors += 1;
        self.tell(text);
    }

    fn tell(&mut self, text: String) {
        if self.told.len() < MOST_TOLD {
            self.told.push(text);
        }
    }
}

/// How often each cluster of the file is used.
#[derive(Debug, Default)]
struct Uses(BTreeMap<u64, Box<[u32]>>);

impl Uses {
    fn add(&mut self, cluster: u64) {
        let page = self.0.entry(cluster / PAGE).or_insert_with(|| vec![0; 4096].into_boxed_slice());
        if let Some(count) = usize::try_from(cluster % PAGE).ok().and_then(|index| page.get_mut(index)) {
            *count = count.saturating_add(1);
        }
    }

    fn of(&self, cluster: u64) -> u32 {
        let index = usize::try_from(cluster % PAGE).unwrap_or(0);
        self.0.get(&(cluster / PAGE)).and_then(|page| page.get(index)).copied().unwrap_or(0)
    }

    /// The used clusters and their counts, in order.
    fn used(&self) -> impl Iterator<Item = (u64, u32)> {
        self.0.iter().flat_map(|(page, counts)| {
            let numbered = (page * PAGE..).zip(counts.iter().copied());
            numbered.filter(|(_, count)| *count > 0)
        })
    }
}

/// A walk over all tables.
struct Walk<'a> {
    medium: &'a dyn Medium,
    header: &'a Header,
    /// The file's bytes, to the end of its last cluster.
    end: u64,
    /// Where clusters with data may end that the host had not yet stored.
    data_end: u64,
    uses: Uses,
    findings: Findings,
}

fn read_table(medium: &dyn Medium, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    let mut table = vec![0; usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?];
    medium.read_padded(offset, &[VolatileSlice::from(table.as_mut_slice())])?;
    Ok(table.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default())).collect())
}

impl<'a> Walk<'a> {
    fn new(medium: &'a dyn Medium, header: &'a Header) -> io::Result<Self> {
        let end = medium.size()?.checked_next_multiple_of(header.cluster()).ok_or(io::ErrorKind::InvalidData)?;
        let findings = Findings { has_bitmaps: header.has_bitmaps, ..Findings::default() };
        Ok(Self { medium, header, end, data_end: end, uses: Uses::default(), findings })
    }

    /// Counts the clusters of a range, if it lies in the file; what it is, is for messages.
    fn count(&mut self, offset: u64, bytes: u64, what: &str) -> bool {
        let bits = self.header.cluster_bits;
        let Some(last) = offset.checked_add(bytes).filter(|end| *end <= self.end) else {
            self.findings.error(format!("{what} at {offset:#x} does not lie in the file"));
            return false;
        };
        for cluster in offset >> bits..last.div_ceil(self.header.cluster()) {
            self.uses.add(cluster);
        }
        true
    }

    /// Counts one cluster of its own.
    fn count_cluster(&mut self, offset: u64, what: &str) -> bool {
        if !offset.is_multiple_of(self.header.cluster()) {
            self.findings.error(format!("{what} at {offset:#x} does not begin with a cluster"));
            return false;
        }
        self.count(offset, self.header.cluster(), what)
    }

    /// All that is used, but for refcounts.
    fn tables(&mut self) -> io::Result<()> {
        let header = self.header;
        self.count(0, header.cluster(), "the header");
        self.level_1(header.l1_offset, header.l1_entries, true)?;
        if header.snapshots > 0 {
            self.snapshots()?;
        }
        Ok(())
    }

    /// An L1 table and what it leads to. Only in the `active` one are its entries' copied bits to be true.
    fn level_1(&mut self, offset: u64, entries: u64, active: bool) -> io::Result<()> {
        if !self.count(offset, entries * 8, "an L1 table") {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for entry in read_table(self.medium, offset, entries * 8)? {
            let table = entry & OFFSET;
            if table == 0 || !self.count_cluster(table, "an L2 table") {
                continue;
            }
            // Each is used once at most, or a small file would have tables without end.
            if !seen.insert(table) {
                self.findings.error(format!("the L2 table at {table:#x} is used for several parts of the disk"));
                continue;
            }
            for entry in read_table(self.medium, table, self.header.cluster())? {
                self.level_2(entry, active);
            }
        }
        Ok(())
    }

    fn level_2(&mut self, entry: u64, active: bool) {
        if entry & COMPRESSED != 0 {
            // Bits of the offset, then of the number of further sectors: 62 together.
            let offset_bits = 62 - (self.header.cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
            if entry & COPIED != 0 {
                self.findings
                    .error(format!("the compressed cluster at {offset:#x} is marked as one that can be written"));
            }
            let start = offset & !511;
            if self.count(start, sectors * 512, "a compressed cluster") && active {
                self.findings.data += 1;
                self.findings.compressed += 1;
            }
            return;
        }
        let offset = entry & OFFSET;
        if entry & ZERO != 0 && self.header.version == 2 {
            self.findings.error(format!("the entry {entry:#x} in an L2 table has bits that it must not have"));
        }
        if offset.saturating_add(self.header.cluster()) <= self.data_end {
            self.end = self.end.max(offset + self.header.cluster());
        }
        if offset != 0 && self.count_cluster(offset, "a cluster with data") && active && entry & ZERO == 0 {
            self.findings.data += 1;
        }
    }

    /// The table of snapshots, and what they use.
    fn snapshots(&mut self) -> io::Result<()> {
        let mut at = self.header.snapshots_offset;
        for _ in 0..self.header.snapshots {
            let mut head = [0; SNAPSHOT_HEADER];
            self.medium.read_padded(at, &[VolatileSlice::from(&mut head[..])])?;
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap_or_default());
            let offset = u64::from(word(0)) << 32 | u64::from(word(4));
            let names = (word(12) >> 16) as usize + (word(12) & 0xffff) as usize;
            let more = names + usize::try_from(word(36)).unwrap_or(usize::MAX).min(LONGEST_SNAPSHOT + 1);
            if more > LONGEST_SNAPSHOT || at >= self.end {
                self.findings.error(format!("the table of snapshots is damaged at {at:#x}"));
                return Ok(());
            }
            self.level_1(offset, word(8).into(), false)?;
            at += ((SNAPSHOT_HEADER + more) as u64).next_multiple_of(8);
        }
        let start = self.header.snapshots_offset;
        self.count(start, at - start, "the table of snapshots");
        Ok(())
    }

    /// The blocks of refcounts, by the order of the clusters that they are for; also those that are not there.
    fn blocks(&mut self) -> io::Result<Vec<u64>> {
        let bytes = self.header.refcount_table_clusters * self.header.cluster();
        self.count(self.header.refcount_table, bytes, "the table of refcounts");
        let mut seen = HashSet::new();
        let mut blocks = read_table(self.medium, self.header.refcount_table, bytes)?;
        for block in &mut blocks {
            *block &= BLOCK_OFFSET;
            if *block != 0 && (!self.count_cluster(*block, "a block of refcounts") || !seen.insert(*block)) {
                self.findings.error(format!("the block of refcounts at {block:#x} cannot be one, or is used twice"));
                *block = 0;
            }
        }
        Ok(blocks)
    }

    /// Compares all counts.
    fn compare(&mut self, blocks: &[u64]) -> io::Result<()> {
        let per_block = self.header.refcounts_in_block();
        for (first, block) in (0..).step_by(usize::try_from(per_block).unwrap_or(usize::MAX)).zip(blocks) {
            if *block == 0 {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(self.header.cluster()).map_err(|_| io::ErrorKind::InvalidData)?];
            self.medium.read_padded(*block, &[VolatileSlice::from(bytes.as_mut_slice())])?;
            for index in 0..per_block {
                let cluster: u64 = first + index;
                self.compare_one(cluster, get_refcount(&bytes, index, self.header.refcount_order));
            }
        }
        let without: Vec<_> = self
            .uses
            .used()
            .filter(|(cluster, _)| {
                usize::try_from(cluster / per_block)
                    .ok()
                    .and_then(|index| blocks.get(index))
                    .is_none_or(|block| *block == 0)
            })
            .map(|(cluster, _)| cluster)
            .collect();
        for cluster in without {
            self.compare_one(cluster, 0);
        }
        Ok(())
    }

    fn compare_one(&mut self, cluster: u64, refcount: u64) {
        let uses = u64::from(self.uses.of(cluster));
        if refcount < uses {
            self.findings.error(format!("cluster {cluster} is used {uses} times and counted {refcount} times"));
        } else if refcount > uses && !self.header.has_bitmaps {
            self.findings.leaks += 1;
            self.findings
                .tell(format!("cluster {cluster} is used {uses} times and counted {refcount} times: space is lost"));
        }
    }

    /// Looks at the copied bits of the disk's own tables: a cluster that others use, too, must not be written.
    fn copied_bits(&mut self) -> io::Result<()> {
        let (offset, entries) = (self.header.l1_offset, self.header.l1_entries);
        let bits = self.header.cluster_bits;
        let mut seen = HashSet::new();
        for entry in read_table(self.medium, offset, entries * 8)? {
            let table = entry & OFFSET;
            if table == 0 || table >= self.end || !table.is_multiple_of(self.header.cluster()) || !seen.insert(table) {
                continue;
            }
            self.copied_bit(entry & COPIED, table >> bits);
            for entry in read_table(self.medium, table, self.header.cluster())? {
                if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                    self.copied_bit(entry & COPIED, (entry & OFFSET) >> bits);
                }
            }
        }
        Ok(())
    }

    fn copied_bit(&mut self, copied: u64, cluster: u64) {
        let uses = self.uses.of(cluster);
        if copied != 0 && uses > 1 {
            self.findings.error(format!("cluster {cluster} is marked as used once, and is used {uses} times"));
        }
    }
}

/// Refcount `index` of a block.
fn get_refcount(block: &[u8], index: u64, order: u32) -> u64 {
    let bit = index << order;
    let at = usize::try_from(bit / 8).unwrap_or(usize::MAX);
    if order < 3 {
        let byte = block.get(at).copied().unwrap_or(0);
        return u64::from(byte >> (bit % 8)) & ((1 << (1 << order)) - 1);
    }
    let bytes = block.get(at..at + (1 << (order - 3))).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets refcount `index` of a block; what does not fit is said so.
fn set_refcount(block: &mut [u8], index: u64, order: u32, value: u32) -> Option<()> {
    let bits = 1_u32 << order;
    if bits < 32 && value >> bits != 0 {
        return None;
    }
    let bit = index << order;
    let at = usize::try_from(bit / 8).ok()?;
    if order < 3 {
        let mask = (1_u8 << bits) - 1;
        let byte = block.get_mut(at)?;
        *byte = *byte & !(mask << (bit % 8)) | u8::try_from(value).ok()? << (bit % 8);
        return Some(());
    }
    let size = 1 << (order - 3);
    let bytes = u64::from(value).to_be_bytes();
    block.get_mut(at..at + size)?.copy_from_slice(&bytes[8 - size..]);
    Some(())
}

/// Whether there is a block of refcounts for the header's cluster.
pub(super) fn has_first_block(medium: &dyn Medium, header: &Header) -> io::Result<bool> {
    Ok(read_table(medium, header.refcount_table, 8)?.first().is_some_and(|entry| entry & BLOCK_OFFSET != 0))
}

/// Checks an image.
///
/// # Errors
/// The host's.
pub fn check(medium: &dyn Medium, header: &Header) -> io::Result<Findings> {
    let mut walk = Walk::new(medium, header)?;
    walk.tables()?;
    let blocks = walk.blocks()?;
    walk.compare(&blocks)?;
    walk.copied_bits()?;
    Ok(walk.findings)
}

/// Counts the clusters of an image anew, writes new refcounts behind its end, and then says in its header where they are and
/// that it is not dirty: at each moment one or the other are whole. The old ones' clusters become free by it.
///
/// # Errors
/// More than the refcounts is wrong, or the host's.
pub fn repair(medium: &dyn Medium, header: &Header) -> Result<(), Qcow2Error> {
    if header.has_bitmaps {
        return Err(Qcow2Error::Feature("was not closed in good order and has bitmaps"));
    }
    let mut walk = Walk::new(medium, header)?;
    let stored = walk.end;
    walk.data_end = stored.saturating_add(MOST_UNSTORED);
    walk.tables()?;
    walk.copied_bits()?;
    if walk.findings.errors > 0 {
        return Err(Qcow2Error::Damaged(walk.findings.told.swap_remove(0)));
    }
    let Walk { mut uses, end, .. } = walk;
    let (cluster, per_block) = (header.cluster(), header.refcounts_in_block());
    // The table comes first, then its blocks: only those with anything in them, which the new ones' own clusters are.
    if end > stored {
        medium.set_size(end)?;
    }
    let first_new = end / cluster;
    let mut wanted: BTreeSet<u64> = uses.used().map(|(used, _)| used / per_block).collect();
    let (mut blocks, mut table) = (0, 0);
    loop {
        let last_new = first_new + table + blocks;
        wanted.extend(first_new / per_block..last_new.div_ceil(per_block));
        let entries = wanted.last().map_or(0, |last| last + 1);
        let needed = (wanted.len() as u64, (entries * 8).div_ceil(cluster));
        if needed == (blocks, table) {
            break;
        }
        (blocks, table) = needed;
    }
    if table * cluster > MOST_REFCOUNT_TABLE.max(cluster) {
        return Err(Qcow2Error::Damaged("its file is too large".to_owned()));
    }
    for new in first_new..first_new + table + blocks {
        uses.add(new);
    }
    let bytes =
        |clusters: u64| usize::try_from(clusters * cluster).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    let mut entries = vec![0; bytes(table)?];
    let mut block = vec![0; bytes(1)?];
    for (index, new) in wanted.iter().zip(first_new + table..) {
        block.fill(0);
        for within in 0..per_block {
            let count = uses.of(index * per_block + within);
            if count > 0 && set_refcount(&mut block, within, header.refcount_order, count).is_none() {
                return Err(Qcow2Error::Damaged("a cluster is used more often than can be counted".to_owned()));
            }
        }
        let at = new * cluster;
        medium.write(at, &block)?;
        if let Some(entry) = usize::try_from(index * 8).ok().and_then(|start| entries.get_mut(start..start + 8)) {
            entry.copy_from_slice(&at.to_be_bytes());
        }
    }
    medium.write(first_new * cluster, &entries)?;
    medium.sync()?;
    let clusters = u32::try_from(table).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut pointer = (first_new * cluster).to_be_bytes().to_vec();
    pointer.extend(clusters.to_be_bytes());
    medium.write(REFCOUNT_TABLE_AT, &pointer)?;
    medium.sync()?;
    if header.version >= 3 {
        mark(medium, header.incompatible & !Incompatible::DIRTY)?;
    }
    Ok(())
}
