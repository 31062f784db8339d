//! A DHCP server (RFC 2131, RFC 2132) for one guest, which always gets the same address.

use std::net::Ipv4Addr;

use crate::net::Mac;

/// The ports of servers and clients.
pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;

/// Bytes of a message before its options: the fields of BOOTP, and the magic number (RFC 2131, 2).
const FIELDS: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Least bytes of a message that old clients take (RFC 1542, 2.1).
const LEAST: usize = 300;
/// `op`: a request, a reply.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Ethernet, and the bytes of its addresses.
const ETHERNET: [u8; 2] = [1, 6];
/// How long a lease lasts: as long as anybody looks.
const LEASE: u32 = 86_400;

/// Options (RFC 2132).
mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const NETMASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const ADDRESS: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const END: u8 = 255;
}

/// Kinds of messages that matter here (RFC 2132, 9.6).
mod kind {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const INFORM: u8 = 8;
}

/// A client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    kind: u8,
    transaction: [u8; 4],
    flags: [u8; 2],
    /// The address that the client has.
    current: Ipv4Addr,
    mac: Mac,
    /// The address that it wants.
    wanted: Option<Ipv4Addr>,
    /// The server that it means.
    server: Option<Ipv4Addr>,
}

/// What the server gives.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The server, which is the router as well.
    pub server: Ipv4Addr,
    /// The client's address.
    pub client: Ipv4Addr,
    /// The network's mask.
    pub netmask: Ipv4Addr,
    /// The resolver.
    pub dns: Ipv4Addr,
    /// The largest packet.
    pub mtu: u16,
}

impl Message {
    /// The message in a datagram, or none.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (fields, rest) = datagram.split_first_chunk::<FIELDS>()?;
        let mut options = rest.strip_prefix(&MAGIC)?;
        if fields[0] != REQUEST || fields[1..3] != ETHERNET {
            return None;
        }
        let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
        let (mut kind, mut wanted, mut server) = (None, None, None);
        // Some messages have no end; an option that is cut off is.
        while let Some((&code, rest)) = options.split_first() {
            match code {
                option::PAD => {
                    options = rest;
                    continue;
                }
                option::END => break,
                _ => {}
            }
            let (&length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(length.into())?;
            match code {
                option::KIND => kind = Some(*value.first()?),
                option::ADDRESS => wanted = Some(address(value)?),
                option::SERVER => server = Some(address(value)?),
                _ => {}
            }
            options = rest;
        }
        let mac = Mac(*fields[28..].first_chunk()?);
        if mac.is_group() {
            return None;
        }
        Some(Self {
            kind: kind?,
            transaction: *fields[4..].first_chunk()?,
            flags: *fields[10..].first_chunk()?,
            current: address(&fields[12..16])?,
            mac,
            wanted,
            server,
        })
    }

    /// The client's Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The answer, if there is one to it.
    #[must_use]
    pub fn answer(&self, settings: &Settings) -> Option<Vec<u8>> {
        match self.kind {
            kind::DISCOVER => Some(self.reply(kind::OFFER, settings)),
            // It chose another server.
            kind::REQUEST if self.server.is_some_and(|server| server != settings.server) => None,
            kind::REQUEST => {
                let wanted = self.wanted.unwrap_or(self.current);
                Some(self.reply(if wanted == settings.client { kind::ACK } else { kind::NAK }, settings))
            }
            kind::INFORM => Some(self.reply(kind::ACK, settings)),
            _ => None,
        }
    }

    fn reply(&self, answer: u8, settings: &Settings) -> Vec<u8> {
        let mut bytes = vec![0; FIELDS];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0, &[REPLY]);
        set(1, &ETHERNET);
        set(4, &self.transaction);
        set(10, &self.flags);
        // A client that has an address, and asks for the rest, keeps it (RFC 2131, 4.3.5).
        let informed = self.kind == kind::INFORM;
        if answer != kind::NAK {
            set(12, &self.current.octets());
            if !informed {
                set(16, &settings.client.octets());
            }
            set(20, &settings.server.octets());
        }
        set(28, &self.mac.0);
        bytes.extend(MAGIC);
        let mut add = |code: u8, value: &[u8]| {
            bytes.push(code);
            bytes.push(u8::try_from(value.len()).unwrap_or(0));
            bytes.extend(value);
        };
        add(option::KIND, &[answer]);
        add(option::SERVER, &settings.server.octets());
        if answer != kind::NAK {
            if !informed {
                add(option::LEASE, &LEASE.to_be_bytes());
            }
            add(option::NETMASK, &settings.netmask.octets());
            add(option::ROUTER, &settings.server.octets());
            add(option::DNS, &settings.dns.octets());
            add(option::MTU, &settings.mtu.to_be_bytes());
        }
        bytes.push(option::END);
        if bytes.len() < LEAST {
            bytes.resize(LEAST, option::PAD);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings {
        server: Ipv4Addr::new(10, 0, 2, 2),
        client: Ipv4Addr::new(10, 0, 2, 15),
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        dns: Ipv4Addr::new(10, 0, 2, 3),
        mtu: 1500,
    };

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIELDS];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        bytes.extend(MAGIC);
        bytes.extend(options);
        bytes
    }

    fn answer(options: &[u8]) -> Option<Vec<u8>> {
        Message::parse(&message(options))?.answer(&SETTINGS)
    }

    #[test]
    fn test_an_address_is_offered_and_given() {
        let offer = answer(&[53, 1, 1, 255]).unwrap();
        assert_eq!((offer[0], &offer[4..8], &offer[16..20]), (2, &[1, 2, 3, 4][..], &[10, 0, 2, 15][..]));
        assert_eq!(&offer[240..243], [53, 1, 2]);
        assert!(offer.len() >= 300);
        let ack = answer(&[53, 1, 3, 0, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2, 255]).unwrap();
        assert_eq!(&ack[240..243], [53, 1, 5]);
        let nak = answer(&[53, 1, 3, 50, 4, 192, 168, 0, 9]).unwrap();
        assert_eq!((&nak[240..243], &nak[16..20]), (&[53, 1, 6][..], &[0, 0, 0, 0][..]));
        assert_eq!(answer(&[53, 1, 3, 54, 4, 10, 0, 2, 9]), None);
        assert_eq!(answer(&[53, 1, 7]), None);
        assert_eq!(&answer(&[53, 1, 8]).unwrap()[16..20], [0; 4]);
    }

    #[test]
    fn test_attack_options() {
        for options in [
            &[][..],
            &[53],
            &[53, 0],
            &[53, 2, 1],
            &[53, 1, 1, 50],
            &[53, 1, 1, 50, 3, 1, 2, 3],
            &[53, 1, 3, 54, 255, 1],
        ] {
            assert_eq!(answer(options), None, "{options:?}");
        }
        let whole = message(&[53, 1, 1, 255]);
        for end in 0..242 {
            assert_eq!(Message::parse(&whole[..end]), None);
        }
        let mut group = whole.clone();
        group[28] = 0xff;
        assert_eq!(Message::parse(&group), None);
    }

    proptest! {
        #[test]
        fn test_anything_is_survived(options in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = answer(&options);
        }
    }
}
