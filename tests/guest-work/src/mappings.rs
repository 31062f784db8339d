//! Mappings that change all the time. A CPU or an engine that remembers too much of what was shows here: pages that can still be
//! read, written or executed though they must not, and pages that have another's content.

use std::ptr;

use crate::attempt;
use crate::error::Failure;
use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::mmap::PAGE;
use crate::random::Random;

/// Pages of the range that all of it happens in.
const PAGES: usize = 96;
/// Where it is: across a border between two page tables of level 2.
const START: usize = 0x20_0000_0000 - PAGES / 2 * PAGE;
/// Most pages that an operation is about.
const MOST: usize = 8;
/// Pages that are looked at after each operation.
const LOOKS: usize = 6;
/// Bytes of [`attempt::CODE`]: it is in the first word of pages that were written to.
const CODE: u64 = attempt::CODE;

/// What a page should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    mapped: bool,
    protection: i32,
    /// Its first word: 0 or [`CODE`].
    first: u64,
    /// Its last word.
    last: u64,
}

const UNMAPPED: Page = Page { mapped: false, protection: libc::PROT_NONE, first: 0, last: 0 };

/// All pages, as they should be.
struct Model {
    pages: [Page; PAGES],
    random: Random,
}

/// Does so many operations.
pub(crate) fn work(operations: u32) -> Result<String> {
    attempt::prepare()?;
    let mut model = Model { pages: [UNMAPPED; PAGES], random: Random::new(0x00c0_ffee) };
    model.map(0, PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
    for operation in 0..operations {
        model.change()?;
        for _ in 0..LOOKS {
            let page = model.random.below(PAGES);
            model.look(page, operation)?;
        }
    }
    (0..PAGES).try_for_each(|page| model.look(page, operations))?;
    Ok(format!("mappings: {operations} operations"))
}

fn address(page: usize) -> usize {
    START + page * PAGE
}

fn pointer(page: usize) -> *mut libc::c_void {
    ptr::with_exposed_provenance_mut(address(page))
}

impl Model {
    /// One operation at random.
    fn change(&mut self) -> Result<()> {
        let count = 1 + self.random.below(MOST);
        let first = self.random.below(PAGES - count);
        match self.random.below(8) {
            0 => self.unmap(first, count),
            1 => {
                let protection = self.protection();
                self.map(first, count, protection)
            }
            2 | 3 => self.protect(first, count),
            4 => self.move_to(first, count),
            5 => self.forget(first, count),
            _ => self.write(first, count),
        }
    }

    fn protection(&mut self) -> i32 {
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        [libc::PROT_NONE, read, read | write, read | execute, read | write | execute][self.random.below(5)]
    }

    fn map(&mut self, first: usize, count: usize, protection: i32) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the range is this module's alone.
        let mapped = unsafe { libc::mmap(pointer(first), count * PAGE, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Failure::last("mmap"));
        }
        self.pages[first..first + count].fill(Page { mapped: true, protection, ..UNMAPPED });
        Ok(())
    }

    fn unmap(&mut self, first: usize, count: usize) -> Result<()> {
        // SAFETY: the range is this module's alone.
        done("munmap", unsafe { libc::munmap(pointer(first), count * PAGE) })?;
        self.pages[first..first + count].fill(UNMAPPED);
        Ok(())
    }

    fn protect(&mut self, first: usize, count: usize) -> Result<()> {
        let protection = self.protection();
        let all = self.pages[first..first + count].iter().take_while(|page| page.mapped).count();
        if all == 0 {
            return Ok(());
        }
        // SAFETY: the range is this module's alone, and all of it is mapped.
        done("mprotect", unsafe { libc::mprotect(pointer(first), all * PAGE, protection) })?;
        self.pages[first..first + all].iter_mut().for_each(|page| page.protection = protection);
        Ok(())
    }

    /// Moves pages that are alike to another place, where there may be others.
    fn move_to(&mut self, first: usize, count: usize) -> Result<()> {
        let like = self.pages[first];
        let is_like = |page: &&Page| page.mapped && page.protection == like.protection;
        let count = self.pages[first..first + count].iter().take_while(is_like).count();
        let target = self.random.below(PAGES - MOST);
        if count == 0 || target.abs_diff(first) < count {
            return Ok(());
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are this module's alone, and do not overlap.
        let moved = unsafe { libc::mremap(pointer(first), count * PAGE, count * PAGE, flags, pointer(target)) };
        // The kernel moves no range that consists of several mappings.
        if moved == libc::MAP_FAILED {
            // What was at the target is gone already, or not.
            self.unmap(target, count)?;
            return self.unmap(first, count);
        }
        self.pages.copy_within(first..first + count, target);
        self.pages[first..first + count].fill(UNMAPPED);
        Ok(())
    }

    /// Has the kernel forget what is in pages: they are zeros again.
    fn forget(&mut self, first: usize, count: usize) -> Result<()> {
        let count = self.pages[first..first + count].iter().take_while(|page| page.mapped).count();
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the range is this module's alone, and all of it is mapped.
        done("madvise", unsafe { libc::madvise(pointer(first), count * PAGE, libc::MADV_DONTNEED) })?;
        for page in &mut self.pages[first..first + count] {
            (page.first, page.last) = (0, 0);
        }
        Ok(())
    }

    fn write(&mut self, first: usize, count: usize) -> Result<()> {
        for page in first..first + count {
            let value = self.random.next();
            let is_allowed = self.pages[page].protection & libc::PROT_WRITE != 0;
            for (at, value) in [(address(page), CODE), (address(page) + PAGE - 8, value)] {
                // SAFETY: the page is this module's alone.
                let written = unsafe { attempt::store(at, value) };
                ensure!(
                    written == is_allowed,
                    "page {page}: a store is {}, but {:?}",
                    if written { "done" } else { "refused" },
                    self.pages[page]
                );
            }
            if is_allowed {
                (self.pages[page].first, self.pages[page].last) = (CODE, value);
            }
        }
        Ok(())
    }

    /// Checks a page: what it has, and what it can be used for.
    fn look(&self, page: usize, operation: u32) -> Result<()> {
        let expected = self.pages[page];
        let content = (attempt::load(address(page)), attempt::load(address(page) + PAGE - 8));
        let readable = expected.protection & libc::PROT_READ != 0;
        let right = if readable { (Some(expected.first), Some(expected.last)) } else { (None, None) };
        ensure!(content == right, "operation {operation}, page {page}: it has {content:x?}, but {expected:x?}");
        // Without code there, only whether it is refused can be tried.
        if expected.first == CODE || expected.protection & libc::PROT_EXEC == 0 {
            // SAFETY: if the page can be executed, this module has written the code there.
            let called = unsafe { attempt::call(address(page)) };
            let right = expected.protection & libc::PROT_EXEC != 0;
            ensure!(called == right, "operation {operation}, page {page}: a call gives {called}, but {expected:x?}");
        }
        Ok(())
    }
}
