//! What the user says of a network adapter: `--net nat,forward=tcp:2222:22`.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::Mac;
use super::mac::MacError;

/// Most adapters of a guest, as coLinux had.
pub const MOST_ADAPTERS: usize = 16;
/// The least that IPv6 works with (RFC 8200, 5), and the most: of IPv4's 65,535 what is whole pages with its headers.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=65_520;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports of the host that lead to ports of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// Where the host listens; without one on its loopback addresses, so that other machines cannot reach the guest.
    pub address: Option<IpAddr>,
    /// The first port of the host's.
    pub host: u16,
    /// The first port of the guest's.
    pub guest: u16,
    /// How many ports.
    pub count: u16,
}

impl Forward {
    /// Each port of the host's, by the addresses that it listens on, with its port of the guest's.
    pub fn ports(&self) -> impl Iterator<Item = (Vec<SocketAddr>, u16)> + '_ {
        let addresses = match self.address {
            Some(address) => vec![address],
            None => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        };
        (0..self.count).map(move |index| {
            let at = |address: &IpAddr| SocketAddr::new(*address, self.host + index);
            (addresses.iter().map(at).collect(), self.guest + index)
        })
    }
}

/// What an adapter is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network of its own, behind the host's sockets.
    Nat {
        /// Ports of the host that lead to it.
        forwards: Vec<Forward>,
        /// What the guest reaches.
        reach: Reach,
    },
    /// A network interface of the host's.
    Tap {
        /// Its name; without one a new one is made.
        name: Option<String>,
        /// The bridge that it is put into.
        bridge: Option<String>,
    },
}

/// What a guest reaches behind its own network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All that the host does, and by the gateway the host's loopback address.
    #[default]
    All,
    /// The same without the host's loopback address.
    NoLoopback,
    /// Nothing: it answers to forwarded ports only.
    Nothing,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// What it is connected to.
    pub network: Network,
    /// Its address; without one it is made of the machine's name.
    pub mac: Option<Mac>,
    /// Bytes of the largest packet; without a number the network's own.
    pub mtu: Option<u16>,
    /// Where its frames go besides.
    pub capture: Option<PathBuf>,
}

/// What is wrong with what the user said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// A network that there is none of.
    #[error("`{0}` is no network; there are `nat` and `tap`")]
    UnknownNetwork(String),
    /// An option that there is none of.
    #[error(
        "`{0}` is no option of a network; there are mac=, mtu= and capture=, for `nat` forward=, no-loopback and restrict, for `tap` bridge="
    )]
    UnknownOption(String),
    /// An option of another network.
    #[error("`{option}` is no option of `{network}`")]
    OtherNetworks {
        /// The option.
        option: String,
        /// The network that was asked for.
        network: &'static str,
    },
    /// An option twice.
    #[error("`{0}` is there twice")]
    Twice(&'static str),
    /// The address is none.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// The MTU is none.
    #[error("mtu={0}: the largest packet has {first} to {last} bytes", first = MTUS.start(), last = MTUS.end())]
    Mtu(String),
    /// No name of a file.
    #[error("capture= needs the name of a file")]
    NoFile,
    /// The form is another.
    #[error(
        "`{0}` is no forward: it is tcp or udp, a port of the host and one of the guest, as tcp:2222:22, udp:5000-5010:6000 or tcp:0.0.0.0:80:80"
    )]
    Forward(String),
    /// Ports are 1 to 65535.
    #[error("`{0}`: ports are 1 to 65535, also the last one of a range")]
    Ports(String),
}

impl FromStr for Forward {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let form = || SpecError::Forward(text.to_owned());
        let (protocol, rest) = text.split_once(':').ok_or_else(form)?;
        let protocol = protocol_of(protocol).ok_or_else(form)?;
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(form)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                (Some(plain.parse::<IpAddr>().map_err(|_| form())?), host)
            }
            None => (None, rest),
        };
        let (first, last) = host.split_once('-').unwrap_or((host, host));
        let number = |digits: &str| digits.parse::<u16>().map_err(|_| form());
        let (first, last, guest) = (number(first)?, number(last)?, number(guest)?);
        let count = last.checked_sub(first).map(|more| u32::from(more) + 1);
        let count = count.ok_or_else(|| SpecError::Ports(text.to_owned()))?;
        Self::checked(protocol, address, first, guest, count).ok_or_else(|| SpecError::Ports(text.to_owned()))
    }
}

fn protocol_of(word: &str) -> Option<Protocol> {
    match word {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

impl Forward {
    fn checked(protocol: Protocol, address: Option<IpAddr>, host: u16, guest: u16, count: u32) -> Option<Self> {
        let fits = |first: u16| first > 0 && u32::from(first) + count - 1 <= u32::from(u16::MAX);
        let count = u16::try_from(count).ok().filter(|&count| count > 0)?;
        (fits(host) && fits(guest)).then_some(Self { protocol, address, host, guest, count })
    }

    /// As coLinux says it: `tcp:HOST:GUEST` or `tcp:HOST:GUEST:COUNT`.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn from_colinux(text: &str) -> Result<Self, SpecError> {
        let form = || SpecError::Forward(text.to_owned());
        let mut parts = text.split(':');
        let protocol = parts.next().and_then(protocol_of).ok_or_else(form)?;
        let numbers: Vec<u16> = parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| form())?;
        let (host, guest, count) = match numbers[..] {
            [host, guest] => (host, guest, 1),
            [host, guest, count] => (host, guest, u32::from(count)),
            _ => return Err(form()),
        };
        if count == 0 {
            return Err(form());
        }
        Self::checked(protocol, None, host, guest, count).ok_or_else(|| SpecError::Ports(text.to_owned()))
    }
}

impl FromStr for Adapter {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut words = text.split(',');
        let mut network = network(words.next().unwrap_or_default())?;
        let (mut mac, mut mtu, mut capture) = (None, None, None);
        for word in words {
            match word.split_once('=') {
                Some(("mac", value)) => once("mac=", &mut mac, value.parse()?)?,
                Some(("mtu", value)) => {
                    let number = value.parse().ok().filter(|number| MTUS.contains(number));
                    once("mtu=", &mut mtu, number.ok_or_else(|| SpecError::Mtu(value.to_owned()))?)?;
                }
                Some(("capture", "")) => return Err(SpecError::NoFile),
                Some(("capture", value)) => once("capture=", &mut capture, PathBuf::from(value))?,
                _ => network.option(word)?,
            }
        }
        Ok(Self { network, mac, mtu, capture })
    }
}

/// The network that an adapter's first word names, without its options.
fn network(word: &str) -> Result<Network, SpecError> {
    match word.split_once('=').unwrap_or((word, "")) {
        ("nat", "") => Ok(Network::Nat { forwards: Vec::new(), reach: Reach::All }),
        ("tap", name) => Ok(Network::Tap { name: Some(name.to_owned()).filter(|name| !name.is_empty()), bridge: None }),
        _ => Err(SpecError::UnknownNetwork(word.to_owned())),
    }
}

impl Network {
    /// Adds an option of its own.
    fn option(&mut self, word: &str) -> Result<(), SpecError> {
        match (self, word.split_once('=').unwrap_or((word, ""))) {
            (Self::Nat { forwards, .. }, ("forward", value)) => forwards.push(value.parse()?),
            (Self::Nat { reach, .. }, ("no-loopback", "")) if *reach == Reach::All => *reach = Reach::NoLoopback,
            // Who reaches nothing does not reach that, either.
            (Self::Nat { .. }, ("no-loopback", "")) => {}
            (Self::Nat { reach, .. }, ("restrict", "")) => *reach = Reach::Nothing,
            (Self::Tap { bridge, .. }, ("bridge", name)) => once("bridge=", bridge, name.to_owned())?,
            (Self::Nat { .. }, ("bridge", _)) => {
                return Err(SpecError::OtherNetworks { option: word.to_owned(), network: "nat" });
            }
            (Self::Tap { .. }, ("forward" | "no-loopback" | "restrict", _)) => {
                return Err(SpecError::OtherNetworks { option: word.to_owned(), network: "tap" });
            }
            _ => return Err(SpecError::UnknownOption(word.to_owned())),
        }
        Ok(())
    }
}

fn once<T>(name: &'static str, place: &mut Option<T>, value: T) -> Result<(), SpecError> {
    match place.replace(value) {
        Some(_) => Err(SpecError::Twice(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forward(protocol: Protocol, host: u16, guest: u16, count: u16) -> Forward {
        Forward { protocol, address: None, host, guest, count }
    }

    fn nat(forwards: Vec<Forward>) -> Adapter {
        Adapter { network: Network::Nat { forwards, reach: Reach::All }, mac: None, mtu: None, capture: None }
    }

    #[test]
    fn test_an_adapter_has_options() {
        assert_eq!("nat".parse(), Ok(nat(Vec::new())));
        let forwards = vec![forward(Protocol::Tcp, 2222, 22, 1), forward(Protocol::Udp, 5000, 6000, 11)];
        assert_eq!("nat,forward=tcp:2222:22,forward=udp:5000-5010:6000".parse(), Ok(nat(forwards)));
        let all: Adapter = "nat,mac=02:00:00:00:00:01,mtu=9000,capture=a.pcap".parse().unwrap();
        assert_eq!((all.mac, all.mtu), (Some(Mac([2, 0, 0, 0, 0, 1])), Some(9000)));
        assert_eq!(all.capture, Some("a.pcap".into()));
        let open: Forward = "tcp:0.0.0.0:80:8080".parse().unwrap();
        assert_eq!((open.address, open.host, open.guest), (Some(Ipv4Addr::UNSPECIFIED.into()), 80, 8080));
        let open: Forward = "udp:[::]:53-54:1053".parse().unwrap();
        assert_eq!((open.address, open.count), (Some(Ipv6Addr::UNSPECIFIED.into()), 2));
        let ports: Vec<_> = open.ports().collect();
        assert_eq!(ports[1], (vec!["[::]:54".parse().unwrap()], 1054));
    }

    #[test]
    fn test_what_is_wrong_is_said() {
        let refusal = |text: &str| text.parse::<Adapter>().unwrap_err().to_string();
        for (text, says) in [
            ("", "no network"),
            ("bridge", "`bridge`"),
            ("nat,", "``"),
            ("nat,fast", "`fast`"),
            ("nat,mac=1,mac=2", "MAC"),
            ("nat,mac=2:0:0:0:0:0,mac=2:0:0:0:0:0", "twice"),
            ("nat,mtu=100", "1280"),
            ("nat,mtu=x", "1280"),
            ("nat,capture=", "file"),
            ("nat,restrict=1", "restrict=1"),
            ("nat,bridge=br0", "`bridge=br0` is no option of `nat`"),
            ("nat=x", "`nat=x`"),
            ("nat,forward=tcp:22", "tcp:2222:22"),
            ("nat,forward=sctp:1:2", "tcp:2222:22"),
            ("nat,forward=tcp:1:2:3", "tcp:2222:22"),
            ("nat,forward=tcp:0:22", "65535"),
            ("nat,forward=tcp:22:0", "65535"),
            ("nat,forward=tcp:20-10:22", "65535"),
            ("nat,forward=tcp:1-10:65530", "65535"),
            ("nat,forward=tcp:1-65535:2", "65535"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(says) && !refusal.contains('\n'), "{text}: {refusal}");
        }
    }

    #[test]
    fn test_what_a_guest_reaches_is_said() {
        let reach = |text: &str| match text.parse::<Adapter>().unwrap().network {
            Network::Nat { reach, .. } => reach,
            other => panic!("{other:?}"),
        };
        assert_eq!(reach("nat,mtu=1400"), Reach::All);
        assert_eq!(reach("nat,no-loopback"), Reach::NoLoopback);
        assert_eq!(reach("nat,restrict,forward=tcp:2222:22"), Reach::Nothing);
        assert_eq!(
            (reach("nat,restrict,no-loopback"), reach("nat,no-loopback,restrict")),
            (Reach::Nothing, Reach::Nothing)
        );
    }

    #[test]
    fn test_an_interface_of_the_hosts_has_a_name_or_none() {
        let network = |text: &str| text.parse::<Adapter>().map(|adapter| adapter.network);
        let tap = |name: Option<&str>, bridge: Option<&str>| {
            Ok(Network::Tap { name: name.map(str::to_owned), bridge: bridge.map(str::to_owned) })
        };
        assert_eq!(network("tap"), tap(None, None));
        assert_eq!(network("tap=vm0,mtu=9000,bridge=br0"), tap(Some("vm0"), Some("br0")));
        assert!(network("tap,forward=tcp:1:2").unwrap_err().to_string().contains("no option of `tap`"));
        assert_eq!(network("tap,bridge=a,bridge=b"), Err(SpecError::Twice("bridge=")));
    }

    proptest! {
        #[test]
        fn test_every_port_of_a_forward_is_one(text in "(tcp|udp):([0-9]{1,5}-)?[0-9]{1,5}:[0-9]{1,5}") {
            if let Ok(forward) = text.parse::<Forward>() {
                let ports: Vec<_> = forward.ports().collect();
                prop_assert_eq!(ports.len(), usize::from(forward.count));
                prop_assert!(ports.iter().all(|(addresses, guest)| *guest > 0 && addresses.iter().all(|at| at.port() > 0)));
            }
        }
    }
}
