//! TAP devices: network interfaces of the host whose frames a program carries (`Documentation/networking/tuntap.rst` in Linux' source).

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::mem;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::net::Offloads;
use crate::net::offload::HEADER_SIZE;
use crate::platform::Event;
use crate::run::describe;
use crate::sys::sockets::Poller;

/// Where they are made.
const DEVICE: &str = "/dev/net/tun";
/// The device's token: it is the only one that is waited for.
const DEVICE_TOKEN: u64 = 0;
/// What the kernel makes a name of that is in use nowhere.
const ANY_NAME: &str = "tap%d";
/// Puts an interface into a bridge (`linux/sockios.h`).
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// Why a TAP device cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has none.
    #[error("the host has no {DEVICE}: `modprobe tun` loads what makes TAP devices")]
    NoDevice,
    /// The name is none.
    #[error("`{0}` is no name of an interface: it has 1 to 15 letters without `/` and spaces")]
    Name(String),
    /// One has to be made, and this user may not.
    #[error(
        "you may not make the TAP device `{0}`; once made by `ip tuntap add dev {0} mode tap user NAME`, user NAME may use it"
    )]
    NotAllowed(String),
    /// Somebody uses it.
    #[error("another program uses the TAP device `{0}`")]
    Busy(String),
    /// It is something else.
    #[error("the interface `{0}` is no TAP device, or one with several queues")]
    OtherKind(String),
    /// There is no such bridge.
    #[error("`{bridge}` is no bridge that `{name}` can be put into: {}", describe(.source))]
    Bridge {
        /// The TAP device.
        name: String,
        /// The bridge.
        bridge: String,
        /// What the host says.
        source: io::Error,
    },
    /// Something else.
    #[error("the TAP device `{name}` cannot be used: {}", describe(.source))]
    Other {
        /// The device.
        name: String,
        /// What the host says.
        source: io::Error,
    },
}

/// A TAP device in use.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    mtu: u16,
    poller: Poller,
}

impl Tap {
    /// What the host and a guest may leave to each other.
    pub const OFFLOADS: Offloads = Offloads::ALL;

    /// Takes the device called `name`, or makes it, in `bridge` if that is said; without a name it makes one. What it made is up, and
    /// gone when it is dropped.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn open(name: Option<&str>, mtu: Option<u16>, bridge: Option<&str>) -> Result<Self, TapError> {
        let wanted = name.unwrap_or(ANY_NAME);
        let refuse = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDevice,
            Some(libc::EPERM | libc::EACCES) => TapError::NotAllowed(name.unwrap_or("tap0").to_owned()),
            Some(libc::EBUSY) => TapError::Busy(wanted.to_owned()),
            Some(libc::EINVAL) => TapError::OtherKind(wanted.to_owned()),
            _ => TapError::Other { name: wanted.to_owned(), source },
        };
        let mut request = request(wanted)?;
        // Any socket will do to ask about interfaces.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(refuse)?;
        let is_there = name.is_some_and(|name| index_of(&socket, name).is_ok());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(refuse)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags.try_into().unwrap_or(0);
        // SAFETY: the device takes a request of this form, and writes the name that it has found into it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        checked(result).map_err(refuse)?;
        let name = name_in(&request);
        let other = |source| TapError::Other { name: name.clone(), source };
        let header = libc::c_int::try_from(HEADER_SIZE).unwrap_or(0);
        // SAFETY: the device reads a number.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
        checked(result).map_err(other)?;
        if let Some(bridge) = bridge {
            add_to_bridge(&socket, &name, bridge)?;
        }
        let mtu = change_mtu(&socket, &name, mtu).map_err(other)?;
        if !is_there {
            bring_up(&socket, &name).map_err(other)?;
        }
        let mut poller = Poller::new().map_err(other)?;
        poller.add(&file, DEVICE_TOKEN, false).map_err(other)?;
        let tap = Self { file, name: name.clone(), mtu, poller };
        tap.set_offloads(Offloads::default()).map_err(other)?;
        Ok(tap)
    }

    /// Its name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the largest packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What the host may leave to the guest.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn set_offloads(&self, agreed: Offloads) -> io::Result<()> {
        let flags = [
            (agreed.guest_checksum, libc::TUN_F_CSUM),
            (agreed.guest_tcp4, libc::TUN_F_TSO4),
            (agreed.guest_tcp6, libc::TUN_F_TSO6),
        ];
        let flags = flags.into_iter().fold(0, |flags, (on, flag)| if on { flags | flag } else { flags });
        // SAFETY: the device takes a number.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }

    /// From now on [`Tap::wait`] also ends when `event` is signalled.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.poller.attach(event)
    }

    /// Waits for the event, for a frame, or for the end of `timeout`; says whether a frame may be there. It says so once, and again
    /// only after a read found no more.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let mut readable = false;
        self.poller.wait(timeout, |_| readable = true);
        readable
    }

    /// Reads the next frame, with its header, into `buffer`.
    ///
    /// # Errors
    ///
    /// There is none (`WouldBlock`), or the host's.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Gives the host a frame.
    ///
    /// # Errors
    ///
    /// The host's: it does not take the frame.
    pub fn write(&self, header: &[u8; HEADER_SIZE], frame: &[u8]) -> io::Result<()> {
        // All at once is a frame; parts would be frames of their own.
        (&self.file).write_vectored(&[IoSlice::new(header), IoSlice::new(frame)]).map(drop)
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request about an interface.
fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let is_one = |byte: u8| byte > b' ' && byte != b'/';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(is_one) {
        return Err(TapError::Name(name.to_owned()));
    }
    // SAFETY: numbers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

fn name_in(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|char| char.to_ne_bytes()[0]).take_while(|&byte| byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// The number of an interface.
fn index_of(socket: &UdpSocket, name: &str) -> io::Result<libc::c_int> {
    let mut of_device = request(name).map_err(io::Error::other)?;
    ask(socket, libc::SIOCGIFINDEX, &mut of_device)?;
    // SAFETY: the answer to this request is a number.
    Ok(unsafe { of_device.ifr_ifru.ifru_ifindex })
}

/// Asks for something about an interface.
fn ask(socket: &UdpSocket, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request of this kind reads and writes no more than this structure.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) })
}

fn add_to_bridge(socket: &UdpSocket, name: &str, bridge: &str) -> Result<(), TapError> {
    let mut of_bridge = request(bridge)?;
    let refuse = |source| TapError::Bridge { name: name.to_owned(), bridge: bridge.to_owned(), source };
    of_bridge.ifr_ifru.ifru_ifindex = index_of(socket, name).map_err(refuse)?;
    match ask(socket, SIOCBRADDIF, &mut of_bridge) {
        // It is in a bridge already: in this one, as far as the user says.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        result => result.map_err(refuse),
    }
}

/// Bytes of the device's largest packet, after it was made so many if that is said.
fn change_mtu(socket: &UdpSocket, name: &str, wanted: Option<u16>) -> io::Result<u16> {
    let mut of_device = request(name).map_err(io::Error::other)?;
    ask(socket, libc::SIOCGIFMTU, &mut of_device)?;
    // SAFETY: the answer to this request is a number.
    let mtu = unsafe { of_device.ifr_ifru.ifru_mtu };
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    match wanted {
        Some(wanted) if wanted != mtu => {
            of_device.ifr_ifru.ifru_mtu = wanted.into();
            ask(socket, libc::SIOCSIFMTU, &mut of_device)?;
            Ok(wanted)
        }
        _ => Ok(mtu),
    }
}

fn bring_up(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut of_device = request(name).map_err(io::Error::other)?;
    ask(socket, libc::SIOCGIFFLAGS, &mut of_device)?;
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(0);
    // SAFETY: the answer to this request is flags.
    let flags = unsafe { of_device.ifr_ifru.ifru_flags };
    of_device.ifr_ifru.ifru_flags = flags | up;
    ask(socket, libc::SIOCSIFFLAGS, &mut of_device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_name_is_one_of_an_interface() {
        assert_eq!(name_in(&request("tap7").unwrap()), "tap7");
        assert_eq!(name_in(&request("fifteen-letters").unwrap()), "fifteen-letters");
        for bad in ["", "sixteen-letters-", "a/b", "a b", "a\0"] {
            assert!(matches!(request(bad), Err(TapError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn test_the_loopback_is_no_tap_device() {
        let Err(error) = Tap::open(Some("lo"), None, None) else { panic!("the loopback is one") };
        let says = error.to_string();
        assert!(["modprobe tun", "may not", "is no TAP device"].iter().any(|words| says.contains(words)), "{says}");
    }
}
