//! Nested page tables: which host page is behind a guest-physical address (APM vol. 2, 15.25; SDM vol. 3, 29.3). The
//! shape is the same everywhere, 512 entries of 64 bits a table; what an entry looks like is the engine's [`Format`].

use alloc::vec::Vec;

use crate::host::Block;
use crate::host::Host;
use crate::host::ORDER_2M;
use crate::host::OutOfMemory;

/// What entries look like.
pub trait Format {
    /// A directory entry that points to the table at `phys`.
    fn table(&self, phys: u64) -> u64;
    /// An entry that maps the page at `phys`; `large`: one of 2 MiB.
    fn leaf(&self, phys: u64, large: bool) -> u64;
    /// Physical address of the table that a directory entry points to; `None` where the entry is empty.
    fn next(&self, entry: u64) -> Option<u64>;
}

/// The most levels that any CPU has.
const MOST_LEVELS: usize = 5;

/// The tables of one VM.
#[derive(Debug)]
pub struct NestedTables<F: Format> {
    format: F,
    levels: u32,
    root: Block,
    /// All tables below the root.
    tables: Vec<Block>,
    /// Tables that nothing points to any more, and all of whose entries are empty.
    spare: Vec<Block>,
    /// The table that was used last on each level, from the lowest on: memory is mapped from one end to the other, so the
    /// next page is most often there.
    recent: [Option<Block>; MOST_LEVELS],
}

impl<F: Format> NestedTables<F> {
    /// Empty tables with so many levels, 4 or 5.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new<H: Host>(format: F, levels: u32) -> Result<Self, OutOfMemory> {
        let root = H::alloc_block(0).ok_or(OutOfMemory)?;
        Ok(Self { format, levels, root, tables: Vec::new(), spare: Vec::new(), recent: [None; MOST_LEVELS] })
    }

    /// Physical address of the root.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root.phys
    }

    /// What entries look like that are made from now on.
    pub fn set_format(&mut self, format: F) {
        self.format = format;
    }

    /// Maps a block of 2^`order` pages, order 0 or [`ORDER_2M`]. What is mapped already in part, after an error, may be
    /// mapped again to the same. CPUs may use the tables meanwhile: what was not there is there from some moment on.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn map<H: Host>(&mut self, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        if order == ORDER_2M {
            return self.map_leaf::<H>(gpa, phys, 2);
        }
        (0..1_u64 << order).try_for_each(|page| self.map_leaf::<H>(gpa + page * 4096, phys + page * 4096, 1))
    }

    /// Maps one page by an entry on level `leaf`, 1 or 2.
    fn map_leaf<H: Host>(&mut self, gpa: u64, phys: u64, leaf: u32) -> Result<(), OutOfMemory> {
        let entry = self.format.leaf(phys, leaf == 2);
        store(self.entry::<H>(gpa, leaf)?, entry);
        Ok(())
    }

    /// Unmaps what is mapped in the aligned 2 MiB that `gpa` is in. CPUs may know it still: their translations have to be forgotten
    /// before anything else comes there, or its memory is given away.
    pub fn unmap(&mut self, gpa: u64) {
        let mut table = self.root;
        for level in (3..=self.levels).rev() {
            let Some(next) = self.format.next(*entry(table, gpa, level)) else { return };
            let Ok(below) = self.find(next, level - 1) else { return };
            table = below;
        }
        let directory = entry(table, gpa, 2);
        let next = self.format.next(*directory);
        store(directory, 0);
        // A page of 2 MiB has no table. One of pages has a use again.
        if let Some(below) = next.and_then(|next| self.find(next, 1).ok()) {
            for address in (0..512).map(|page| page << 12) {
                store(entry(below, address, 1), 0);
            }
            self.spare.push(below);
            self.tables.retain(|table| *table != below);
            self.recent[0] = None;
        }
    }

    /// The entry for `gpa` in a table of `level`, 1 to the number of levels; the tables above are made where they are missing.
    ///
    /// # Errors
    /// [`OutOfMemory`], also where a large page is in the way, or a table that is not of these tables.
    pub fn entry<H: Host>(&mut self, gpa: u64, level: u32) -> Result<&mut u64, OutOfMemory> {
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            let entry = entry(table, gpa, above);
            table = match self.format.next(*entry) {
                Some(next) => self.find(next, above - 1)?,
                None => {
                    let below = self.allocate::<H>()?;
                    store(entry, self.format.table(below.phys));
                    below
                }
            };
        }
        Ok(entry(table, gpa, level))
    }

    fn allocate<H: Host>(&mut self) -> Result<Block, OutOfMemory> {
        self.tables.try_reserve(1).map_err(|_| OutOfMemory)?;
        // So that unmap() needs no memory.
        let tables = self.tables.len() + 1;
        self.spare.try_reserve(tables).map_err(|_| OutOfMemory)?;
        let block = self.spare.pop().or_else(|| H::alloc_block(0)).ok_or(OutOfMemory)?;
        self.tables.push(block);
        Ok(block)
    }

    /// The table of `level` that an entry points to.
    fn find(&mut self, next: u64, level: u32) -> Result<Block, OutOfMemory> {
        // Compared as entries have it: a bit that marks encrypted pages can be in the host's address, or the format's own.
        let is_it = |block: &&Block| self.format.next(self.format.table(block.phys)) == Some(next);
        let recent = self.recent[level as usize - 1].as_ref().filter(is_it);
        let table = *recent.or_else(|| self.tables.iter().rev().find(is_it)).ok_or(OutOfMemory)?;
        self.recent[level as usize - 1] = Some(table);
        Ok(table)
    }

    /// Frees the tables; no CPU uses them any more.
    pub fn free<H: Host>(self) {
        for block in self.tables.into_iter().chain(self.spare).chain([self.root]) {
            // SAFETY: allocated in new() and allocate(), and by the caller nothing names the tables any more.
            unsafe { H::free_block(block) };
        }
    }
}

/// Writes an entry, by one store: a CPU may read it at this moment.
fn store(entry: &mut u64, value: u64) {
    // SAFETY: the reference is the only one, but for CPUs that walk the tables, and they see no more than a store.
    unsafe { core::ptr::from_mut(entry).write_volatile(value) };
}

/// The entry for `gpa` in a table of `level` (1 is the lowest).
fn entry<'a>(table: Block, gpa: u64, level: u32) -> &'a mut u64 {
    let index = (gpa >> (12 + 9 * (level - 1)) & 0x1ff) as usize;
    // SAFETY: a table is a page of 512 entries, owned by the NestedTables whose &mut self the caller holds.
    unsafe { &mut *table.virt.cast::<u64>().as_ptr().add(index) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::MockHost;

    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// The least that a format needs; `mark` is set in all entries.
    struct Plain {
        mark: u64,
    }

    impl Format for Plain {
        fn table(&self, phys: u64) -> u64 {
            phys | self.mark | PRESENT
        }

        fn leaf(&self, phys: u64, large: bool) -> u64 {
            phys | self.mark | PRESENT | if large { LARGE } else { 0 }
        }

        fn next(&self, entry: u64) -> Option<u64> {
            (entry & PRESENT != 0).then_some(entry & ADDRESS)
        }
    }

    /// What a CPU would find for `gpa`: the leaf's entry.
    fn walk(tables: &NestedTables<Plain>, gpa: u64) -> Option<u64> {
        let mut table = tables.root();
        for level in (1..=tables.levels).rev() {
            let index = gpa >> (12 + 9 * (level - 1)) & 0x1ff;
            // SAFETY: the mock host's physical addresses are its own, and the tables are alive.
            let entry = unsafe { *((table + index * 8) as *const u64) };
            if level == 1 || entry & LARGE != 0 {
                return (entry & PRESENT != 0).then_some(entry);
            }
            table = tables.format.next(entry)? & !tables.format.mark;
        }
        None
    }

    fn tables(levels: u32, mark: u64) -> NestedTables<Plain> {
        NestedTables::new::<MockHost>(Plain { mark }, levels).unwrap()
    }

    #[test]
    fn test_pages_of_both_sizes_are_found_where_they_were_mapped() {
        for levels in [4, 5] {
            let mut tables = tables(levels, 0);
            tables.map::<MockHost>(0x20_0000, 0x4000_0000, ORDER_2M).unwrap();
            tables.map::<MockHost>(0x1000, 0x9000, 0).unwrap();
            tables.map::<MockHost>(0x7f_ffff_f000, 0xa000, 0).unwrap();
            tables.map::<MockHost>(0x2000, 0xb000, 1).unwrap();
            assert_eq!(walk(&tables, 0x20_0000), Some(0x4000_0000 | LARGE | PRESENT));
            assert_eq!(walk(&tables, 0x3f_f000), Some(0x4000_0000 | LARGE | PRESENT));
            assert_eq!(walk(&tables, 0x1000), Some(0x9000 | PRESENT));
            assert_eq!(walk(&tables, 0x7f_ffff_f000), Some(0xa000 | PRESENT));
            assert_eq!(
                (walk(&tables, 0x2000), walk(&tables, 0x3000)),
                (Some(0xb000 | PRESENT), Some(0xc000 | PRESENT))
            );
            for hole in [0, 0x4000, 0x40_0000, 0x1f_f000, 0x7f_ffff_e000, 1 << 45] {
                assert_eq!(walk(&tables, hole), None, "{hole:#x} with {levels} levels");
            }
            tables.free::<MockHost>();
        }
    }

    #[test]
    fn test_neighbours_share_their_tables_and_all_are_freed() {
        let before = MockHost::blocks();
        let mut tables = tables(4, 0);
        for page in 0..1024 {
            tables.map::<MockHost>(page * 4096, page * 4096, 0).unwrap();
        }
        assert_eq!(MockHost::blocks() - before, 5, "root, one of level 3, one of level 2, two of level 1");
        // The upper half of the address space and back: not what was used last.
        tables.map::<MockHost>(1 << 40, 0x1000, 0).unwrap();
        tables.map::<MockHost>(0x3000, 0x5000, 0).unwrap();
        assert_eq!(MockHost::blocks() - before, 8);
        assert_eq!(walk(&tables, 0x3000), Some(0x5000 | PRESENT));
        assert_eq!(walk(&tables, 1 << 40), Some(0x1000 | PRESENT));
        tables.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    #[test]
    fn test_an_entry_of_any_level_can_be_had_and_parts_can_be_shared() {
        let (mut whole, mut part) = (tables(4, 0), tables(5, 0));
        whole.map::<MockHost>(0x20_0000, 0x4000_0000, ORDER_2M).unwrap();
        *part.entry::<MockHost>(0, 4).unwrap() = *whole.entry::<MockHost>(0, 4).unwrap();
        assert_eq!(walk(&part, 0x20_1000), walk(&whole, 0x20_1000));
        assert!(part.map::<MockHost>(0x1000, 0x9000, 0).is_err(), "a table of another's is not to be changed");
        whole.free::<MockHost>();
        part.free::<MockHost>();
    }

    #[test]
    fn test_what_is_unmapped_is_gone_and_its_table_is_used_again() {
        let before = MockHost::blocks();
        let mut tables = tables(4, 0);
        tables.map::<MockHost>(0x20_0000, 0x4000_0000, ORDER_2M).unwrap();
        for page in 0..512 {
            tables.map::<MockHost>(0x40_0000 + page * 4096, 0x9000 + page * 4096, 0).unwrap();
        }
        let blocks = MockHost::blocks();
        for gpa in [0x20_0000, 0x5f_f000, 0x60_0000, 1 << 40] {
            tables.unmap(gpa);
        }
        for gpa in [0x20_0000, 0x3f_f000, 0x40_0000, 0x5f_f000] {
            assert_eq!(walk(&tables, gpa), None, "{gpa:#x}");
        }
        tables.map::<MockHost>(0x40_0000, 0x8000_0000, ORDER_2M).unwrap();
        tables.map::<MockHost>(0x20_1000, 0x7000, 0).unwrap();
        assert_eq!((walk(&tables, 0x20_1000), walk(&tables, 0x20_0000)), (Some(0x7000 | PRESENT), None));
        assert_eq!(walk(&tables, 0x40_5000), Some(0x8000_0000 | LARGE | PRESENT));
        assert_eq!(MockHost::blocks(), blocks, "no table more");
        tables.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    #[test]
    fn test_tables_are_found_whose_entries_carry_a_mark() {
        const ENCRYPTED: u64 = 1 << 51;
        let mut tables = tables(4, ENCRYPTED);
        for page in 0..3 {
            tables.map::<MockHost>(page * 4096, page * 4096, 0).unwrap();
        }
        assert_eq!(walk(&tables, 0x2000), Some(0x2000 | ENCRYPTED | PRESENT));
        tables.free::<MockHost>();
    }
}
