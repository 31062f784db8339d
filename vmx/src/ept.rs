//! Extended page tables: guest-physical to host-physical addresses (SDM vol. 3, 29.3).

use covisor_core::nested::Format;

/// Bits 0 to 2: read, write and execute.
const ALL_RIGHTS: u64 = 7;
/// A leaf's memory type, bits 3 to 5: write-back.
const WRITE_BACK: u64 = 6 << 3;
/// A leaf's memory type alone counts, not the guest's PAT: guest and host would else have one page with two types.
const IGNORE_PAT: u64 = 1 << 6;
/// A leaf of 2 MiB.
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51: the address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Levels of a walk.
pub(crate) const LEVELS: u32 = 4;

/// The entries of EPT. An entry without rights is not present, and all its bits are 0: nothing in it can be read ahead by a CPU
/// that speculates past that (L1 terminal fault).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ept;

impl Format for Ept {
    fn table(&self, phys: u64) -> u64 {
        phys | ALL_RIGHTS
    }

    fn leaf(&self, phys: u64, large: bool) -> u64 {
        phys | ALL_RIGHTS | WRITE_BACK | IGNORE_PAT | if large { LARGE } else { 0 }
    }

    fn next(&self, entry: u64) -> Option<u64> {
        (entry & ALL_RIGHTS != 0).then_some(entry & ADDRESS)
    }
}

/// The EPT pointer for a root (25.6.11): tables in write-back memory, four levels, no accessed and dirty flags.
pub(crate) const fn pointer(root: u64) -> u64 {
    /// Bits 0 to 2.
    const WRITE_BACK_TABLES: u64 = 6;
    /// Bits 3 to 5: levels less 1.
    const WALK: u64 = (LEVELS as u64 - 1) << 3;
    root | WRITE_BACK_TABLES | WALK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_entries_have_the_manuals_format() {
        assert_eq!(Ept.leaf(0x1234_5000, false), 0x1234_5077);
        assert_eq!(Ept.leaf(0x1220_0000, true), 0x1220_00f7);
        assert_eq!(Ept.table(0x1000), 0x1007);
        assert_eq!(Ept.next(0), None);
        assert_eq!(Ept.next(Ept.table(0x1000)), Some(0x1000));
        assert_eq!(pointer(0x7000), 0x701e);
    }
}
