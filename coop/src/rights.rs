//! Entries of the monitor's page tables (SDM vol. 3, 4.5), by what may be done with a page.

use bitflags::bitflags;
use covisor_core::nested::Format;
use covisor_core::nested::NestedTables;

bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Entry: u64 {
        /// Present.
        const PRESENT = 1 << 0;
        /// Writable.
        const WRITABLE = 1 << 1;
        /// Ring 3 may use it.
        const USER = 1 << 2;
        /// Set from the start, so that the CPU need not.
        const ACCESSED = 1 << 5;
        /// As above.
        const DIRTY = 1 << 6;
        /// A 2 MiB page, at level 2.
        const LARGE = 1 << 7;
        /// Code cannot be executed there.
        const NO_EXECUTE = 1 << 63;
    }
}

/// Physical address in an entry. Where the host encrypts its memory, its addresses have that bit.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page tables of the monitor's world.
pub(crate) type Tables = NestedTables<Rights>;

/// What may be done with the pages that are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights(Entry);

impl Rights {
    /// The monitor's code.
    pub(crate) const CODE: Self = Self(Entry::empty());
    /// The monitor's constants.
    pub(crate) const CONSTANTS: Self = Self(Entry::NO_EXECUTE);
    /// What the monitor writes to.
    pub(crate) const DATA: Self = Self(Entry::NO_EXECUTE.union(Entry::WRITABLE));
    /// What the guest reads.
    pub(crate) const GUEST_CONSTANTS: Self = Self(Entry::NO_EXECUTE.union(Entry::USER));

    /// An entry that leads to the table at `phys`.
    pub(crate) const fn directory(phys: u64) -> u64 {
        phys | Entry::PRESENT.union(Entry::WRITABLE).union(Entry::USER).union(Entry::ACCESSED).bits()
    }
}

impl Format for Rights {
    /// The pages below say what may be done.
    fn table(&self, phys: u64) -> u64 {
        Self::directory(phys)
    }

    fn leaf(&self, phys: u64, large: bool) -> u64 {
        let size = if large { Entry::LARGE } else { Entry::empty() };
        phys | (Entry::PRESENT | Entry::ACCESSED | Entry::DIRTY | size | self.0).bits()
    }

    fn next(&self, entry: u64) -> Option<u64> {
        let table = Entry::from_bits_retain(entry).intersection(Entry::PRESENT | Entry::LARGE) == Entry::PRESENT;
        table.then_some(entry & ADDRESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_manuals_format() {
        assert_eq!(Rights::directory(0x1234_5000), 0x1234_5027);
        assert_eq!(Rights::CODE.leaf(0x1234_5000, false), 0x1234_5061);
        assert_eq!(Rights::DATA.leaf(0x1220_0000, true), 0x8000_0000_1220_00e3);
        assert_eq!(Rights::GUEST_CONSTANTS.leaf(0x1000, false), 0x8000_0000_0000_1065);
        assert_eq!(Rights::CODE.next(Rights::directory(0x5000)), Some(0x5000));
        assert_eq!((Rights::CODE.next(0), Rights::CODE.next(Rights::DATA.leaf(0, true))), (None, None));
    }
}
