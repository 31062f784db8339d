//! Frames that no stack would send, out of a packet socket: anything, and what is nearly right.
//!
//! They go to the adapter as they are. Those that are to be divided say so in the header of virtio's, of which the guest's kernel lets
//! through what its own checks leave (packet(7), `PACKET_VNET_HDR`).

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

/// Bytes of virtio's header as packet sockets have it.
const HEADER: usize = 10;
/// Most bytes of a frame that is not divided, and of one that is.
const LONGEST: usize = 1514;
const MOST: usize = 65_000;
/// The gateway and the guest, as the network that covisor makes has them.
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn port(&mut self) -> [u8; 2] {
        [self.byte(), self.byte()]
    }
}

/// Sends so many frames.
pub(crate) fn disturb(adapter: &str, frames: u32, seed: u64) -> io::Result<()> {
    let socket = open(adapter)?;
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    let (mut sent, mut refused) = (0_u32, 0_u32);
    for _ in 0..frames {
        let frame = frame(&mut random);
        // SAFETY: the bytes are there.
        let count = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if count < 0 { refused += 1 } else { sent += 1 }
    }
    println!("{sent} frames went out, {refused} the guest's own kernel refused");
    Ok(())
}

fn open(adapter: &str) -> io::Result<OwnedFd> {
    let name = CString::new(adapter)?;
    // SAFETY: the name ends with a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let all = libc::ETH_P_ALL.cast_unsigned() & 0xffff;
    let protocol = u16::try_from(all).unwrap_or(0).to_be();
    // SAFETY: it has no conditions.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
    if index == 0 || socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let on: libc::c_int = 1;
    // SAFETY: the value is there, and as long as is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on).try_into().unwrap_or(0),
        )
    };
    // SAFETY: plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or(0);
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let length = size_of_val(&address).try_into().unwrap_or(0);
    // SAFETY: the address is there, and as long as is said.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if set < 0 || bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A frame with virtio's header before it.
fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame = match random.below(10) {
        0 => {
            let length = 14 + random.below(LONGEST - 14);
            random.bytes(length)
        }
        1 => arp(random),
        2 => tcp(random, true),
        3 => tcp(random, false),
        4 => udp(random, 67),
        5 => udp(random, 53),
        6 => fragment(random),
        7 => six(random),
        8 => {
            let port = u16::from_be_bytes(random.port());
            udp(random, port)
        }
        _ => return divided(random),
    };
    spoil(random, &mut frame, 0);
    frame.truncate(LONGEST);
    // A frame that ends within its Ethernet header the guest's kernel would not send.
    frame.resize(frame.len().max(14), 0);
    [vec![0; HEADER], frame].concat()
}

/// Changes a few bytes from `from` on, or cuts or lengthens what is there; or leaves it.
fn spoil(random: &mut Random, frame: &mut Vec<u8>, from: usize) {
    match random.below(4) {
        0 => {}
        1 => frame.truncate(from + random.below(frame.len() - from)),
        2 => {
            let more = random.below(200);
            let more = random.bytes(more);
            frame.extend(more);
        }
        _ => {
            for _ in 0..=random.below(6) {
                let at = from + random.below(frame.len() - from);
                frame[at] = random.byte();
            }
        }
    }
}

fn ethernet(kind: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The sum of words that IP's checksums are made of (RFC 1071).
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

fn four(random: &mut Random, protocol: u8, offset: [u8; 2], content: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend(u16::try_from(20 + content.len()).unwrap_or(u16::MAX).to_be_bytes());
    ip.extend(random.port());
    ip.extend(offset);
    ip.extend([64, protocol, 0, 0]);
    ip.extend(GUEST);
    ip.extend(if random.below(2) == 0 { GATEWAY } else { [192, 0, 2, random.byte()] });
    let check = sum(0, &ip).to_be_bytes();
    ip[10..12].copy_from_slice(&check);
    [ethernet(0x0800), ip, content.to_vec()].concat()
}

fn arp(random: &mut Random) -> Vec<u8> {
    let mut frame = ethernet(0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1 + random.byte() % 2, 2, 0, 0, 0, 0, 9]);
    frame.extend(GUEST);
    frame.extend([0; 6]);
    frame.extend([10, 0, 2, random.byte()]);
    frame
}

/// Headers and content of TCP. Its checksum is right, as one that covers the pseudo-header by what is known here.
fn tcp_content(random: &mut Random, syn: bool, data: usize) -> Vec<u8> {
    let mut tcp = [random.port(), if random.below(2) == 0 { [27, 88] } else { random.port() }].concat();
    let words = random.bytes(8);
    tcp.extend(words);
    let flags = if syn { 2 } else { random.byte() };
    tcp.extend([if random.below(8) == 0 { random.byte() } else { 0x50 }, flags]);
    tcp.extend(random.port());
    tcp.extend([0; 4]);
    let data = random.bytes(data);
    tcp.extend(data);
    tcp
}

fn tcp(random: &mut Random, syn: bool) -> Vec<u8> {
    let data = if syn { 0 } else { random.below(1400) };
    let content = tcp_content(random, syn, data);
    let mut frame = four(random, 6, [0x40, 0], &content);
    check_transport(&mut frame, 16);
    frame
}

/// Sets the checksum `at` bytes into what is behind the headers of IPv4.
fn check_transport(frame: &mut [u8], at: usize) {
    let length = u32::try_from(frame.len() - 34).unwrap_or(0);
    let addresses = &frame[26..34];
    let pseudo: u32 = addresses.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let check = sum(pseudo + u32::from(frame[23]) + length, &frame[34..]).to_be_bytes();
    frame[34 + at..36 + at].copy_from_slice(&check);
}

fn udp(random: &mut Random, port: u16) -> Vec<u8> {
    let length = random.below(600);
    let mut payload = random.bytes(length);
    // As if it were a client's of DHCP: nonsense from its options on.
    if port == 67 && payload.len() > 240 {
        payload[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        payload[236..240].copy_from_slice(&[99, 130, 83, 99]);
    }
    if port == 53 && payload.len() > 12 {
        payload[2..6].copy_from_slice(&[1, 0, 0, 1]);
    }
    let mut udp = random.port().to_vec();
    udp.extend(port.to_be_bytes());
    udp.extend(u16::try_from(8 + payload.len()).unwrap_or(0).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut frame = four(random, 17, [0, 0], &udp);
    check_transport(&mut frame, 6);
    frame
}

/// Part of a datagram: of one that never comes whole, overlaps, or is longer than any.
fn fragment(random: &mut Random) -> Vec<u8> {
    let offset = random.port();
    let length = random.below(1400);
    let content = random.bytes(length);
    let protocol = [6, 17, 1][random.below(3)];
    four(random, protocol, offset, &content)
}

fn six(random: &mut Random) -> Vec<u8> {
    let mut frame = ethernet(0x86dd);
    let kind = [6, 17, 58, 0, 43, 44, 60, 59][random.below(8)];
    let length = random.below(1300);
    let mut content = random.bytes(length);
    // Neighbour discovery, as far as its first byte says.
    if kind == 58 && !content.is_empty() {
        content[0] = 128 + random.byte() % 10;
    }
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(content.len()).unwrap_or(0).to_be_bytes());
    frame.extend([kind, 255]);
    let [source, destination] = [1, 2].map(|last| {
        let prefix = [0xfd, 0x2e, 0x91, 0xb7, 0x6c, 4, 0, 2];
        [&prefix[..], &[0, 0, 0, 0, 0, 0, 0, last]].concat()
    });
    frame.extend(source);
    frame.extend(destination);
    frame.extend(content);
    frame
}

/// TCP that is to be divided, with anything for the size and place of its parts.
fn divided(random: &mut Random) -> Vec<u8> {
    let length = random.below(MOST - 54);
    let content = tcp_content(random, false, length);
    let mut frame = four(random, 6, [0x40, 0], &content);
    spoil(random, &mut frame, 34);
    let odd = |random: &mut Random, usual: u16| match random.below(4) {
        0 => u16::from_be_bytes(random.port()),
        1 => 1,
        _ => usual,
    };
    // The checksum is to be completed, and the segments are TCP's over IPv4.
    let mut header = vec![1, 1];
    for usual in [54, 1460, 34, 16] {
        header.extend(odd(random, usual).to_ne_bytes());
    }
    [header, frame].concat()
}
