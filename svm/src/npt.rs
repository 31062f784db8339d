//! Nested page tables' entries (APM vol. 2, 15.25): those of ordinary page tables in long mode.

use covisor_core::nested::Format;

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

/// The format of entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Npt {
    /// The encryption bit of host-physical addresses, where the host encrypts its memory.
    pub(crate) encrypt: u64,
}

/// The tables of one VM.
pub(crate) type NestedTables = covisor_core::nested::NestedTables<Npt>;

impl Format for Npt {
    fn table(&self, phys: u64) -> u64 {
        phys | self.encrypt | PRESENT | WRITABLE | USER | ACCESSED_DIRTY
    }

    fn leaf(&self, phys: u64, large: bool) -> u64 {
        self.table(phys) | if large { LARGE } else { 0 }
    }

    fn next(&self, entry: u64) -> Option<u64> {
        (entry & PRESENT != 0).then_some(entry & ADDRESS & !self.encrypt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_entries_have_the_manuals_format() {
        let plain = Npt { encrypt: 0 };
        assert_eq!(plain.table(0x1234_5000), 0x1234_5067);
        assert_eq!(plain.leaf(0x1234_5000, false), 0x1234_5067);
        assert_eq!(plain.leaf(0x1220_0000, true), 0x1220_00e7);
        assert_eq!((plain.next(0), plain.next(0x1234_5067)), (None, Some(0x1234_5000)));
    }

    #[test]
    fn test_the_encryption_bit_is_in_every_entry_and_in_no_address() {
        let encrypting = Npt { encrypt: 1 << 47 };
        assert_eq!(encrypting.leaf(0x5000, false), 1 << 47 | 0x5067);
        assert_eq!(encrypting.next(encrypting.table(0x5000)), Some(0x5000));
        assert_eq!(encrypting.next(encrypting.table(1 << 47 | 0x5000)), Some(0x5000), "the host's address has it too");
    }
}
