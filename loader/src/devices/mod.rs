//! The devices of the machine.
//!
//! All of them are [`crate::platform::BusDevice`]s: PCI functions behind [`pci::ConfigPorts`], and a few small ones at
//! ports of their own. What serves a virtio device's queues runs on a thread of its own, never on a vCPU's.

pub mod pci;
pub mod pipe;
pub mod power;
pub(crate) mod reports;
pub mod serial;
#[cfg(test)]
mod testing;
pub mod virtio;
pub mod xen_console;
