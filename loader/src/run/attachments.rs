//! What a guest is connected to: disks, networks and shared folders, as they are wanted and as they are open.

use std::fmt;
use std::path::PathBuf;

use crate::disk;
use crate::disk::BlockBackend;
use crate::disk::DiskError;
use crate::disk::Format;
use crate::net::Backend;
use crate::net::Captured;
use crate::net::Mac;
use crate::net::nat::Nat;
use crate::net::spec::MOST_ADAPTERS;
use crate::net::spec::Network;
use crate::net::tap::TapLink;
use crate::run::Config;
use crate::run::ConfigError;
use crate::run::notice;
use crate::share::FileSystem;
use crate::share::Tag;
use crate::sys::share;

/// Most shared folders of a guest.
pub(super) const MOST_SHARES: usize = 8;

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it is called by commands and messages.
    pub name: String,
    /// The image or the host's block device.
    pub path: PathBuf,
    /// The guest may not write it.
    pub read_only: bool,
    /// The image's format; without one, the file's name says it.
    pub format: Option<Format>,
}

/// What the disk of this number is called: the first is 0.
#[must_use]
pub fn disk_name(number: u32) -> String {
    format!("disk{number}")
}

impl Disk {
    /// Opens and locks it.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(&self) -> Result<Box<dyn BlockBackend>, DiskError> {
        disk::open(&self.path, self.format, self.read_only)
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of_name(&self.path))
    }
}

/// An open disk, with its name.
pub type NamedDisk = (String, Box<dyn BlockBackend>);

/// What an adapter is connected to, with its address.
pub struct AttachedNetwork {
    /// The adapter's address.
    pub mac: Mac,
    /// The network.
    pub backend: Box<dyn Backend>,
}

impl fmt::Debug for AttachedNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AttachedNetwork").field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// A folder that is open to be shared.
pub struct OpenShare {
    /// What the guest calls it.
    pub tag: Tag,
    /// What is in it.
    pub files: Box<dyn FileSystem>,
    /// The guest cannot write it.
    pub read_only: bool,
}

impl fmt::Debug for OpenShare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpenShare").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Config {
    /// Opens the disks.
    pub(super) fn open_disks(&self) -> Result<Vec<NamedDisk>, ConfigError> {
        self.disks.iter().map(|disk| Ok((disk.name.clone(), disk.open()?))).collect()
    }

    /// Connects the network adapters.
    pub(super) fn open_networks(&self) -> Result<Vec<AttachedNetwork>, ConfigError> {
        if self.adapters.len() > MOST_ADAPTERS {
            return Err(ConfigError::ManyAdapters);
        }
        let mut networks: Vec<AttachedNetwork> = Vec::new();
        for (number, adapter) in (0..).zip(&self.adapters) {
            let mac = adapter.mac.unwrap_or_else(|| Mac::of_machine(&self.name, number.into()));
            if networks.iter().any(|other| other.mac == mac) {
                return Err(ConfigError::SameMac(mac));
            }
            let backend: Box<dyn Backend> = match &adapter.network {
                Network::Nat { forwards, reach } => Box::new(Nat::new(number, mac, adapter.mtu, forwards, *reach)?),
                Network::Tap { name, bridge } => {
                    let link = TapLink::new(name.as_deref(), adapter.mtu, bridge.as_deref())?;
                    if name.is_none() {
                        notice(format_args!("network adapter {number} is the host's interface {}", link.name()));
                    }
                    Box::new(link)
                }
            };
            let backend: Box<dyn Backend> = match &adapter.capture {
                None => backend,
                Some(path) => {
                    let refuse = |source| ConfigError::Capture { path: path.clone(), source };
                    Box::new(Captured::new(backend, path).map_err(refuse)?)
                }
            };
            networks.push(AttachedNetwork { mac, backend });
        }
        Ok(networks)
    }

    /// Opens the shared folders.
    pub(super) fn open_shares(&self) -> Result<Vec<OpenShare>, ConfigError> {
        if self.shares.len() > MOST_SHARES {
            return Err(ConfigError::ManyShares);
        }
        let mut shares: Vec<OpenShare> = Vec::new();
        for (number, share) in self.shares.iter().enumerate() {
            let tag = share.tag.clone().unwrap_or_else(|| Tag::numbered(number));
            if shares.iter().any(|other| other.tag == tag) {
                return Err(ConfigError::SameTag(tag));
            }
            let refuse = |source| ConfigError::Share { path: share.folder.clone(), source };
            let files = share::open(&share.folder, share.read_only, share.mapping).map_err(refuse)?;
            shares.push(OpenShare { tag, files, read_only: share.read_only });
        }
        Ok(shares)
    }
}
