//! What core is to guests of an engine whose guests are paravirtual ([`Engine::PARAVIRTUAL`]).
//!
//! Such a guest has event channels in the place of interrupt controllers, and the engine's monitor keeps them with all their
//! masks. Lines, timer, what other threads post and how it wakes the vCPU are core's as ever. So core programs the controllers
//! itself, as a kernel would, and hands over each interrupt as soon as it is there; the engine tells by the vector which
//! event that is. The guest reaches the controllers neither by memory nor by MSRs.
//!
//! A line that is asserted comes once. The guest's end of interrupt ([`crate::exit::Exit::EndOfInterrupt`]) has it come again
//! while it is still asserted.

pub(crate) mod msr;
#[cfg(test)]
mod tests;

use covisor_abi::MAX_GSI;
use covisor_abi::StatsKind;
use covisor_abi::paravirtual::CONSOLE_GSI;

use crate::apic::Effect;
use crate::apic::IoApic;
use crate::apic::LocalApic;
use crate::apic::Message;
use crate::apic::Trigger;
use crate::apic::registers::Lvt;
use crate::apic::registers::Register;
use crate::apic::registers::spurious;
use crate::engine::Engine;
use crate::engine::Next;
use crate::engine::Vcpu;
use crate::exit::Injection;
use crate::exits::Handler;
use crate::host::Host;
use crate::vm::tsc;

/// Vector of interrupt line 0; the others follow.
pub const PV_LINE_BASE: u8 = 0x30;
/// Vector of the timer.
pub const PV_TIMER_VECTOR: u8 = 0xe0;

static_assertions::const_assert!(PV_LINE_BASE as u32 + MAX_GSI <= PV_TIMER_VECTOR as u32);

/// The vector of an interrupt line.
fn line_vector(gsi: u32) -> Option<u8> {
    let number = u8::try_from(gsi).ok().filter(|_| gsi < MAX_GSI)?;
    Some(PV_LINE_BASE + number)
}

/// A vCPU's local APIC: enabled, its timer counting to a value of the host's time stamp counter.
pub(crate) fn local_apic(id: u32, tsc_khz: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, tsc_khz, 0);
    let enabled = spurious::ENABLED | spurious::RESET;
    let timer = u32::from(PV_TIMER_VECTOR) | Lvt::TSC_DEADLINE;
    for (register, value) in [(Register::Spurious, enabled), (Register::LvtTimer, timer)] {
        // The effects are on a vCPU that runs, and this one is not made yet.
        let _ = apic.write_memory(u64::from(register as u8) << 4, 4, u64::from(value), 0);
    }
    apic
}

/// Connects an interrupt line with vCPU 0.
pub(crate) fn connect(io_apic: &mut IoApic, gsi: u32) -> Option<Message> {
    // The loader's pulse on the console's line is over when the guest looks, and nobody ends that interrupt.
    let trigger = if gsi == CONSOLE_GSI { Trigger::Edge } else { Trigger::Level };
    io_apic.connect(gsi, line_vector(gsi)?, trigger)
}

impl<H: Host, E: Engine> Handler<'_, H, E> {
    /// Hands over all interrupts that there are, whatever the guest's flags. For the local APIC each is over at once.
    pub(crate) fn deliver_events(&mut self, vcpu: &mut E::Vcpu) {
        let apic = &mut self.state.apic;
        apic.set_task_priority(0);
        while let Some(vector) = apic.highest() {
            apic.accept(vector);
            // That of a line is for the I/O APIC, which hears of it from the guest.
            let _ = apic.end_of_interrupt();
            vcpu.inject(Injection::Interrupt(vector));
            self.shared.count(StatsKind::Injections);
        }
    }

    /// The guest sets its timer.
    pub(crate) fn set_timer(&mut self, vcpu: &mut E::Vcpu, deadline: Option<u64>) -> Next {
        // 0 stops the timer (SDM vol. 3, 11.5.4.1), and to the guest it is a time like others.
        let value = deadline.map_or(0, |deadline| deadline.max(1));
        let effect = self.state.apic.set_tsc_deadline(value, tsc());
        self.effect(vcpu, effect)
    }

    /// The guest has served a line.
    pub(crate) fn end_of_line(&mut self, vcpu: &mut E::Vcpu, gsi: u8) -> Next {
        match line_vector(u32::from(gsi)) {
            Some(vector) => self.effect(vcpu, Effect::EndOfInterrupt(vector)),
            None => Next::Resume,
        }
    }
}
