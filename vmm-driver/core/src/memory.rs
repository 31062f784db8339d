//! The guest's memory map: which guest-physical page is which host page.
//!
//! Host memory comes and goes by the [`CHUNK`]: all at once, or where the guest first needs it, and back when the guest has no
//! use for what is in it. Until then its pages are all zeros to who reads ([`Memory::page_to_read`]); who writes has to have
//! them allocated first ([`Memory::populate`]).

use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use covisor_abi::IO_APIC_BASE;
use covisor_abi::LOCAL_APIC_BASE;
use covisor_abi::MAX_REGIONS;
use covisor_abi::PAGE_SIZE;

use crate::host::Block;
use crate::host::Host;
use crate::host::ORDER_2M;
use crate::host::OutOfMemory;

/// Guest-physical addresses end here: 2^46, within what 4-level nested paging reaches.
pub const GUEST_PHYSICAL_LIMIT: u64 = 1 << 46;

/// The aligned 2 MiB that host memory is allocated and given back by; less at the ends of a region.
pub const CHUNK: u64 = PAGE_SIZE << ORDER_2M;

/// Why a region was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Address or size is not a multiple of the page size, or the size is 0, or the end lies too high.
    #[error("the region is not made of whole pages, is empty, or ends too high")]
    Malformed,
    /// Another region or an APIC is there.
    #[error("the region lies over another one or over an APIC")]
    Overlap,
    /// There are as many regions as can be.
    #[error("the VM has as many memory regions as it can have")]
    TooMany,
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// RAM at consecutive guest-physical addresses.
struct Region {
    gpa: u64,
    size: u64,
    /// Kernel address of each page, [`absent`] where it has none: the way from an address to memory is one index.
    pages: Vec<AtomicPtr<u8>>,
    /// What each chunk is made of: nothing, single pages in their order, or one block of 2 MiB. Nobody ever waits for the locks, for
    /// only one thread at a time changes the map.
    chunks: Vec<spin::Mutex<Vec<Block>>>,
}

/// The guest's memory map. Regions are only ever added, so looking one up takes no lock. Who adds regions, populates and discards
/// sees to it that no two of these calls run at the same time; looking up goes on beside all but [`Memory::discard`].
#[derive(Default)]
pub struct Memory {
    regions: [spin::Once<Region>; MAX_REGIONS],
    /// Bytes of host memory.
    allocated: AtomicU64,
}

/// What is read of a page that is absent. Nobody writes there.
static ZEROS: [AtomicU64; (PAGE_SIZE / 8) as usize] = [const { AtomicU64::new(0) }; (PAGE_SIZE / 8) as usize];

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.regions().map(|region| (region.gpa, region.size))).finish()
    }
}

impl Memory {
    /// Checks a region against the rules of [`covisor_abi::MemoryAdd`] and this map. Returns its number.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn check(&self, gpa: u64, size: u64) -> Result<usize, RegionError> {
        let whole = size != 0 && gpa.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE);
        let end =
            gpa.checked_add(size).filter(|end| whole && *end <= GUEST_PHYSICAL_LIMIT).ok_or(RegionError::Malformed)?;
        let over = |start: u64, length: u64| gpa < start + length && start < end;
        if over(LOCAL_APIC_BASE, PAGE_SIZE)
            || over(IO_APIC_BASE, PAGE_SIZE)
            || self.regions().any(|region| over(region.gpa, region.size))
        {
            return Err(RegionError::Overlap);
        }
        let index = self.regions().count();
        if index < MAX_REGIONS { Ok(index) } else { Err(RegionError::TooMany) }
    }

    #[inline]
    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map_while(spin::Once::get)
    }

    /// Adds a region, without host memory or `filled` with it.
    ///
    /// # Errors
    /// [`RegionError`]; nothing is kept then.
    pub fn add<H: Host>(&self, gpa: u64, size: u64, filled: bool) -> Result<(), RegionError> {
        let index = self.check(gpa, size)?;
        let mut region = Region { gpa, size, pages: Vec::new(), chunks: Vec::new() };
        let (pages, chunks) = ((size / PAGE_SIZE) as usize, region.chunk_of(size - 1) + 1);
        region.pages.try_reserve_exact(pages).map_err(|_| OutOfMemory)?;
        region.chunks.try_reserve_exact(chunks).map_err(|_| OutOfMemory)?;
        region.pages.resize_with(pages, || AtomicPtr::new(absent()));
        region.chunks.resize_with(chunks, || spin::Mutex::new(Vec::new()));
        if filled {
            for chunk in 0..chunks {
                if let Err(error) = region.allocate::<H>(chunk) {
                    region.free_all::<H>();
                    return Err(error.into());
                }
            }
            self.allocated.fetch_add(size, Ordering::Relaxed);
        }
        self.regions[index].call_once(|| region);
        Ok(())
    }

    /// Frees everything. The owner calls it exactly once, when no vCPU can run any more.
    pub fn free<H: Host>(&mut self) {
        self.regions().for_each(Region::free_all::<H>);
        *self = Self::default();
    }

    /// The region that `gpa` is in, and the offset there.
    #[inline]
    fn find(&self, gpa: u64) -> Option<(&Region, u64)> {
        self.regions()
            .map(|region| (region, gpa.wrapping_sub(region.gpa)))
            .find(|(region, offset)| *offset < region.size)
    }

    /// Whether there is RAM at `gpa`, be it absent.
    #[inline]
    #[must_use]
    pub fn is_ram(&self, gpa: u64) -> bool {
        self.find(gpa).is_some()
    }

    /// Bytes of host memory that the guest's RAM has now.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Bytes of RAM that the guest has been given.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.regions().map(|region| region.size).sum()
    }

    /// Gives the chunk that `gpa` is in its host memory, where it has none: of 2 MiB in a row if the host has that and the chunk
    /// is whole. In thread context. Nothing is done where `gpa` is no RAM.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn populate<H: Host>(&self, gpa: u64) -> Result<(), OutOfMemory> {
        let Some((region, offset)) = self.find(gpa) else { return Ok(()) };
        let chunk = region.chunk_of(offset);
        if region.is_absent(chunk) {
            region.allocate::<H>(chunk)?;
            let range = region.range(chunk);
            self.allocated.fetch_add(range.end - range.start, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Calls `each` with the address and the host memory of what a chunk is made of, from the chunk that `gpa` is in on, for so
    /// many bytes. What is absent is left out.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn for_blocks(
        &self,
        gpa: u64,
        size: u64,
        mut each: impl FnMut(u64, Block) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let Some((region, first)) = self.find(gpa) else { return Ok(()) };
        let last = first.saturating_add(size.saturating_sub(1)).min(region.size - 1);
        for chunk in region.chunk_of(first)..=region.chunk_of(last) {
            region.for_blocks(chunk, &mut each)?;
        }
        Ok(())
    }

    /// Gives the host memory back of the chunks that lie wholly in a range; what is no RAM there is left out. `unmap` is called with
    /// the address of each before that, and keeps CPUs from using it. No vCPU of the VM runs, and nobody holds a page that was
    /// looked up. Returns how many bytes went.
    pub fn discard<H: Host>(&self, gpa: u64, size: u64, mut unmap: impl FnMut(u64)) -> u64 {
        let end = gpa.saturating_add(size);
        let mut freed = 0;
        for region in self.regions() {
            let first = gpa.saturating_sub(region.gpa);
            let last = end.saturating_sub(region.gpa).min(region.size);
            if first >= last {
                continue;
            }
            for chunk in region.chunk_of(first)..=region.chunk_of(last - 1) {
                let range = region.range(chunk);
                if range.start >= first && range.end <= last && !region.is_absent(chunk) {
                    unmap(region.gpa + range.start);
                    region.free::<H>(chunk);
                    freed += range.end - range.start;
                }
            }
        }
        self.allocated.fetch_sub(freed, Ordering::Relaxed);
        freed
    }

    /// Host-physical address of the page that `gpa` is in; `None` where there is no RAM, or it is absent.
    #[must_use]
    pub fn phys(&self, gpa: u64) -> Option<u64> {
        let (region, offset) = self.find(gpa)?;
        let chunk = region.chunk_of(offset);
        let within = (offset - region.range(chunk).start) & !(PAGE_SIZE - 1);
        let blocks = region.chunks.get(chunk)?.lock();
        match blocks.first()? {
            Block { phys, order: ORDER_2M, .. } => Some(phys + within),
            _ => blocks.get((within / PAGE_SIZE) as usize).map(|block| block.phys),
        }
    }

    /// Kernel address of the page that `gpa` is in; `None` where there is no RAM, or it is absent.
    #[inline]
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<NonNull<u8>> {
        let (region, offset) = self.find(gpa)?;
        to_write(region.pages.get((offset / PAGE_SIZE) as usize)?)
    }

    /// The same for reading only: zeros where the page is absent.
    #[inline]
    #[must_use]
    pub fn page_to_read(&self, gpa: u64) -> Option<NonNull<u8>> {
        let (region, offset) = self.find(gpa)?;
        Some(to_read(region.pages.get((offset / PAGE_SIZE) as usize)?))
    }

    /// The region that `gpa` is in, for many look-ups in a row.
    #[inline]
    #[must_use]
    pub fn view(&self, gpa: u64) -> Option<View<'_>> {
        let (region, _) = self.find(gpa)?;
        Some(View { gpa: region.gpa, pages: &region.pages })
    }

    /// The byte at `gpa`, for reading only.
    #[inline]
    fn byte_to_read(&self, gpa: u64) -> Option<NonNull<u8>> {
        // SAFETY: the page has PAGE_SIZE bytes and the offset is below that.
        self.page_to_read(gpa).map(|page| unsafe { page.add((gpa % PAGE_SIZE) as usize) })
    }

    /// The byte at `gpa`, unless it is absent.
    #[inline]
    fn byte(&self, gpa: u64) -> Option<NonNull<u8>> {
        // SAFETY: the page has PAGE_SIZE bytes and the offset is below that.
        self.page(gpa).map(|page| unsafe { page.add((gpa % PAGE_SIZE) as usize) })
    }

    /// The naturally aligned 8 bytes at `gpa`; `None` where there is no RAM. For page-table entries: one single load.
    #[inline]
    #[must_use]
    pub fn read_u64(&self, gpa: u64) -> Option<u64> {
        let pointer = self.byte_to_read(gpa & !7)?;
        // SAFETY: points to 8 bytes of a guest page, aligned; volatile, for the guest may write them at this moment.
        Some(unsafe { pointer.cast::<u64>().read_volatile() })
    }

    /// Atomically replaces `old` by `new` in the aligned 8 bytes at `gpa`; false where they held something else, or are absent.
    #[must_use]
    pub fn exchange_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        let Some(pointer) = self.byte(gpa & !7) else {
            return false;
        };
        // SAFETY: points to 8 aligned bytes of a guest page, which all others access as machine words too.
        let word = unsafe { pointer.cast::<core::sync::atomic::AtomicU64>().as_ref() };
        word.compare_exchange(old, new, core::sync::atomic::Ordering::SeqCst, core::sync::atomic::Ordering::SeqCst)
            .is_ok()
    }

    /// Copies bytes out of guest memory; false, with `data` undefined, where part of them is not RAM.
    #[must_use]
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let mut gpa = gpa;
        for byte in data {
            let Some(pointer) = self.byte_to_read(gpa) else {
                return false;
            };
            // SAFETY: points to a byte of a guest page.
            *byte = unsafe { pointer.read_volatile() };
            gpa = gpa.wrapping_add(1);
        }
        true
    }

    /// Copies bytes into guest memory; false, with a part written, where part of them is not RAM, or absent.
    #[must_use]
    pub fn write(&self, gpa: u64, data: &[u8]) -> bool {
        let mut gpa = gpa;
        for byte in data {
            let Some(pointer) = self.byte(gpa) else {
                return false;
            };
            // SAFETY: points to a byte of a guest page.
            unsafe { pointer.write_volatile(*byte) };
            gpa = gpa.wrapping_add(1);
        }
        true
    }
}

/// RAM at consecutive guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    gpa: u64,
    pages: &'a [AtomicPtr<u8>],
}

/// A page's address for reading.
#[inline]
fn to_read(page: &AtomicPtr<u8>) -> NonNull<u8> {
    // SAFETY: regions hold addresses of pages, and absent() for those that have none; neither is null.
    unsafe { NonNull::new_unchecked(page.load(Ordering::Acquire)) }
}

/// The same, unless it is absent.
#[inline]
fn to_write(page: &AtomicPtr<u8>) -> Option<NonNull<u8>> {
    Some(to_read(page)).filter(|page| page.as_ptr() != absent())
}

/// What is in the place of an absent page's address, so that reading needs no look at whether there is one.
#[inline]
fn absent() -> *mut u8 {
    (&raw const ZEROS).cast_mut().cast()
}

impl View<'_> {
    /// [`Memory::page_to_read`], if this view has it.
    #[inline]
    #[must_use]
    pub fn page_to_read(&self, gpa: u64) -> Option<NonNull<u8>> {
        let number = gpa.wrapping_sub(self.gpa) / PAGE_SIZE;
        self.pages.get(number as usize).map(to_read)
    }

    /// The 8 bytes with this number, modulo 512, in the page that `table` is in: an entry of a page table.
    #[inline]
    #[must_use]
    pub fn read_entry(&self, table: u64, number: u64) -> Option<u64> {
        let number = (number % (PAGE_SIZE / 8)) as usize;
        // SAFETY: a page has 512 times 8 bytes; volatile, for the guest may write them at this moment.
        self.page_to_read(table).map(|page| unsafe { page.cast::<u64>().add(number).read_volatile() })
    }
}

impl Region {
    /// The chunk at an offset.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "there is a number for each in memory")]
    fn chunk_of(&self, offset: u64) -> usize {
        ((self.gpa + offset) / CHUNK - self.gpa / CHUNK) as usize
    }

    /// Where a chunk is in the region.
    fn range(&self, chunk: usize) -> Range<u64> {
        let start = (self.gpa / CHUNK + chunk as u64) * CHUNK;
        start.max(self.gpa) - self.gpa..(start + CHUNK).min(self.gpa + self.size) - self.gpa
    }

    /// The pages of a chunk.
    fn pages_of(&self, chunk: usize) -> &[AtomicPtr<u8>] {
        let Range { start, end } = self.range(chunk);
        self.pages.get((start / PAGE_SIZE) as usize..(end / PAGE_SIZE) as usize).unwrap_or_default()
    }

    fn is_absent(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_none_or(|blocks| blocks.lock().is_empty())
    }

    /// Allocates an absent chunk's memory.
    fn allocate<H: Host>(&self, chunk: usize) -> Result<(), OutOfMemory> {
        let (Some(place), pages) = (self.chunks.get(chunk), self.pages_of(chunk)) else { return Ok(()) };
        let mut blocks = Vec::new();
        let whole = pages.len() == 1 << ORDER_2M;
        let large = if whole { H::alloc_block(ORDER_2M) } else { None };
        let result = match large {
            Some(block) => push::<H>(&mut blocks, block),
            None => single_pages::<H>(&mut blocks, pages.len()),
        };
        if let Err(error) = result {
            // Nobody has seen them.
            free_blocks::<H>(blocks);
            return Err(error);
        }
        for (block, pages) in blocks.iter().zip(pages.chunks(if large.is_some() { pages.len() } else { 1 })) {
            for (number, page) in pages.iter().enumerate() {
                // SAFETY: the block has as many pages as there are here.
                page.store(unsafe { block.virt.add(number << 12) }.as_ptr(), Ordering::Release);
            }
        }
        *place.lock() = blocks;
        Ok(())
    }

    /// Calls `each` with what a chunk is made of.
    fn for_blocks(
        &self,
        chunk: usize,
        each: &mut impl FnMut(u64, Block) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let Some(blocks) = self.chunks.get(chunk) else { return Ok(()) };
        let start = self.gpa + self.range(chunk).start;
        (0..).zip(&*blocks.lock()).try_for_each(|(number, block)| each(start + number * PAGE_SIZE, *block))
    }

    /// Gives a chunk's memory back: by the caller nobody uses it.
    fn free<H: Host>(&self, chunk: usize) {
        for page in self.pages_of(chunk) {
            page.store(absent(), Ordering::Relaxed);
        }
        let Some(place) = self.chunks.get(chunk) else { return };
        let blocks = core::mem::take(&mut *place.lock());
        free_blocks::<H>(blocks);
    }

    fn free_all<H: Host>(&self) {
        (0..self.chunks.len()).for_each(|chunk| self.free::<H>(chunk));
    }
}

/// Gives blocks back that nobody uses.
fn free_blocks<H: Host>(blocks: Vec<Block>) {
    for block in blocks {
        // SAFETY: blocks in a list come from alloc_block in allocate(), each once, and by the caller nothing uses them.
        unsafe { H::free_block(block) };
    }
}

/// Keeps a block, or gives it back where there is no room to keep it.
fn push<H: Host>(blocks: &mut Vec<Block>, block: Block) -> Result<(), OutOfMemory> {
    if blocks.try_reserve(1).is_err() {
        // SAFETY: just allocated, and nothing names it.
        unsafe { H::free_block(block) };
        return Err(OutOfMemory);
    }
    blocks.push(block);
    Ok(())
}

/// So many pages; as many as there are, on an error.
fn single_pages<H: Host>(blocks: &mut Vec<Block>, count: usize) -> Result<(), OutOfMemory> {
    blocks.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    (0..count).try_for_each(|_| push::<H>(blocks, H::alloc_block(0).ok_or(OutOfMemory)?))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
