//! Nested page tables (APM vol. 2, 15.25): which host page is behind a guest-physical address.

use alloc::vec::Vec;

use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::ORDER_2M;
use covisor_core::host::OutOfMemory;

/// Present.
const PRESENT: u64 = 1 << 0;
/// Writable.
const WRITABLE: u64 = 1 << 1;
/// All nested accesses are user accesses (15.25.5).
const USER: u64 = 1 << 2;
/// Accessed and dirty: set from the start, so that the CPU need not.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// A 2 MiB page, at level 2.
const LARGE: u64 = 1 << 7;
/// Physical address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The tables of one VM.
#[derive(Debug)]
pub(crate) struct NestedTables {
    /// All table pages; the first is the root.
    tables: Vec<Block>,
    levels: u32,
    /// The encryption bit of host-physical addresses, where the host encrypts its memory.
    encrypt: u64,
}

impl NestedTables {
    /// Empty tables, with as many levels as the host's own, for VMRUN takes the mode from there (15.25.3).
    pub(crate) fn new<H: Host>(levels: u32, encrypt: u64) -> Result<Self, OutOfMemory> {
        let mut tables = Self { tables: Vec::new(), levels, encrypt };
        tables.allocate::<H>()?;
        Ok(tables)
    }

    fn allocate<H: Host>(&mut self) -> Result<Block, OutOfMemory> {
        self.tables.try_reserve(1).map_err(|_| OutOfMemory)?;
        let block = H::alloc_block(0).ok_or(OutOfMemory)?;
        self.tables.push(block);
        Ok(block)
    }

    /// Physical address of the root, as nested CR3 takes it.
    pub(crate) fn root(&self) -> u64 {
        self.tables.first().map_or(0, |root| root.phys) | self.encrypt
    }

    /// Maps a block of 2^`order` pages, order 0 or [`ORDER_2M`].
    pub(crate) fn map<H: Host>(&mut self, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        if order == ORDER_2M {
            return self.map_leaf::<H>(gpa, phys, 2);
        }
        (0..1_u64 << order).try_for_each(|page| self.map_leaf::<H>(gpa + page * 4096, phys + page * 4096, 1))
    }

    fn map_leaf<H: Host>(&mut self, gpa: u64, phys: u64, leaf: u32) -> Result<(), OutOfMemory> {
        let mut table = *self.tables.first().ok_or(OutOfMemory)?;
        for level in (leaf + 1..=self.levels).rev() {
            let entry = entry(table, gpa, level);
            if *entry & PRESENT == 0 {
                *entry = self.allocate::<H>()?.phys | self.encrypt | PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
            }
            let next = *entry & ADDRESS & !self.encrypt;
            table = *self.tables.iter().rev().find(|block| block.phys == next).ok_or(OutOfMemory)?;
        }
        let large = if leaf == 2 { LARGE } else { 0 };
        *entry(table, gpa, leaf) = phys | self.encrypt | large | PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
        Ok(())
    }

    pub(crate) fn free<H: Host>(self) {
        for block in self.tables {
            // SAFETY: allocated in allocate(), and no VMCB names the tables any more.
            unsafe { H::free_block(block) };
        }
    }
}

/// The entry for `gpa` in a table of `level` (1 is the lowest).
fn entry<'a>(table: Block, gpa: u64, level: u32) -> &'a mut u64 {
    let index = (gpa >> (12 + 9 * (level - 1)) & 0x1ff) as usize;
    // SAFETY: a table is a page of 512 entries, owned by the NestedTables whose &mut self the caller holds.
    unsafe { &mut *table.virt.cast::<u64>().as_ptr().add(index) }
}
