//! Frames of the guest's, taken apart and checked completely before anything is done; and headers for frames to it.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use smoltcp::wire::ArpOperation;
use smoltcp::wire::ArpPacket;
use smoltcp::wire::ArpRepr;
use smoltcp::wire::EthernetFrame;
use smoltcp::wire::EthernetProtocol;
use smoltcp::wire::Icmpv4Message;
use smoltcp::wire::Icmpv4Packet;
use smoltcp::wire::IpProtocol;
use smoltcp::wire::Ipv4Packet;
use smoltcp::wire::Ipv6Packet;
use smoltcp::wire::UdpPacket;
use thiserror::Error;

use super::tcp::Segment;
use crate::net::ETHERNET_HEADER;
use crate::net::Mac;

/// Protocol numbers (IANA).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP6: u8 = 58;

/// Kinds of Ethernet frames.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bytes of IP headers as we write them, and of UDP's.
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
pub(super) const UDP_HEADER: usize = 8;
/// Bytes of an ICMP header, of either version.
const ICMP_HEADER: usize = 8;
/// Routers a packet of ours may pass: the usual number.
const HOP_LIMIT: u8 = 64;
/// What neighbour discovery must arrive with (RFC 4861, 7.1.1).
const NEIGHBOUR_HOP_LIMIT: u8 = 255;

/// ICMPv6 messages (RFC 4443, RFC 4861).
pub(super) const ECHO_REQUEST6: u8 = 128;
pub(super) const ECHO_REPLY6: u8 = 129;
const ROUTER_SOLICIT: u8 = 133;
const NEIGHBOUR_SOLICIT: u8 = 135;

/// Why nothing is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PacketError {
    /// Cut off, or lengths that contradict each other.
    #[error("a packet is shorter than it says")]
    Malformed,
    /// Damaged.
    #[error("a packet's checksum is wrong")]
    Checksum,
    /// Part of a packet.
    #[error("a packet is in fragments")]
    Fragment,
    /// For somebody else, or from nobody.
    #[error("a frame is not for the gateway, or from a group")]
    Address,
    /// A protocol that a NAT does nothing with.
    #[error("a packet's protocol is none that is passed on")]
    Unknown,
}

/// A packet of the guest's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packet<'a> {
    /// Who has an IPv4 address?
    WhoHas {
        /// Who asks.
        source: Ipv4Addr,
        /// The address.
        target: Ipv4Addr,
    },
    /// Who has an IPv6 address?
    NeighbourSolicit {
        /// Who asks; nobody, if it wants to have the address itself.
        source: Ipv6Addr,
        /// The address.
        target: Ipv6Addr,
    },
    /// Which routers are there?
    RouterSolicit,
    /// TCP.
    Tcp {
        /// From.
        source: SocketAddr,
        /// To.
        destination: SocketAddr,
        /// The segment.
        segment: Segment<'a>,
    },
    /// UDP.
    Udp {
        /// From.
        source: SocketAddr,
        /// To.
        destination: SocketAddr,
        /// The datagram.
        payload: &'a [u8],
    },
    /// An echo request.
    Echo {
        /// From.
        source: IpAddr,
        /// To.
        destination: IpAddr,
        /// The program that asks.
        ident: u16,
        /// Which request of its.
        sequence: u16,
        /// To be sent back.
        payload: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// Takes a frame apart; `trusted` is that the checksum of its TCP or UDP is left to us. Gives the sender's address as well.
    ///
    /// # Errors
    ///
    /// What is wrong: then nothing is done with it.
    pub fn parse(frame: &'a [u8], trusted: bool) -> Result<(Mac, Self), PacketError> {
        let ethernet = EthernetFrame::new_checked(frame).map_err(|_| PacketError::Malformed)?;
        let (source, destination) = (Mac(ethernet.src_addr().0), Mac(ethernet.dst_addr().0));
        if source.is_group() || !(destination.is_group() || destination == super::addresses::GATEWAY_MAC) {
            return Err(PacketError::Address);
        }
        let payload = ethernet.payload();
        let packet = match ethernet.ethertype() {
            EthernetProtocol::Arp => Self::arp(payload)?,
            EthernetProtocol::Ipv4 => Self::ipv4(payload, trusted)?,
            EthernetProtocol::Ipv6 => Self::ipv6(payload, trusted)?,
            EthernetProtocol::Unknown(_) => return Err(PacketError::Unknown),
        };
        Ok((source, packet))
    }

    fn arp(payload: &'a [u8]) -> Result<Self, PacketError> {
        let packet = ArpPacket::new_checked(payload).map_err(|_| PacketError::Malformed)?;
        match ArpRepr::parse(&packet) {
            Ok(ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_protocol_addr: source,
                target_protocol_addr: target,
                ..
            }) => Ok(Self::WhoHas { source, target }),
            Ok(_) => Err(PacketError::Unknown),
            Err(_) => Err(PacketError::Malformed),
        }
    }

    fn ipv4(payload: &'a [u8], trusted: bool) -> Result<Self, PacketError> {
        let ip = Ipv4Packet::new_checked(payload).map_err(|_| PacketError::Malformed)?;
        if ip.version() != 4 || usize::from(ip.header_len()) < IPV4_HEADER {
            return Err(PacketError::Malformed);
        }
        if !ip.verify_checksum() {
            return Err(PacketError::Checksum);
        }
        if ip.more_frags() || ip.frag_offset() != 0 {
            return Err(PacketError::Fragment);
        }
        let (source, destination) = (IpAddr::V4(ip.src_addr()), IpAddr::V4(ip.dst_addr()));
        match ip.next_header() {
            IpProtocol::Icmp => {
                let icmp = Icmpv4Packet::new_checked(ip.payload()).map_err(|_| PacketError::Malformed)?;
                if icmp.msg_type() != Icmpv4Message::EchoRequest {
                    return Err(PacketError::Unknown);
                }
                if ip.payload().len() < ICMP_HEADER {
                    return Err(PacketError::Malformed);
                }
                if !icmp.verify_checksum() {
                    return Err(PacketError::Checksum);
                }
                let (ident, sequence) = (icmp.echo_ident(), icmp.echo_seq_no());
                Ok(Self::Echo { source, destination, ident, sequence, payload: icmp.data() })
            }
            IpProtocol::Tcp => Self::tcp(source, destination, ip.payload(), trusted),
            IpProtocol::Udp => Self::udp(source, destination, ip.payload(), trusted),
            _ => Err(PacketError::Unknown),
        }
    }

    fn ipv6(payload: &'a [u8], trusted: bool) -> Result<Self, PacketError> {
        let ip = Ipv6Packet::new_checked(payload).map_err(|_| PacketError::Malformed)?;
        if ip.version() != 6 {
            return Err(PacketError::Malformed);
        }
        let (source, destination) = (ip.src_addr(), ip.dst_addr());
        let content = ip.payload();
        match ip.next_header() {
            IpProtocol::Icmpv6 => {
                if transport_sum(source.into(), destination.into(), ICMP6, content) != 0 {
                    return Err(PacketError::Checksum);
                }
                Self::icmpv6(source, destination, content, ip.hop_limit())
            }
            IpProtocol::Tcp => Self::tcp(source.into(), destination.into(), content, trusted),
            IpProtocol::Udp => Self::udp(source.into(), destination.into(), content, trusted),
            IpProtocol::Ipv6Frag => Err(PacketError::Fragment),
            _ => Err(PacketError::Unknown),
        }
    }

    fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, content: &'a [u8], hops: u8) -> Result<Self, PacketError> {
        let (header, payload) = content.split_at_checked(ICMP_HEADER).ok_or(PacketError::Malformed)?;
        match header[0] {
            ECHO_REQUEST6 => Ok(Self::Echo {
                source: source.into(),
                destination: destination.into(),
                ident: u16::from_be_bytes([header[4], header[5]]),
                sequence: u16::from_be_bytes([header[6], header[7]]),
                payload,
            }),
            // What came from elsewhere than the link is forged.
            ROUTER_SOLICIT | NEIGHBOUR_SOLICIT if hops != NEIGHBOUR_HOP_LIMIT => Err(PacketError::Address),
            ROUTER_SOLICIT => Ok(Self::RouterSolicit),
            NEIGHBOUR_SOLICIT => {
                let target: [u8; 16] = *payload.first_chunk().ok_or(PacketError::Malformed)?;
                Ok(Self::NeighbourSolicit { source, target: target.into() })
            }
            _ => Err(PacketError::Unknown),
        }
    }

    fn tcp(source: IpAddr, destination: IpAddr, content: &'a [u8], trusted: bool) -> Result<Self, PacketError> {
        if !trusted && transport_sum(source, destination, TCP, content) != 0 {
            return Err(PacketError::Checksum);
        }
        let (ports, segment) = Segment::parse(content).ok_or(PacketError::Malformed)?;
        let (source, destination) = (SocketAddr::new(source, ports.0), SocketAddr::new(destination, ports.1));
        Ok(Self::Tcp { source, destination, segment })
    }

    fn udp(source: IpAddr, destination: IpAddr, content: &'a [u8], trusted: bool) -> Result<Self, PacketError> {
        let udp = UdpPacket::new_checked(content).map_err(|_| PacketError::Malformed)?;
        let (source_port, destination_port) = (udp.src_port(), udp.dst_port());
        if source_port == 0 || destination_port == 0 {
            return Err(PacketError::Malformed);
        }
        // Over IPv4 a checksum of 0 is none (RFC 768).
        let none = udp.checksum() == 0 && source.is_ipv4();
        let datagram = &content[..usize::from(udp.len())];
        if !trusted && !none && transport_sum(source, destination, UDP, datagram) != 0 {
            return Err(PacketError::Checksum);
        }
        let (source, destination) =
            (SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port));
        Ok(Self::Udp { source, destination, payload: &datagram[UDP_HEADER..] })
    }
}

/// Adds `bytes` to an Internet checksum (RFC 1071), of which they are a part that begins at an even place.
pub(super) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, word| sum + u64::from(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// A sum as the checksum's 16 bits, not yet inverted.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop ends below.
    u16::try_from(sum).unwrap_or(0)
}

/// The sum of the pseudo-header of a packet of `length` bytes (RFC 9293, 3.1; RFC 8200, 8.1).
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let sum = u64::from(protocol) + length as u64;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => add(add(sum, &source.octets()), &destination.octets()),
        (source, destination) => add(add(sum, &six(source).octets()), &six(destination).octets()),
    }
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The checksum over `content` and its pseudo-header: 0 if the one that is in it is right, and else what would be right if it is 0.
pub(super) fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, content: &[u8]) -> u16 {
    !fold(add(pseudo_header(source, destination, protocol, content.len()), content))
}

/// Writes Ethernet and IP headers for `length` bytes of `protocol` into `bytes`, and gives how many bytes they are.
pub(super) fn write_headers(
    bytes: &mut [u8],
    to: Mac,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> usize {
    // What neighbour discovery must have does ICMPv6's other messages no harm.
    let hops = if protocol == ICMP6 { NEIGHBOUR_HOP_LIMIT } else { HOP_LIMIT };
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&super::addresses::GATEWAY_MAC.0);
    let (kind, ip) = bytes[12..].split_at_mut(2);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            kind.copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
            let total = u16::try_from(IPV4_HEADER + length).unwrap_or(u16::MAX);
            // Version and length; no fragments (RFC 6864: then the identification says nothing).
            ip[..IPV4_HEADER].fill(0);
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[6] = 0x40;
            (ip[8], ip[9]) = (hops, protocol);
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            let sum = !fold(add(0, &ip[..IPV4_HEADER]));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ETHERNET_HEADER + IPV4_HEADER
        }
        _ => {
            kind.copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
            ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            ip[4..6].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
            (ip[6], ip[7]) = (protocol, hops);
            ip[8..24].copy_from_slice(&six(source).octets());
            ip[24..40].copy_from_slice(&six(destination).octets());
            ETHERNET_HEADER + IPV6_HEADER
        }
    }
}

/// Bytes of the headers up to IP's.
pub(super) fn headers_len(address: IpAddr) -> usize {
    ETHERNET_HEADER + if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// A whole frame with `content`, whose checksum at `sum_at` is made.
pub(super) fn frame(
    to: Mac,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    content: &[u8],
    sum_at: usize,
) -> Vec<u8> {
    let headers = headers_len(source);
    let mut bytes = vec![0; headers + content.len()];
    write_headers(&mut bytes, to, source, destination, protocol, content.len());
    let body = &mut bytes[headers..];
    body.copy_from_slice(content);
    body[sum_at..sum_at + 2].fill(0);
    let sum = match protocol {
        ICMP => !fold(add(0, body)),
        _ => transport_sum(source, destination, protocol, body),
    };
    // 0 would say that there is none (RFC 768).
    let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
    body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A datagram.
pub(super) fn udp_frame(to: Mac, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(UDP_HEADER + payload.len());
    content.extend(source.port().to_be_bytes());
    content.extend(destination.port().to_be_bytes());
    content.extend(u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    content.extend([0, 0]);
    content.extend(payload);
    frame(to, source.ip(), destination.ip(), UDP, &content, 6)
}

/// IPv4's flag that there are more fragments, and IPv6's header of one (RFC 8200, 4.5).
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_HEADER: usize = 8;
const IPV6_FRAGMENT: u8 = 44;

/// Divides a frame of [`udp_frame`]'s, whose packet is larger than the link's, into fragments (RFC 791, 3.2; RFC 8200, 4.5), with an
/// identification that none shortly before had.
pub(super) fn fragments(frame: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
    let four = frame[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    let (headers, extra) =
        if four { (ETHERNET_HEADER + IPV4_HEADER, 0) } else { (ETHERNET_HEADER + IPV6_HEADER, FRAGMENT_HEADER) };
    let content = &frame[headers..];
    // Fragments begin at whole units of eight bytes.
    let most = (usize::from(mtu) + ETHERNET_HEADER - headers - extra) & !7;
    let count = content.len().div_ceil(most);
    let fragment = |(index, part): (usize, &[u8])| {
        let more = index + 1 < count;
        let units = u16::try_from(index * most / 8).unwrap_or(0);
        let mut bytes = frame[..headers].to_vec();
        let ip = &mut bytes[ETHERNET_HEADER..];
        if four {
            let total = u16::try_from(IPV4_HEADER + part.len()).unwrap_or(u16::MAX);
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes()[2..]);
            ip[6..8].copy_from_slice(&(units | if more { MORE_FRAGMENTS } else { 0 }).to_be_bytes());
            ip[10..12].fill(0);
            let sum = !fold(add(0, ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = u16::try_from(FRAGMENT_HEADER + part.len()).unwrap_or(u16::MAX);
            ip[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut ip[6], IPV6_FRAGMENT);
            bytes.extend([next, 0]);
            bytes.extend((units << 3 | u16::from(more)).to_be_bytes());
            bytes.extend(identification.to_be_bytes());
        }
        bytes.extend(part);
        bytes
    };
    content.chunks(most).enumerate().map(fragment).collect()
}

/// An echo's reply.
pub(super) fn echo_reply(
    to: Mac,
    source: IpAddr,
    destination: IpAddr,
    ident: u16,
    sequence: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (kind, protocol) = if source.is_ipv4() { (0, ICMP) } else { (ECHO_REPLY6, ICMP6) };
    let mut content = vec![kind, 0, 0, 0];
    content.extend(ident.to_be_bytes());
    content.extend(sequence.to_be_bytes());
    content.extend(payload);
    frame(to, source, destination, protocol, &content, 2)
}

/// Part of a packet of the guest's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fragment<'a> {
    pub(super) mac: Mac,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Which packet's.
    pub(super) identification: u32,
    /// Where it begins in what is behind the header, in units of eight bytes.
    pub(super) units: u16,
    /// It is not the last.
    pub(super) more: bool,
    pub(super) content: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Takes a frame apart of which [`Packet::parse`] said that it has part of a packet.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let mac = Mac(ethernet.src_addr().0);
        if ethernet.ethertype() == EthernetProtocol::Ipv4 {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            return Some(Self {
                mac,
                source: ip.src_addr().into(),
                destination: ip.dst_addr().into(),
                protocol: ip.next_header().into(),
                identification: ip.ident().into(),
                units: ip.frag_offset() / 8,
                more: ip.more_frags(),
                content: ip.payload(),
            });
        }
        let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
        let (header, content) = ip.payload().split_first_chunk::<FRAGMENT_HEADER>()?;
        let place = u16::from_be_bytes([header[2], header[3]]);
        Some(Self {
            mac,
            source: ip.src_addr().into(),
            destination: ip.dst_addr().into(),
            protocol: header[0],
            identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            units: place >> 3,
            more: place & 1 != 0,
            content,
        })
    }
}

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// There is no way to it.
    Network,
    /// It does not answer.
    Host,
    /// Nobody listens at the port.
    Port,
    /// The way is forbidden.
    Forbidden,
}

impl Unreachable {
    /// The code for ICMP (RFC 792, RFC 1812 5.2.7.1) and ICMPv6 (RFC 4443, 3.1).
    fn code(self, four: bool) -> u8 {
        match (self, four) {
            (Self::Network, _) => 0,
            (Self::Host, true) | (Self::Forbidden, false) => 1,
            (Self::Host, false) | (Self::Port, true) => 3,
            (Self::Port, false) => 4,
            (Self::Forbidden, true) => 13,
        }
    }
}

/// What the guest sent and did not arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    /// Its first bytes behind the IP header: what the guest's stack needs to know whose it was.
    pub(super) begin: [u8; 8],
    /// How many bytes it had there.
    pub(super) length: usize,
}

/// Tells the guest that what it sent did not arrive.
pub(super) fn unreachable_frame(to: Mac, gateway: IpAddr, sent: &Sent, reason: Unreachable) -> Vec<u8> {
    let mut packet = vec![0; headers_len(sent.from)];
    write_headers(&mut packet, to, sent.from, sent.to, sent.protocol, sent.length);
    let four = sent.from.is_ipv4();
    let (kind, protocol) = if four { (3, ICMP) } else { (1, ICMP6) };
    let mut content = vec![kind, reason.code(four), 0, 0, 0, 0, 0, 0];
    content.extend(&packet[ETHERNET_HEADER..]);
    content.extend(sent.begin);
    frame(to, gateway, sent.from, protocol, &content, 2)
}
