//! The guest's memory map: which guest-physical page is which host page.

use alloc::vec::Vec;
use core::ptr::NonNull;

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
    /// The blocks in their order; together they are `size` bytes.
    blocks: Vec<Block>,
    /// Where each block starts in the region.
    starts: Vec<u64>,
    /// Kernel address of each page: the way from an address to memory is one index.
    pages: Vec<NonNull<u8>>,
}

/// The guest's memory map. Regions are only ever added, so looking one up takes no lock.
#[derive(Default)]
pub struct Memory {
    regions: [spin::Once<Region>; MAX_REGIONS],
}

// SAFETY: the pointers are to pages that the map owns and that stay where they are until it is dropped; all accesses
// are volatile, since guest and loader write the same pages at any time.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.regions().map(|region| (region.gpa, region.size))).finish()
    }
}

impl Memory {
    /// Checks a region against the rules of [`covisor_abi::MemoryAdd`] and this map.
    fn check(&self, gpa: u64, size: u64) -> Result<usize, RegionError> {
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

    /// Allocates a region, in 2 MiB blocks where the host has them and the address allows. Returns its blocks. The caller
    /// sees to it that no two calls run at the same time.
    ///
    /// # Errors
    /// [`RegionError`]; nothing is kept then.
    pub fn add<H: Host>(&self, gpa: u64, size: u64) -> Result<&[Block], RegionError> {
        let index = self.check(gpa, size)?;
        let mut region = Region { gpa, size, blocks: Vec::new(), starts: Vec::new(), pages: Vec::new() };
        if let Err(error) = region.fill::<H>() {
            region.free::<H>();
            return Err(error.into());
        }
        Ok(&self.regions[index].call_once(|| region).blocks)
    }

    /// Frees everything. The owner calls it exactly once, when no vCPU can run any more.
    pub fn free<H: Host>(&mut self) {
        for region in &mut self.regions {
            if let Some(region) = region.get_mut() {
                region.free::<H>();
            }
        }
        *self = Self::default();
    }

    /// Host-physical address of the page at `gpa`.
    #[must_use]
    pub fn phys(&self, gpa: u64) -> Option<u64> {
        let region = self.regions().find(|region| gpa.wrapping_sub(region.gpa) < region.size)?;
        let offset = (gpa - region.gpa) & !(PAGE_SIZE - 1);
        let index = region.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        Some(region.blocks.get(index)?.phys + (offset - region.starts.get(index)?))
    }

    /// Kernel address of the page that `gpa` is in.
    #[inline]
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<NonNull<u8>> {
        for region in self.regions() {
            let offset = gpa.wrapping_sub(region.gpa);
            if offset < region.size {
                return region.pages.get((offset / PAGE_SIZE) as usize).copied();
            }
        }
        None
    }

    /// The region that `gpa` is in, for many look-ups in a row.
    #[inline]
    #[must_use]
    pub fn view(&self, gpa: u64) -> Option<View<'_>> {
        let region = self.regions().find(|region| gpa.wrapping_sub(region.gpa) < region.size)?;
        Some(View { gpa: region.gpa, pages: &region.pages })
    }

    /// Pointer to `size` bytes at `gpa` that do not cross a page.
    #[inline]
    fn pointer(&self, gpa: u64, size: usize) -> Option<NonNull<u8>> {
        let offset = (gpa % PAGE_SIZE) as usize;
        #[expect(clippy::cast_possible_truncation, reason = "the page size is 4096")]
        if offset + size > PAGE_SIZE as usize {
            return None;
        }
        // SAFETY: the page has PAGE_SIZE bytes and offset is below that.
        self.page(gpa).map(|page| unsafe { page.add(offset) })
    }

    /// The naturally aligned 8 bytes at `gpa`; `None` where there is no RAM. For page-table entries: one single load.
    #[inline]
    #[must_use]
    pub fn read_u64(&self, gpa: u64) -> Option<u64> {
        let pointer = self.pointer(gpa & !7, 8)?;
        // SAFETY: points to 8 bytes of a guest page, aligned; volatile, for the guest may write them at this moment.
        Some(unsafe { pointer.cast::<u64>().read_volatile() })
    }

    /// Atomically replaces `old` by `new` in the aligned 8 bytes at `gpa`; false where they held something else.
    #[must_use]
    pub fn exchange_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        let Some(pointer) = self.pointer(gpa & !7, 8) else {
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
            let Some(pointer) = self.pointer(gpa, 1) else {
                return false;
            };
            // SAFETY: points to a byte of a guest page.
            *byte = unsafe { pointer.read_volatile() };
            gpa = gpa.wrapping_add(1);
        }
        true
    }

    /// Copies bytes into guest memory; false, with a part written, where part of them is not RAM.
    #[must_use]
    pub fn write(&self, gpa: u64, data: &[u8]) -> bool {
        let mut gpa = gpa;
        for byte in data {
            let Some(pointer) = self.pointer(gpa, 1) else {
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
    pages: &'a [NonNull<u8>],
}

impl View<'_> {
    /// Kernel address of the page that `gpa` is in, if this view has it.
    #[inline]
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<NonNull<u8>> {
        let number = gpa.wrapping_sub(self.gpa) / PAGE_SIZE;
        self.pages.get(number as usize).copied()
    }

    /// The 8 bytes with this number, modulo 512, in the page that `table` is in: an entry of a page table.
    #[inline]
    #[must_use]
    pub fn read_entry(&self, table: u64, number: u64) -> Option<u64> {
        let number = (number % (PAGE_SIZE / 8)) as usize;
        // SAFETY: a page has 512 times 8 bytes; volatile, for the guest may write them at this moment.
        self.page(table).map(|page| unsafe { page.cast::<u64>().add(number).read_volatile() })
    }
}

impl Region {
    fn fill<H: Host>(&mut self) -> Result<(), OutOfMemory> {
        self.pages.try_reserve_exact((self.size / PAGE_SIZE) as usize).map_err(|_| OutOfMemory)?;
        let large = PAGE_SIZE << ORDER_2M;
        let mut offset = 0;
        while offset < self.size {
            self.blocks.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.starts.try_reserve(1).map_err(|_| OutOfMemory)?;
            let fits = (self.gpa + offset).is_multiple_of(large) && self.size - offset >= large;
            let block = if fits { H::alloc_block(ORDER_2M) } else { None };
            let block = block.or_else(|| H::alloc_block(0)).ok_or(OutOfMemory)?;
            self.blocks.push(block);
            self.starts.push(offset);
            for page in 0..1_usize << block.order {
                // SAFETY: the block has 2^order pages.
                self.pages.push(unsafe { block.virt.add(page << 12) });
            }
            offset += PAGE_SIZE << block.order;
        }
        Ok(())
    }

    fn free<H: Host>(&mut self) {
        self.pages.clear();
        for block in self.blocks.drain(..) {
            // SAFETY: the block came from alloc_block in fill(), and drain() hands each out once.
            unsafe { H::free_block(block) };
        }
    }
}
