//! Guest memory goes back to the host.

use std::sync::Arc;

use super::pause::Pause;
use crate::devices::reports::Reports;
use crate::devices::virtio::balloon::MemorySink;
use crate::driver::Vm;
use crate::platform::GuestRam;

/// Takes what the balloon device collects.
#[derive(Debug)]
pub(super) struct Reclaim {
    pub(super) vm: Arc<Vm>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) pause: Arc<Pause>,
    pub(super) cpus: u32,
    pub(super) reports: Reports,
}

impl Reclaim {
    /// Makes vCPUs that run return.
    fn kick(&self) {
        for vcpu in 0..self.cpus {
            if let Err(error) = self.vm.kick(vcpu) {
                self.reports.warn(&format_args!("vCPU {vcpu} cannot be interrupted: {error}"));
            }
        }
    }
}

impl MemorySink for Reclaim {
    fn give_back(&self, ranges: &[(u64, u64)]) {
        self.pause.hold(
            || self.kick(),
            || {
                for &(gpa, size) in ranges {
                    if let Err(error) = self.vm.discard_memory(&self.ram, gpa, size) {
                        // Nothing is lost by it but the host's memory.
                        self.reports.warn(&format_args!("memory at {gpa:#x} cannot be given back: {error}"));
                    }
                }
            },
        );
    }
}
