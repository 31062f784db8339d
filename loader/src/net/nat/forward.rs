//! Ports of the host that lead to the guest.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use socket2::Domain;
use socket2::Protocol as SocketProtocol;
use socket2::Socket;
use socket2::Type;
use thiserror::Error;

use super::LISTEN_TOKEN;
use crate::net::spec::Forward;
use crate::net::spec::Protocol;
use crate::sys::sockets::Poller;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Most peers that datagrams came from.
const MOST_PEERS: usize = 1024;
/// How long a peer is remembered that sends nothing and gets nothing.
const IDLE: Duration = Duration::from_secs(180);

/// Why a port cannot lead to the guest.
#[derive(Debug, Error)]
#[error("{protocol} port {address} of the host cannot lead to the guest: {}", crate::run::describe(.source))]
pub struct ForwardError {
    /// The protocol.
    protocol: Protocol,
    /// Where the host was to listen.
    address: SocketAddr,
    /// What the host says.
    source: io::Error,
}

#[derive(Debug)]
enum Socketed {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A port.
#[derive(Debug)]
struct Port {
    socket: Socketed,
    /// Where the host listens.
    six: bool,
    guest: u16,
    queued: bool,
}

/// A peer that datagrams came from.
#[derive(Clone, Copy, Debug)]
struct Peer {
    port: usize,
    address: SocketAddr,
    used: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    ports: Vec<Port>,
    /// Peers by the guest's port and how the guest sees them.
    peers: HashMap<(u16, SocketAddr), Peer>,
    /// Ports with datagrams for the guest.
    output: VecDeque<usize>,
}

impl Forwards {
    /// Listens on all ports.
    pub(super) fn new(forwards: &[Forward], poller: &mut Poller) -> Result<Self, ForwardError> {
        let mut ports = Vec::new();
        for forward in forwards {
            for (addresses, guest) in forward.ports() {
                for address in &addresses {
                    let refuse = |source| ForwardError { protocol: forward.protocol, address: *address, source };
                    let socket = match listen(forward.protocol, *address) {
                        Ok(socket) => socket,
                        // A host without IPv6 has no such loopback address.
                        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && addresses.len() > 1 => {
                            continue;
                        }
                        Err(error) if crate::sys::sockets::is_no_family(&error) && addresses.len() > 1 => continue,
                        Err(error) => return Err(refuse(error)),
                    };
                    let token = LISTEN_TOKEN | ports.len() as u64;
                    match &socket {
                        Socketed::Tcp(socket) => poller.add(socket, token, false),
                        Socketed::Udp(socket) => poller.add(socket, token, false),
                    }
                    .map_err(refuse)?;
                    ports.push(Port { socket, six: address.is_ipv6(), guest, queued: false });
                }
            }
        }
        Ok(Self { ports, ..Self::default() })
    }

    /// A socket has become ready: gives the connections that came, each with whether it came over IPv6, and the guest's port.
    pub(super) fn ready(&mut self, index: usize) -> Vec<(TcpStream, SocketAddr, bool, u16)> {
        let mut accepted = Vec::new();
        let Some(port) = self.ports.get_mut(index) else { return accepted };
        match &port.socket {
            Socketed::Tcp(listener) => loop {
                match listener.accept() {
                    Ok((stream, peer)) => accepted.push((stream, peer, port.six, port.guest)),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // One that has gone already; else there are none, or the host has no more of something.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(_) => break,
                }
            },
            Socketed::Udp(_) => {
                if !port.queued {
                    port.queued = true;
                    self.output.push_back(index);
                }
            }
        }
        accepted
    }

    /// Takes the next datagram for the guest into `buffer`: how many bytes, how the guest sees its sender, and the guest's port.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        visible: impl Fn(SocketAddr, bool) -> SocketAddr,
        now: Instant,
    ) -> Option<(usize, SocketAddr, u16)> {
        loop {
            let index = *self.output.front()?;
            let port = &mut self.ports[index];
            let Socketed::Udp(socket) = &port.socket else {
                self.output.pop_front();
                continue;
            };
            match socket.recv_from(buffer) {
                Ok((count, address)) => {
                    let seen = visible(address, port.six);
                    let key = (port.guest, seen);
                    if self.peers.len() >= MOST_PEERS && !self.peers.contains_key(&key) {
                        let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.used).map(|(key, _)| *key);
                        oldest.and_then(|key| self.peers.remove(&key));
                    }
                    self.peers.insert(key, Peer { port: index, address, used: now });
                    self.output.rotate_left(1);
                    return Some((count, seen, key.0));
                }
                // What was sent before did not arrive: nobody asked to hear that.
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset) => {}
                Err(_) => {
                    port.queued = false;
                    self.output.pop_front();
                }
            }
        }
    }

    /// A datagram of the guest's from `port`: says whether it was an answer to one that came here, and sent as such.
    pub(super) fn answer(&mut self, port: u16, destination: SocketAddr, payload: &[u8], now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&(port, destination)) else { return false };
        peer.used = now;
        if let Socketed::Udp(socket) = &self.ports[peer.port].socket {
            // What does not go is lost, as datagrams may be.
            let _ = socket.send_to(payload, peer.address);
        }
        true
    }

    /// Whether [`Forwards::tick`] has something to wait for.
    pub(super) fn is_timed(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Forgets peers.
    pub(super) fn tick(&mut self, now: Instant) {
        self.peers.retain(|_, peer| now.saturating_duration_since(peer.used) <= IDLE);
    }

    pub(super) fn clear(&mut self) {
        self.peers.clear();
    }

    /// Where the host listens, in the order of the user's words.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let address = |port: &Port| match &port.socket {
            Socketed::Tcp(socket) => socket.local_addr().unwrap(),
            Socketed::Udp(socket) => socket.local_addr().unwrap(),
        };
        self.ports.iter().map(address).collect()
    }
}

fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<Socketed> {
    let (kind, of) = match protocol {
        Protocol::Tcp => (Type::STREAM, SocketProtocol::TCP),
        Protocol::Udp => (Type::DGRAM, SocketProtocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(of))?;
    if address.is_ipv6() {
        // Version 4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    // A port is free as soon as nobody listens, also while old connections fade. Windows means something else by it.
    #[cfg(unix)]
    if protocol == Protocol::Tcp {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(match protocol {
        Protocol::Tcp => {
            socket.listen(BACKLOG)?;
            Socketed::Tcp(socket.into())
        }
        Protocol::Udp => Socketed::Udp(socket.into()),
    })
}
