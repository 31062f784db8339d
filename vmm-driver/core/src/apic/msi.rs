//! Message-signalled interrupts (Intel SDM vol. 3, 11.11; PCI 3.0, 6.8).

use super::message::Delivery;
use super::message::Destination;
use super::message::Message;

/// Bits 20 to 31 of an MSI's address; above are zeros.
const ADDRESS: u64 = 0xfee;
/// Redirection hint: one of the destinations.
const REDIRECT: u64 = 1 << 3;
/// Logical destination, else physical.
const LOGICAL: u64 = 1 << 2;
/// Data: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Data: a level-triggered message asserts.
const ASSERT: u32 = 1 << 14;

/// The message that writing `data` to `address` sends. `None` where nothing would come of it: another address, a delivery
/// mode that guests do not have, a vector below 16, the end of a level.
#[must_use]
pub fn decode(address: u64, data: u32) -> Option<Message> {
    if address >> 20 != ADDRESS || data & (LEVEL | ASSERT) == LEVEL {
        return None;
    }
    let [vector, mode, ..] = data.to_le_bytes();
    let delivery = Delivery::from_code(mode).filter(|delivery| delivery.takes(vector))?;
    let logical = address & LOGICAL != 0;
    let delivery = match delivery {
        Delivery::Fixed if logical && address & REDIRECT != 0 => Delivery::LowestPriority,
        other => other,
    };
    let destination = Destination::from_byte((address >> 12).to_le_bytes()[0], logical);
    Some(Message { destination, delivery, vector, level: data & LEVEL != 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields() {
        let message = |destination, delivery, vector, level| Some(Message { destination, delivery, vector, level });
        let physical = Destination::Physical(5);
        assert_eq!(decode(0xfee0_5000, 0x0041), message(physical, Delivery::Fixed, 0x41, false));
        assert_eq!(decode(0xfee0_5008, 0x0041), message(physical, Delivery::Fixed, 0x41, false));
        assert_eq!(decode(0xfeef_f000, 0x0041), message(Destination::All, Delivery::Fixed, 0x41, false));
        assert_eq!(decode(0xfee0_3004, 0xc141), message(Destination::Logical(3), Delivery::LowestPriority, 0x41, true));
        assert_eq!(
            decode(0xfee0_300c, 0x0041),
            message(Destination::Logical(3), Delivery::LowestPriority, 0x41, false)
        );
        assert_eq!(decode(0xfee0_5000, 0x0400), message(physical, Delivery::Nmi, 0, false));
    }

    #[test]
    fn nothing_comes_of_these() {
        let wrong_addresses = [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX];
        // Vector of an exception, SMI, reserved, ExtINT, the end of a level.
        let wrong_data = [0x000f, 0x0241, 0x0341, 0x0741, 0x8041];
        assert!(wrong_addresses.into_iter().all(|address| decode(address, 0x41).is_none()));
        assert!(wrong_data.into_iter().all(|data| decode(0xfee0_0000, data).is_none()));
    }

    proptest! {
        #[test]
        fn only_sound_messages(low in any::<u32>(), data: u32) {
            if let Some(message) = decode(0xfee0_0000 | u64::from(low & 0xf_ffff), data) {
                prop_assert!(message.delivery.takes(message.vector));
            }
        }
    }
}
