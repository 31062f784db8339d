//! Entries of the monitor's page tables (SDM vol. 3, 4.5), by what may be done with a page. Where the host encrypts its memory, its
//! addresses have the bit that says so.

use covisor_core::nested::Format;
use covisor_core::nested::NestedTables;
use covisor_monitor::mmu::entry::Entry;
use covisor_monitor::mmu::entry::Flags;

/// Page tables of the monitor's world.
pub(crate) type Tables = NestedTables<Rights>;

/// What may be done with the pages that are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights(Flags);

impl Rights {
    /// The monitor's code.
    pub(crate) const CODE: Self = Self(Flags::empty());
    /// The monitor's constants.
    pub(crate) const CONSTANTS: Self = Self(Flags::NO_EXECUTE);
    /// What the monitor writes to.
    pub(crate) const DATA: Self = Self(Flags::NO_EXECUTE.union(Flags::WRITABLE));
    /// What the guest reads.
    pub(crate) const GUEST_CONSTANTS: Self = Self(Flags::NO_EXECUTE.union(Flags::USER));

    /// An entry that leads to the table at `phys`.
    pub(crate) const fn directory(phys: u64) -> u64 {
        phys | Flags::PRESENT.union(Flags::WRITABLE).union(Flags::USER).union(Flags::ACCESSED).bits()
    }
}

impl Format for Rights {
    /// The pages below say what may be done.
    fn table(&self, phys: u64) -> u64 {
        Self::directory(phys)
    }

    fn leaf(&self, phys: u64, large: bool) -> u64 {
        let size = if large { Flags::LARGE } else { Flags::empty() };
        // Accessed and dirty from the start, so that the CPU need not set them.
        phys | (Flags::PRESENT | Flags::ACCESSED | Flags::DIRTY | size | self.0).bits()
    }

    fn next(&self, entry: u64) -> Option<u64> {
        let entry = Entry(entry);
        entry.leads_to_table().then_some(entry.page())
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
