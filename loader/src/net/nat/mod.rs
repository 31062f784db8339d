//! A network of the guest's own, whose gateway passes its connections on by the host's sockets.
//!
//! It needs no privileges, follows whatever routes and VPNs the host has, and nobody outside sees the guest. The gateway is a station on
//! the guest's link that ends TCP and UDP there: what the guest sends anywhere becomes a socket of this program's.
//!
//! | module | concept |
//! |---|---|
//! | `addresses` | which addresses there are, and what they mean on the host |
//! | `packet` | frames taken apart, checked, and put together |
//! | `fragments` | packets in parts |
//! | `outbox` | what the gateway says itself: ARP, neighbour discovery, ICMP |
//! | `tcp`, `udp`, `ping` | connections, flows, echo requests |
//! | `forward` | ports of the host that lead to the guest |
//! | `dhcp`, `dns` | the guest's address, names |
//!
//! Everything happens on the adapter's thread. Frames for the guest are made when it has room for them, out of what waits in the
//! host's sockets; so the host slows its peers down, and nothing piles up here.

mod addresses;
pub mod dhcp;
pub mod dns;
mod forward;
mod fragments;
mod outbox;
pub mod packet;
mod ping;
pub mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use thiserror::Error;

pub use self::forward::ForwardError;

use self::addresses::Addresses;
use self::addresses::NETMASK;
use self::addresses::Target;
use self::forward::Forwards;
use self::fragments::Fragments;
use self::outbox::Outbox;
use self::packet::Fragment;
use self::packet::Packet;
use self::packet::PacketError;
use self::packet::UDP_HEADER;
use self::packet::Unreachable;
use self::packet::headers_len;
use self::ping::Echo;
use self::ping::Pingers;
use self::tcp::Connections;
use self::tcp::Link;
use self::tcp::Segment;
use self::udp::Flows;
use self::udp::Received;
use super::Backend;
use super::Deliver;
use super::ETHERNET_HEADER;
use super::FrameHeader;
use super::Mac;
use super::Offloads;
use super::spec::Forward;
use super::spec::Reach;
use crate::platform::Event;
use crate::sys::Ready;
use crate::sys::sockets;
use crate::sys::sockets::Poller;
use crate::sys::sockets::Resolvers;

/// What kind of socket a token is of; the rest is its number.
const KINDS: u64 = 0xff << 32;
const TCP_TOKEN: u64 = 1 << 32;
const UDP_TOKEN: u64 = 2 << 32;
const PING_TOKEN: u64 = 3 << 32;
const LISTEN_TOKEN: u64 = 4 << 32;

/// How often timers are looked at while one runs, and while only something idle may end.
const TICK: Duration = Duration::from_millis(250);
const SLOW_TICK: Duration = Duration::from_secs(5);
/// How often the gateway says that it is a router: within its lifetime, even if one was lost.
const ADVERTISE: Duration = Duration::from_secs(outbox::ROUTER_LIFETIME as u64 / 3);
/// Bytes of a packet on the link, unless the user says otherwise.
const USUAL_MTU: u16 = 1500;
/// Bytes of the largest datagram.
const MOST_DATAGRAM: usize = 65_536;

/// Why a network cannot be made.
#[derive(Debug, Error)]
pub enum NatError {
    /// A port is taken, or may not be used.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The host has no more of something.
    #[error("the host has no means for a network: {0}")]
    Host(#[from] io::Error),
}

/// The network of one adapter.
pub struct Nat {
    addresses: Addresses,
    mtu: u16,
    agreed: Offloads,
    poller: Poller,
    events: Vec<Ready>,
    resolvers: Resolvers,
    outbox: Outbox,
    connections: Connections,
    flows: Flows,
    pingers: Pingers,
    forwards: Forwards,
    fragments: Fragments,
    /// The guest's IPv6 address, as far as it is known.
    guest6: Option<Ipv6Addr>,
    /// The guest wants to know about routers: when it is told next.
    advertise: Option<Instant>,
    now: Instant,
    ticked: Instant,
    buffer: Vec<u8>,
    /// Datagrams have the turn, before connections.
    datagrams_first: bool,
}

impl Nat {
    /// The network of adapter `index`, whose address is `mac`, with ports of the host that lead to it, and what the guest reaches.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn new(index: u8, mac: Mac, mtu: Option<u16>, forwards: &[Forward], reach: Reach) -> Result<Self, NatError> {
        sockets::raise_limit();
        let mtu = mtu.unwrap_or(USUAL_MTU);
        let addresses = Addresses::new(index, reach);
        let mut poller = Poller::new()?;
        let forwards = Forwards::new(forwards, &mut poller)?;
        let now = Instant::now();
        Ok(Self {
            addresses,
            mtu,
            agreed: Offloads::default(),
            poller,
            events: Vec::new(),
            resolvers: Resolvers::default(),
            outbox: Outbox::new(addresses, mac),
            connections: Connections::new(),
            flows: Flows::default(),
            pingers: Pingers::default(),
            forwards,
            fragments: Fragments::default(),
            guest6: None,
            advertise: None,
            now,
            ticked: now,
            buffer: vec![0; MOST_DATAGRAM],
            datagrams_first: false,
        })
    }

    fn packet(&mut self, mac: Mac, packet: &Packet<'_>) {
        match *packet {
            Packet::WhoHas { source, target } => {
                if self.addresses.is_ours(target.into()) {
                    self.outbox.mac = mac;
                    self.outbox.arp_reply(source, target);
                }
            }
            Packet::NeighbourSolicit { source, target } => {
                if self.addresses.is_ours(target.into()) {
                    self.outbox.neighbour(source, target);
                } else if source.is_unspecified() {
                    // The guest is about to take this address.
                    self.learn(mac, target.into());
                }
            }
            Packet::RouterSolicit => {
                self.outbox.router(self.mtu);
                self.advertise = Some(self.now + ADVERTISE);
            }
            Packet::Tcp { source, destination, segment } => {
                if self.learn(mac, source.ip()) {
                    self.tcp(source, destination, &segment);
                }
            }
            Packet::Udp { source, destination, payload } => self.udp(mac, source, destination, payload),
            Packet::Echo { source, destination, ident, sequence, payload } => {
                if self.learn(mac, source) {
                    self.echo(Echo { source, destination, ident, sequence, payload });
                }
            }
        }
    }

    /// Remembers where the guest is, and says whether it may be there.
    fn learn(&mut self, mac: Mac, source: IpAddr) -> bool {
        if !self.addresses.is_guests(source) {
            return false;
        }
        self.outbox.mac = mac;
        if let IpAddr::V6(source) = source
            && !source.is_unicast_link_local()
        {
            self.guest6 = Some(source);
        }
        true
    }

    fn tcp(&mut self, source: SocketAddr, destination: SocketAddr, segment: &Segment<'_>) {
        let (addresses, resolvers) = (&self.addresses, &mut self.resolvers);
        let target = || match addresses.target(destination) {
            Target::Host(target) => Ok(target),
            Target::Resolver => resolvers.addresses().first().copied().ok_or(Unreachable::Host),
            Target::Nowhere => Err(Unreachable::Host),
        };
        let ends = (source, destination);
        self.connections.segment(ends, segment, target, &mut self.poller, &mut self.outbox, self.now);
    }

    fn udp(&mut self, mac: Mac, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        if destination.port() == dhcp::SERVER_PORT && destination.is_ipv4() {
            self.dhcp(payload);
            return;
        }
        if !self.learn(mac, source.ip()) || self.forwards.answer(source.port(), destination, payload, self.now) {
            return;
        }
        let ends = (source, destination);
        let (poller, outbox) = (&mut self.poller, &mut self.outbox);
        match self.addresses.target(destination) {
            Target::Host(target) => self.flows.send(ends, payload, target, poller, outbox, self.now),
            Target::Resolver => self.flows.ask(ends, payload, &mut self.resolvers, poller, outbox, self.now),
            // Groups get no answer (RFC 1122, 3.2.2).
            Target::Nowhere => {
                if !is_group(destination.ip()) {
                    udp::unreachable(source, destination, Unreachable::Host, outbox);
                }
            }
        }
    }

    fn dhcp(&mut self, payload: &[u8]) {
        let Some(message) = dhcp::Message::parse(payload) else { return };
        let settings = dhcp::Settings {
            server: self.addresses.gateway4,
            client: self.addresses.guest4,
            netmask: NETMASK,
            dns: self.addresses.dns4,
            mtu: self.mtu,
        };
        if let Some(answer) = message.answer(&settings) {
            self.outbox.dhcp(message.mac(), &answer);
        }
    }

    fn echo(&mut self, echo: Echo<'_>) {
        if self.addresses.is_ours(echo.destination) {
            self.outbox.echo_reply(echo.destination, echo.source, echo.ident, echo.sequence, echo.payload);
        } else if let Target::Host(_) = self.addresses.target(SocketAddr::new(echo.destination, 0)) {
            self.pingers.send(echo, &mut self.poller, &mut self.outbox, self.now);
        }
    }

    /// What has become ready.
    fn ready(&mut self, Ready { token, readable, writable }: Ready) {
        let index = usize::try_from(token & !KINDS).unwrap_or(usize::MAX);
        match token & KINDS {
            TCP_TOKEN => self.connections.ready(index, readable, writable, &mut self.poller, &mut self.outbox),
            UDP_TOKEN => self.flows.ready(index),
            PING_TOKEN => self.pingers.ready(index),
            _ => {
                for (stream, peer, six, port) in self.forwards.ready(index) {
                    let (guest, remote) = self.ends(peer, six, port);
                    // What cannot be passed on is closed, which its peer sees.
                    let _ = self.connections.accept(stream, guest, remote, &mut self.poller, self.now);
                }
            }
        }
    }

    /// The guest's end of what comes from a peer of the host's, and that peer as the guest sees it. A guest without IPv6 gets it over
    /// IPv4, from the gateway.
    fn ends(&self, peer: SocketAddr, six: bool, port: u16) -> (SocketAddr, SocketAddr) {
        let remote = seen(&self.addresses, self.guest6, peer, six);
        let guest = match self.guest6 {
            Some(guest) if remote.is_ipv6() => guest.into(),
            _ => self.addresses.guest4.into(),
        };
        (SocketAddr::new(guest, port), remote)
    }

    fn tick(&mut self) {
        if self.now.saturating_duration_since(self.ticked) < TICK {
            return;
        }
        self.ticked = self.now;
        self.connections.tick(self.now, &mut self.poller, &mut self.outbox);
        self.flows.tick(self.now, &mut self.poller);
        self.pingers.tick(self.now, &mut self.poller);
        self.forwards.tick(self.now);
        if self.advertise.is_some_and(|time| time <= self.now) {
            self.outbox.router(self.mtu);
            self.advertise = Some(self.now + ADVERTISE);
        }
    }

    /// Gives the guest a datagram, if there is one, and says so.
    fn receive_datagram(&mut self, deliver: Deliver<'_>) -> bool {
        let received = match self.flows.receive(&mut self.buffer, &mut self.outbox, self.now) {
            Some(Received::Told) => return self.receive_answer(deliver),
            Some(Received::Datagram(source, destination, count)) => Some((source, destination, count)),
            None => {
                let (addresses, guest6) = (&self.addresses, self.guest6);
                let visible = |peer, six| seen(addresses, guest6, peer, six);
                self.forwards.receive(&mut self.buffer, visible, self.now).map(|(count, seen, port)| {
                    let guest: IpAddr = match guest6 {
                        Some(guest) if seen.is_ipv6() => guest.into(),
                        _ => addresses.guest4.into(),
                    };
                    (seen, SocketAddr::new(guest, port), count)
                })
            }
        };
        match received {
            Some((source, destination, count)) => {
                let packet = headers_len(source.ip()) - ETHERNET_HEADER + UDP_HEADER + count;
                if packet <= usize::from(self.mtu) {
                    let frame = packet::udp_frame(self.outbox.mac, source, destination, &self.buffer[..count]);
                    deliver(&FrameHeader::default(), &[&frame]);
                } else {
                    let payload = &self.buffer[..count];
                    self.outbox.large_datagram(source, destination, payload, self.mtu);
                    return self.receive_answer(deliver);
                }
                true
            }
            None => self.pingers.receive(&mut self.buffer, &mut self.outbox) && self.receive_answer(deliver),
        }
    }

    /// Gives the guest what the gateway says itself.
    fn receive_answer(&mut self, deliver: Deliver<'_>) -> bool {
        match self.outbox.pop() {
            Some(frame) => {
                deliver(&FrameHeader::default(), &[&frame]);
                true
            }
            None => false,
        }
    }

    fn receive_segment(&mut self, room: usize, deliver: Deliver<'_>) -> bool {
        let link = Link { mac: self.outbox.mac, mtu: self.mtu, agreed: self.agreed };
        let (poller, outbox) = (&mut self.poller, &mut self.outbox);
        self.connections.send(link, room, self.now, poller, outbox, deliver)
    }
}

/// How the guest sees a peer of the host's.
fn seen(addresses: &Addresses, guest6: Option<Ipv6Addr>, peer: SocketAddr, six: bool) -> SocketAddr {
    match guest6 {
        None if six => SocketAddr::new(addresses.gateway4.into(), peer.port()),
        _ => addresses.visible(peer),
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.octets()[3] == 255,
        IpAddr::V6(address) => address.is_multicast(),
    }
}

impl Backend for Nat {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.poller.attach(event)
    }

    fn start(&mut self, agreed: Offloads) {
        self.agreed = agreed;
    }

    fn send(&mut self, header: &FrameHeader, frame: &[u8]) {
        // What is no packet for us is dropped, as by any router.
        match Packet::parse(frame, header.checksum.is_some()) {
            Ok((mac, packet)) => self.packet(mac, &packet),
            Err(PacketError::Fragment) => {
                let whole = Fragment::parse(frame).and_then(|part| self.fragments.add(&part, self.now));
                if let Some(Ok((mac, packet))) = whole.as_deref().map(|frame| Packet::parse(frame, false)) {
                    self.packet(mac, &packet);
                }
            }
            Err(_) => {}
        }
    }

    fn receive(&mut self, room: usize, deliver: Deliver<'_>) -> bool {
        if self.receive_answer(deliver) {
            return true;
        }
        self.datagrams_first = !self.datagrams_first;
        let received = (self.datagrams_first && self.receive_datagram(deliver))
            || self.receive_segment(room, deliver)
            || (!self.datagrams_first && self.receive_datagram(deliver));
        // A connection that ended meanwhile may have left a word.
        received || self.receive_answer(deliver)
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let mut events = std::mem::take(&mut self.events);
        self.poller.wait(timeout, |ready| events.push(ready));
        self.now = Instant::now();
        for event in events.drain(..) {
            self.ready(event);
        }
        self.events = events;
        self.tick();
    }

    fn next_deadline(&self) -> Option<Duration> {
        let idle =
            self.connections.len() > 0 || self.flows.len() > 0 || self.pingers.len() > 0 || self.forwards.is_timed();
        let advertise = self.advertise.map(|time| time.saturating_duration_since(self.now));
        let slow = idle.then_some(SLOW_TICK);
        let fast = self.connections.is_timed().then_some(TICK);
        [advertise, slow, fast].into_iter().flatten().min()
    }

    fn reset(&mut self) {
        self.connections.clear(&mut self.poller);
        self.flows.clear(&mut self.poller);
        self.pingers.clear(&mut self.poller);
        self.forwards.clear();
        self.fragments.clear();
        self.outbox.clear();
        (self.guest6, self.advertise, self.agreed) = (None, None, Offloads::default());
    }
}

impl fmt::Debug for Nat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Nat")
            .field("connections", &self.connections.len())
            .field("flows", &self.flows.len())
            .finish_non_exhaustive()
    }
}
