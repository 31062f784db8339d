//! What a driver reads of an adapter (virtio 1.2, 5.1.4).

use crate::devices::virtio::DeviceConfig;
use crate::devices::virtio::read_bytes;
use crate::net::Mac;

/// Bytes of `struct virtio_net_config` up to what we offer: address, status, pairs of queues, largest packet.
const SIZE: usize = 12;
/// The link is up (`VIRTIO_NET_S_LINK_UP`).
const LINK_UP: u16 = 1;

/// The adapter's configuration, which never changes.
pub(super) struct Config {
    bytes: [u8; SIZE],
}

impl Config {
    pub(super) fn new(mac: Mac, pairs: u16, mtu: u16) -> Self {
        let mut bytes = [0; SIZE];
        bytes[..6].copy_from_slice(&mac.0);
        bytes[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
        bytes[10..].copy_from_slice(&mtu.to_le_bytes());
        Self { bytes }
    }
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        12
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.bytes, offset, data);
    }
}
