//! Waiting for many sockets at a time, and what of networking only Windows has so.

use std::collections::HashMap;
use std::collections::HashSet;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::AsRawSocket;
use std::os::windows::io::AsSocket;
use std::os::windows::io::OwnedHandle;
use std::os::windows::io::RawSocket;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use windows_sys::Win32::Foundation::ERROR_BUFFER_OVERFLOW;
use windows_sys::Win32::Foundation::ERROR_SUCCESS;
use windows_sys::Win32::NetworkManagement::IpHelper;
use windows_sys::Win32::Networking::WinSock;
use windows_sys::Win32::System::Threading::WaitForMultipleObjects;

use super::event;
use super::event::Event;
use super::wide::milliseconds;
use crate::sys::Ready;

/// What a socket may become ready for.
const READS: i32 = (WinSock::FD_READ | WinSock::FD_ACCEPT | WinSock::FD_CLOSE).cast_signed();
const WRITES: i32 = (WinSock::FD_WRITE | WinSock::FD_CONNECT | WinSock::FD_CLOSE).cast_signed();

/// Sockets and an event to wait for. All sockets share one event of Windows', for a thread can wait for 64 only.
#[derive(Debug)]
pub struct Poller {
    /// Some socket is ready.
    sockets_ready: OwnedHandle,
    sockets: HashMap<u64, RawSocket>,
    event: Option<Arc<Event>>,
}

impl Poller {
    /// One that waits for nothing yet.
    ///
    /// # Errors
    ///
    /// The host has no more.
    pub fn new() -> io::Result<Self> {
        Ok(Self { sockets_ready: event::create(false)?, sockets: HashMap::new(), event: None })
    }

    /// From now on waits for `event` as well, and takes its signal.
    ///
    /// # Errors
    ///
    /// None here.
    pub fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.event = Some(Arc::clone(event));
        Ok(())
    }

    /// Waits for `socket` from now on, until [`Poller::remove`]; `writes` is whether room to write matters.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn add(&mut self, socket: impl AsSocket, token: u64, writes: bool) -> io::Result<()> {
        let socket = socket.as_socket().as_raw_socket();
        let interest = if writes { READS | WRITES } else { READS };
        let handle = self.sockets_ready.as_raw_handle().expose_provenance().cast_signed();
        // SAFETY: socket and event are open.
        let result = unsafe { WinSock::WSAEventSelect(raw(socket), handle, interest) };
        if result != 0 {
            return Err(last_error());
        }
        self.sockets.insert(token, socket);
        Ok(())
    }

    /// Waits no more for the socket that was added with `token`: it is to be closed.
    pub fn remove(&mut self, token: u64) {
        self.sockets.remove(&token);
    }

    /// Waits until the event is signalled, a socket is ready, or `timeout` is over. May also return early.
    pub fn wait(&mut self, timeout: Option<Duration>, mut ready: impl FnMut(Ready)) {
        let mut handles = [self.sockets_ready.as_raw_handle(); 2];
        let mut count = 1;
        if let Some(event) = &self.event {
            handles[1] = event.as_raw_handle();
            count = 2;
        }
        // SAFETY: so many handles are there and open.
        unsafe { WaitForMultipleObjects(count, handles.as_ptr(), 0, milliseconds(timeout)) };
        if let Some(event) = &self.event {
            // The first that is signalled ends the wait and is taken by it; the other one is taken here.
            event.wait(Some(Duration::ZERO));
        }
        for (&token, &socket) in &self.sockets {
            // SAFETY: plain numbers, for which zero is a value.
            let mut events: WinSock::WSANETWORKEVENTS = unsafe { mem::zeroed() };
            // SAFETY: the socket is open until it is removed; no event is to be reset; `events` is written.
            if unsafe { WinSock::WSAEnumNetworkEvents(raw(socket), 0, &raw mut events) } != 0 {
                continue;
            }
            let (readable, writable) = (events.lNetworkEvents & READS != 0, events.lNetworkEvents & WRITES != 0);
            if readable || writable {
                ready(Ready { token, readable, writable });
            }
        }
    }
}

/// A socket as the functions want it.
fn raw(socket: RawSocket) -> WinSock::SOCKET {
    // Both are as wide as a pointer here.
    usize::try_from(socket).unwrap_or(usize::MAX)
}

fn last_error() -> io::Error {
    // SAFETY: it has no conditions.
    io::Error::from_raw_os_error(unsafe { WinSock::WSAGetLastError() })
}

/// Where resolvers listen.
const DNS_PORT: u16 = 53;
/// How long the list of resolvers is believed: a VPN changes it.
const BELIEVED: Duration = Duration::from_secs(5);
/// Bytes that descriptions of adapters take at first, as Microsoft advises, and at most.
const FIRST_SIZE: u32 = 15 << 10;
const MOST_SIZE: u32 = 1 << 20;

/// The host's resolvers, asked for again after a while.
#[derive(Debug, Default)]
pub struct Resolvers {
    read: Option<Instant>,
    addresses: Vec<SocketAddr>,
}

impl Resolvers {
    /// Always these.
    #[cfg(test)]
    pub(crate) fn of(addresses: Vec<SocketAddr>) -> Self {
        // Believed for as long as a test takes.
        Self { read: Instant::now().checked_add(Duration::from_secs(3600)), addresses }
    }

    /// The addresses now.
    pub fn addresses(&mut self) -> &[SocketAddr] {
        let now = Instant::now();
        if self.read.is_none_or(|read| now.saturating_duration_since(read) >= BELIEVED) {
            self.read = Some(now);
            let all = resolvers4().into_iter().map(IpAddr::V4).chain(resolvers6().into_iter().map(IpAddr::V6));
            self.addresses = all.map(|address| SocketAddr::new(address, DNS_PORT)).collect();
        }
        &self.addresses
    }
}

/// Memory for what a function writes that first says how much it needs: `ask` gets the memory and its size, and writes the size that it
/// would take. Nothing if it fails.
fn asked(mut ask: impl FnMut(*mut u8, &mut u32) -> u32) -> Option<Vec<u64>> {
    let mut size = FIRST_SIZE;
    while size <= MOST_SIZE {
        // Words, so that structures lie as they have to.
        let words = usize::try_from(size).ok()?.div_ceil(size_of::<u64>());
        let mut memory = vec![0_u64; words];
        match ask(memory.as_mut_ptr().cast(), &mut size) {
            ERROR_SUCCESS => return Some(memory),
            // Windows' list may have grown since.
            ERROR_BUFFER_OVERFLOW => size += FIRST_SIZE,
            _ => return None,
        }
    }
    None
}

/// The resolvers with IPv4 addresses, in the host's order.
fn resolvers4() -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    // SAFETY: memory of `size` bytes is there to be written to.
    let Some(memory) = asked(|at, size| unsafe { IpHelper::GetNetworkParams(at.cast(), size) }) else { return found };
    let info = memory.as_ptr().cast::<IpHelper::FIXED_INFO_W2KSP1>();
    // SAFETY: the function has written this structure, whose list begins inside of it and goes on in the same memory.
    let mut next: *const IpHelper::IP_ADDR_STRING = unsafe { &raw const (*info).DnsServerList };
    while !next.is_null() {
        // SAFETY: as above: a list that ends with a null pointer.
        let server = unsafe { &*next };
        let text: Vec<u8> =
            server.IpAddress.String.iter().map(|char| char.to_ne_bytes()[0]).take_while(|&byte| byte != 0).collect();
        // One that is not set is an empty text.
        found.extend(std::str::from_utf8(&text).ok().and_then(|text| text.parse::<Ipv4Addr>().ok()));
        next = server.Next;
    }
    found
}

/// The resolvers with IPv6 addresses, adapter by adapter.
fn resolvers6() -> Vec<Ipv6Addr> {
    let mut found = Vec::new();
    let flags = IpHelper::GAA_FLAG_SKIP_UNICAST | IpHelper::GAA_FLAG_SKIP_ANYCAST | IpHelper::GAA_FLAG_SKIP_MULTICAST;
    let memory = asked(|at, size| {
        // SAFETY: memory of `size` bytes is there to be written to.
        unsafe { IpHelper::GetAdaptersAddresses(WinSock::AF_INET6.into(), flags, ptr::null(), at.cast(), size) }
    });
    let Some(memory) = memory else { return found };
    let mut adapter: *const IpHelper::IP_ADAPTER_ADDRESSES_LH = memory.as_ptr().cast();
    while !adapter.is_null() {
        // SAFETY: the function has written a list of these, in this memory, which ends with a null pointer; so has each.
        let mut server = unsafe { (*adapter).FirstDnsServerAddress };
        while !server.is_null() {
            // SAFETY: as above.
            let address = unsafe { (*server).Address };
            let length = usize::try_from(address.iSockaddrLength).unwrap_or(0);
            if length >= size_of::<WinSock::SOCKADDR_IN6>() {
                // SAFETY: so many bytes of an address are there. It may lie anywhere.
                let address = unsafe { address.lpSockaddr.cast::<WinSock::SOCKADDR_IN6>().read_unaligned() };
                if address.sin6_family == WinSock::AF_INET6 {
                    // SAFETY: bytes, whichever way they are looked at.
                    let address = Ipv6Addr::from(unsafe { address.sin6_addr.u.Byte });
                    // A link's own address would need its adapter, and where nobody has set one, Windows names three that
                    // never were in use (fec0:0:0:ffff::1 to 3).
                    if !address.is_unicast_link_local() && address.segments()[0] != 0xfec0 {
                        found.push(address);
                    }
                }
            }
            // SAFETY: as above.
            server = unsafe { (*server).Next };
        }
        // SAFETY: as above.
        adapter = unsafe { (*adapter).Next };
    }
    // Several adapters may have the same.
    let mut seen = HashSet::new();
    found.retain(|address| seen.insert(*address));
    found
}

/// Whether the host says by `error` that it has begun to connect.
#[must_use]
pub fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(WinSock::WSAEWOULDBLOCK)
}

/// Whether the host says by `error` that it has no such protocol family.
#[must_use]
pub fn is_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(WinSock::WSAEAFNOSUPPORT)
}

/// Lets the process have as many sockets as it may: here it may as many as there is memory for.
pub fn raise_limit() {}
