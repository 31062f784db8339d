//! What one side of the link leaves to the other, as the header before each frame says it (virtio 1.2, 5.1.6; TAP devices have the
//! same header).

use thiserror::Error;

use super::ETHERNET_HEADER;
use super::MAX_FRAME;

/// Bytes of the header, `struct virtio_net_hdr` with the number of buffers.
pub const HEADER_SIZE: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is to be completed.
const NEEDS_CHECKSUM: u8 = 1;
/// Kinds of segmentation, `VIRTIO_NET_HDR_GSO_TCPV4` and `_TCPV6`, and the flag that congestion was noted, `_ECN`.
const NONE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const NOTED: u8 = 0x80;

/// What a side can do with frames of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It takes frames from the guest whose checksum is not complete.
    pub host_checksum: bool,
    /// It takes TCP over IPv4 from the guest that is larger than the link's packets.
    pub host_tcp4: bool,
    /// The same over IPv6.
    pub host_tcp6: bool,
    /// The guest takes frames whose checksum is not complete.
    pub guest_checksum: bool,
    /// The guest takes TCP over IPv4 that is larger than the link's packets.
    pub guest_tcp4: bool,
    /// The same over IPv6.
    pub guest_tcp6: bool,
}

impl Offloads {
    /// None of them.
    pub const NONE: Self = Self {
        host_checksum: false,
        host_tcp4: false,
        host_tcp6: false,
        guest_checksum: false,
        guest_tcp4: false,
        guest_tcp6: false,
    };
    /// All that there are.
    pub const ALL: Self = Self {
        host_checksum: true,
        host_tcp4: true,
        host_tcp6: true,
        guest_checksum: true,
        guest_tcp4: true,
        guest_tcp6: true,
    };
}

/// The protocol of a frame that is to be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmented {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A checksum that covers the frame from `start` on and belongs `offset` bytes behind that; the sum of the pseudo-header is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte that it covers.
    pub start: u16,
    /// Where it belongs, from there.
    pub offset: u16,
}

/// A frame that is more than one packet on a link that does not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Its protocol.
    pub kind: Segmented,
    /// Bytes of headers that each packet gets.
    pub header: u16,
    /// Most bytes behind them.
    pub size: u16,
    /// The headers have the mark of noted congestion.
    pub noted: bool,
}

/// What was said of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// The checksum is to be completed.
    pub checksum: Option<PartialChecksum>,
    /// The frame is to be divided.
    pub segmentation: Option<Segmentation>,
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Shorter than its headers.
    #[error("a frame of {0} bytes has no room for its Ethernet header")]
    Short(usize),
    /// Longer than any.
    #[error("a frame of {0} bytes is longer than the link's")]
    Long(usize),
    /// What the driver did not agree to.
    #[error("a frame asks for an offload that its driver did not agree to")]
    NotAgreed,
    /// A segmentation that there is none of.
    #[error("segmentation {0:#x} is none that there is")]
    UnknownSegmentation(u8),
    /// Segments of no bytes, or headers that are not in the frame.
    #[error("segments of {size} bytes behind {header} bytes of headers cannot be made of the frame")]
    BadSegments {
        /// What was asked for.
        size: u16,
        /// What was said of the headers.
        header: u16,
    },
    /// The checksum's place is not in the frame.
    #[error("the checksum at {offset} behind {start} is not in the frame")]
    BadChecksum {
        /// Where it begins.
        start: u16,
        /// Where it belongs, from there.
        offset: u16,
    },
}

impl FrameHeader {
    /// Reads what the guest says of a frame of `length` bytes, and checks all of it against that, against what the driver agreed
    /// to, and against the link's largest packet.
    ///
    /// # Errors
    ///
    /// What is wrong. Nothing may be done with such a frame.
    pub fn parse(bytes: &[u8; HEADER_SIZE], length: usize, agreed: Offloads, mtu: u16) -> Result<Self, HeaderError> {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (flags, kind, header, size, start, offset) = (bytes[0], bytes[1], word(2), word(4), word(6), word(8));
        if length < ETHERNET_HEADER {
            return Err(HeaderError::Short(length));
        }
        // A tag of a VLAN does not count.
        let longest = ETHERNET_HEADER + 4 + usize::from(mtu);
        if length > if kind == NONE { longest } else { MAX_FRAME } {
            return Err(HeaderError::Long(length));
        }
        let checksum = if flags & NEEDS_CHECKSUM != 0 {
            if !agreed.host_checksum {
                return Err(HeaderError::NotAgreed);
            }
            let end = usize::from(start) + usize::from(offset) + 2;
            if usize::from(start) < ETHERNET_HEADER || end > length {
                return Err(HeaderError::BadChecksum { start, offset });
            }
            Some(PartialChecksum { start, offset })
        } else {
            None
        };
        let segmented = match kind & !NOTED {
            NONE if kind == NONE => None,
            TCP4 => Some((Segmented::Tcp4, agreed.host_tcp4)),
            TCP6 => Some((Segmented::Tcp6, agreed.host_tcp6)),
            _ => return Err(HeaderError::UnknownSegmentation(kind)),
        };
        let segmentation = match segmented {
            None => None,
            // Each packet gets its own checksum (virtio 1.2, 5.1.6.2.2).
            Some((_, agreed)) if !agreed || checksum.is_none() => return Err(HeaderError::NotAgreed),
            Some((kind, _)) => {
                // The header's length is a hint: 0 says nothing.
                if size == 0 || usize::from(header) > length {
                    return Err(HeaderError::BadSegments { size, header });
                }
                Some(Segmentation { kind, header, size, noted: bytes[1] & NOTED != 0 })
            }
        };
        Ok(Self { checksum, segmentation })
    }

    /// The header before a frame that lies in `buffers` buffers.
    #[must_use]
    pub fn encode(&self, buffers: u16) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut word = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        word(10, buffers);
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            word(6, start);
            word(8, offset);
            bytes[0] = NEEDS_CHECKSUM;
        }
        let mut word = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        if let Some(Segmentation { kind, header, size, noted }) = self.segmentation {
            word(2, header);
            word(4, size);
            let kind = match kind {
                Segmented::Tcp4 => TCP4,
                Segmented::Tcp6 => TCP6,
            };
            bytes[1] = kind | if noted { NOTED } else { 0 };
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MTU: u16 = 1500;

    fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        (bytes[0], bytes[1]) = (flags, kind);
        for (index, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * index..4 + 2 * index].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8; HEADER_SIZE], length: usize) -> Result<FrameHeader, HeaderError> {
        FrameHeader::parse(bytes, length, Offloads::ALL, MTU)
    }

    #[test]
    fn test_a_header_comes_back_as_it_was_written() {
        let segmentation = Segmentation { kind: Segmented::Tcp6, header: 74, size: 1440, noted: true };
        let checksum = Some(PartialChecksum { start: 54, offset: 16 });
        let large = FrameHeader { checksum, segmentation: Some(segmentation) };
        assert_eq!(parse(&large.encode(3), 60_000), Ok(large));
        let small = FrameHeader { checksum, segmentation: None };
        assert_eq!(parse(&small.encode(1), 1514), Ok(small));
        assert_eq!(parse(&[0; HEADER_SIZE], 60), Ok(FrameHeader::default()));
    }

    /// Attack F2 5: frames of a header only, or longer than the link's.
    #[test]
    fn test_attack_5_lengths() {
        for length in 0..ETHERNET_HEADER {
            assert_eq!(parse(&[0; HEADER_SIZE], length), Err(HeaderError::Short(length)));
        }
        assert_eq!(parse(&[0; HEADER_SIZE], 1519), Err(HeaderError::Long(1519)));
        assert_eq!(parse(&header(1, 1, [54, 1460, 34, 16]), MAX_FRAME + 1), Err(HeaderError::Long(MAX_FRAME + 1)));
    }

    /// Attack F2 5: segments of no size, of no protocol, with headers beyond the frame, without a checksum.
    #[test]
    fn test_attack_5_segmentation() {
        for (kind, words, error) in [
            (1, [54, 0, 34, 16], HeaderError::BadSegments { size: 0, header: 54 }),
            (4, [6001, 1440, 54, 16], HeaderError::BadSegments { size: 1440, header: 6001 }),
            (3, [54, 1460, 34, 16], HeaderError::UnknownSegmentation(3)),
            (5, [54, 1460, 34, 16], HeaderError::UnknownSegmentation(5)),
            (0x80, [54, 1460, 34, 16], HeaderError::UnknownSegmentation(0x80)),
        ] {
            assert_eq!(parse(&header(1, kind, words), 6000), Err(error), "{kind}");
        }
        assert_eq!(parse(&header(0, 1, [54, 1460, 34, 16]), 6000), Err(HeaderError::NotAgreed));
    }

    /// Attack F2 5: a checksum outside of the frame, or over its Ethernet header.
    #[test]
    fn test_attack_5_checksum() {
        for (start, offset) in [(0, 16), (13, 0), (34, 65), (99, 0), (0xffff, 0xffff), (34, 0xffff)] {
            assert_eq!(
                parse(&header(1, 0, [0, 0, start, offset]), 100),
                Err(HeaderError::BadChecksum { start, offset })
            );
        }
        assert!(parse(&header(1, 0, [0, 0, 34, 64]), 100).is_ok());
    }

    #[test]
    fn test_only_what_was_agreed_to_is_taken() {
        let none = Offloads::default();
        assert_eq!(FrameHeader::parse(&header(1, 0, [0, 0, 34, 16]), 60, none, MTU), Err(HeaderError::NotAgreed));
        let checksum = Offloads { host_checksum: true, ..none };
        for kind in [1, 4] {
            let bytes = header(1, kind, [54, 1460, 34, 16]);
            assert_eq!(FrameHeader::parse(&bytes, 6000, checksum, MTU), Err(HeaderError::NotAgreed));
        }
    }

    proptest! {
        #[test]
        fn test_what_is_taken_is_inside_the_frame(bytes in any::<[u8; HEADER_SIZE]>(), length in 0usize..70_000) {
            if let Ok(header) = parse(&bytes, length) {
                prop_assert!((ETHERNET_HEADER..=MAX_FRAME).contains(&length));
                if let Some(PartialChecksum { start, offset }) = header.checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= length);
                }
                if let Some(segmentation) = header.segmentation {
                    prop_assert!(segmentation.size > 0 && header.checksum.is_some());
                }
                prop_assert_eq!(parse(&header.encode(1), length), Ok(header));
            }
        }
    }
}
