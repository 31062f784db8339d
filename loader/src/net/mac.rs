//! Addresses of adapters.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An adapter's Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// Bit 1 of the first byte: the address was not given out by a maker (IEEE 802, 8.2.2).
const LOCAL: u8 = 2;
/// Bit 0 of the first byte: the address is a group's.
const GROUP: u8 = 1;

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of adapter `index` of the machine called `name`: the same each time, so that a guest knows its adapter again.
    #[must_use]
    pub fn of_machine(name: &str, index: usize) -> Self {
        // FNV-1a, whose result is the same for ever, which a standard library's hash need not be.
        let words = name.bytes().chain([0]).chain(index.to_le_bytes());
        let hash = words
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
        Self([(a ^ g) & !GROUP | LOCAL, b ^ h, c, d, e, f])
    }

    /// Whether it is a group's, broadcast included.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & GROUP != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// What is wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MacError {
    /// It has not six bytes.
    #[error("a MAC address is six bytes in hexadecimal, such as 02:00:00:12:34:56")]
    Form,
    /// No adapter can have it.
    #[error("no adapter can have this MAC address: it is a group's, or all zeros")]
    Group,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| matches!(part.len(), 1 | 2)).ok_or(MacError::Form)?;
            // The parser of numbers takes a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError::Form);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Form)?;
        }
        let mac = Self(bytes);
        match parts.next() {
            Some(_) => Err(MacError::Form),
            None if mac.is_group() || bytes == [0; 6] => Err(MacError::Group),
            None => Ok(mac),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_an_address_is_six_bytes() {
        let mac = Mac([0x02, 0, 0, 0x12, 0x34, 0xab]);
        assert_eq!("02:00:00:12:34:ab".parse(), Ok(mac));
        assert_eq!("2-0-0-12-34-AB".parse(), Ok(mac));
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in
            ["", "02:00:00:12:34", "02:00:00:12:34:ab:cd", "02:00:00:12:34:+b", "02:00:00:12:34:", "020000:12:34:ab"]
        {
            assert_eq!(bad.parse::<Mac>(), Err(MacError::Form), "{bad}");
        }
        for bad in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "0:0:0:0:0:0"] {
            assert_eq!(bad.parse::<Mac>(), Err(MacError::Group), "{bad}");
        }
    }

    #[test]
    fn test_a_machine_keeps_its_address() {
        assert_eq!(Mac::of_machine("web", 0).to_string(), Mac::of_machine("web", 0).to_string());
        let all = [("web", 0), ("web", 1), ("web2", 0), ("", 0)].map(|(name, index)| Mac::of_machine(name, index));
        for (index, mac) in all.iter().enumerate() {
            assert!(!mac.is_group() && mac.0[0] & LOCAL != 0);
            assert!(!all[..index].contains(mac));
        }
    }
}
