//! Walks through the guest's own page tables (SDM vol. 3, 4.5). What a walk reads it reads once.

use super::entry::Entry;
use super::entry::Flags;
use super::entry::index;
use super::entry::is_canonical;
use super::space::Space;
use super::space::Table;
use super::space::entry_in;
use crate::layout::PAGE;
use crate::layout::is_monitors;

/// Level of roots.
pub(super) const ROOT_LEVEL: u8 = 4;
/// Number of levels.
pub(super) const LEVELS: usize = ROOT_LEVEL as usize;

/// A walk that came to an entry that maps a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    address: u64,
    /// Frames of the tables, from the root on.
    pub(super) tables: [u64; LEVELS],
    /// The last entry.
    leaf: Entry,
    /// The bits that all entries have.
    all: Entry,
    /// The bits that any entry has.
    any: Entry,
}

/// Why a walk ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// An entry is not present, or the address is none that the guest has tables for.
    NotPresent,
    /// An entry has a bit set that it must not have: a large page's, one of an address that this CPU does not have, or of one where
    /// the guest has no memory for a table.
    Reserved,
}

/// The table that an entry of level 2 or higher leads to.
#[inline]
fn next<'a>(space: &Space<'a>, entry: Entry) -> Result<&'a Table, Missing> {
    if !entry.has(Flags::PRESENT) {
        return Err(Missing::NotPresent);
    }
    let table = if entry.has(Flags::LARGE) { None } else { space.guest_table(entry.frame()) };
    table.ok_or(Missing::Reserved)
}

impl Walk {
    /// Walks from the root in guest frame `root` to the table of level 1. Its entry may be anything.
    #[inline(always)]
    fn to_last_table(space: &Space<'_>, root: u64, address: u64) -> Result<Self, Missing> {
        if !is_canonical(address) || is_monitors(address) {
            return Err(Missing::NotPresent);
        }
        let table = space.guest_table(root).ok_or(Missing::Reserved)?;
        let fourth = entry_in(table, index(address, 4));
        let third = entry_in(next(space, fourth)?, index(address, 3));
        let second = entry_in(next(space, third)?, index(address, 2));
        let leaf = entry_in(next(space, second)?, index(address, 1));
        Ok(Self {
            address,
            tables: [root, fourth.frame(), third.frame(), second.frame()],
            leaf,
            all: Entry(fourth.0 & third.0 & second.0 & leaf.0),
            any: Entry(fourth.0 | third.0 | second.0 | leaf.0),
        })
    }

    /// Walks from the root in guest frame `root` to an entry that maps a page.
    #[inline(always)]
    pub(super) fn new(space: &Space<'_>, root: u64, address: u64) -> Result<Self, Missing> {
        let walk = Self::to_last_table(space, root, address)?;
        let leaf = walk.leaf();
        if !leaf.has(Flags::PRESENT) {
            return Err(Missing::NotPresent);
        }
        if leaf.is_beyond(space.config().address_mask) { Err(Missing::Reserved) } else { Ok(walk) }
    }

    /// Guest-physical address of the entry that maps the page, or would.
    #[inline(always)]
    pub(super) fn leaf_address(space: &Space<'_>, root: u64, address: u64) -> Result<(u64, Entry), Missing> {
        let walk = Self::to_last_table(space, root, address)?;
        Ok((Entry::address(walk.last_table(), index(address, 1)), walk.leaf()))
    }

    /// The entry that maps the page.
    pub(super) const fn leaf(&self) -> Entry {
        self.leaf
    }

    /// Frame of the table that has it.
    pub(super) const fn last_table(&self) -> u64 {
        self.tables[LEVELS - 1]
    }

    /// Guest-physical address behind the walk's address.
    pub(super) const fn gpa(&self) -> u64 {
        self.leaf().page() + self.address % PAGE
    }

    /// Whether all entries allow writes.
    pub(super) const fn is_writable(&self) -> bool {
        self.all.has(Flags::WRITABLE)
    }

    /// Whether all entries allow execution.
    pub(super) const fn is_executable(&self) -> bool {
        !self.any.has(Flags::NO_EXECUTE)
    }

    /// Whether two tables lie in one frame. A frame has one shadow, which cannot be of two levels.
    pub(super) const fn has_loop(&self) -> bool {
        let [root, third, second, first] = self.tables;
        root == third || root == second || root == first || third == second || third == first || second == first
    }

    /// Sets the accessed bits in the guest's entries, and the dirty bit if it was a write.
    #[inline]
    pub(super) fn mark_used(&self, space: &Space<'_>, write: bool) {
        let used = if write { Flags::ACCESSED.union(Flags::DIRTY) } else { Flags::ACCESSED };
        if self.all.has(Flags::ACCESSED) && self.leaf.has(used) {
            return;
        }
        for (level, table) in (1..=ROOT_LEVEL).rev().zip(self.tables) {
            let used = if level == 1 { used } else { Flags::ACCESSED };
            space.mark(table, index(self.address, level), used);
        }
    }
}
