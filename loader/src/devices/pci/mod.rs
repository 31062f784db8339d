//! The PCI bus (PCI Local Bus Specification 3.0): one bus, one function in each of its 32 slots.
//!
//! [`PciRoot`] holds the functions and puts their base address registers' ranges on the buses; [`ConfigPorts`] is how
//! the guest reaches configuration space.

mod config;
mod host_bridge;
mod hot_plug;
mod intx;
mod msix;
mod ports;
mod root;

pub use config::Bar;
pub use config::BarKind;
pub use config::Command;
pub use config::ConfigSpace;
pub use config::Identity;
pub use host_bridge::HostBridge;
pub use hot_plug::EjectSink;
pub use hot_plug::HOT_PLUG_PORT;
pub use hot_plug::HOT_PLUG_PORTS;
pub use hot_plug::HOT_SLOTS;
pub use hot_plug::HotPlug;
pub use hot_plug::HotPlugRegisters;
pub use intx::IntxLines;
pub use intx::IntxPin;
pub use intx::gsi_of_slot;
pub(crate) use msix::MSIX_RANGE_SIZE;
pub use msix::MsixTable;
pub use msix::add_msix_capability;
pub(crate) use msix::msix_control;
pub use ports::CONFIG_PORTS;
pub use ports::CONFIG_PORTS_SIZE;
pub use ports::ConfigPorts;
pub use root::NewFunction;
pub use root::PciError;
pub use root::PciRoot;
pub use root::Windows;

/// Slots of the bus: a device number has five bits (PCI 3.0, 3.2.2.3.2).
pub const SLOTS: u8 = 32;

/// A function on the bus.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, for placing it before the guest runs.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads configuration space. `data` comes filled with ones.
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space.
    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Whether no driver in the guest uses it.
    fn is_idle(&self) -> bool {
        true
    }

    /// The guest has put the range of base address register `bar` at `address`, or away.
    fn moved(&mut self, _bar: usize, _address: Option<u64>) {}
}
