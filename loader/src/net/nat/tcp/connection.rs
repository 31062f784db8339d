//! One TCP connection: the gateway's end of it toward the guest, and the host's socket behind that.
//!
//! The link to the guest loses nothing unless the guest has no memory, and has no congestion. So there is no estimate of round trips, no
//! congestion window and no queue of segments out of order: a receiver's window bounds what is under way, and what the guest does not
//! acknowledge is sent again from the first byte missing. What comes out of order is dropped, and the guest told what is expected
//! (RFC 9293, 3.10.7.4, allows that).
//!
//! Only what the host's socket or the ring before it has taken is acknowledged, and the window is what they will take. So each end
//! slows the other down as if they were connected directly.

use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use socket2::SockRef;
use socket2::TcpKeepalive;

use super::ring::Ring;
use super::segment::CHECKSUM_AT;
use super::segment::HEADER;
use super::segment::Segment;
use super::segment::before;
use crate::net::Deliver;
use crate::net::FrameHeader;
use crate::net::Offloads;
use crate::net::nat::packet::TCP;
use crate::net::nat::packet::headers_len;
use crate::net::nat::packet::write_headers;
use crate::net::offload::PartialChecksum;
use crate::net::offload::Segmentation;
use crate::net::offload::Segmented;

/// What the guest has to be sent again is sent again after this, and then after twice as long each time.
const FIRST_TIMEOUT: Duration = Duration::from_millis(500);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Times without an answer after which a connection is given up: some minutes, for a guest may be stopped for a while.
const MOST_TIMES: u32 = 15;
/// The same for a connection that the guest has not answered yet.
const MOST_SYNS: u32 = 6;
/// A guest that says nothing for so long is asked whether it still has the connection (RFC 9293, 3.8.4), and again after each such
/// time; after [`MOST_TIMES`] the connection is given up. So what a guest has forgotten does not stay for ever, and what it waits for
/// in silence does. A peer of the host's is asked by the host.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
const HOST_KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(Duration::from_secs(60));
/// Acknowledgements of the same byte that say that what follows was lost (RFC 5681, 3.2).
const DUPLICATES: u32 = 3;
/// How far our windows are shifted: 256 KiB are so told in 16 bits.
const SCALE: u8 = 4;
/// What a sender takes that does not say (RFC 9293, 3.7.1).
const USUAL_MSS: u16 = 536;
/// The least that we believe: less would make many packets of few bytes.
const LEAST_MSS: u16 = 64;
/// Least room for which the host is asked for more while something is under way.
const LEAST_READ: usize = 16 << 10;
/// Most bytes of an IP packet.
const MOST_PACKET: usize = 65_535;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest wants it; the host is asked. The guest hears nothing meanwhile.
    Connecting,
    /// The host has it, the guest is told.
    Answering,
    /// A peer of the host's wants it, the guest is asked.
    Asking,
    /// Both have it.
    Open,
}

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Over {
    /// Both sides have closed.
    Done,
    /// One side broke it off: the guest is to be told by a reset, or knows.
    Reset(bool),
    /// The host could not connect.
    Refused(io::Error),
}

/// The guest's end, and the other one as the guest sees it.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// What a connection has to know of the link.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Link {
    pub(in super::super) mac: crate::net::Mac,
    pub(in super::super) mtu: u16,
    pub(in super::super) agreed: Offloads,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The guest's end, and the other one as the guest sees it.
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) state: State,
    stream: TcpStream,
    /// What is to be seen at the socket, until it says that there is no more.
    readable: bool,
    writable: bool,
    /// Whether it waits to send.
    pub(super) queued: bool,

    /// From the host: bytes from `acknowledged` on, of which the first `sent` are under way.
    outgoing: Ring,
    acknowledged: u32,
    sent: usize,
    /// The highest sequence number that was ever sent.
    reached: u32,
    /// The host's peer sends no more; the guest was told so; it has acknowledged that.
    host_ended: bool,
    end_sent: bool,
    end_acknowledged: bool,
    /// What the guest takes.
    window: u32,
    scale: u8,
    mss: u16,
    duplicates: u32,
    timeout: Option<Instant>,
    times: u32,
    /// When the guest last said something, or was last asked to; whether it is to be asked.
    heard: Instant,
    probe: bool,

    /// To the host: bytes that it did not take yet.
    incoming: Ring,
    expected: u32,
    /// The guest sends no more; the host was told so.
    guest_ended: bool,
    end_passed: bool,
    /// Something is to be said to the guest, if only an acknowledgement.
    answer: bool,
    /// The window that the guest knows of, from `expected` as it was then.
    told: u32,
    scaled: bool,
}

impl Connection {
    fn new(state: State, ends: Ends, stream: TcpStream, limit: usize, first: u32, now: Instant) -> Self {
        // The guest's pace is not made by ours.
        let _ = stream.set_nodelay(true);
        // A host that cannot keeps dead peers until they are closed.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&HOST_KEEP_ALIVE);
        let (guest, remote) = ends;
        Self {
            guest,
            remote,
            state,
            stream,
            readable: false,
            writable: false,
            queued: false,
            outgoing: Ring::new(limit),
            acknowledged: first,
            sent: 0,
            reached: first,
            host_ended: false,
            end_sent: false,
            end_acknowledged: false,
            window: 0,
            scale: 0,
            mss: USUAL_MSS,
            duplicates: 0,
            timeout: None,
            times: 0,
            heard: now,
            probe: false,
            incoming: Ring::new(limit),
            expected: 0,
            guest_ended: false,
            end_passed: false,
            answer: false,
            told: 0,
            scaled: false,
        }
    }

    /// One that the guest asks for by `segment`; `stream` is connecting.
    pub(super) fn from_guest(
        ends: Ends,
        stream: TcpStream,
        segment: &Segment<'_>,
        limit: usize,
        first: u32,
        now: Instant,
    ) -> Self {
        let mut new = Self::new(State::Connecting, ends, stream, limit, first, now);
        new.learn(segment);
        new
    }

    /// One from a peer of the host's.
    pub(super) fn from_host(ends: Ends, stream: TcpStream, limit: usize, first: u32, now: Instant) -> Self {
        let mut new = Self::new(State::Asking, ends, stream, limit, first, now);
        (new.answer, new.readable, new.writable) = (true, true, true);
        new
    }

    /// What a SYN says of its sender.
    fn learn(&mut self, segment: &Segment<'_>) {
        self.expected = segment.sequence.wrapping_add(1);
        self.told = self.expected;
        self.mss = segment.mss.unwrap_or(USUAL_MSS).max(LEAST_MSS);
        // Windows are shifted if both sides say so (RFC 7323, 2.2).
        self.scale = segment.scale.unwrap_or(0);
        self.scaled = segment.scale.is_some();
        self.window = segment.window.into();
    }

    /// The host's socket.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The first bytes of a segment of the guest's, for a message about it.
    pub(super) fn begin_of(guest: SocketAddr, remote: SocketAddr, sequence: u32) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&guest.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&remote.port().to_be_bytes());
        bytes[4..].copy_from_slice(&sequence.to_be_bytes());
        bytes
    }

    /// The first bytes of the SYN that the guest sent.
    pub(super) fn begin(&self) -> [u8; 8] {
        Self::begin_of(self.guest, self.remote, self.expected.wrapping_sub(1))
    }

    /// Bytes sent and not acknowledged, with the mark of the end.
    fn under_way(&self) -> u32 {
        u32::try_from(self.sent).unwrap_or(u32::MAX) + u32::from(self.end_sent && !self.end_acknowledged)
    }

    /// The sequence number of what is sent next.
    fn next(&self) -> u32 {
        self.acknowledged.wrapping_add(self.under_way())
    }

    /// The socket has become ready.
    pub(super) fn ready(&mut self, readable: bool, writable: bool) -> Result<(), Over> {
        self.readable |= readable;
        self.writable |= writable;
        match self.state {
            State::Connecting if writable => match self.stream.take_error() {
                Ok(None) => {
                    // Said without a reason only when it is connected.
                    if self.stream.peer_addr().is_err() {
                        return Ok(());
                    }
                    self.state = State::Answering;
                    self.answer = true;
                    Ok(())
                }
                Ok(Some(error)) | Err(error) => Err(Over::Refused(error)),
            },
            State::Open => self.pass_on(),
            _ => Ok(()),
        }
    }

    /// Gives the host what waits for it, and the end behind that.
    fn pass_on(&mut self) -> Result<(), Over> {
        while self.writable && !self.incoming.is_empty() {
            match self.incoming.drain(&self.stream) {
                Ok(_) => {}
                Err(error) => self.not_written(&error)?,
            }
        }
        // The guest hears of a window when it is worth it (RFC 9293, 3.8.6.2.2).
        let open = self.told.wrapping_sub(self.expected);
        let most = u32::from(u16::MAX) << if self.scaled { SCALE } else { 0 };
        let now = u32::try_from(self.incoming.room()).map_or(most, |room| room.min(most));
        if now.saturating_sub(open) >= (now / 2).max(u32::from(self.mss)) {
            self.answer = true;
        }
        if self.guest_ended && self.incoming.is_empty() && !self.end_passed {
            self.end_passed = true;
            // It fails only if the connection is broken, of which reading tells.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        self.over()
    }

    fn not_written(&mut self, error: &io::Error) -> Result<(), Over> {
        match error.kind() {
            ErrorKind::WouldBlock => self.writable = false,
            ErrorKind::Interrupted => {}
            _ => return Err(Over::Reset(true)),
        }
        Ok(())
    }

    fn over(&self) -> Result<(), Over> {
        // The acknowledgement of the guest's end goes out first.
        if self.end_acknowledged && self.end_passed && !self.answer { Err(Over::Done) } else { Ok(()) }
    }

    /// A segment of the guest's.
    pub(super) fn segment(&mut self, segment: &Segment<'_>, now: Instant) -> Result<(), Over> {
        self.heard = now;
        if self.under_way() == 0 {
            self.times = 0;
        }
        match self.state {
            // Asked once more, or broken off before it began.
            State::Connecting if segment.rst => Err(Over::Reset(false)),
            State::Connecting => Ok(()),
            State::Asking => self.asked(segment),
            State::Answering | State::Open => self.opened(segment, now),
        }
    }

    /// The answer to our SYN.
    fn asked(&mut self, segment: &Segment<'_>) -> Result<(), Over> {
        let ours = segment.acknowledgement == Some(self.acknowledged.wrapping_add(1));
        match (segment.rst, segment.syn) {
            (true, _) if ours => Err(Over::Reset(false)),
            (false, true) if ours => {
                self.learn(segment);
                self.established();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn established(&mut self) {
        self.acknowledged = self.acknowledged.wrapping_add(1);
        self.reached = self.acknowledged;
        self.state = State::Open;
        self.answer = true;
        (self.timeout, self.times) = (None, 0);
    }

    fn opened(&mut self, segment: &Segment<'_>, now: Instant) -> Result<(), Over> {
        let room = self.told.wrapping_sub(self.expected);
        if segment.rst {
            // RFC 5961, 3.2: exactly what is expected, else the guest is asked whether it means it.
            if segment.sequence == self.expected {
                return Err(Over::Reset(false));
            }
            self.answer |= segment.sequence.wrapping_sub(self.expected) < room;
            return Ok(());
        }
        if segment.syn {
            // RFC 5961, 4.2: if the guest does not know the connection any more, it resets it for the answer. The SYN once more
            // is answered as at first.
            self.answer = true;
            return Ok(());
        }
        // Nothing is taken without (RFC 9293, 3.10.7.4).
        let Some(acknowledgement) = segment.acknowledgement else { return Ok(()) };
        if self.state == State::Answering {
            if acknowledgement != self.acknowledged.wrapping_add(1) {
                return Ok(());
            }
            self.established();
            // What the guest says by this is said; nothing of ours answers it.
            self.answer = false;
            self.window = u32::from(segment.window) << self.scale;
        }
        self.acknowledge(acknowledgement, segment, now);
        self.data(segment)?;
        self.pass_on()
    }

    fn acknowledge(&mut self, acknowledgement: u32, segment: &Segment<'_>, now: Instant) {
        let advance = acknowledgement.wrapping_sub(self.acknowledged);
        if advance > self.reached.wrapping_sub(self.acknowledged) {
            // Of what was never sent, or long ago.
            self.answer |= !before(acknowledgement, self.acknowledged);
            return;
        }
        let window = u32::from(segment.window) << self.scale;
        if advance == 0 {
            let again = segment.length() == 0 && window == self.window && self.under_way() > 0;
            self.duplicates = if again { self.duplicates + 1 } else { 0 };
            if self.duplicates == DUPLICATES {
                self.rewind();
            }
        } else {
            let data = (advance as usize).min(self.outgoing.len());
            self.outgoing.consume(data);
            self.sent = self.sent.saturating_sub(data);
            if advance as usize > data {
                (self.end_sent, self.end_acknowledged) = (true, true);
            }
            self.acknowledged = acknowledgement;
            (self.duplicates, self.times) = (0, 0);
            self.timeout = (self.under_way() > 0).then(|| now + FIRST_TIMEOUT);
        }
        self.window = window;
    }

    /// Begins to send again from the first byte that was not acknowledged.
    fn rewind(&mut self) {
        self.sent = 0;
        self.end_sent = self.end_acknowledged;
        // A guest that says nothing may have been told nothing.
        self.answer = true;
    }

    fn data(&mut self, segment: &Segment<'_>) -> Result<(), Over> {
        if segment.length() == 0 {
            // A probe whether the connection is there (RFC 9293, 3.8.4) is one byte behind.
            self.answer |= before(segment.sequence, self.expected);
            return Ok(());
        }
        self.answer = true;
        let known = self.expected.wrapping_sub(segment.sequence);
        if known > segment.length() || self.guest_ended {
            return Ok(());
        }
        let skipped = (known as usize).min(segment.payload.len());
        let fresh = &segment.payload[skipped..];
        let room = self.told.wrapping_sub(self.expected) as usize;
        let taken = fresh.len().min(room);
        self.take(&fresh[..taken])?;
        self.expected = self.expected.wrapping_add(u32::try_from(taken).unwrap_or(0));
        self.guest_ended = segment.fin && taken == fresh.len();
        if self.guest_ended {
            self.expected = self.expected.wrapping_add(1);
        }
        Ok(())
    }

    /// Gives the host `bytes`, directly if nothing waits before them.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Over> {
        while self.writable && self.incoming.is_empty() && !bytes.is_empty() {
            match (&self.stream).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.not_written(&error)?,
            }
        }
        if !bytes.is_empty() {
            self.incoming.push(bytes);
        }
        Ok(())
    }

    /// Takes from the host what there is room for.
    fn fetch(&mut self) -> Result<(), Over> {
        while self.readable && !self.host_ended && self.outgoing.room() > 0 {
            match self.outgoing.fill(&self.stream) {
                Ok(0) => self.host_ended = true,
                // More would only wait here.
                Ok(_) => return Ok(()),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.readable = false,
                    ErrorKind::Interrupted => {}
                    _ => return Err(Over::Reset(true)),
                },
            }
        }
        Ok(())
    }

    /// Sends the guest what there is to send, in one frame of at most `room` bytes, and says whether there was anything. Called
    /// until it says no.
    pub(super) fn send(&mut self, link: Link, room: usize, now: Instant, deliver: Deliver<'_>) -> Result<bool, Over> {
        match self.state {
            State::Connecting => return Ok(false),
            State::Answering | State::Asking => {
                if std::mem::take(&mut self.answer) {
                    self.greet(link, now, deliver);
                    return Ok(true);
                }
                return Ok(false);
            }
            State::Open => {}
        }
        // As long as much is under way, much is read at once.
        let worth = self.outgoing.is_empty() || self.outgoing.room() >= LEAST_READ;
        if worth && self.outgoing.len() - self.sent < MOST_PACKET {
            self.fetch()?;
        }
        let headers = headers_len(self.guest.ip()) + HEADER;
        let (whole, large) = self.most(link, headers);
        let most = if large { MOST_PACKET + crate::net::ETHERNET_HEADER - headers } else { whole }.min(room - headers);
        let waiting = self.outgoing.len() - self.sent;
        let open = (self.window as usize).saturating_sub(self.under_way() as usize);
        let mut count = waiting.min(open).min(most);
        // Whole packets, unless it is the last or the first (RFC 9293, 3.8.6.2.1).
        if count < waiting && count > whole {
            count -= count % whole;
        } else if count < waiting && count < whole && self.under_way() > 0 {
            count = 0;
        }
        let end = self.host_ended && !self.end_sent && count == waiting;
        if count == 0 && !end && !self.answer {
            // The guest's window is shut: it is asked again after a while.
            if waiting > 0 && self.timeout.is_none() {
                self.timeout = Some(now + FIRST_TIMEOUT);
            }
            return self.over().map(|()| false);
        }
        self.emit(link, count, end, whole, deliver);
        self.sent += count;
        self.end_sent |= end;
        if before(self.reached, self.next()) {
            self.reached = self.next();
        }
        if self.under_way() > 0 && self.timeout.is_none() {
            self.timeout = Some(now + FIRST_TIMEOUT);
        }
        Ok(true)
    }

    /// Most bytes of data in a packet, and whether the guest takes more at once.
    fn most(&self, link: Link, headers: usize) -> (usize, bool) {
        let whole = usize::from(self.mss).min(usize::from(link.mtu) + crate::net::ETHERNET_HEADER - headers);
        let large = if self.guest.is_ipv4() { link.agreed.guest_tcp4 } else { link.agreed.guest_tcp6 };
        (whole, large && link.agreed.guest_checksum)
    }

    /// SYN, or the answer to one.
    fn greet(&mut self, link: Link, now: Instant, deliver: Deliver<'_>) {
        let answering = self.state == State::Answering;
        let headers = headers_len(self.guest.ip()) + HEADER;
        let mss = usize::from(link.mtu) + crate::net::ETHERNET_HEADER - headers;
        let room = u16::try_from(self.incoming.room()).unwrap_or(u16::MAX);
        // A SYN's own window is never shifted (RFC 7323, 2.2).
        self.told = self.expected.wrapping_add(room.into());
        let segment = Segment {
            sequence: self.acknowledged,
            acknowledgement: answering.then_some(self.expected),
            window: room,
            syn: true,
            mss: u16::try_from(mss).ok(),
            scale: (self.scaled || !answering).then_some(SCALE),
            ..Segment::default()
        };
        let frame = segment.frame(link.mac, self.remote, self.guest);
        deliver(&FrameHeader::default(), &[&frame]);
        self.reached = self.acknowledged.wrapping_add(1);
        self.timeout = Some(now + self.patience());
    }

    fn patience(&self) -> Duration {
        LONGEST_TIMEOUT.min(FIRST_TIMEOUT.saturating_mul(1 << self.times.min(10)))
    }

    fn emit(&mut self, link: Link, count: usize, end: bool, whole: usize, deliver: Deliver<'_>) {
        let from = self.sent;
        let shift = if self.scaled { SCALE } else { 0 };
        let room = u32::try_from(self.incoming.room()).unwrap_or(u32::MAX);
        let window = u16::try_from(room >> shift).unwrap_or(u16::MAX);
        // A byte that the guest has had makes it say what it expects.
        let behind = u32::from(std::mem::take(&mut self.probe) && count == 0 && !end);
        let segment = Segment {
            sequence: self.next().wrapping_sub(behind),
            acknowledgement: Some(self.expected),
            window,
            fin: end,
            psh: count > 0 && from + count == self.outgoing.len(),
            ..Segment::default()
        };
        // What the guest was told stays open: rounding must not take it back.
        let edge = self.expected.wrapping_add(u32::from(window) << shift);
        if before(self.told, edge) {
            self.told = edge;
        }
        self.answer = false;
        let mut bytes = [0; crate::net::ETHERNET_HEADER + 40 + HEADER];
        let ip = write_headers(&mut bytes, link.mac, self.remote.ip(), self.guest.ip(), TCP, HEADER + count);
        let all = ip + segment.write(&mut bytes[ip..], self.remote, self.guest, count);
        let [first, second] = self.outgoing.slices(from, count);
        let word = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let header = if link.agreed.guest_checksum {
            let kind = if self.guest.is_ipv4() { Segmented::Tcp4 } else { Segmented::Tcp6 };
            let large = Segmentation { kind, header: word(all), size: word(whole), noted: false };
            FrameHeader {
                checksum: Some(PartialChecksum { start: word(ip), offset: CHECKSUM_AT }),
                segmentation: (count > whole).then_some(large),
            }
        } else {
            Segment::complete(&mut bytes[ip..all], [first, second]);
            FrameHeader::default()
        };
        deliver(&header, &[&bytes[..all], first, second]);
    }

    /// What is due by time; says whether there is something to send for it.
    pub(super) fn tick(&mut self, now: Instant) -> Result<bool, Over> {
        self.outgoing.release();
        self.incoming.release();
        if self.state == State::Open
            && self.timeout.is_none()
            && now.saturating_duration_since(self.heard) >= KEEP_ALIVE
        {
            self.times += 1;
            if self.times > MOST_TIMES {
                return Err(Over::Reset(true));
            }
            self.heard = now;
            (self.probe, self.answer) = (true, true);
            return Ok(true);
        }
        if self.timeout.is_none_or(|timeout| now < timeout) {
            return Ok(false);
        }
        self.times += 1;
        let asking = self.state != State::Open;
        if self.times > if asking { MOST_SYNS } else { MOST_TIMES } {
            return Err(Over::Reset(true));
        }
        self.timeout = Some(now + self.patience());
        self.answer = true;
        if !asking {
            self.rewind();
            if self.window == 0 && !self.outgoing.is_empty() {
                // One byte asks for the window (RFC 9293, 3.8.6.1).
                self.window = 1;
            }
        }
        Ok(true)
    }

    /// Whether something is due at some time.
    pub(super) fn is_timed(&self) -> bool {
        self.timeout.is_some()
    }

    /// Whether it has something to send now, as far as can be seen.
    pub(super) fn has_work(&self) -> bool {
        self.answer || self.state == State::Open
    }

    /// What resets it at the guest.
    pub(super) fn reset(&self) -> Segment<'static> {
        let reset = Segment { rst: true, ..Segment::default() };
        match self.state {
            // As an answer to the SYN.
            State::Connecting => Segment { acknowledgement: Some(self.expected), ..reset },
            State::Asking => Segment { sequence: self.acknowledged.wrapping_add(1), ..reset },
            State::Answering | State::Open => {
                Segment { sequence: self.next(), acknowledgement: Some(self.expected), ..reset }
            }
        }
    }

    /// Breaks it off toward the host: by a reset, not an end.
    pub(super) fn abort(&self) {
        // Where that cannot be, it is closed all the same.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}
