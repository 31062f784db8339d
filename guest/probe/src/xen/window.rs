//! A page table that checks may fill as they like, and the linear addresses that it maps.

use super::abi::mmuext;
use super::frames::PAGE;
use super::frames::WORDS;
use super::hypercall;
use super::tables;

/// The table: that of the 2 MiB at [`Window::BASE`] in the kernel's page tables. It is there for good once it was made.
#[derive(Debug)]
pub struct Window {
    table: u64,
}

impl Window {
    /// Where it begins: no guest with little memory has anything there.
    pub const BASE: u64 = 0x4000_0000;

    /// The window, empty.
    #[must_use]
    pub fn new() -> Self {
        let window = Self { table: tables::reach(tables::kernel(), Self::BASE, 1) };
        for number in 0..WORDS as u64 {
            if window.get(number) != 0 {
                tables::set(window.entry(number), 0);
            }
        }
        hypercall::flush();
        window
    }

    /// The table's page.
    #[must_use]
    pub const fn table(&self) -> u64 {
        self.table
    }

    /// The linear address of a page.
    #[must_use]
    pub const fn page(number: u64) -> u64 {
        Self::BASE + number * PAGE
    }

    /// Where a page's entry is.
    #[must_use]
    pub const fn entry(&self, number: u64) -> u64 {
        self.table + number * 8
    }

    /// A page's entry, but for the bit that Xen sets of its own accord.
    #[must_use]
    pub fn get(&self, number: u64) -> u64 {
        super::frames::read(self.entry(number)) & !tables::GLOBAL
    }

    /// Sets a page's entry, and has its translation forgotten.
    pub fn set(&self, number: u64, value: u64) -> i64 {
        let result = tables::set(self.entry(number), value);
        hypercall::mmuext(mmuext::INVLPG_LOCAL, Self::page(number), 0);
        result
    }

    /// Maps a page of the guest's.
    pub fn map(&self, number: u64, page: u64, flags: u64) -> i64 {
        self.set(number, super::frames::machine(page) | flags)
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}
