//! Interrupt messages, and which vCPUs one is for (Intel SDM vol. 3, 11.6.2).

use super::inbox::Identity;
use super::inbox::Mode;
use super::registers::FIRST_VECTOR;

/// What a message does at its destination (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt with the message's vector.
    Fixed,
    /// The same, at one of the destinations.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// Resets the vCPU.
    Init,
    /// Starts a vCPU that waits after INIT, at the page that the vector names.
    StartUp,
}

impl Delivery {
    /// From the three bits of the interrupt command, a redirection entry or MSI data. SMI and `ExtINT` are answered with
    /// `None` like the reserved codes: guests have neither system management mode nor an 8259.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            _ => None,
        }
    }

    /// Whether `vector` is one that this delivery can have.
    #[must_use]
    pub const fn takes(self, vector: u8) -> bool {
        match self {
            Self::Fixed | Self::LowestPriority => vector >= FIRST_VECTOR,
            Self::Nmi | Self::Init | Self::StartUp => true,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The vCPU with this APIC id.
    Physical(u32),
    /// The vCPUs whose logical address matches this one.
    Logical(u32),
    /// All of them.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// From the eight bits that MSI addresses, redirection entries and xAPIC's interrupt command have.
    #[must_use]
    pub const fn from_byte(byte: u8, logical: bool) -> Self {
        match (logical, byte) {
            (true, _) => Self::Logical(byte as u32),
            (false, 0xff) => Self::All,
            (false, _) => Self::Physical(byte as u32),
        }
    }

    /// From x2APIC's 32 bits.
    #[must_use]
    pub const fn from_word(word: u32, logical: bool) -> Self {
        match (logical, word) {
            (_, u32::MAX) => Self::All,
            (true, _) => Self::Logical(word),
            (false, _) => Self::Physical(word),
        }
    }
}

/// An interrupt message: from an MSI, from the I/O APIC, or between vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// Its vector, which NMI and INIT ignore.
    pub vector: u8,
    /// Level-triggered: its EOI is told to the I/O APIC.
    pub level: bool,
}

impl Message {
    /// The set of vCPUs that the message goes to: bit n for vCPU n, which has APIC id n. `sender` is the sending vCPU of
    /// an IPI, `identity` tells each vCPU's way of being addressed; `vcpus` is at most 64.
    ///
    /// "Lowest priority" picks one by the vector, so that each vector stays with one vCPU's caches, as the priority
    /// itself lies in the other CPU's registers.
    #[must_use]
    pub fn targets(&self, sender: Option<u32>, vcpus: u32, identity: impl Fn(u32) -> Identity) -> u64 {
        let one = |id: u32| if id < vcpus.min(64) && identity(id).mode != Mode::Disabled { 1 << id } else { 0 };
        let all = || (0..vcpus).fold(0, |set, id| set | one(id));
        let set = match self.destination {
            Destination::Physical(id) => one(id),
            Destination::All => all(),
            Destination::Others => all() & !sender.map_or(0, one),
            Destination::Logical(address) => {
                (0..vcpus).filter(|id| identity(*id).matches(address)).fold(0, |set, id| set | one(id))
            }
        };
        match self.delivery {
            Delivery::LowestPriority => {
                let awake = (0..vcpus.min(64)).filter(|id| identity(*id).enabled).fold(0, |awake, id| awake | 1 << id);
                pick(set & awake, self.vector)
            }
            Delivery::Fixed | Delivery::Nmi | Delivery::Init | Delivery::StartUp => set,
        }
    }
}

/// One member of `set`, the same one for the same vector; nothing of the empty set.
fn pick(set: u64, vector: u8) -> u64 {
    if set == 0 {
        return 0;
    }
    let mut rest = set;
    for _ in 0..u32::from(vector) % set.count_ones() {
        rest &= rest - 1;
    }
    rest & rest.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixed(destination: Destination) -> Message {
        Message { destination, delivery: Delivery::Fixed, vector: 0x40, level: false }
    }

    fn flat(id: u32) -> Identity {
        Identity { mode: Mode::Xapic, logical: 1 << (24 + id), cluster: false, enabled: true }
    }

    fn cluster(id: u32) -> Identity {
        Identity { mode: Mode::Xapic, logical: (id / 4) << 28 | 1 << (24 + id % 4), cluster: true, enabled: true }
    }

    fn x2apic(id: u32) -> Identity {
        Identity { mode: Mode::X2apic, logical: (id >> 4) << 16 | 1 << (id & 15), cluster: false, enabled: true }
    }

    #[test]
    fn physical_and_shorthands() {
        assert_eq!(fixed(Destination::from_byte(3, false)).targets(None, 8, flat), 1 << 3);
        assert_eq!(fixed(Destination::from_byte(9, false)).targets(None, 8, flat), 0);
        assert_eq!(fixed(Destination::from_byte(0xff, false)).targets(None, 8, flat), 0xff);
        assert_eq!(fixed(Destination::Others).targets(Some(2), 4, flat), 0b1011);
        assert_eq!(fixed(Destination::from_word(u32::MAX, true)).targets(None, 64, x2apic), u64::MAX);
        assert_eq!(fixed(Destination::from_word(0xff, false)).targets(None, 64, x2apic), 0);
    }

    #[test]
    fn logical_models() {
        assert_eq!(fixed(Destination::from_byte(0b1010, true)).targets(None, 8, flat), 0b1010);
        assert_eq!(fixed(Destination::from_byte(0x13, true)).targets(None, 8, cluster), 0b11_0000);
        assert_eq!(fixed(Destination::from_byte(0xff, true)).targets(None, 8, cluster), 0xff);
        assert_eq!(fixed(Destination::from_word(0x2_0005, true)).targets(None, 64, x2apic), 0b101 << 32);
        assert_eq!(fixed(Destination::from_word(0x100, true)).targets(None, 8, flat), 0);
    }

    #[test]
    fn disabled_ones_get_nothing() {
        let off = |_| Identity { mode: Mode::Disabled, logical: u32::MAX, cluster: false, enabled: false };
        for destination in [Destination::All, Destination::Physical(0), Destination::Logical(0xff)] {
            assert_eq!(fixed(destination).targets(None, 4, off), 0);
        }
    }

    proptest! {
        #[test]
        fn lowest_priority_is_one_of_the_fixed_targets(logical: bool, word: u32, vector: u8, vcpus in 0..=64_u32) {
            let all = fixed(Destination::from_word(word, logical));
            let one = Message { delivery: Delivery::LowestPriority, vector, ..all };
            let (all, one) = (all.targets(None, vcpus, x2apic), one.targets(None, vcpus, x2apic));
            prop_assert_eq!(one & !all, 0);
            prop_assert_eq!(one.count_ones(), u32::from(all != 0));
        }

        #[test]
        fn picks_are_spread(set in 1_u64..) {
            let picked = (0..=255_u8).fold(0, |picked, vector| picked | pick(set, vector));
            prop_assert_eq!(picked, set);
        }
    }
}
