//! Page-table entries, the guest's and the shadows' (SDM vol. 3, 4.5; APM vol. 2, 5.3), and page faults' error codes.

use bitflags::bitflags;
use static_assertions::const_assert_eq;

use crate::frame::ENTRIES;

bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// Leads somewhere.
        const PRESENT = 1 << 0;
        /// What lies behind it can be written to.
        const WRITABLE = 1 << 1;
        /// What lies behind it is for ring 3.
        const USER = 1 << 2;
        /// Was used for a translation.
        const ACCESSED = 1 << 5;
        /// Was used for a write; only in entries that map a page.
        const DIRTY = 1 << 6;
        /// On levels 2 and 3: maps a large page, which our guests do not have. On level 4: reserved. On level 1: part of the memory
        /// type.
        const LARGE = 1 << 7;
        /// What lies behind it cannot be executed.
        const NO_EXECUTE = 1 << 63;
    }

    /// Error code of a page fault (SDM vol. 3, 4.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ErrorCode: u64 {
        /// The page is present; the access is not allowed.
        const PRESENT = 1 << 0;
        /// A write.
        const WRITE = 1 << 1;
        /// In user mode.
        const USER = 1 << 2;
        /// An entry has a reserved bit set.
        const RESERVED = 1 << 3;
        /// An instruction fetch.
        const FETCH = 1 << 4;
    }
}

/// Bytes of an entry.
pub const ENTRY_SIZE: u64 = size_of::<Entry>() as u64;

/// Frame's place in an entry.
const FRAME_SHIFT: u32 = 12;
/// Bits of the frame's number in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of an entry that CPUs ignore on every level, with CR4.PKE and CR4.PKS clear: 9 to 11, and 52 to 62. An entry of a shadow has
/// a tag there that tells where it leads in our own terms: to the frame of the guest's that has these lowest bits, or to this table.
pub const TAG_BITS: u32 = LOW_TAG_BITS + 11;
const LOW_TAG_BITS: u32 = 3;
const LOW_TAG_SHIFT: u32 = 9;
const HIGH_TAG_SHIFT: u32 = 52;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const LOW_TAG_MASK: u64 = (1 << LOW_TAG_BITS) - 1;

/// An entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// Leads nowhere. The only entry of shadows that is not present: one that had a frame number would be speculated with (L1TF).
    pub const NONE: Self = Self(0);

    /// An entry of a shadow.
    #[must_use]
    pub const fn shadow(host: u64, tag: u64, flags: Flags) -> Self {
        let low = (tag & LOW_TAG_MASK) << LOW_TAG_SHIFT;
        let high = (tag & TAG_MASK) >> LOW_TAG_BITS << HIGH_TAG_SHIFT;
        Self(host << FRAME_SHIFT & ADDRESS | low | high | flags.bits())
    }

    /// Number of the frame that it leads to.
    #[must_use]
    pub const fn frame(self) -> u64 {
        (self.0 & ADDRESS) >> FRAME_SHIFT
    }

    /// Address of the page that it leads to.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 & ADDRESS
    }

    /// Guest-physical address of an entry of the table in `frame`.
    #[must_use]
    pub const fn address(frame: u64, index: usize) -> u64 {
        (frame << FRAME_SHIFT) + index as u64 * ENTRY_SIZE
    }

    /// The tag of a shadow's entry.
    #[must_use]
    pub const fn tag(self) -> u64 {
        self.0 >> LOW_TAG_SHIFT & LOW_TAG_MASK | self.0 >> HIGH_TAG_SHIFT << LOW_TAG_BITS & TAG_MASK
    }

    /// Whether all these bits are set.
    #[must_use]
    pub const fn has(self, flags: Flags) -> bool {
        self.0 & flags.bits() == flags.bits()
    }

    /// Those of these bits that are set.
    #[must_use]
    pub const fn only(self, flags: Flags) -> Flags {
        Flags::from_bits_truncate(self.0).intersection(flags)
    }

    /// Whether it leads to a table, which an entry of level 2 or higher does unless it maps a large page.
    #[must_use]
    pub const fn leads_to_table(self) -> bool {
        self.has(Flags::PRESENT) && !self.has(Flags::LARGE)
    }

    /// Whether bits of the frame's number are set that this CPU does not have.
    #[must_use]
    pub const fn is_beyond(self, address_mask: u64) -> bool {
        self.0 & ADDRESS & !address_mask != 0
    }
}

/// Address bits that choose an entry.
const INDEX_BITS: u32 = 9;
const_assert_eq!(1 << INDEX_BITS, ENTRIES);

/// Index of the entry for an address in a table of this level, 1 to 4.
#[must_use]
pub const fn index(address: u64, level: u8) -> usize {
    let shift = FRAME_SHIFT + INDEX_BITS * (level as u32).saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are kept")]
    {
        address.wrapping_shr(shift) as usize % ENTRIES
    }
}

/// Whether an address is canonical with 4-level paging, all that guests have.
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    let high = address >> 47;
    high == 0 || high == u64::MAX >> 47
}
