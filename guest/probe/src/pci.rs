//! PCI configuration by mechanism #1 (PCI 3.0, 3.2.2.3.2), as far as it takes to find a virtio device's registers.

use crate::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Virtio's vendor id.
const VIRTIO_VENDOR: u32 = 0x1af4;
/// Configuration register with vendor and device id.
const ID: u8 = 0x00;
/// Command register; bit 0: I/O, bit 1: memory.
const COMMAND: u8 = 0x04;
/// Interrupt line, beside the interrupt pin.
const INTERRUPT_LINE: u8 = 0x3c;
/// The six base address registers.
const BARS: [u8; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];

/// Reads a configuration register of a function 0 on bus 0.
#[must_use]
pub fn read(device: u8, register: u8) -> u32 {
    port::out32(ADDRESS, ENABLE | u32::from(device) << 11 | u32::from(register & 0xfc));
    port::in32(DATA)
}

/// Writes one.
pub fn write(device: u8, register: u8, value: u32) {
    port::out32(ADDRESS, ENABLE | u32::from(device) << 11 | u32::from(register & 0xfc));
    port::out32(DATA, value);
}

/// The first virtio device.
fn virtio_device() -> Option<u8> {
    (0..32).find(|device| read(*device, ID) & 0xffff == VIRTIO_VENDOR)
}

/// The port of a register that keeps a byte and means nothing to the machine: the first virtio device's interrupt line. It is there
/// until another register of configuration is asked for.
#[must_use]
pub fn scratch() -> u16 {
    let device = virtio_device().unwrap_or(0);
    let _ = read(device, INTERRUPT_LINE);
    DATA
}

/// The guest-physical address of the first range of memory that the first virtio device has; its decoding is switched on.
#[must_use]
pub fn virtio_memory() -> Option<u64> {
    let device = virtio_device()?;
    write(device, COMMAND, read(device, COMMAND) & 0xffff | 3);
    let bars = BARS.map(|register| read(device, register));
    bars.into_iter().find(|bar| bar & 1 == 0 && bar & !0xf != 0).map(|bar| u64::from(bar & !0xf))
}
