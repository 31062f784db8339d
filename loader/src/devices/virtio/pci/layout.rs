//! Where a virtio function's registers are (virtio 1.2, 4.1.4).
//!
//! All of them lie in one range of I/O ports: an access to a port tells the driver all about itself, whereas one to device
//! memory has to be decoded; and every queue has a notification port of its own, which a doorbell can be put at. Only the
//! MSI-X table, which must be memory, has another range.

use crate::devices::pci::ConfigSpace;

/// Base address register of the registers.
pub(super) const REGISTERS_BAR: u8 = 0;
/// Base address register of the MSI-X table.
pub(super) const MSIX_BAR: u8 = 1;

/// Bytes of registers: as much as a range of ports may have (PCI 3.0, 6.2.5.1).
pub(super) const REGISTERS_SIZE: u32 = 0x100;

/// Common configuration.
pub(super) const COMMON: u8 = 0x00;
pub(super) const COMMON_SIZE: u8 = 0x40;
/// The interrupt status byte.
pub(super) const ISR: u8 = 0x40;
/// The device's own configuration.
pub(super) const DEVICE: u8 = 0x80;
pub(super) const DEVICE_SIZE: u8 = 0x40;
/// Notification ports.
pub(super) const NOTIFY: u8 = 0xc0;
pub(super) const NOTIFY_SIZE: u8 = 0x40;
/// Ports of one queue's notification.
pub(super) const NOTIFY_STRIDE: u8 = 4;

/// Most queues of a device: one notification each.
pub(super) const MAX_QUEUES: usize = (NOTIFY_SIZE / NOTIFY_STRIDE) as usize;

/// Capability id of vendors' own (PCI 3.0, appendix H).
const VENDOR_CAPABILITY: u8 = 0x09;

/// Types of virtio capabilities (virtio 1.2, 4.1.4).
const COMMON_CONFIG: u8 = 1;
const NOTIFY_CONFIG: u8 = 2;
const ISR_CONFIG: u8 = 3;
const DEVICE_CONFIG: u8 = 4;
const PCI_CONFIG: u8 = 5;

/// Fields of the PCI configuration access capability, from its start (virtio 1.2, 4.1.4.9).
pub(super) const ACCESS_BAR: u8 = 4;
pub(super) const ACCESS_OFFSET: u8 = 8;
pub(super) const ACCESS_LENGTH: u8 = 12;
pub(super) const ACCESS_DATA: u8 = 16;
/// Its size.
pub(super) const ACCESS_SIZE: u8 = 20;

/// `struct virtio_pci_cap` behind its id and link, with `extra` at its end.
fn body(kind: u8, bar: u8, offset: u8, length: u8, extra: &[u8]) -> Vec<u8> {
    const HEAD: u8 = 16;
    let size = HEAD + u8::try_from(extra.len()).unwrap_or(0);
    let mut body = vec![size, kind, bar, 0, 0, 0];
    body.extend(u32::from(offset).to_le_bytes());
    body.extend(u32::from(length).to_le_bytes());
    body.extend(extra);
    body
}

/// Gives a function the capabilities that tell where its registers are, and gives the offset of the one through which
/// configuration space reaches them.
pub(super) fn add_capabilities(config: &mut ConfigSpace, has_device_config: bool) -> u8 {
    let mut add = |kind, offset, length, extra: &[u8]| {
        config.add_capability(VENDOR_CAPABILITY, &body(kind, REGISTERS_BAR, offset, length, extra), &[])
    };
    add(COMMON_CONFIG, COMMON, COMMON_SIZE, &[]);
    add(ISR_CONFIG, ISR, 1, &[]);
    if has_device_config {
        add(DEVICE_CONFIG, DEVICE, DEVICE_SIZE, &[]);
    }
    add(NOTIFY_CONFIG, NOTIFY, NOTIFY_SIZE, &u32::from(NOTIFY_STRIDE).to_le_bytes());
    // The driver writes the range, the offset, the length and the data.
    let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    config.add_capability(VENDOR_CAPABILITY, &body(PCI_CONFIG, 0, 0, 0, &[0; 4]), &writable)
}
