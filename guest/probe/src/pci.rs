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
/// First base address register.
const BAR0: u8 = 0x10;
/// Offset of the first capability.
const CAPABILITIES: u8 = 0x34;
/// Vendor-specific capability, which virtio uses.
const CAPABILITY_VENDOR: u32 = 0x09;

/// `cfg_type` of a virtio capability: common configuration (virtio 1.2, 4.1.4).
pub const VIRTIO_COMMON: u32 = 1;

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

/// The guest-physical address of the first virtio device's structure of this type, where it lies in a memory BAR below
/// 4 GiB; memory decoding is switched on.
#[must_use]
pub fn virtio_memory(structure: u32) -> Option<u64> {
    let device = (0..32).find(|device| read(*device, ID) & 0xffff == VIRTIO_VENDOR)?;
    write(device, COMMAND, read(device, COMMAND) & 0xffff | 3);
    let mut offset = byte(read(device, CAPABILITIES), 0);
    // A list that loops ends as well.
    for _ in 0..48 {
        if offset < 0x40 {
            return None;
        }
        let head = read(device, offset);
        if head & 0xff == CAPABILITY_VENDOR && head >> 24 == structure {
            let bar = byte(read(device, offset + 4), 0);
            let base = read(device, BAR0 + bar % 6 * 4);
            if base & 1 == 0 {
                return Some(u64::from(base & !0xf) + u64::from(read(device, offset + 8)));
            }
        }
        offset = byte(head, 1);
    }
    None
}

/// Byte `index` of a word.
fn byte(word: u32, index: usize) -> u8 {
    word.to_le_bytes().get(index).copied().unwrap_or(0)
}
