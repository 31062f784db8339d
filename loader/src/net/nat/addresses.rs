//! The network that the guest sees, and what its addresses are on the host.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use crate::net::Mac;
use crate::net::spec::Reach;

/// The prefix of the IPv6 networks: a unique local one (RFC 4193), whose 40 bits were drawn once. The last part is the network's number.
const PREFIX: [u16; 3] = [0xfd2e, 0x91b7, 0x6c04];
/// Bits of an IPv6 network.
pub(super) const PREFIX_BITS: u8 = 64;
/// The gateway's link-local address.
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// All nodes on the link.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The gateway's Ethernet address.
pub(super) const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);

/// The addresses of one network: 10.0.2.0/24 for the first adapter, 10.0.3.0/24 for the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) gateway4: Ipv4Addr,
    pub(super) dns4: Ipv4Addr,
    pub(super) guest4: Ipv4Addr,
    pub(super) prefix: Ipv6Addr,
    pub(super) gateway6: Ipv6Addr,
    pub(super) dns6: Ipv6Addr,
    reach: Reach,
}

/// The mask of an IPv4 network.
pub(super) const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// What a destination of the guest's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An address that the host can be asked to reach.
    Host(SocketAddr),
    /// The host's resolver.
    Resolver,
    /// Nothing that is there, or nothing that a guest has any business with.
    Nowhere,
}

impl Addresses {
    /// Those of adapter `index`.
    pub(super) fn new(index: u8, reach: Reach) -> Self {
        let four = |host| Ipv4Addr::new(10, 0, 2 + index, host);
        let [a, b, c] = PREFIX;
        let six = |host| Ipv6Addr::new(a, b, c, 2 + u16::from(index), 0, 0, 0, host);
        Self {
            gateway4: four(2),
            dns4: four(3),
            guest4: four(15),
            prefix: six(0),
            gateway6: six(2),
            dns6: six(3),
            reach,
        }
    }

    /// Whether the gateway itself answers there.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway4 || address == self.dns4,
            IpAddr::V6(address) => address == self.gateway6 || address == self.dns6 || address == LINK_LOCAL,
        }
    }

    fn is_on_link4(&self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & NETMASK.to_bits() == self.gateway4.to_bits() & NETMASK.to_bits()
    }

    fn is_on_link(&self, address: Ipv6Addr) -> bool {
        address.segments()[..4] == self.prefix.segments()[..4]
    }

    /// Whether the guest may send from there.
    pub(super) fn is_guests(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.is_on_link4(ip) && !matches!(ip.octets()[3], 0 | 255) && !self.is_ours(address),
            IpAddr::V6(ip) => (self.is_on_link(ip) || ip.is_unicast_link_local()) && !self.is_ours(address),
        }
    }

    /// What the guest means by a destination. The gateway is the host itself, by its loopback address.
    pub(super) fn target(&self, destination: SocketAddr) -> Target {
        let port = destination.port();
        match destination.ip() {
            _ if self.reach == Reach::Nothing => Target::Nowhere,
            ip if ip == IpAddr::V4(self.dns4) || ip == IpAddr::V6(self.dns6) => match port {
                super::dns::PORT => Target::Resolver,
                _ => Target::Nowhere,
            },
            ip if self.reach == Reach::NoLoopback && self.is_ours(ip) => Target::Nowhere,
            IpAddr::V4(ip) if ip == self.gateway4 => Target::Host((Ipv4Addr::LOCALHOST, port).into()),
            IpAddr::V6(ip) if ip == self.gateway6 => Target::Host((Ipv6Addr::LOCALHOST, port).into()),
            IpAddr::V4(ip) if self.is_reachable4(ip) => Target::Host(destination),
            IpAddr::V6(ip) if self.is_reachable6(ip) => Target::Host(destination),
            _ => Target::Nowhere,
        }
    }

    fn is_reachable4(&self, ip: Ipv4Addr) -> bool {
        // 0.0.0.0/8 would be the host itself; 240.0.0.0/4 has the broadcast. No router passes on what is for one link only
        // (RFC 3927, 7): there clouds have what a host is told about itself, its secrets included.
        let forbidden = ip.is_loopback() || ip.is_multicast() || ip.is_link_local();
        !forbidden && !self.is_on_link4(ip) && ip.octets()[0] != 0 && ip.octets()[0] < 240
    }

    fn is_reachable6(&self, ip: Ipv6Addr) -> bool {
        let forbidden = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local();
        // The host's addresses of version 4 are reached as such, with what is refused there.
        !forbidden && !self.is_on_link(ip) && ip.to_ipv4().is_none()
    }

    /// How the guest sees a peer of the host's: what is on the host itself is the gateway.
    pub(super) fn visible(&self, peer: SocketAddr) -> SocketAddr {
        let ip = match peer.ip() {
            IpAddr::V4(ip) if self.is_reachable4(ip) => ip.into(),
            IpAddr::V4(_) => self.gateway4.into(),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => return self.visible((ip, peer.port()).into()),
                None if self.is_reachable6(ip) => ip.into(),
                None => self.gateway6.into(),
            },
        };
        SocketAddr::new(ip, peer.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_gateway_is_the_host_and_the_rest_is_itself() {
        let net = Addresses::new(0, Reach::All);
        let target = |text: &str| net.target(text.parse().unwrap());
        assert_eq!(target("10.0.2.2:80"), Target::Host("127.0.0.1:80".parse().unwrap()));
        assert_eq!(target("[fd2e:91b7:6c04:2::2]:80"), Target::Host("[::1]:80".parse().unwrap()));
        assert_eq!(target("10.0.2.3:53"), Target::Resolver);
        assert_eq!(target("[fd2e:91b7:6c04:2::3]:53"), Target::Resolver);
        assert_eq!(target("192.0.2.1:443"), Target::Host("192.0.2.1:443".parse().unwrap()));
        assert_eq!(target("10.0.3.2:80"), Target::Host("10.0.3.2:80".parse().unwrap()));
    }

    /// A guest reaches the host's loopback addresses by the gateway's only, and nothing that is a group.
    #[test]
    fn test_attack_destinations() {
        let net = Addresses::new(0, Reach::All);
        for text in [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "10.0.2.3:80",
            "10.0.2.9:80",
            "10.0.2.255:80",
            "224.0.0.251:53",
            "255.255.255.255:80",
            "240.0.0.1:80",
            "169.254.169.254:80",
            "[::1]:80",
            "[::]:80",
            "[ff02::fb]:53",
            "[fe80::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[fd2e:91b7:6c04:2::9]:80",
            "[fd2e:91b7:6c04:2::3]:80",
        ] {
            assert_eq!(net.target(text.parse().unwrap()), Target::Nowhere, "{text}");
        }
    }

    #[test]
    fn test_a_guest_may_be_kept_from_the_hosts_loopback_or_from_all() {
        let target = |reach, text: &str| Addresses::new(0, reach).target(text.parse().unwrap());
        for text in ["10.0.2.2:80", "[fd2e:91b7:6c04:2::2]:80"] {
            assert_eq!(target(Reach::NoLoopback, text), Target::Nowhere, "{text}");
        }
        assert_eq!(target(Reach::NoLoopback, "10.0.2.3:53"), Target::Resolver);
        assert_eq!(target(Reach::NoLoopback, "192.0.2.1:80"), Target::Host("192.0.2.1:80".parse().unwrap()));
        for text in ["10.0.2.2:80", "10.0.2.3:53", "192.0.2.1:80", "[2001:db8::1]:80"] {
            assert_eq!(target(Reach::Nothing, text), Target::Nowhere, "{text}");
        }
    }

    #[test]
    fn test_peers_on_the_host_are_the_gateway() {
        let net = Addresses::new(1, Reach::All);
        let visible = |text: &str| net.visible(text.parse().unwrap()).to_string();
        assert_eq!(visible("127.0.0.1:99"), "10.0.3.2:99");
        assert_eq!(visible("[::1]:99"), "[fd2e:91b7:6c04:3::2]:99");
        assert_eq!(visible("192.0.2.1:99"), "192.0.2.1:99");
        assert_eq!(visible("[::ffff:192.0.2.1]:99"), "192.0.2.1:99");
        assert_eq!(visible("10.0.3.15:99"), "10.0.3.2:99");
    }
}
