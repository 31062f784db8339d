//! Blocks of memory.
//!
//! | pages | from |
//! |---|---|
//! | one | slabs: pages from anywhere, up to 512 of them by one call and in one mapping |
//! | 512, which are guest RAM | chunks: the same, but contiguous, where this NT can ask for that |
//! | others, which are the engines' | contiguous memory |
//!
//! Before Windows 7 slabs come from the nonpaged pool, as long as that has room. An NT of then can have few addresses for mappings:
//! ReactOS has 86 MiB of them, for threads' stacks and drivers too, and a machine without any does not go on for long. What is said of
//! transfers below does not hold for these: there the loader has to end its transfers before its VM, and where a loader is
//! killed the kernel cancels them before it closes handles.
//!
//! Guest RAM never comes from the allocator of contiguous memory. That one tears holes into what the host has of it, and its
//! pages are given to the next one at once when they are freed, even while a transfer of the loader's own (a disk read into
//! guest RAM) is still under way; pages of an MDL wait for that.

use alloc::alloc::alloc;
use alloc::alloc::dealloc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::NonNull;

use covisor_core::host::Block;
use covisor_core::host::ORDER_2M;

use crate::kapi::Kapi;
use crate::kapi::Mdl;

const PAGE: usize = 4096;
/// Bits of an address in a page.
const PAGE_SHIFT: u32 = 12;
/// Pages of a slab at most, and of a chunk.
const SLAB_PAGES: usize = 1 << ORDER_2M;
const SLAB_BYTES: usize = SLAB_PAGES * PAGE;

/// `MM_ALLOCATE_XXX`.
mod flags {
    /// Their contents are written here.
    pub(super) const DONT_ZERO: u32 = 1;
    /// All or nothing.
    pub(super) const FULLY_REQUIRED: u32 = 4;
    /// Contiguous chunks of the size of `SkipBytes`.
    pub(super) const CONTIGUOUS_CHUNKS: u32 = 0x20;
}

/// Since when an NT knows [`flags::CONTIGUOUS_CHUNKS`].
const WINDOWS_7: (u32, u32) = (6, 1);

/// A block of the nonpaged pool's, which is the driver's heap.
const POOL_BLOCK: Layout = match Layout::from_size_align(SLAB_BYTES, PAGE) {
    Ok(layout) => layout,
    Err(_) => panic!("the alignment is a power of two"),
};

/// Pages in a row in the kernel.
#[derive(Debug)]
struct Slab {
    base: NonNull<u8>,
    /// What has them; `None` is the nonpaged pool.
    mdl: Option<Mdl>,
    pages: usize,
    /// A bit for each page that is free.
    free: [u64; SLAB_PAGES / 64],
}

// SAFETY: it owns its pages; who has one of them is no matter of the slab's.
unsafe impl Send for Slab {}

/// Bits for that many pages.
fn all_free(pages: usize) -> [u64; SLAB_PAGES / 64] {
    core::array::from_fn(|word| match pages.saturating_sub(word * 64) {
        0 => 0,
        count @ 1..=63 => (1 << count) - 1,
        _ => u64::MAX,
    })
}

impl Slab {
    /// One for single pages.
    fn for_pages<K: Kapi>() -> Option<Self> {
        let pooled = if K::version() < WINDOWS_7 { Self::pooled() } else { None };
        pooled.or_else(|| Self::mapped::<K>(0, 0))
    }

    /// One of the nonpaged pool's.
    fn pooled() -> Option<Self> {
        // SAFETY: the layout has a size.
        let base = NonNull::new(unsafe { alloc(POOL_BLOCK) })?;
        Some(Self { base, mdl: None, pages: SLAB_PAGES, free: all_free(SLAB_PAGES) })
    }

    /// Allocates pages and maps them.
    fn mapped<K: Kapi>(skip: u64, flags: u32) -> Option<Self> {
        let mdl = K::allocate_pages(SLAB_BYTES, skip, flags::DONT_ZERO | flags)?;
        // SAFETY: just allocated, mapped nowhere yet.
        unsafe {
            let pages = K::mdl_frames(mdl).len();
            match K::map_to_kernel(mdl).filter(|_| (1..=SLAB_PAGES).contains(&pages)) {
                Some(base) => Some(Self { base, mdl: Some(mdl), pages, free: all_free(pages) }),
                None => {
                    K::free_pages(mdl);
                    None
                }
            }
        }
    }

    /// # Safety
    /// Nobody has a page of it.
    unsafe fn release<K: Kapi>(self) {
        // SAFETY: by the caller; mapped() mapped it there, or pooled() took it from the pool.
        unsafe {
            match self.mdl {
                Some(mdl) => {
                    K::unmap(self.base.as_ptr().addr(), mdl);
                    K::free_pages(mdl);
                }
                None => dealloc(self.base.as_ptr(), POOL_BLOCK),
            }
        }
    }

    fn frame<K: Kapi>(&self, page: usize) -> u64 {
        match self.mdl {
            // SAFETY: the MDL is alive, and nobody writes it.
            Some(mdl) => unsafe { K::mdl_frames(mdl).as_ref()[page] as u64 },
            // SAFETY: the block has so many pages.
            None => K::physical_address(unsafe { self.base.add(page * PAGE) }.as_ptr()) >> PAGE_SHIFT,
        }
    }

    /// Whether all its pages are in a row, from a multiple of a chunk's size.
    fn is_chunk<K: Kapi>(&self) -> bool {
        let first = self.frame::<K>(0);
        self.pages == SLAB_PAGES
            && first.is_multiple_of(SLAB_PAGES as u64)
            && (0..SLAB_PAGES).all(|page| self.frame::<K>(page) == first + page as u64)
    }

    fn take(&mut self) -> Option<usize> {
        let word = self.free.iter().position(|word| *word != 0)?;
        let bit = self.free[word].trailing_zeros() as usize;
        self.free[word] &= self.free[word] - 1;
        Some(word * 64 + bit)
    }

    /// Puts a page back; true where nobody has any other.
    fn put(&mut self, page: usize) -> bool {
        self.free[page / 64] |= 1 << (page % 64);
        self.free == all_free(self.pages)
    }
}

/// The slabs and chunks.
#[derive(Debug)]
pub(crate) struct Pages<K: Kapi> {
    /// By address.
    slabs: Vec<Slab>,
    /// Where a page was last taken or put back.
    hint: usize,
    kapi: PhantomData<fn() -> K>,
}

impl<K: Kapi> Pages<K> {
    pub(crate) const fn new() -> Self {
        Self { slabs: Vec::new(), hint: 0, kapi: PhantomData }
    }

    /// One page, its contents undefined.
    pub(crate) fn take_page(&mut self) -> Option<Block> {
        let index = self.with_room()?;
        self.hint = index;
        let slab = &mut self.slabs[index];
        let page = slab.take()?;
        let phys = slab.frame::<K>(page) << PAGE_SHIFT;
        // SAFETY: the slab is mapped with all its pages.
        Some(Block { phys, virt: unsafe { slab.base.add(page * PAGE) }, order: 0 })
    }

    /// A slab with a free page.
    fn with_room(&mut self) -> Option<usize> {
        let has_room = |slab: &Slab| slab.free.iter().any(|word| *word != 0);
        if self.slabs.get(self.hint).is_some_and(has_room) {
            return Some(self.hint);
        }
        match self.slabs.iter().position(has_room) {
            Some(index) => Some(index),
            None => self.insert(Slab::for_pages::<K>),
        }
    }

    /// Adds what `make` makes; there is room for it before that.
    fn insert(&mut self, make: impl FnOnce() -> Option<Slab>) -> Option<usize> {
        self.slabs.try_reserve(1).ok()?;
        let slab = make()?;
        let index = self.slabs.partition_point(|other| other.base < slab.base);
        self.slabs.insert(index, slab);
        Some(index)
    }

    /// 2 MiB in a row, at a multiple of that, contents undefined.
    pub(crate) fn take_chunk(&mut self) -> Option<Block> {
        if K::version() < WINDOWS_7 {
            return None;
        }
        let index = self.insert(|| {
            let slab = Slab::mapped::<K>(SLAB_BYTES as u64, flags::FULLY_REQUIRED | flags::CONTIGUOUS_CHUNKS)?;
            if slab.is_chunk::<K>() {
                return Some(Slab { free: [0; SLAB_PAGES / 64], ..slab });
            }
            // SAFETY: just made.
            unsafe { slab.release::<K>() };
            None
        })?;
        let slab = &self.slabs[index];
        Some(Block { phys: slab.frame::<K>(0) << PAGE_SHIFT, virt: slab.base, order: ORDER_2M })
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// It came from here and was not given back before; nobody uses it any more.
    pub(crate) unsafe fn put(&mut self, block: Block) {
        let Some(index) = self.slabs.partition_point(|slab| slab.base <= block.virt).checked_sub(1) else { return };
        let slab = &mut self.slabs[index];
        let page = (block.virt.as_ptr().addr() - slab.base.as_ptr().addr()) / PAGE;
        if block.order == ORDER_2M || slab.put(page) {
            // SAFETY: all its pages are back, by the caller.
            unsafe { self.slabs.remove(index).release::<K>() };
        } else {
            self.hint = index;
        }
    }

    /// Slabs and chunks that there are.
    #[cfg(test)]
    pub(crate) fn slabs(&self) -> usize {
        self.slabs.len()
    }
}

/// 2^`order` pages in a row, at a multiple of their size, contents undefined: for engines.
pub(crate) fn take_contiguous<K: Kapi>(order: u32) -> Option<Block> {
    let bytes = PAGE.checked_shl(order)?;
    // A block that does not go over a multiple of its size begins at one.
    let virt = K::allocate_contiguous(bytes, bytes as u64)?;
    Some(Block { phys: K::physical_address(virt.as_ptr()), virt, order })
}

/// Gives it back.
///
/// # Safety
/// It came from [`take_contiguous`], and nobody uses it any more.
pub(crate) unsafe fn put_contiguous<K: Kapi>(block: Block) {
    // SAFETY: by the caller.
    unsafe { K::free_contiguous(block.virt, PAGE << block.order) };
}

/// Writes zeros.
///
/// # Safety
/// The block is the caller's alone.
pub(crate) unsafe fn clear(block: &Block) {
    // SAFETY: by the caller; a block has that many bytes.
    unsafe { block.virt.write_bytes(0, PAGE << block.order) };
}
