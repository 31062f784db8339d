//! TCP segments (RFC 9293, 3.1).

use smoltcp::wire::TcpOption;
use smoltcp::wire::TcpPacket;

use crate::net::nat::packet::add;
use crate::net::nat::packet::fold;
use crate::net::nat::packet::pseudo_header;
use std::net::SocketAddr;

/// Bytes of the header without options.
pub(super) const HEADER: usize = 20;
/// Where the checksum is in it.
pub(super) const CHECKSUM_AT: u16 = 16;
/// Bytes of the options that a SYN of ours has.
const SYN_OPTIONS: usize = 8;
/// Largest shift of a window (RFC 7323, 2.3).
const MOST_SCALE: u8 = 14;

/// Flags of the header.
mod flag {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const PSH: u8 = 8;
    pub(super) const ACK: u8 = 16;
}

/// A segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// The next byte that the sender expects.
    pub acknowledgement: Option<u32>,
    /// How many bytes may come, not yet shifted.
    pub window: u16,
    /// Begins a connection.
    pub syn: bool,
    /// The sender's last.
    pub fin: bool,
    /// There is no such connection.
    pub rst: bool,
    /// The receiver's program shall have it now.
    pub psh: bool,
    /// Most bytes that the sender takes in one, on a SYN.
    pub mss: Option<u16>,
    /// How far the sender's windows are to be shifted, on a SYN.
    pub scale: Option<u8>,
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Takes a segment apart, and gives its ports as well. None if it is none.
    pub(in super::super) fn parse(content: &'a [u8]) -> Option<((u16, u16), Self)> {
        let packet = TcpPacket::new_checked(content).ok()?;
        let (source, destination) = (packet.src_port(), packet.dst_port());
        if source == 0 || destination == 0 {
            return None;
        }
        let (mut mss, mut scale) = (None, None);
        let mut options = packet.options();
        while packet.syn() && !options.is_empty() {
            // Options behind one that is none say nothing.
            let Ok((rest, option)) = TcpOption::parse(options) else { break };
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(size) => mss = Some(size),
                TcpOption::WindowScale(shift) => scale = Some(shift.min(MOST_SCALE)),
                _ => {}
            }
            options = rest;
        }
        let segment = Self {
            sequence: packet.seq_number().0.cast_unsigned(),
            acknowledgement: packet.ack().then(|| packet.ack_number().0.cast_unsigned()),
            window: packet.window_len(),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            psh: packet.psh(),
            mss,
            scale,
            payload: packet.payload(),
        };
        Some(((source, destination), segment))
    }

    /// Sequence numbers that it takes.
    pub(in super::super) fn length(&self) -> u32 {
        u32::try_from(self.payload.len()).unwrap_or(0) + u32::from(self.syn) + u32::from(self.fin)
    }

    /// Bytes of its header.
    pub(super) fn header_len(&self) -> usize {
        HEADER + if self.syn { SYN_OPTIONS } else { 0 }
    }

    /// Writes the header into `bytes`, with the sum of the pseudo-header in the checksum's place; `length` is that of the data, in
    /// `payload` or elsewhere. Gives the header's bytes.
    pub(super) fn write(&self, bytes: &mut [u8], from: SocketAddr, to: SocketAddr, length: usize) -> usize {
        let header = self.header_len();
        bytes[..2].copy_from_slice(&from.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
        bytes[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.acknowledgement.unwrap_or(0).to_be_bytes());
        // The header's length in words of 32 bits.
        bytes[12] = if self.syn { 7 << 4 } else { 5 << 4 };
        bytes[13] = [
            (self.fin, flag::FIN),
            (self.syn, flag::SYN),
            (self.rst, flag::RST),
            (self.psh, flag::PSH),
            (self.acknowledgement.is_some(), flag::ACK),
        ]
        .into_iter()
        .fold(0, |flags, (set, flag)| if set { flags | flag } else { flags });
        bytes[14..16].copy_from_slice(&self.window.to_be_bytes());
        let sum = fold(pseudo_header(from.ip(), to.ip(), super::super::packet::TCP, header + length));
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes[18..20].fill(0);
        if self.syn {
            let [high, low] = self.mss.unwrap_or(0).to_be_bytes();
            // Kind 2 is the size of segments; kind 3, behind one byte of padding, the windows' scale. Without one of the latter the
            // place is padding.
            bytes[20..24].copy_from_slice(&[2, 4, high, low]);
            let scale = self.scale.map_or([1, 1, 1, 1], |scale| [1, 3, 3, scale]);
            bytes[24..28].copy_from_slice(&scale);
        }
        header
    }

    /// Completes the checksum of a header that [`Segment::write`] wrote, for the data in `payload`.
    pub(super) fn complete(header: &mut [u8], payload: [&[u8]; 2]) {
        let mut sum = add(0, header);
        let mut shifted = false;
        for part in payload {
            // A part behind an odd number of bytes counts with its bytes changed over (RFC 1071, 2).
            let own = fold(add(0, part));
            sum += u64::from(if shifted { own.swap_bytes() } else { own });
            shifted ^= part.len() % 2 == 1;
        }
        let sum = !fold(sum);
        header[16..18].copy_from_slice(&sum.to_be_bytes());
    }

    /// The answer to a segment that belongs to no connection (RFC 9293, 3.10.7.1); none to a reset.
    pub(in super::super) fn refusal(&self) -> Option<Segment<'static>> {
        if self.rst {
            return None;
        }
        let reset = Segment { rst: true, ..Segment::default() };
        Some(match self.acknowledgement {
            Some(acknowledgement) => Segment { sequence: acknowledgement, ..reset },
            None => Segment { acknowledgement: Some(self.sequence.wrapping_add(self.length())), ..reset },
        })
    }

    /// A frame without data.
    pub(in super::super) fn frame(&self, mac: crate::net::Mac, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let mut bytes = [0; HEADER + SYN_OPTIONS];
        let length = self.write(&mut bytes, from, to, 0);
        super::super::packet::frame(mac, from.ip(), to.ip(), super::super::packet::TCP, &bytes[..length], 16)
    }
}

/// Whether a sequence number comes before another one.
pub(super) fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nat::packet::TCP;
    use crate::net::nat::packet::transport_sum;
    use proptest::prelude::*;

    proptest! {
        /// What is written is read again, and its checksum is right however the data is cut.
        #[test]
        fn test_a_segment_comes_back(
            sequence in any::<u32>(),
            acknowledgement in any::<Option<u32>>(),
            window in any::<u16>(),
            flags in any::<[bool; 4]>(),
            options in any::<(u16, Option<u8>)>(),
            payload in prop::collection::vec(any::<u8>(), 0..100),
            cut in 0usize..100,
            six in any::<bool>(),
        ) {
            let [syn, fin, rst, psh] = flags;
            let (mss, scale) = if syn { (Some(options.0), options.1.map(|scale| scale % 15)) } else { (None, None) };
            let segment =
                Segment { sequence, acknowledgement, window, syn, fin, rst, psh, mss, scale, payload: &payload };
            let (from, to): (SocketAddr, SocketAddr) = if six {
                ("[2001:db8::1]:80".parse().unwrap(), "[2001:db8::2]:81".parse().unwrap())
            } else {
                ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:81".parse().unwrap())
            };
            let mut bytes = [0; 28];
            let header = segment.write(&mut bytes, from, to, payload.len());
            let (first, second) = payload.split_at(cut.min(payload.len()));
            Segment::complete(&mut bytes[..header], [first, second]);
            let mut content = bytes[..header].to_vec();
            content.extend(&payload);
            prop_assert_eq!(transport_sum(from.ip(), to.ip(), TCP, &content), 0);
            prop_assert_eq!(Segment::parse(&content), Some(((80, 81), segment)));
        }

        #[test]
        fn test_anything_is_survived(content in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Segment::parse(&content);
        }
    }

    #[test]
    fn test_numbers_wrap_around() {
        assert!(before(u32::MAX, 0) && !before(0, u32::MAX) && !before(5, 5));
    }

    #[test]
    fn test_a_refusal_is_what_the_sender_takes() {
        let syn = Segment { sequence: 7, syn: true, ..Segment::default() };
        let refusal = syn.refusal().unwrap();
        assert_eq!((refusal.sequence, refusal.acknowledgement, refusal.rst), (0, Some(8), true));
        let data = Segment { sequence: 7, acknowledgement: Some(9), payload: b"x", ..Segment::default() };
        assert_eq!(data.refusal().unwrap().sequence, 9);
        assert_eq!(refusal.refusal(), None);
    }
}
