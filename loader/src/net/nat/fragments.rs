//! Parts of packets that the guest had to divide (RFC 791, 3.2; RFC 8200, 4.5), put together again within bounds.
//!
//! Parts that overlap or contradict each other spoil their packet: nobody sends them but who wants to deceive (RFC 5722).

use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use super::addresses::GATEWAY_MAC;
use super::packet::Fragment;
use super::packet::headers_len;
use super::packet::write_headers;

/// Most packets that wait for parts; a further one takes the place of the oldest. So no more than 1 MiB waits.
const MOST: usize = 16;
/// How long a packet waits for its parts (RFC 1122, 3.3.2, RFC 8200: 60 seconds; the link is local).
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of the unit in which parts begin.
const UNIT: usize = 8;
/// Most bytes behind an IP header.
const MOST_CONTENT: usize = 65_535;

/// What parts of one packet have in common.
type Key = (IpAddr, IpAddr, u8, u32);

#[derive(Debug)]
struct Incomplete {
    key: Key,
    began: Instant,
    content: Vec<u8>,
    /// First and last byte, and one, of what is there.
    parts: Vec<(usize, usize)>,
    /// How many bytes it has, once the last part said so.
    length: Option<usize>,
}

/// Packets that wait for parts.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    waiting: Vec<Incomplete>,
}

impl Fragments {
    /// Takes a part, and gives the frame of the packet if it was the last that was missing.
    pub(super) fn add(&mut self, fragment: &Fragment<'_>, now: Instant) -> Option<Vec<u8>> {
        self.waiting.retain(|packet| now.saturating_duration_since(packet.began) < PATIENCE);
        let key = (fragment.source, fragment.destination, fragment.protocol, fragment.identification);
        let index = match self.waiting.iter().position(|packet| packet.key == key) {
            Some(index) => index,
            None => {
                if self.waiting.len() == MOST {
                    self.waiting.remove(0);
                }
                let new = Incomplete { key, began: now, content: Vec::new(), parts: Vec::new(), length: None };
                self.waiting.push(new);
                self.waiting.len() - 1
            }
        };
        let packet = &mut self.waiting[index];
        match packet.add(fragment) {
            Some(false) => None,
            Some(true) => Some(self.waiting.remove(index).frame(fragment)),
            None => {
                self.waiting.remove(index);
                None
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

impl Incomplete {
    /// Adds a part and says whether the packet is whole; none if the part does not fit to the others.
    fn add(&mut self, fragment: &Fragment<'_>) -> Option<bool> {
        let start = usize::from(fragment.units) * UNIT;
        let end = start + fragment.content.len();
        let is_odd = fragment.more && !fragment.content.len().is_multiple_of(UNIT);
        if fragment.content.is_empty() || is_odd || end > MOST_CONTENT {
            return None;
        }
        if self.parts.iter().any(|&(from, to)| start < to && from < end) {
            return None;
        }
        if !fragment.more && self.length.replace(end).is_some() {
            return None;
        }
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[start..end].copy_from_slice(fragment.content);
        self.parts.push((start, end));
        match self.length {
            Some(length) if self.content.len() > length => None,
            // They do not overlap.
            Some(length) => Some(self.parts.iter().map(|(from, to)| to - from).sum::<usize>() == length),
            None => Some(false),
        }
    }

    /// The packet in one frame, as the guest would have sent it over a link that takes it.
    fn frame(&self, last: &Fragment<'_>) -> Vec<u8> {
        let headers = headers_len(last.source);
        let mut frame = vec![0; headers + self.content.len()];
        let length = self.content.len();
        write_headers(&mut frame, GATEWAY_MAC, last.source, last.destination, last.protocol, length);
        frame[6..12].copy_from_slice(&last.mac.0);
        frame[headers..].copy_from_slice(&self.content);
        frame
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::net::Mac;
    use crate::net::nat::packet;
    use crate::net::nat::packet::Packet;

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn ends(six: bool) -> (SocketAddr, SocketAddr) {
        let [guest, remote] =
            if six { ["[fd2e:91b7:6c04:2::9]:99", "[2001:db8::1]:7"] } else { ["10.0.2.15:99", "192.0.2.1:7"] };
        (guest.parse().unwrap(), remote.parse().unwrap())
    }

    /// A datagram's frames, as the guest sends them.
    fn divided(six: bool, payload: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
        let (guest, remote) = ends(six);
        let mut whole = packet::udp_frame(GATEWAY_MAC, guest, remote, payload);
        whole[6..12].copy_from_slice(&GUEST.0);
        packet::fragments(&whole, mtu, identification)
    }

    fn add(fragments: &mut Fragments, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        assert_eq!(Packet::parse(frame, false), Err(packet::PacketError::Fragment));
        fragments.add(&Fragment::parse(frame).unwrap(), now)
    }

    fn is_datagram(frame: &[u8], six: bool, payload: &[u8]) {
        let (source, destination) = ends(six);
        assert_eq!(Packet::parse(frame, false), Ok((GUEST, Packet::Udp { source, destination, payload })));
    }

    proptest! {
        #[test]
        fn test_what_was_divided_is_put_together(
            six in any::<bool>(), length in 1500_usize..65_000, mtu in 1280_u16..9000, keys in prop::collection::vec(any::<u32>(), 60)
        ) {
            let payload: Vec<u8> = (0..length).map(|index| (index * 7 / 5).to_le_bytes()[0]).collect();
            let mut frames: Vec<(u32, Vec<u8>)> = keys.into_iter().zip(divided(six, &payload, mtu, 77)).collect();
            prop_assume!(frames.len() > 1 && frames.len() < 60);
            // In any order.
            frames.sort();
            let (mut fragments, now) = (Fragments::default(), Instant::now());
            let last = frames.len() - 1;
            for (index, (_, frame)) in frames.iter().enumerate() {
                let whole = add(&mut fragments, frame, now);
                prop_assert_eq!(whole.is_some(), index == last);
                if let Some(whole) = whole {
                    is_datagram(&whole, six, &payload);
                }
            }
            prop_assert!(fragments.waiting.is_empty());
        }

        #[test]
        fn test_attack_any_parts(parts in prop::collection::vec((0_u16..8192, 0_usize..1500, any::<bool>(), 0_u32..20), 1..200)) {
            let (mut fragments, now) = (Fragments::default(), Instant::now());
            let bytes = [5; 1500];
            for (units, length, more, identification) in parts {
                let (guest, remote) = ends(false);
                let (source, destination) = (guest.ip(), remote.ip());
                let content = &bytes[..length];
                let part = Fragment { mac: GUEST, source, destination, protocol: 17, identification, units, more, content };
                if let Some(frame) = fragments.add(&part, now) {
                    prop_assert!(frame.len() <= headers_len(source) + MOST_CONTENT);
                }
                prop_assert!(fragments.waiting.len() <= MOST);
                prop_assert!(fragments.waiting.iter().all(|packet| packet.content.len() <= MOST_CONTENT));
            }
        }
    }

    /// Parts that lie over each other (as in the attack "teardrop"), twice the last one, and one behind the last.
    #[test]
    fn test_attack_parts_that_contradict_each_other() {
        let now = Instant::now();
        let payload = [3; 4000];
        let frames = divided(false, &payload, 1500, 1);
        for (change, expected) in [(0_u16, true), (1, false)] {
            let mut fragments = Fragments::default();
            let mut results = Vec::new();
            for (index, frame) in frames.iter().enumerate() {
                let mut part = Fragment::parse(frame).unwrap();
                part.units -= if index == 1 { change } else { 0 };
                results.push(fragments.add(&part, now).is_some());
            }
            assert_eq!(results.last(), Some(&expected));
        }
        let mut fragments = Fragments::default();
        let last = Fragment::parse(frames.last().unwrap()).unwrap();
        assert!(fragments.add(&last, now).is_none() && fragments.waiting.len() == 1);
        let behind = Fragment { units: last.units + 500, more: true, content: &payload[..8], ..last };
        assert!(fragments.add(&behind, now).is_none() && fragments.waiting.is_empty());
    }

    #[test]
    fn test_parts_wait_for_a_while_only() {
        let began = Instant::now();
        let payload = [3; 2000];
        let frames = divided(true, &payload, 1500, 1);
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, &frames[0], began), None);
        assert_eq!(add(&mut fragments, &frames[1], began + PATIENCE), None);
        // The new ones take the place of the old ones.
        for identification in 2..40 {
            let frames = divided(true, &payload, 1500, identification);
            assert_eq!(add(&mut fragments, &frames[0], began), None);
        }
        assert_eq!(fragments.waiting.len(), MOST);
        let frames = divided(true, &payload, 1500, 39);
        is_datagram(&add(&mut fragments, &frames[1], began).unwrap(), true, &payload);
    }
}
