//! TCP: the guest's connections, each with a socket of the host's.
//!
//! A connection that the guest asks for is made on the host first, and the guest answered then: so it is refused where the host's is. A
//! guest that floods with SYNs gets no more than [`MOST`] of them.

mod connection;
mod ring;
mod segment;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Instant;

use slab::Slab;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

pub(super) use self::connection::Link;
pub use self::segment::Segment;

use self::connection::Connection;
use self::connection::Over;
use super::Outbox;
use super::TCP_TOKEN;
use super::packet::TCP;
use super::packet::Unreachable;
use crate::net::Deliver;
use crate::sys::sockets::Poller;

/// Most connections at a time.
const MOST: usize = 2048;
/// Most bytes that wait in each direction of a connection: the more connections, the less each has. All have 128 MiB at most.
const LIMITS: [(usize, usize); 3] = [(64, 256 << 10), (256, 128 << 10), (MOST, 16 << 10)];
/// The clock of first sequence numbers moves once in four microseconds (RFC 9293, 3.4.1).
const SEQUENCE_CLOCK: u128 = 4;

/// The connections.
#[derive(Debug)]
pub(super) struct Connections {
    all: Slab<Connection>,
    by_ends: HashMap<(SocketAddr, SocketAddr), usize>,
    /// Those that may have something to send.
    output: VecDeque<usize>,
    /// Makes first sequence numbers that nobody can guess.
    secret: RandomState,
    began: Instant,
    /// One may be timed.
    timed: bool,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            all: Slab::new(),
            by_ends: HashMap::new(),
            output: VecDeque::new(),
            secret: RandomState::new(),
            began: Instant::now(),
            timed: false,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether [`Connections::tick`] has something to wait for soon.
    pub(super) fn is_timed(&self) -> bool {
        self.timed
    }

    /// The first sequence number of a connection (RFC 6528, 3).
    fn first(&self, ends: (SocketAddr, SocketAddr), now: Instant) -> u32 {
        let clock = now.saturating_duration_since(self.began).as_micros() / SEQUENCE_CLOCK;
        let [a, b, c, d, ..] = clock.to_le_bytes();
        let [e, f, g, h, ..] = self.secret.hash_one(ends).to_le_bytes();
        u32::from_le_bytes([a, b, c, d]).wrapping_add(u32::from_le_bytes([e, f, g, h]))
    }

    fn limit(&self) -> usize {
        LIMITS.iter().find(|(count, _)| self.all.len() < *count).map_or(LIMITS[2].1, |limit| limit.1)
    }

    /// A segment of the guest's. `target` is where to connect for one that begins a connection.
    pub(super) fn segment(
        &mut self,
        (guest, remote): (SocketAddr, SocketAddr),
        segment: &Segment<'_>,
        target: impl FnOnce() -> Result<SocketAddr, Unreachable>,
        poller: &mut Poller,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        if let Some(&index) = self.by_ends.get(&(guest, remote)) {
            let result = self.all[index].segment(segment, now);
            self.settle(index, result, poller, outbox);
            return;
        }
        let begins = segment.syn && segment.acknowledgement.is_none() && !segment.rst;
        if !begins {
            outbox.refuse(segment, guest, remote);
            return;
        }
        let result = match target() {
            Ok(_) if self.all.len() >= MOST => Err(ErrorKind::QuotaExceeded.into()),
            Ok(target) => connect(target),
            // Nobody is there: as quick as a reset.
            Err(_) => Err(ErrorKind::ConnectionRefused.into()),
        };
        let result = result.and_then(|stream| {
            let first = self.first((guest, remote), now);
            let new = Connection::from_guest((guest, remote), stream, segment, self.limit(), first, now);
            self.add(new, poller)
        });
        if let Err(error) = result {
            let begin = Connection::begin_of(guest, remote, segment.sequence);
            refused(&error, (guest, remote), begin, || segment.refusal(), outbox);
        }
    }

    /// A peer of the host's connects to a port that leads to the guest: the guest sees `remote`.
    pub(super) fn accept(
        &mut self,
        stream: TcpStream,
        guest: SocketAddr,
        remote: SocketAddr,
        poller: &mut Poller,
        now: Instant,
    ) -> io::Result<()> {
        if self.all.len() >= MOST || self.by_ends.contains_key(&(guest, remote)) {
            return Err(ErrorKind::QuotaExceeded.into());
        }
        stream.set_nonblocking(true)?;
        let first = self.first((guest, remote), now);
        let new = Connection::from_host((guest, remote), stream, self.limit(), first, now);
        self.add(new, poller)
    }

    fn add(&mut self, new: Connection, poller: &mut Poller) -> io::Result<()> {
        let entry = self.all.vacant_entry();
        let index = entry.key();
        poller.add(new.stream(), TCP_TOKEN | index as u64, true)?;
        self.by_ends.insert((new.guest, new.remote), index);
        entry.insert(new);
        self.queue(index);
        Ok(())
    }

    /// A socket has become ready.
    pub(super) fn ready(
        &mut self,
        index: usize,
        readable: bool,
        writable: bool,
        poller: &mut Poller,
        outbox: &mut Outbox,
    ) {
        if let Some(connection) = self.all.get_mut(index) {
            let result = connection.ready(readable, writable);
            self.settle(index, result, poller, outbox);
        }
    }

    /// Goes on with a connection, or ends it.
    fn settle(&mut self, index: usize, result: Result<(), Over>, poller: &mut Poller, outbox: &mut Outbox) {
        match result {
            Ok(()) => self.queue(index),
            Err(over) => self.end(index, over, poller, outbox),
        }
    }

    fn queue(&mut self, index: usize) {
        let connection = &mut self.all[index];
        if !connection.queued && connection.has_work() {
            connection.queued = true;
            self.output.push_back(index);
        }
    }

    fn end(&mut self, index: usize, over: Over, poller: &mut Poller, outbox: &mut Outbox) {
        let connection = self.all.remove(index);
        let ends = (connection.guest, connection.remote);
        self.by_ends.remove(&ends);
        poller.remove(TCP_TOKEN | index as u64);
        match over {
            Over::Done => {}
            Over::Reset(tell) => {
                if tell {
                    outbox.segment(&connection.reset(), ends.0, ends.1);
                }
                connection.abort();
            }
            Over::Refused(error) => refused(&error, ends, connection.begin(), || Some(connection.reset()), outbox),
        }
    }

    /// Sends the guest the next frame, of at most `room` bytes, and says whether there was one.
    pub(super) fn send(
        &mut self,
        link: Link,
        room: usize,
        now: Instant,
        poller: &mut Poller,
        outbox: &mut Outbox,
        deliver: Deliver<'_>,
    ) -> bool {
        while let Some(&index) = self.output.front() {
            let Some(connection) = self.all.get_mut(index).filter(|connection| connection.queued) else {
                self.output.pop_front();
                continue;
            };
            match connection.send(link, room, now, deliver) {
                Ok(true) => {
                    // The others get their turn.
                    self.output.rotate_left(1);
                    self.timed = true;
                    return true;
                }
                Ok(false) => {
                    connection.queued = false;
                    self.timed |= connection.is_timed();
                    self.output.pop_front();
                }
                Err(over) => {
                    self.output.pop_front();
                    self.end(index, over, poller, outbox);
                }
            }
        }
        false
    }

    /// What is due by time.
    pub(super) fn tick(&mut self, now: Instant, poller: &mut Poller, outbox: &mut Outbox) {
        self.timed = false;
        let mut over = Vec::new();
        let mut due = Vec::new();
        for (index, connection) in &mut self.all {
            match connection.tick(now) {
                Ok(true) => due.push(index),
                Ok(false) => {}
                Err(end) => over.push((index, end)),
            }
            self.timed |= connection.is_timed();
        }
        due.into_iter().for_each(|index| self.queue(index));
        over.into_iter().for_each(|(index, end)| self.end(index, end, poller, outbox));
    }

    /// Breaks all connections off: the guest does not know them any more.
    pub(super) fn clear(&mut self, poller: &mut Poller) {
        for (index, connection) in &self.all {
            connection.abort();
            poller.remove(TCP_TOKEN | index as u64);
        }
        self.all.clear();
        self.by_ends.clear();
        self.output.clear();
    }
}

/// Begins to connect.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if is_under_way(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Whether the host says that it has begun.
fn is_under_way(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || crate::sys::sockets::is_in_progress(error)
}

/// Tells the guest what its own stack would say if it were the host.
fn refused(
    error: &io::Error,
    (guest, remote): (SocketAddr, SocketAddr),
    begin: [u8; 8],
    reset: impl FnOnce() -> Option<Segment<'static>>,
    outbox: &mut Outbox,
) {
    let reason = match error.kind() {
        // The guest's own patience decides.
        ErrorKind::TimedOut => return,
        ErrorKind::HostUnreachable => Unreachable::Host,
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Unreachable::Network,
        ErrorKind::PermissionDenied => Unreachable::Forbidden,
        _ => {
            if let Some(segment) = reset() {
                outbox.segment(&segment, guest, remote);
            }
            return;
        }
    };
    outbox.unreachable(guest.ip(), remote.ip(), TCP, begin, 20, reason);
}
