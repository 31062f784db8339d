//! The page tables of the first instructions. Pages are of 4 KiB throughout, for no larger ones are offered.

use bitflags::bitflags;
use covisor_abi::PAGE_SIZE;

use super::layout::FRAME_LIST_UPPER_TABLES;
use super::layout::Layout;
use super::layout::TABLE_REACH;
use super::layout::UPPER_TABLES;
use super::support::Support;

bitflags! {
    /// Bits of an entry (SDM vol. 3, 4.5.4).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Entry: u64 {
        const PRESENT = 1 << 0;
        const WRITABLE = 1 << 1;
        const USER = 1 << 2;
        const ACCESSED = 1 << 5;
        const DIRTY = 1 << 6;

        /// A page that can be read only. The kernel runs in ring 3, so all is the user's.
        const READ_ONLY = Self::PRESENT.bits() | Self::USER.bits() | Self::ACCESSED.bits();
        /// A table.
        const TABLE = Self::READ_ONLY.bits() | Self::WRITABLE.bits();
        /// A page.
        const PAGE = Self::TABLE.bits() | Self::DIRTY.bits();
    }
}

/// The tables of the window, where everything up to its end is mapped behind the kernel's base.
pub(super) struct KernelTables<'a> {
    pub(super) layout: &'a Layout,
    pub(super) support: &'a Support,
}

impl KernelTables<'_> {
    /// Their bytes, for [`Layout::page_tables`].
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { layout, support } = self;
        let [level_3, level_2, level_1] = [1, 2, UPPER_TABLES].map(|index| layout.page_tables + index * PAGE_SIZE);
        let base = support.virtual_address(0);
        let mut pages = Pages::default();
        let mut top = [
            (index(base, 4), entry(level_3, Entry::TABLE)),
            (index(support.frame_list, 4), entry(layout.frame_list_tables, Entry::TABLE)),
        ];
        top.sort_unstable();
        pages.sparse(&top);
        pages.sparse(&[(index(base, 3), entry(level_2, Entry::TABLE))]);
        pages.full((0..layout.window_end / TABLE_REACH).map(|i| entry(level_1 + i * PAGE_SIZE, Entry::TABLE)));
        let tables = layout.page_tables..layout.stack;
        pages.full((0..layout.window_end / PAGE_SIZE).map(|page| page * PAGE_SIZE).map(|address| {
            // Tables in use are never writable by the guest: it changes them by calls.
            entry(address, if tables.contains(&address) { Entry::READ_ONLY } else { Entry::PAGE })
        }));
        pages.0
    }
}

/// The tables that map the list of frames where the kernel wants it.
pub(super) struct FrameListTables<'a> {
    pub(super) layout: &'a Layout,
    pub(super) support: &'a Support,
}

impl FrameListTables<'_> {
    /// Their bytes, for [`Layout::frame_list_tables`].
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { layout, support } = self;
        let [level_2, level_1] = [1, FRAME_LIST_UPPER_TABLES].map(|index| layout.frame_list_tables + index * PAGE_SIZE);
        let last_level = (layout.end - level_1) / PAGE_SIZE;
        let mut pages = Pages::default();
        pages.sparse(&[(index(support.frame_list, 3), entry(level_2, Entry::TABLE))]);
        pages.full((0..last_level).map(|i| entry(level_1 + i * PAGE_SIZE, Entry::TABLE)));
        pages.full((0..layout.frame_list_pages()).map(|i| entry(layout.frame_list + i * PAGE_SIZE, Entry::PAGE)));
        pages.0
    }
}

fn entry(address: u64, bits: Entry) -> u64 {
    address | bits.bits()
}

/// The index of an address in a table of this level, 4 being the highest (SDM vol. 3, 4.5.2).
fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & 0x1ff
}

/// Bytes of a table.
const TABLE: usize = 0x1000;

/// Tables, one after the other.
#[derive(Default)]
struct Pages(Vec<u8>);

impl Pages {
    /// A table with these entries, by ascending index.
    fn sparse(&mut self, entries: &[(u64, u64)]) {
        let mut rest = entries.iter().peekable();
        self.full(
            (0..=entries.last().map_or(0, |last| last.0))
                .map(|index| rest.next_if(|entry| entry.0 == index).map_or(0, |entry| entry.1)),
        );
    }

    /// Tables with these entries, as many as they fill.
    fn full(&mut self, entries: impl Iterator<Item = u64>) {
        self.0.extend(entries.flat_map(u64::to_le_bytes));
        self.0.resize(self.0.len().next_multiple_of(TABLE), 0);
    }
}
