//! Echo requests to others than the gateway: the host sends them, where it lets programs do that without privileges.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use slab::Slab;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use super::Outbox;
use super::PING_TOKEN;
use super::packet::ECHO_REPLY6;
use super::packet::ECHO_REQUEST6;
use super::packet::ICMP;
use super::packet::ICMP6;
use super::packet::Unreachable;
use crate::sys::sockets::Poller;

/// Most programs of the guest's that ping at a time.
const MOST: usize = 64;
/// How long a reply is waited for.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of an ICMP header, and the kinds of a request and a reply over IPv4.
const HEADER: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// An echo request of the guest's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ident: u16,
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
}

#[derive(Debug)]
struct Pinger {
    source: IpAddr,
    destination: IpAddr,
    ident: u16,
    /// A socket of datagrams, whatever they are of.
    socket: UdpSocket,
    used: Instant,
    queued: bool,
}

/// Who pings whom.
#[derive(Debug, Default)]
pub(super) struct Pingers {
    all: Slab<Pinger>,
    by_ends: HashMap<(IpAddr, IpAddr, u16), usize>,
    output: VecDeque<usize>,
}

impl Pingers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// An echo request of the guest's.
    pub(super) fn send(&mut self, echo: Echo<'_>, poller: &mut Poller, outbox: &mut Outbox, now: Instant) {
        let four = echo.destination.is_ipv4();
        let mut content = vec![if four { ECHO_REQUEST } else { ECHO_REQUEST6 }, 0, 0, 0];
        // The host has an ident of its own for each socket.
        content.extend([0, 0]);
        content.extend(echo.sequence.to_be_bytes());
        content.extend(echo.payload);
        let result = self.pinger(echo, poller, now).and_then(|index| {
            let pinger = &mut self.all[index];
            pinger.used = now;
            pinger.socket.send(&content)
        });
        let reason = match result.map_err(|error| error.kind()) {
            Ok(_) | Err(io::ErrorKind::WouldBlock) => return,
            Err(io::ErrorKind::HostUnreachable) => Unreachable::Host,
            Err(io::ErrorKind::NetworkUnreachable) => Unreachable::Network,
            Err(_) => Unreachable::Forbidden,
        };
        let mut begin = [content[0], 0, 0, 0, 0, 0, 0, 0];
        begin[4..6].copy_from_slice(&echo.ident.to_be_bytes());
        begin[6..].copy_from_slice(&echo.sequence.to_be_bytes());
        let protocol = if four { ICMP } else { ICMP6 };
        outbox.unreachable(echo.source, echo.destination, protocol, begin, content.len(), reason);
    }

    fn pinger(&mut self, echo: Echo<'_>, poller: &mut Poller, now: Instant) -> io::Result<usize> {
        let ends = (echo.source, echo.destination, echo.ident);
        if let Some(&index) = self.by_ends.get(&ends) {
            return Ok(index);
        }
        if self.all.len() >= MOST
            && let Some((index, _)) = self.all.iter().min_by_key(|(_, pinger)| pinger.used)
        {
            self.end(index, poller);
        }
        let target = SocketAddr::new(echo.destination, 0);
        let protocol = if target.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.connect(&target.into())?;
        let socket: UdpSocket = socket.into();
        let entry = self.all.vacant_entry();
        let index = entry.key();
        poller.add(&socket, PING_TOKEN | index as u64, false)?;
        let (source, destination, ident) = ends;
        entry.insert(Pinger { source, destination, ident, socket, used: now, queued: false });
        self.by_ends.insert(ends, index);
        Ok(index)
    }

    fn end(&mut self, index: usize, poller: &mut Poller) {
        let pinger = self.all.remove(index);
        self.by_ends.remove(&(pinger.source, pinger.destination, pinger.ident));
        poller.remove(PING_TOKEN | index as u64);
    }

    /// A socket has become ready.
    pub(super) fn ready(&mut self, index: usize) {
        if let Some(pinger) = self.all.get_mut(index)
            && !pinger.queued
        {
            pinger.queued = true;
            self.output.push_back(index);
        }
    }

    /// Takes the next replies for the guest, with `buffer` to read into; says whether there was one.
    pub(super) fn receive(&mut self, buffer: &mut [u8], outbox: &mut Outbox) -> bool {
        while let Some(&index) = self.output.front() {
            let Some(pinger) = self.all.get_mut(index).filter(|pinger| pinger.queued) else {
                self.output.pop_front();
                continue;
            };
            match pinger.socket.recv(buffer) {
                Ok(count) => {
                    let reply = if pinger.destination.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY6 };
                    let Some((header, payload)) = buffer[..count].split_at_checked(HEADER) else { continue };
                    if header[0] == reply {
                        let sequence = u16::from_be_bytes([header[6], header[7]]);
                        outbox.echo_reply(pinger.destination, pinger.source, pinger.ident, sequence, payload);
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    pinger.queued = false;
                    self.output.pop_front();
                }
            }
        }
        false
    }

    /// Ends those that nobody waits for.
    pub(super) fn tick(&mut self, now: Instant, poller: &mut Poller) {
        let old = self.all.iter().filter(|(_, pinger)| now.saturating_duration_since(pinger.used) > IDLE);
        let old: Vec<usize> = old.map(|(index, _)| index).collect();
        old.into_iter().for_each(|index| self.end(index, poller));
    }

    pub(super) fn clear(&mut self, poller: &mut Poller) {
        let all: Vec<usize> = self.all.iter().map(|(index, _)| index).collect();
        all.into_iter().for_each(|index| self.end(index, poller));
        self.output.clear();
    }
}
