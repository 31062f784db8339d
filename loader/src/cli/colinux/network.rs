//! `ethN=slirp` and `ethN=tuntap`.

use super::Flaw;
use super::once;
use super::value;
use crate::net::spec::Adapter;
use crate::net::spec::Forward;
use crate::net::spec::MOST_ADAPTERS;
use crate::net::spec::Network;
use crate::net::spec::Reach;
use crate::net::spec::SpecError;

/// The adapters by their numbers.
#[derive(Debug, Default)]
pub(super) struct Adapters([Option<Adapter>; MOST_ADAPTERS]);

impl Adapters {
    pub(super) fn add(&mut self, number: usize, value: &str) -> Result<(), Flaw> {
        once(&mut self.0[number], adapter(value)?)
    }

    /// In the order of their numbers. Where one is left out, the guest counts on, as with coLinux.
    pub(super) fn in_order(self) -> Vec<Adapter> {
        self.0.into_iter().flatten().collect()
    }
}

fn adapter(value: &str) -> Result<Adapter, Flaw> {
    let parts = value::list(value);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    // Parts at the end may be left away.
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let (network, mac, most) = match part(0) {
        "slirp" => {
            let words = part(2).split('/').filter(|_| !part(2).is_empty());
            let forwards = words.map(Forward::from_colinux).collect::<Result<_, _>>()?;
            (Network::Nat { forwards, reach: Reach::All }, part(1), 3)
        }
        // The last part was the host's address, which coLinux did not use, either.
        "tuntap" => {
            let name = Some(part(1).to_owned()).filter(|name| !name.is_empty());
            (Network::Tap { name, bridge: None }, part(2), 4)
        }
        kind @ ("pcap-bridge" | "ndis-bridge") => return Err(Flaw::Bridge(kind.to_owned())),
        _ => return Err(Flaw::Network),
    };
    if parts.len() > most {
        return Err(Flaw::TooMuch);
    }
    let mac = Some(mac).filter(|mac| !mac.is_empty()).map(str::parse).transpose().map_err(SpecError::Mac)?;
    Ok(Adapter { network, mac, mtu: None, capture: None })
}
