//! The page tables in use, and a window of small pages in them. Tables are where physical and linear addresses are the
//! same (`boot`).

use crate::cpu;
use crate::layout;

/// Entry: present.
pub const PRESENT: u64 = 1 << 0;
/// Entry: may be written.
pub const WRITABLE: u64 = 1 << 1;
/// Entry: the CPU has used it.
pub const ACCESSED: u64 = 1 << 5;
/// Entry: the CPU has written to the page.
pub const DIRTY: u64 = 1 << 6;

/// The address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries of a table.
const ENTRIES: usize = 512;

/// A table at a physical address.
fn table(address: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address & ADDRESS).unwrap_or(0))
}

/// The entry for `linear` in a table whose entries map 2^`shift` bytes each.
fn entry(table: *mut u64, linear: u64, shift: u32) -> *mut u64 {
    let index = usize::try_from(linear >> shift).unwrap_or(0) % ENTRIES;
    // SAFETY: tables have so many entries.
    unsafe { table.add(index) }
}

/// The page directory entry of a linear address below 4 GiB.
fn directory_entry(linear: u64) -> *mut u64 {
    // SAFETY: the tables that `boot` made, of which the upper levels never change.
    unsafe {
        let pointers = entry(table(cpu::cr3()), linear, 39).read_volatile();
        let directory = entry(table(pointers), linear, 30).read_volatile();
        entry(table(directory), linear, 21)
    }
}

/// Small pages at [`Window::BASE`], mapped one by one, while it lives. Its page table is in scratch memory.
#[derive(Debug)]
pub struct Window {
    before: u64,
}

impl Window {
    /// Where it begins: no PC with little memory has anything there.
    pub const BASE: u64 = 0x4000_0000;
    /// Its page table.
    const TABLE: u64 = layout::SCRATCH + 0x10_0000;

    /// An empty window.
    #[must_use]
    pub fn new() -> Self {
        for index in 0..ENTRIES {
            // SAFETY: scratch memory.
            unsafe { table(Self::TABLE).add(index).write_volatile(0) }
        }
        let directory = directory_entry(Self::BASE);
        // SAFETY: nothing uses the range but who makes the window.
        let before = unsafe { directory.read_volatile() };
        // SAFETY: as above.
        unsafe { directory.write_volatile(Self::TABLE | PRESENT | WRITABLE) }
        flush();
        Self { before }
    }

    /// The linear address of a page.
    #[must_use]
    pub const fn page(number: u64) -> u64 {
        Self::BASE + number * 4096
    }

    /// Sets a page's entry.
    pub fn set(&self, number: u64, value: u64) {
        // SAFETY: the window's own table.
        unsafe { entry(table(Self::TABLE), Self::page(number), 12).write_volatile(value) }
        flush();
    }

    /// A page's entry.
    #[must_use]
    pub fn get(&self, number: u64) -> u64 {
        // SAFETY: as above.
        unsafe { entry(table(Self::TABLE), Self::page(number), 12).read_volatile() }
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: as it was.
        unsafe { directory_entry(Self::BASE).write_volatile(self.before) }
        flush();
    }
}

/// Forgets translations.
pub fn flush() {
    // The value that is there raises nothing.
    let _ = cpu::try_set_cr3(cpu::cr3());
}
