//! What the monitor knows of guest frames and of shadow tables. The host fills in the host frames, and grows both tables with the
//! guest's memory before the guest runs.

use core::mem::size_of;

use static_assertions::const_assert;
use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Entries of a page table.
pub const ENTRIES: usize = 512;

/// Most shadow tables that can be used: an entry has [`crate::mmu::entry::TAG_BITS`] bits to name one.
pub const MOST_SHADOWS: usize = 1 << crate::mmu::entry::TAG_BITS;

/// A frame of the guest's, at `layout::FRAMES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frame {
    /// Number of the host's frame, with the memory encryption bit where the host has one.
    pub host: u64,
    /// The shadow of the page table in this frame: a [`Link`].
    pub shadow: Link,
    /// What else the frame is used for; 0 at first.
    pub uses: Uses,
}
const_assert_eq!(size_of::<Frame>(), 16);

/// A shadow table, at `layout::SHADOWS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Shadow {
    /// Number of the host's frame that the table is in, with the memory encryption bit where the host has one.
    pub host: u64,
    /// The guest frame whose page table it shadows.
    pub guest: u32,
    /// Entries of other shadow tables, and roots in use, that lead here.
    pub references: u32,
    /// Next in the list that it is in.
    pub next: Link,
    /// Entries that are present, the monitor's own not counted.
    pub present: u16,
    /// Number of a [`Kind`].
    pub kind: u16,
}
const_assert_eq!(size_of::<Shadow>(), 24);

/// Names a shadow table by its place in the pool, and 1; or none: 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Link(u32);

impl Link {
    /// Names no table.
    pub const NONE: Self = Self(0);

    /// Names the table at `place`.
    #[must_use]
    pub const fn to(place: u32) -> Self {
        Self(place.wrapping_add(1))
    }

    /// The table's place.
    #[must_use]
    pub const fn place(self) -> Option<u32> {
        self.0.checked_sub(1)
    }

    /// Whether it names none.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// What a guest frame is used for: how many shadow entries let the guest write to it, and of which level the page table in it is
/// that the guest declared. It is never both at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Uses(u32);

/// First bit of the level in [`Uses`].
const LEVEL_SHIFT: u32 = 29;
// All entries of all shadow tables can map one frame.
const_assert!(MOST_SHADOWS * ENTRIES < 1 << LEVEL_SHIFT);

impl Uses {
    /// Shadow entries by which the guest can write to the frame.
    #[must_use]
    pub const fn writers(self) -> u32 {
        self.0 & ((1 << LEVEL_SHIFT) - 1)
    }

    /// Level of the page table in the frame, as the guest declared it; 0 for none.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.0.to_le_bytes()[3] >> (LEVEL_SHIFT - 24)
    }

    /// The same with another level.
    #[must_use]
    pub const fn with_level(self, level: u8) -> Self {
        Self(self.writers() | (level as u32) << LEVEL_SHIFT)
    }

    /// The same with one writer more.
    #[must_use]
    pub(crate) const fn with_writer(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The same with one writer less.
    #[must_use]
    pub(crate) const fn without_writer(self) -> Self {
        if self.writers() == 0 { self } else { Self(self.0 - 1) }
    }
}

/// What a shadow table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Nothing: in one of the lists of free tables.
    Free = 0,
    /// Shadow of a level 1 table, the one whose entries map pages.
    L1 = 1,
    /// Shadow of a level 2 table.
    L2 = 2,
    /// Shadow of a level 3 table.
    L3 = 3,
    /// Shadow of a level 4 table that the guest's kernel runs on.
    KernelRoot = 4,
    /// Shadow of a level 4 table that the guest's programs run on.
    UserRoot = 5,
    /// Empty, shadow of nothing any more, but entries lead here still.
    Orphan = 6,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Free,
            1 => Self::L1,
            2 => Self::L2,
            3 => Self::L3,
            4 => Self::KernelRoot,
            5 => Self::UserRoot,
            6 => Self::Orphan,
            _ => return None,
        })
    }

    /// Level of the guest's table that it shadows; 0 if it shadows none.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::Free | Self::Orphan => 0,
            Self::L1 => 1,
            Self::L2 => 2,
            Self::L3 => 3,
            Self::KernelRoot | Self::UserRoot => 4,
        }
    }

    /// What the tables are that its entries lead to.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::KernelRoot | Self::UserRoot => Some(Self::L3),
            Self::L3 => Some(Self::L2),
            Self::L2 => Some(Self::L1),
            Self::Free | Self::L1 | Self::Orphan => None,
        }
    }

    /// Whether it is a root.
    #[must_use]
    pub const fn is_root(self) -> bool {
        matches!(self, Self::KernelRoot | Self::UserRoot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_writers_and_level_are_apart() {
        let uses = Uses::default().with_writer().with_writer().with_level(4);
        assert_eq!((uses.writers(), uses.level()), (2, 4));
        let uses = uses.without_writer().without_writer().without_writer();
        assert_eq!((uses.writers(), uses.level()), (0, 4));
        assert_eq!(uses.with_level(0), Uses::default());
    }

    #[test]
    fn test_links_name_places() {
        assert_eq!(Link::to(0).place(), Some(0));
        assert_eq!(Link::NONE.place(), None);
        assert!(Link::NONE.is_none() && !Link::to(7).is_none());
    }

    #[test]
    fn test_kinds_have_their_numbers() {
        for number in 0..7 {
            assert_eq!(Kind::from_number(number).unwrap() as u16, number);
        }
        assert_eq!(Kind::from_number(7), None);
    }
}
