//! Waiting for many sockets at a time, and what of networking only Linux has so.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;

use super::event::Event;
use crate::sys::Ready;

/// Events taken from the kernel at once.
const BATCH: usize = 256;
/// The event's own token.
const EVENT: u64 = u64::MAX;
/// Where the host's resolvers are listed.
const RESOLVERS: &str = "/etc/resolv.conf";
/// Where resolvers listen.
const DNS_PORT: u16 = 53;

/// Sockets and an event to wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    event: Option<Arc<Event>>,
    batch: Vec<EpollEvent>,
}

impl Poller {
    /// One that waits for nothing yet.
    ///
    /// # Errors
    ///
    /// The host has no more.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, event: None, batch: vec![EpollEvent::empty(); BATCH] })
    }

    /// From now on waits for `event` as well, and takes its signal.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        // SAFETY: the event is kept as long as the poller, so its descriptor stays open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, EVENT))?;
        self.event = Some(Arc::clone(event));
        Ok(())
    }

    /// Waits for `socket` from now on, until it is closed; `writes` is whether room to write matters.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn add(&mut self, socket: impl AsFd, token: u64, writes: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        flags.set(EpollFlags::EPOLLOUT, writes);
        self.epoll.add(socket, EpollEvent::new(flags, token))?;
        Ok(())
    }

    /// Waits no more for the socket that was added with `token`: it is to be closed, which is all that it takes here.
    pub fn remove(&mut self, _token: u64) {}

    /// Waits until the event is signalled, a socket is ready, or `timeout` is over. May also return early.
    pub fn wait(&mut self, timeout: Option<Duration>, mut ready: impl FnMut(Ready)) {
        // Rounded up, so that a short time is not none.
        let milliseconds = |time: Duration| i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let timeout = timeout.map(milliseconds).and_then(|time| EpollTimeout::try_from(time).ok());
        // An interruption by a signal is an early return; nothing else can fail here.
        let count = self.epoll.wait(&mut self.batch, timeout.unwrap_or(EpollTimeout::NONE)).unwrap_or(0);
        for event in &self.batch[..count] {
            let flags = event.events();
            if event.data() == EVENT {
                if let Some(event) = &self.event {
                    event.wait(Some(Duration::ZERO));
                }
                continue;
            }
            let broken = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            ready(Ready {
                token: event.data(),
                readable: broken || flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
                writable: broken || flags.contains(EpollFlags::EPOLLOUT),
            });
        }
    }
}

/// The host's resolvers, as its configuration lists them, and read again when that has changed.
#[derive(Debug, Default)]
pub struct Resolvers {
    /// When the configuration was last changed, if it is there at all, as of when it was read.
    read: Option<Option<SystemTime>>,
    addresses: Vec<SocketAddr>,
    /// They are these, whatever the host says.
    #[cfg(test)]
    fixed: bool,
}

impl Resolvers {
    /// Always these.
    #[cfg(test)]
    pub(crate) fn of(addresses: Vec<SocketAddr>) -> Self {
        Self { read: None, addresses, fixed: true }
    }

    /// The addresses now.
    pub fn addresses(&mut self) -> &[SocketAddr] {
        #[cfg(test)]
        if self.fixed {
            return &self.addresses;
        }
        let changed = fs::metadata(RESOLVERS).and_then(|metadata| metadata.modified()).ok();
        if self.read != Some(changed) {
            let addresses = parse(&fs::read_to_string(RESOLVERS).unwrap_or_default());
            self.addresses = addresses.into_iter().map(|address| SocketAddr::new(address, DNS_PORT)).collect();
            self.read = Some(changed);
        }
        &self.addresses
    }
}

/// The addresses of lines `nameserver ADDRESS` (resolv.conf(5)); without any it is this machine.
fn parse(text: &str) -> Vec<IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        // The zone of a link-local address would need its interface; such a resolver is left out.
        words.next()?.parse().ok()
    });
    let addresses: Vec<IpAddr> = addresses.collect();
    if addresses.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { addresses }
}

/// Whether the host says by `error` that it has begun to connect.
#[must_use]
pub fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Whether the host says by `error` that it has no such protocol family.
#[must_use]
pub fn is_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Lets the process have as many sockets as it may.
pub fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is one valid `rlimit` for the whole call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the same. Where it is refused, the guest has fewer connections.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn test_readiness_is_said_once() {
        let mut poller = Poller::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        poller.add(&server, 7, false).unwrap();
        client.write_all(b"x").unwrap();
        let mut seen = Vec::new();
        poller.wait(Some(Duration::from_secs(5)), |ready| seen.push(ready));
        assert_eq!(seen, [Ready { token: 7, readable: true, writable: false }]);
        poller.wait(Some(Duration::ZERO), |ready| panic!("{ready:?}"));
        let event = Arc::new(Event::new().unwrap());
        poller.attach(&event).unwrap();
        event.signal();
        poller.wait(None, |ready| panic!("{ready:?}"));
        assert!(!event.wait(Some(Duration::ZERO)));
    }

    #[test]
    fn test_resolvers_are_the_lines_that_name_one() {
        let text = "# a comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # b\nnameserver fe80::1%eth0\n";
        assert_eq!(parse(text), ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(parse(""), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
