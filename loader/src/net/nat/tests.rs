//! The network, with smoltcp's stack as the guest: another implementation than ours, so that both are wrong in the same way at best by
//! accident. The host is this machine's loopback.

use std::collections::VecDeque;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use smoltcp::iface::Config;
use smoltcp::iface::Interface;
use smoltcp::iface::SocketHandle;
use smoltcp::iface::SocketSet;
use smoltcp::phy;
use smoltcp::phy::Checksum;
use smoltcp::phy::DeviceCapabilities;
use smoltcp::phy::Medium;
use smoltcp::socket::dhcpv4;
use smoltcp::socket::icmp;
use smoltcp::socket::tcp as guest_tcp;
use smoltcp::socket::udp as guest_udp;
use smoltcp::wire::EthernetAddress;
use smoltcp::wire::Icmpv4Packet;
use smoltcp::wire::Icmpv4Repr;
use smoltcp::wire::IpAddress;
use smoltcp::wire::IpCidr;

use super::*;
use crate::net::spec::Protocol;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 15]);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames that the guest has room for.
const BUFFERS: usize = 64;

/// The link: frames in both directions.
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    to_host: VecDeque<Vec<u8>>,
    offloaded: bool,
}

struct RxToken(Vec<u8>);
struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        Some((RxToken(self.to_guest.pop_front()?), TxToken(&mut self.to_host)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        (self.to_host.len() < BUFFERS).then_some(TxToken(&mut self.to_host))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = LEAST_ROOM;
        if self.offloaded {
            // Those to the guest are left to it.
            capabilities.checksum.tcp = Checksum::Tx;
        }
        capabilities
    }
}

const LEAST_ROOM: usize = super::super::LEAST_ROOM;

/// The guest, and the network that it is on.
struct Guest {
    nat: Nat,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    began: Instant,
    next_port: u16,
    /// Frames that came, and the largest.
    frames: usize,
    largest: usize,
    /// Every so many frames to the guest one is lost.
    lost: Option<usize>,
}

impl Guest {
    fn new(offloads: Offloads, forwards: &[Forward]) -> Self {
        let mut nat = Nat::new(0, MAC, None, forwards, Reach::All).unwrap();
        nat.start(offloads);
        let mut wire = Wire { to_guest: VecDeque::new(), to_host: VecDeque::new(), offloaded: offloads.guest_checksum };
        let config = Config::new(EthernetAddress(MAC.0).into());
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        let own6: Ipv6Addr = "fd2e:91b7:6c04:2::15".parse().unwrap();
        interface.update_ip_addrs(|all| {
            all.push(IpCidr::new(Ipv4Addr::new(10, 0, 2, 15).into(), 24)).unwrap();
            all.push(IpCidr::new(own6.into(), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(10, 0, 2, 2)).unwrap();
        interface.routes_mut().add_default_ipv6_route("fd2e:91b7:6c04:2::2".parse().unwrap()).unwrap();
        Self {
            nat,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            began: Instant::now(),
            next_port: 49_152,
            frames: 0,
            largest: 0,
            lost: None,
        }
    }

    fn plain() -> Self {
        Self::new(Offloads::default(), &[])
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap())
    }

    /// Lets both sides do what they have to.
    fn step(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let mut moved = !self.wire.to_host.is_empty();
        for frame in self.wire.to_host.drain(..) {
            self.nat.send(&FrameHeader::default(), &frame);
        }
        while self.wire.to_guest.len() < BUFFERS {
            let (wire, frames, largest, lost) = (&mut self.wire, &mut self.frames, &mut self.largest, self.lost);
            let more = self.nat.receive(crate::net::MAX_FRAME, &mut |header, parts| {
                let frame = parts.concat();
                assert!(header.segmentation.is_some() || frame.len() <= LEAST_ROOM);
                *frames += 1;
                *largest = frame.len().max(*largest);
                if lost.is_none_or(|lost| *frames % lost != 0) {
                    wire.to_guest.push_back(frame);
                }
            });
            moved |= more;
            if !more {
                break;
            }
        }
        self.nat.wait(Some(if moved { Duration::ZERO } else { Duration::from_millis(1) }));
    }

    /// Goes on until `done` gives something.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(began.elapsed() < PATIENCE, "{what} takes too long: {:?}", self.nat);
            self.step();
        }
    }

    fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || guest_tcp::SocketBuffer::new(vec![0; 1 << 18]);
        self.sockets.add(guest_tcp::Socket::new(buffer(), buffer()))
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut guest_tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn connect(&mut self, remote: SocketAddr) -> SocketHandle {
        let handle = self.tcp_socket();
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        let port = self.next_port;
        let socket = self.sockets.get_mut::<guest_tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), remote, port).unwrap();
        handle
    }

    /// Reads to the end.
    fn read_all(&mut self, handle: SocketHandle, mut each: impl FnMut(&[u8])) {
        self.until("reading", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                socket
                    .recv(|data| {
                        each(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            (!socket.may_recv() && socket.state() != guest_tcp::State::SynSent).then_some(())
        });
    }

    fn write_all(&mut self, handle: SocketHandle, mut data: &[u8]) {
        self.until("writing", |guest| {
            if guest.tcp(handle).can_send() {
                let count = guest.tcp(handle).send_slice(data).unwrap();
                data = &data[count..];
            }
            data.is_empty().then_some(())
        });
    }

    /// Takes a connection of the guest's at a server of the host's.
    fn accept(&mut self, listener: &TcpListener) -> TcpStream {
        listener.set_nonblocking(true).unwrap();
        let (stream, _) = self.until("a connection", |_| listener.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream
    }

    fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || guest_udp::PacketBuffer::new(vec![guest_udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 16]);
        let mut socket = guest_udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    fn receive_udp(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        self.until("a datagram", |guest| {
            let socket = guest.sockets.get_mut::<guest_udp::Socket<'_>>(handle);
            let (data, meta) = socket.recv().ok()?;
            let ip = IpAddr::from(meta.endpoint.addr);
            Some((data.to_vec(), SocketAddr::new(ip, meta.endpoint.port)))
        })
    }

    fn send_udp(&mut self, handle: SocketHandle, to: SocketAddr, data: &[u8]) {
        self.sockets.get_mut::<guest_udp::Socket<'_>>(handle).send_slice(data, to).unwrap();
    }
}

/// Whether the host's peer sees that its connection was broken off. Wine ends in order what is closed so.
fn is_broken_off(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 8]) {
        Ok(count) => cfg!(windows) && count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// The gateway's address and port, for a server on the host.
fn by_gateway(local: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match local {
        SocketAddr::V4(_) => "10.0.2.2".parse().unwrap(),
        SocketAddr::V6(_) => "fd2e:91b7:6c04:2::2".parse().unwrap(),
    };
    SocketAddr::new(ip, local.port())
}

/// The loopback addresses that this machine has.
fn loopbacks() -> Vec<&'static str> {
    let all = ["127.0.0.1:0", "[::1]:0"];
    all.into_iter().filter(|address| TcpListener::bind(address).is_ok()).collect()
}

/// Bytes that differ, by their place.
fn pattern(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16).to_le_bytes()[0]
}

fn block(at: u64, count: usize) -> Vec<u8> {
    (at..).take(count).map(pattern).collect()
}

/// A server that sends so many bytes to whoever connects.
fn source(address: &str, bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let local = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut at = 0;
        while at < bytes {
            let count = usize::try_from(bytes - at).unwrap().min(1 << 16);
            stream.write_all(&block(at, count)).unwrap();
            at += count as u64;
        }
    });
    local
}

fn download(guest: &mut Guest, address: &str, bytes: u64) {
    let server = source(address, bytes);
    let handle = guest.connect(by_gateway(server));
    let mut at = 0;
    guest.read_all(handle, |data| {
        assert!(data.iter().zip(at..).all(|(byte, at)| *byte == pattern(at)), "at {at}");
        at += data.len() as u64;
    });
    assert_eq!(at, bytes);
    guest.tcp(handle).close();
    guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
    guest.sockets.remove(handle);
}

fn upload(guest: &mut Guest, address: &str, bytes: u64) {
    let listener = TcpListener::bind(address).unwrap();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            let count = stream.read(&mut buffer).unwrap();
            if count == 0 {
                return at;
            }
            assert!(buffer[..count].iter().zip(at..).all(|(byte, at)| *byte == pattern(at)), "at {at}");
            at += count as u64;
        }
    });
    let mut at = 0;
    while at < bytes {
        let count = usize::try_from(bytes - at).unwrap().min(1 << 16);
        guest.write_all(handle, &block(at, count));
        at += count as u64;
    }
    guest.tcp(handle).close();
    guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
    assert_eq!(server.join().unwrap(), bytes);
    guest.sockets.remove(handle);
}

const LARGE: Offloads = Offloads {
    host_checksum: false,
    host_tcp4: false,
    host_tcp6: false,
    guest_checksum: true,
    guest_tcp4: true,
    guest_tcp6: true,
};

#[test]
fn test_tcp_carries_every_byte() {
    for address in loopbacks() {
        for offloads in [Offloads::default(), LARGE] {
            let mut guest = Guest::new(offloads, &[]);
            download(&mut guest, address, 3_000_001);
            assert_eq!(guest.largest > LEAST_ROOM, offloads.guest_tcp4);
            upload(&mut guest, address, 3_000_001);
        }
    }
}

#[test]
fn test_lost_frames_are_sent_again() {
    let mut guest = Guest::plain();
    guest.lost = Some(37);
    download(&mut guest, "127.0.0.1:0", 1_000_000);
}

/// Many times what windows and buffers hold. A guest of Linux' carries 256 MiB in the scenario `net/256-mib-through-nat`.
#[test]
fn test_tcp_carries_16_mib_each_way() {
    for address in loopbacks() {
        for offloads in [Offloads::default(), LARGE] {
            let mut guest = Guest::new(offloads, &[]);
            for (what, run) in [("down", download as fn(&mut Guest, &str, u64)), ("up", upload)] {
                let (began, frames) = (Instant::now(), guest.frames);
                run(&mut guest, address, 16 << 20);
                let frames = guest.frames - frames;
                println!("{address} {what} large={}: {:?}, {frames} frames", offloads.guest_tcp4, began.elapsed());
            }
        }
    }
}

#[test]
fn test_many_short_connections_leave_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&request).unwrap();
        }
    });
    let mut guest = Guest::plain();
    let before = descriptors();
    for round in 0..50_u32 {
        let handles: Vec<_> = (0..20).map(|_| guest.connect(by_gateway(server))).collect();
        for &handle in &handles {
            guest.write_all(handle, &round.to_le_bytes());
            let mut answer = Vec::new();
            guest.read_all(handle, |data| answer.extend_from_slice(data));
            assert_eq!(answer, round.to_le_bytes());
            guest.tcp(handle).close();
        }
        guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
        handles.into_iter().for_each(|handle| drop(guest.sockets.remove(handle)));
    }
    // Other tests run beside this one and have descriptors too; a thousand would be seen.
    assert!(descriptors() < before + 300);
    assert_eq!(guest.nat.connections.len(), 0);
}

#[test]
fn test_a_refused_connection_is_reset_at_once() {
    for address in loopbacks() {
        // Bound, so that nobody else takes the port, but nobody listens.
        let address: SocketAddr = address.parse().unwrap();
        let bound = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        bound.bind(&address.into()).unwrap();
        let free = bound.local_addr().unwrap().as_socket().unwrap();
        let mut guest = Guest::plain();
        for remote in [by_gateway(free), "10.0.2.77:80".parse().unwrap(), "[fd2e:91b7:6c04:2::77]:80".parse().unwrap()]
        {
            let handle = guest.connect(remote);
            if remote == by_gateway(free) {
                guest.until("a reset", |guest| (!guest.tcp(handle).is_open()).then_some(()));
            }
            guest.sockets.remove(handle);
        }
        assert_eq!(guest.nat.connections.len(), 0);
    }
}

#[test]
fn test_a_reset_goes_through_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::plain();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let mut stream = guest.accept(&listener);
    guest.until("a connection", |guest| guest.tcp(handle).can_send().then_some(()));
    guest.tcp(handle).abort();
    guest.until("its end", |guest| (guest.nat.connections.len() == 0).then_some(()));
    assert!(is_broken_off(&mut stream));

    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let stream = guest.accept(&listener);
    guest.until("a connection", |guest| guest.tcp(handle).can_send().then_some(()));
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("a reset", |guest| (!guest.tcp(handle).is_open()).then_some(()));
    assert_eq!(guest.nat.connections.len(), 0);
}

#[test]
fn test_a_half_closed_connection_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::plain();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    guest.write_all(handle, b"question");
    guest.tcp(handle).close();
    let mut answer = Vec::new();
    guest.read_all(handle, |data| answer.extend_from_slice(data));
    assert_eq!(answer, b"question");
    guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
    server.join().unwrap();
}

/// Lets it be so much later for the connections.
fn tick_later(nat: &mut Nat, later: Duration) {
    nat.connections.tick(Instant::now() + later, &mut nat.poller, &mut nat.outbox);
}

#[test]
fn test_a_guest_is_asked_whether_it_still_has_a_connection() {
    const SILENCE: Duration = Duration::from_secs(301);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::plain();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let mut stream = guest.accept(&listener);
    guest.until("the connection", |guest| guest.tcp(handle).may_send().then_some(()));
    guest.until("silence", |guest| (guest.frames > 1 && guest.wire.to_host.is_empty()).then_some(()));
    for times in 1..4 {
        let frames = guest.frames;
        tick_later(&mut guest.nat, SILENCE * times);
        guest.until("a probe", |guest| (guest.frames > frames).then_some(()));
        (0..5).for_each(|_| guest.step());
    }
    // It has it, and all goes on as before.
    stream.write_all(b"word").unwrap();
    guest.until("a word", |guest| guest.tcp(handle).can_recv().then_some(()));
    // It has forgotten it: it resets what it is asked for.
    guest.sockets.remove(handle);
    tick_later(&mut guest.nat, SILENCE * 4);
    guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
    assert!(is_broken_off(&mut stream));
}

#[test]
fn test_a_guest_that_never_answers_loses_its_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::plain();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let _stream = guest.accept(&listener);
    guest.until("the connection", |guest| guest.tcp(handle).may_send().then_some(()));
    (0..5).for_each(|_| guest.step());
    for times in 1..20_u64 {
        tick_later(&mut guest.nat, Duration::from_secs(301 * times));
    }
    assert_eq!(guest.nat.connections.len(), 0);
}

/// A guest that does not read slows the server down, and the network keeps no more than its limit.
#[test]
fn test_a_slow_guest_slows_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::plain();
    let handle = guest.connect(by_gateway(listener.local_addr().unwrap()));
    let stream = guest.accept(&listener);
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0_u64;
    for _ in 0..400 {
        while let Ok(count) = (&stream).write(&block(sent, 1 << 16)) {
            sent += count as u64;
        }
        guest.step();
    }
    assert!(sent < 64 << 20, "{sent}");
    drop(stream);
    let mut at = 0;
    guest.read_all(handle, |data| {
        assert!(data.iter().zip(at..).all(|(byte, at)| *byte == pattern(at)), "at {at}");
        at += data.len() as u64;
    });
    assert_eq!(at, sent);
}

/// A guest that floods with connections gets so many and no more.
#[test]
fn test_attack_syn_flood() {
    let mut guest = Guest::plain();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = by_gateway(listener.local_addr().unwrap());
    let syn = Segment { syn: true, sequence: 1, window: 1000, ..Segment::default() };
    for port in 1..3000_u16 {
        let frame = syn.frame(super::addresses::GATEWAY_MAC, (Ipv4Addr::new(10, 0, 2, 15), port).into(), remote);
        let mut frame = frame;
        frame[6..12].copy_from_slice(&MAC.0);
        guest.nat.send(&FrameHeader::default(), &frame);
    }
    assert!(guest.nat.connections.len() <= 2048);
    guest.nat.reset();
    assert_eq!(guest.nat.connections.len(), 0);
}

#[test]
fn test_udp_goes_both_ways() {
    for address in loopbacks() {
        let server = UdpSocket::bind(address).unwrap();
        let remote = by_gateway(server.local_addr().unwrap());
        let mut guest = Guest::plain();
        let handle = guest.udp(5000);
        guest.send_udp(handle, remote, b"question");
        server.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2000];
        let (count, peer) = guest.until("a question", |_| server.recv_from(&mut buffer).ok());
        assert_eq!(&buffer[..count], b"question");
        server.send_to(b"answer", peer).unwrap();
        assert_eq!(guest.receive_udp(handle), (b"answer".to_vec(), remote));
        assert_eq!(guest.nat.flows.len(), 1);
        // A stranger is not heard.
        let stranger = UdpSocket::bind(address).unwrap();
        stranger.send_to(b"guess", peer).unwrap();
        server.send_to(b"more", peer).unwrap();
        assert_eq!(guest.receive_udp(handle).0, b"more");
    }
}

/// What is larger than the link's packets goes in parts, in both directions.
#[test]
fn test_large_datagrams_go_both_ways() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let socket = UdpSocket::bind(host).unwrap();
        let remote = by_gateway(socket.local_addr().unwrap());
        let mut guest = Guest::plain();
        let source =
            SocketAddr::new(if remote.is_ipv4() { "10.0.2.15" } else { "fd2e:91b7:6c04:2::15" }.parse().unwrap(), 99);
        let payload: Vec<u8> = (0..9000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let mut whole = packet::udp_frame(addresses::GATEWAY_MAC, source, remote, &payload);
        whole[6..12].copy_from_slice(&MAC.0);
        for frame in packet::fragments(&whole, 1500, 7) {
            guest.nat.send(&FrameHeader::default(), &frame);
        }
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = vec![0; 10_000];
        let (count, peer) = socket.recv_from(&mut received).unwrap();
        assert_eq!(received[..count], payload);
        socket.send_to(&payload, peer).unwrap();
        guest.nat.wait(Some(PATIENCE));
        let mut fragments = Fragments::default();
        let answer = loop {
            let mut frame = Vec::new();
            if !guest.nat.receive(LEAST_ROOM, &mut |_, parts| frame = parts.concat()) {
                guest.nat.wait(Some(PATIENCE));
            } else if let Some(answer) = Fragment::parse(&frame).and_then(|part| fragments.add(&part, Instant::now())) {
                break answer;
            }
        };
        assert!(answer.ends_with(&payload));
    }
}

#[test]
fn test_names_are_asked_for_at_the_hosts_resolvers() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";
    for remote in ["10.0.2.3:53", "[fd2e:91b7:6c04:2::3]:53"] {
        let remote = remote.parse().unwrap();
        let mut guest = Guest::plain();
        guest.nat.resolvers = Resolvers::of(vec![silent.local_addr().unwrap(), server.local_addr().unwrap()]);
        let handle = guest.udp(5353);
        guest.send_udp(handle, remote, b"nonsense");
        // The first resolver says nothing, so the guest asks again.
        guest.send_udp(handle, remote, query);
        guest.send_udp(handle, remote, query);
        let mut buffer = [0; 512];
        let (count, peer) = guest.until("a query", |_| server.recv_from(&mut buffer).ok());
        assert_eq!(&buffer[..count], query);
        let answer = Query::parse(query).unwrap().failure();
        server.send_to(&answer, peer).unwrap();
        assert_eq!(guest.receive_udp(handle), (answer, remote));
        // Without any the guest hears at once.
        guest.nat.resolvers = Resolvers::of(Vec::new());
        guest.nat.flows.clear(&mut guest.nat.poller);
        guest.send_udp(handle, remote, query);
        assert_eq!(guest.receive_udp(handle).0[3] & 15, 2);
    }
}

use super::dns::Query;

#[test]
fn test_the_guest_gets_its_address() {
    let mut guest = Guest::plain();
    guest.interface.update_ip_addrs(|all| all.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, dns) =
        guest.until("an address", |guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers.clone()))
            }
            _ => None,
        });
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router, Some(Ipv4Addr::new(10, 0, 2, 2)));
    assert_eq!(dns.as_slice(), [Ipv4Addr::new(10, 0, 2, 3)]);
}

#[test]
fn test_the_gateway_answers_pings() {
    let mut guest = Guest::plain();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let handle = guest.sockets.add(socket);
    for target in ["10.0.2.2", "10.0.2.3"] {
        let target: IpAddress = target.parse::<IpAddr>().unwrap().into();
        let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 3, data: b"ping" };
        let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let bytes = socket.send(request.buffer_len(), target).unwrap();
        request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &phy::ChecksumCapabilities::default());
        let (reply, from) = guest.until("a reply", |guest| {
            let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
            socket.recv().ok().map(|(data, from)| (data.to_vec(), from))
        });
        assert_eq!(from, target);
        assert_eq!((reply[0], &reply[8..]), (0, &b"ping"[..]));
    }
}

fn forward(protocol: Protocol, guest: u16) -> Forward {
    // Any port of the host's that is free.
    Forward { protocol, address: None, host: 0, guest, count: 1 }
}

#[test]
fn test_ports_lead_to_the_guest() {
    let mut guest = Guest::new(Offloads::default(), &[forward(Protocol::Tcp, 22), forward(Protocol::Udp, 23)]);
    let addresses = guest.nat.forwards.addresses();
    let (tcp, udp): (Vec<SocketAddr>, Vec<SocketAddr>) =
        (addresses[..addresses.len() / 2].to_vec(), addresses[addresses.len() / 2..].to_vec());
    // The network hears of the guest's IPv6 address.
    let talk = guest.udp(9);
    guest.send_udp(talk, "[fd2e:91b7:6c04:2::2]:9".parse().unwrap(), b"here");
    guest.until("the address", |guest| guest.nat.guest6);
    for address in tcp {
        let handle = guest.tcp_socket();
        guest.tcp(handle).listen(22).unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"from outside").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        });
        let mut request = Vec::new();
        guest.until("a request", |guest| guest.tcp(handle).may_recv().then_some(()));
        guest.read_all(handle, |data| request.extend_from_slice(data));
        assert_eq!(request, b"from outside");
        assert_eq!(guest.tcp(handle).remote_endpoint().unwrap().addr, by_gateway(address).ip().into());
        guest.write_all(handle, b"from inside");
        guest.tcp(handle).close();
        guest.until("the end", |guest| (guest.nat.connections.len() == 0).then_some(()));
        assert_eq!(client.join().unwrap(), b"from inside");
        guest.sockets.remove(handle);
    }
    let handle = guest.udp(23);
    for address in udp {
        let client = UdpSocket::bind((address.ip(), 0)).unwrap();
        client.send_to(b"from outside", address).unwrap();
        let (data, peer) = guest.receive_udp(handle);
        assert_eq!((&data[..], peer), (&b"from outside"[..], by_gateway(client.local_addr().unwrap())));
        guest.send_udp(handle, peer, b"from inside");
        client.set_nonblocking(true).unwrap();
        let mut buffer = [0; 100];
        let (count, from) = guest.until("an answer", |_| client.recv_from(&mut buffer).ok());
        assert_eq!((&buffer[..count], from), (&b"from inside"[..], address));
    }
}

#[test]
fn test_a_taken_port_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let forward = Forward { host: address.port(), address: Some(address.ip()), ..forward(Protocol::Tcp, 22) };
    let error = Nat::new(0, MAC, None, &[forward], Reach::All).unwrap_err().to_string();
    assert!(error.starts_with(&format!("tcp port {address} of the host cannot lead to the guest: ")), "{error}");
}

proptest::proptest! {
    /// Whatever the guest sends, the network lives and answers with frames of the link's size.
    #[test]
    fn test_attack_any_frame(
        frames in proptest::collection::vec((0u8..5, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120)), 1..20),
    ) {
        let mut nat = Nat::new(0, MAC, None, &[], Reach::All).unwrap();
        for (kind, content) in frames {
            // From good headers on it goes deeper. Nothing leaves this machine: the gateway is the destination.
            let (source, destination) = (IpAddr::from([10, 0, 2, 15]), IpAddr::from([10, 0, 2, 2]));
            let protocol = [packet::TCP, packet::UDP, packet::ICMP, 0, 0][usize::from(kind)];
            let frame = if kind < 3 && content.len() >= 20 {
                packet::frame(super::addresses::GATEWAY_MAC, source, destination, protocol, &content, [16, 6, 2][usize::from(kind)])
            } else {
                let mut frame = super::addresses::GATEWAY_MAC.0.to_vec();
                frame.extend(MAC.0);
                frame.extend([[8, 6], [0x86, 0xdd]][usize::from(kind % 2)]);
                frame.extend(&content);
                frame
            };
            nat.send(&FrameHeader::default(), &frame);
            nat.wait(Some(Duration::ZERO));
            while nat.receive(LEAST_ROOM, &mut |_, parts| assert!(parts.concat().len() <= LEAST_ROOM)) {}
        }
    }
}
