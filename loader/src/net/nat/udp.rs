//! UDP: for each pair of ends a connected socket of the host's, which only that peer's answers come out of.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use slab::Slab;

use super::Outbox;
use super::UDP_TOKEN;
use super::dns;
use super::dns::Query;
use super::packet::UDP;
use super::packet::Unreachable;
use crate::sys::sockets::Poller;
use crate::sys::sockets::Resolvers;

/// Most flows at a time; the one unused for longest makes room for a new one.
const MOST: usize = 1024;
/// How long a flow lasts without a datagram: some minutes (RFC 4787, 4.3), a question and its answer shorter.
const IDLE: Duration = Duration::from_secs(180);
const IDLE_DNS: Duration = Duration::from_secs(20);
/// Questions of a flow that are remembered as not answered.
const MOST_QUESTIONS: usize = 8;

/// A flow.
#[derive(Debug)]
struct Flow {
    guest: SocketAddr,
    remote: SocketAddr,
    socket: UdpSocket,
    used: Instant,
    queued: bool,
    /// Of a flow to the resolver: which of them it asks, and what was not answered.
    questions: Option<(usize, VecDeque<u16>)>,
}

/// The flows.
#[derive(Debug, Default)]
pub(super) struct Flows {
    all: Slab<Flow>,
    by_ends: HashMap<(SocketAddr, SocketAddr), usize>,
    /// Those that may have something for the guest.
    output: VecDeque<usize>,
}

/// A datagram for the guest, or what became of one of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Bytes at the begin of the buffer, from the first address to the second.
    Datagram(SocketAddr, SocketAddr, usize),
    /// The guest was told.
    Told,
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A datagram of the guest's for `target`.
    pub(super) fn send(
        &mut self,
        (guest, remote): (SocketAddr, SocketAddr),
        payload: &[u8],
        target: SocketAddr,
        poller: &mut Poller,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let result = self.flow((guest, remote), target, None, poller, now).and_then(|index| {
            let flow = &mut self.all[index];
            flow.used = now;
            send(&flow.socket, payload)
        });
        if let Err(error) = result {
            told(&error, guest, remote, outbox);
        }
    }

    /// A datagram of the guest's for the host's resolver. The guest that asks the same again had no answer: the next one is asked.
    pub(super) fn ask(
        &mut self,
        (guest, remote): (SocketAddr, SocketAddr),
        payload: &[u8],
        resolvers: &mut Resolvers,
        poller: &mut Poller,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let Some(query) = Query::parse(payload) else { return };
        let mut turn = 0;
        if let Some(&index) = self.by_ends.get(&(guest, remote))
            && let Some((last, questions)) = &self.all[index].questions
        {
            turn = *last;
            if questions.contains(&query.id) {
                turn += 1;
                self.end(index, poller);
            }
        }
        let addresses = resolvers.addresses();
        let result = match addresses.get(turn % addresses.len().max(1)) {
            None => Err(ErrorKind::NotFound.into()),
            Some(&target) => self.flow((guest, remote), target, Some(turn), poller, now).and_then(|index| {
                let flow = &mut self.all[index];
                flow.used = now;
                if let Some((_, questions)) = &mut flow.questions {
                    if questions.len() == MOST_QUESTIONS {
                        questions.pop_front();
                    }
                    questions.push_back(query.id);
                }
                send(&flow.socket, payload)
            }),
        };
        if result.is_err() {
            outbox.datagram(remote, guest, &query.failure());
        }
    }

    /// The flow of these ends, made if there is none.
    fn flow(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        target: SocketAddr,
        turn: Option<usize>,
        poller: &mut Poller,
        now: Instant,
    ) -> io::Result<usize> {
        if let Some(&index) = self.by_ends.get(&ends) {
            return Ok(index);
        }
        if self.all.len() >= MOST
            && let Some((index, _)) = self.all.iter().min_by_key(|(_, flow)| flow.used)
        {
            self.end(index, poller);
        }
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(target)?;
        let entry = self.all.vacant_entry();
        let index = entry.key();
        poller.add(&socket, UDP_TOKEN | index as u64, false)?;
        let questions = turn.map(|turn| (turn, VecDeque::new()));
        entry.insert(Flow { guest: ends.0, remote: ends.1, socket, used: now, queued: false, questions });
        self.by_ends.insert(ends, index);
        Ok(index)
    }

    fn end(&mut self, index: usize, poller: &mut Poller) {
        let flow = self.all.remove(index);
        self.by_ends.remove(&(flow.guest, flow.remote));
        poller.remove(UDP_TOKEN | index as u64);
    }

    /// A socket has become ready.
    pub(super) fn ready(&mut self, index: usize) {
        if let Some(flow) = self.all.get_mut(index)
            && !flow.queued
        {
            flow.queued = true;
            self.output.push_back(index);
        }
    }

    /// Takes the next datagram for the guest into `buffer`.
    pub(super) fn receive(&mut self, buffer: &mut [u8], outbox: &mut Outbox, now: Instant) -> Option<Received> {
        loop {
            let index = *self.output.front()?;
            let Some(flow) = self.all.get_mut(index).filter(|flow| flow.queued) else {
                self.output.pop_front();
                continue;
            };
            match flow.socket.recv(buffer) {
                Ok(count) => {
                    flow.used = now;
                    if let Some((_, questions)) = &mut flow.questions {
                        let Some(id) = dns::answer_id(&buffer[..count]) else { continue };
                        questions.retain(|question| *question != id);
                    }
                    let ends = (flow.remote, flow.guest);
                    self.output.rotate_left(1);
                    return Some(Received::Datagram(ends.0, ends.1, count));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // A message about what was sent before is taken by one call; there may be more behind it.
                    if error.kind() == ErrorKind::WouldBlock {
                        flow.queued = false;
                        self.output.pop_front();
                    } else if flow.questions.is_none() {
                        told(&error, flow.guest, flow.remote, outbox);
                        return Some(Received::Told);
                    }
                }
            }
        }
    }

    /// Ends the flows that nobody uses.
    pub(super) fn tick(&mut self, now: Instant, poller: &mut Poller) {
        let idle = |flow: &Flow| {
            let limit = if flow.questions.is_some() { IDLE_DNS } else { IDLE };
            now.saturating_duration_since(flow.used) > limit
        };
        let old: Vec<usize> = self.all.iter().filter(|(_, flow)| idle(flow)).map(|(index, _)| index).collect();
        old.into_iter().for_each(|index| self.end(index, poller));
    }

    pub(super) fn clear(&mut self, poller: &mut Poller) {
        let all: Vec<usize> = self.all.iter().map(|(index, _)| index).collect();
        all.into_iter().for_each(|index| self.end(index, poller));
        self.output.clear();
    }
}

/// Sends; that an earlier datagram did not arrive is said at the next call, which does not send then.
fn send(socket: &UdpSocket, payload: &[u8]) -> io::Result<()> {
    match socket.send(payload).or_else(|_| socket.send(payload)) {
        // A full queue drops, as networks do.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        result => result.map(drop),
    }
}

/// Tells the guest why its datagrams do not arrive.
fn told(error: &io::Error, guest: SocketAddr, remote: SocketAddr, outbox: &mut Outbox) {
    let reason = match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Unreachable::Port,
        ErrorKind::HostUnreachable => Unreachable::Host,
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Unreachable::Network,
        ErrorKind::PermissionDenied => Unreachable::Forbidden,
        _ => return,
    };
    unreachable(guest, remote, reason, outbox);
}

/// Tells the guest that there is no way to where it sends.
pub(super) fn unreachable(guest: SocketAddr, remote: SocketAddr, reason: Unreachable, outbox: &mut Outbox) {
    let mut begin = [0; 8];
    begin[..2].copy_from_slice(&guest.port().to_be_bytes());
    begin[2..4].copy_from_slice(&remote.port().to_be_bytes());
    begin[5] = 8;
    outbox.unreachable(guest.ip(), remote.ip(), UDP, begin, 8, reason);
}
