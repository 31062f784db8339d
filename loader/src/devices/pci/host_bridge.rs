//! The host bridge at slot 0: operating systems look for one before they believe that there is a PCI bus.

use super::ConfigSpace;
use super::Identity;
use super::PciFunction;

/// Intel, and the id that its virtual machine monitors give a host bridge without registers of its own.
const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x0d57;
/// Bridge device, host bridge (PCI 3.0, appendix D).
const CLASS: [u8; 3] = [0x06, 0x00, 0x00];

/// A host bridge that is nothing but its header.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A host bridge.
    #[must_use]
    pub fn new() -> Self {
        let identity =
            Identity { vendor: VENDOR, device: DEVICE, revision: 0, class: CLASS, subsystem_vendor: 0, subsystem: 0 };
        Self { config: ConfigSpace::new(&identity) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}
