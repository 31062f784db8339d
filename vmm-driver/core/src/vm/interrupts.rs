//! Interrupts of a VM: from lines and messages of the loader's, and from vCPU to vCPU.

use covisor_abi::IrqLine;
use covisor_abi::MAX_GSI;
use covisor_abi::MAX_VCPUS;
use covisor_abi::Msi;

use super::Vm;
use crate::apic::Identity;
use crate::apic::IoApic;
use crate::apic::Message;
use crate::apic::msi;
use crate::device::CallError;
use crate::engine::Engine;
use crate::host::Host;
use crate::paravirtual;

impl<H: Host, E: Engine> Vm<H, E> {
    /// Programs the I/O APIC of a paravirtual guest. Only now, for there was no vCPU before that a line could be sent to.
    pub(super) fn connect_lines(&self) {
        for gsi in 0..MAX_GSI {
            if let Some(message) = self.with_io_apic(|io_apic| paravirtual::connect(io_apic, gsi)) {
                self.notify(self.post(&message, None));
            }
        }
    }

    /// Posts a message to the vCPUs that it is for; returns those that have to be notified. Guest context too.
    pub(crate) fn post(&self, message: &Message, sender: Option<u32>) -> u64 {
        let Some(parts) = self.parts.get() else { return 0 };
        let count = u32::try_from(parts.vcpus.len()).unwrap_or(MAX_VCPUS);
        let identity =
            |id: u32| parts.vcpus.get(id as usize).map_or(Identity::RESET, |slot| slot.shared.inbox.identity());
        let mut targets = message.targets(sender, count, identity);
        let mut notify = 0;
        while targets != 0 {
            let id = targets.trailing_zeros();
            targets &= targets - 1;
            if let Some(slot) = parts.vcpus.get(id as usize)
                && slot.shared.inbox.post(message)
                && sender != Some(id)
            {
                notify |= 1 << id;
            }
        }
        notify
    }

    /// Notifies a set of vCPUs. Not in guest context.
    pub(crate) fn notify(&self, mut set: u64) {
        let Some(parts) = self.parts.get() else { return };
        while set != 0 {
            let id = set.trailing_zeros();
            set &= set - 1;
            if let Some(slot) = parts.vcpus.get(id as usize) {
                slot.shared.notify();
            }
        }
    }

    /// Sets the level of an input of the I/O APIC.
    pub(super) fn set_line(&self, request: &IrqLine) -> Result<(), CallError> {
        if request.gsi >= MAX_GSI || request.level > 1 {
            return Err(CallError::Invalid);
        }
        let message = self.with_io_apic(|io_apic| io_apic.set_line(request.gsi, request.level != 0));
        if let Some(message) = message {
            self.notify(self.post(&message, None));
        }
        Ok(())
    }

    /// Sends a message-signalled interrupt.
    pub(super) fn send_msi(&self, request: &Msi) -> Result<(), CallError> {
        // A paravirtual guest's vectors are core's own.
        if request.reserved != 0 || E::PARAVIRTUAL {
            return Err(CallError::Invalid);
        }
        let message = msi::decode(request.address, request.data).ok_or(CallError::Invalid)?;
        self.notify(self.post(&message, None));
        Ok(())
    }

    /// Locks the I/O APIC, from thread context.
    fn with_io_apic<T>(&self, use_it: impl FnOnce(&mut IoApic) -> T) -> T {
        H::preempt_off();
        let result = use_it(&mut self.io_apic.lock());
        H::preempt_on();
        result
    }
}
