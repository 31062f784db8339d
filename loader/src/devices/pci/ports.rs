//! Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2), with the reset register that chipsets keep between its ports.

use std::sync::Arc;

use super::PciRoot;
use crate::devices::power::ResetRegister;
use crate::platform::BusDevice;

/// The first port: `CONFIG_ADDRESS`.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Ports.
pub const CONFIG_PORTS_SIZE: u64 = 8;

/// Offset of `CONFIG_DATA`.
const DATA: u64 = 4;
/// Offset of the reset register.
const RESET: u64 = 1;

/// `CONFIG_ADDRESS`: accesses of `CONFIG_DATA` go to configuration space.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// The bits that hold something; the others read 0.
const ADDRESS_BITS: u32 = ADDRESS_ENABLE | 0x00ff_fffc;

/// Ports 0xcf8 to 0xcff.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: u32,
    reset: ResetRegister,
}

impl ConfigPorts {
    /// The ports in front of `root`, with `reset` at 0xcf9.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, reset: ResetRegister) -> Self {
        Self { root, address: 0, reset }
    }

    /// The slot and register that an access at `offset` of `CONFIG_DATA` is for: bus 0 has all functions, each is
    /// function 0 of its slot.
    fn target(&self, offset: u64) -> Option<(u8, u8)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        let selected = self.address & ADDRESS_ENABLE != 0 && bus == 0 && function & 0b111 == 0;
        let byte = u8::try_from(offset - DATA).ok()?;
        selected.then_some((function >> 3, register | byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET, 1) => data.fill(self.reset.read()),
            (DATA.., _) => {
                if let Some((slot, register)) = self.target(offset) {
                    self.root.read_config(slot, register, data);
                }
            }
            // Anything narrower at CONFIG_ADDRESS is some other device's, and there is none.
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS,
            (RESET, &[value]) => self.reset.write(value),
            (DATA.., _) => {
                if let Some((slot, register)) = self.target(offset) {
                    self.root.write_config(slot, register, data);
                }
            }
            _ => {}
        }
    }
}
