//! Small frames that wait for the guest: answers of the gateway itself.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use smoltcp::wire::ArpOperation;
use smoltcp::wire::ArpPacket;
use smoltcp::wire::ArpRepr;
use smoltcp::wire::EthernetAddress;

use super::addresses::ALL_NODES;
use super::addresses::Addresses;
use super::addresses::GATEWAY_MAC;
use super::addresses::LINK_LOCAL;
use super::addresses::PREFIX_BITS;
use super::packet;
use super::packet::ICMP6;
use super::packet::Unreachable;
use super::tcp::Segment;
use crate::net::ETHERNET_HEADER;
use crate::net::Mac;

/// Most frames that wait: a guest that does not listen has the others dropped.
const MOST: usize = 256;
/// Ethernet's number for ARP.
const ETHERTYPE_ARP: u16 = 0x0806;
/// How long the guest believes that the gateway is a router, in seconds: longer than it is told anew.
pub(super) const ROUTER_LIFETIME: u16 = 1800;
/// ICMPv6 messages and options of neighbour discovery (RFC 4861, 4; RFC 8106, 5.1).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RECURSIVE_DNS: u8 = 25;
/// Flags of a neighbour advertisement: from a router, an answer, to be believed.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Flags of a prefix: its addresses are on the link, and the guest may make one itself.
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

/// The frames, and whom they go to.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: VecDeque<Vec<u8>>,
    addresses: Addresses,
    /// Of the last datagram that was divided.
    identification: u32,
    /// The guest's Ethernet address: the one that it last sent from.
    pub(super) mac: Mac,
}

impl Outbox {
    pub(super) fn new(addresses: Addresses, mac: Mac) -> Self {
        Self { frames: VecDeque::new(), addresses, identification: 0, mac }
    }

    fn push(&mut self, frame: impl FnOnce(Mac) -> Vec<u8>) {
        if self.frames.len() < MOST {
            self.frames.push_back(frame(self.mac));
        }
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
    }

    /// A segment without data, as if from `remote`.
    pub(super) fn segment(&mut self, segment: &Segment<'_>, guest: SocketAddr, remote: SocketAddr) {
        self.push(|mac| segment.frame(mac, remote, guest));
    }

    /// The answer to a segment that belongs to no connection.
    pub(super) fn refuse(&mut self, segment: &Segment<'_>, guest: SocketAddr, remote: SocketAddr) {
        if let Some(refusal) = segment.refusal() {
            self.segment(&refusal, guest, remote);
        }
    }

    /// A datagram.
    pub(super) fn datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        self.push(|mac| packet::udp_frame(mac, source, destination, payload));
    }

    /// A datagram that is larger than the link's packets.
    pub(super) fn large_datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8], mtu: u16) {
        self.identification = self.identification.wrapping_add(1);
        let whole = packet::udp_frame(self.mac, source, destination, payload);
        let fragments = packet::fragments(&whole, mtu, self.identification);
        // A part is worth nothing.
        if self.frames.len() + fragments.len() <= MOST {
            self.frames.extend(fragments);
        }
    }

    /// A datagram to a client that has no address yet.
    pub(super) fn dhcp(&mut self, to: Mac, payload: &[u8]) {
        let source = (self.addresses.gateway4, super::dhcp::SERVER_PORT).into();
        let destination = (Ipv4Addr::BROADCAST, super::dhcp::CLIENT_PORT).into();
        self.push(|_| packet::udp_frame(to, source, destination, payload));
    }

    /// An echo's reply.
    pub(super) fn echo_reply(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) {
        self.push(|mac| packet::echo_reply(mac, source, destination, ident, sequence, payload));
    }

    /// What the guest sent to `destination` did not arrive.
    pub(super) fn unreachable(
        &mut self,
        guest: IpAddr,
        destination: IpAddr,
        protocol: u8,
        begin: [u8; 8],
        length: usize,
        reason: Unreachable,
    ) {
        let gateway: IpAddr =
            if guest.is_ipv4() { self.addresses.gateway4.into() } else { self.addresses.gateway6.into() };
        let sent = packet::Sent { from: guest, to: destination, protocol, begin, length };
        self.push(|mac| packet::unreachable_frame(mac, gateway, &sent, reason));
    }

    /// The gateway has the IPv4 address that the guest asks for.
    pub(super) fn arp_reply(&mut self, source: Ipv4Addr, target: Ipv4Addr) {
        self.push(|mac| {
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(GATEWAY_MAC.0),
                source_protocol_addr: target,
                target_hardware_addr: EthernetAddress(mac.0),
                target_protocol_addr: source,
            };
            let mut frame = vec![0; ETHERNET_HEADER + reply.buffer_len()];
            frame[..6].copy_from_slice(&mac.0);
            frame[6..12].copy_from_slice(&GATEWAY_MAC.0);
            frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
            reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER..]));
            frame
        });
    }

    /// The gateway has the IPv6 address that the guest asks for, or wants to have.
    pub(super) fn neighbour(&mut self, source: Ipv6Addr, target: Ipv6Addr) {
        let (to, solicited) = if source.is_unspecified() { (ALL_NODES, 0) } else { (source, SOLICITED) };
        let mut content = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, ROUTER | OVERRIDE | solicited, 0, 0, 0];
        content.extend(target.octets());
        content.extend([TARGET_LINK_ADDRESS, 1]);
        content.extend(GATEWAY_MAC.0);
        // From that very address: some stacks look only there whose it is.
        self.discovery(target, to, &content);
    }

    /// The gateway is a router, and this is the network's prefix.
    pub(super) fn router(&mut self, mtu: u16) {
        let mut content = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
        content.extend(ROUTER_LIFETIME.to_be_bytes());
        // How long neighbours are reachable, and how often they are asked: as the guest likes.
        content.extend([0; 8]);
        content.extend([SOURCE_LINK_ADDRESS, 1]);
        content.extend(GATEWAY_MAC.0);
        content.extend([MTU, 1, 0, 0]);
        content.extend(u32::from(mtu).to_be_bytes());
        content.extend([PREFIX_INFORMATION, 4, PREFIX_BITS, ON_LINK | AUTONOMOUS]);
        // For ever, both valid and preferred.
        content.extend([0xff; 8]);
        content.extend([0; 4]);
        content.extend(self.addresses.prefix.octets());
        content.extend([RECURSIVE_DNS, 3, 0, 0]);
        content.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
        content.extend(self.addresses.dns6.octets());
        self.discovery(LINK_LOCAL, ALL_NODES, &content);
    }

    fn discovery(&mut self, from: Ipv6Addr, to: Ipv6Addr, content: &[u8]) {
        self.push(|mac| {
            // A group's frames have an address made of the group's (RFC 2464, 7).
            let [.., a, b, c, d] = to.octets();
            let mac = if to.is_multicast() { Mac([0x33, 0x33, a, b, c, d]) } else { mac };
            packet::frame(mac, from.into(), to.into(), ICMP6, content, 2)
        });
    }
}
