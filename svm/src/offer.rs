//! Interrupts for a guest on the CPU that QEMU emulates (seen with 7.2; a later version has the same code).
//!
//! Its VMRUN delivers the external interrupt that EVENTINJ has, and forgets to forget it: where the emulator leaves the CPU for
//! another one before the guest exits, the interrupt is delivered once more, whatever the guest's IF is then. (`helper_vmrun` leaves
//! `exception_index` set.) A kernel that has not got to its own stack and segment bases by then is lost.
//!
//! So interrupts are not injected there but offered as virtual ones (APM vol. 2, 15.21.4): the guest, which has its interrupts on,
//! takes it before its first instruction, except where an interrupt of the host's ends the stay before. V_IRQ then tells that it
//! still waits.
//!
//! VMRUN also loses interrupts of the host's: with V_IRQ it sets a bit in the word of what waits for the CPU, without the lock that other
//! threads of the emulator's take to set theirs. If one of them does so at the same time, its bit is gone, though the local APIC has the
//! interrupt. Where that was the host's timer, which goes on by its interrupts, the host sleeps for ever. The APIC tells the CPU anew
//! when CR8 is written, so that is done after each exit behind which one may be missing.
//!
//! Where an exit interrupts the delivery of a virtual interrupt, EXITINTINFO says that it was an exception of that vector
//! (`handle_even_inj` knows no other word for what is not the guest's INT). Injected again as that, it would be refused.
//!
//! The CPU has one virtual interrupt, which otherwise stands for the window in which the guest takes the next one. That window has to
//! wait for the exit after the offer was taken, of which the end of the interrupt is one.

use covisor_core::delivery::Event;
use covisor_core::exit::Injection;

use crate::SvmVcpu;
use crate::intercept::Instructions1;
use crate::vmcb::Clean;
use crate::vmcb::VirtualInterrupt;

impl SvmVcpu {
    /// The guest is to take the interrupt at the next entry. Its IF is 1, and it is in no shadow.
    #[cold]
    pub(crate) fn offer(&mut self, vector: u8) {
        let control = &mut self.change(Clean::VIRTUAL_INTERRUPT | Clean::INTERCEPTS).control;
        control.instructions1.remove(Instructions1::VINTR);
        let virtual_interrupt = &mut control.virtual_interrupt;
        virtual_interrupt.remove(VirtualInterrupt::PRIORITY | VirtualInterrupt::VECTOR);
        let vector = u64::from(vector) << VirtualInterrupt::VECTOR.bits().trailing_zeros();
        virtual_interrupt
            .insert(VirtualInterrupt::IRQ | VirtualInterrupt::IGNORE_TPR | VirtualInterrupt::from_bits_retain(vector));
        self.offered = true;
        self.virtual_on_qemu = true;
    }

    /// The guest has exited: what was offered may have been taken.
    pub(crate) fn look_after_offer(&mut self) {
        if self.offered && !self.vmcb().control.virtual_interrupt.contains(VirtualInterrupt::IRQ) {
            self.end_offer();
        }
    }

    /// Has the window in its place again.
    #[cold]
    fn end_offer(&mut self) {
        self.offered = false;
        let virtual_interrupt = &mut self.change(Clean::VIRTUAL_INTERRUPT).control.virtual_interrupt;
        virtual_interrupt.remove(VirtualInterrupt::IRQ | VirtualInterrupt::IGNORE_TPR | VirtualInterrupt::VECTOR);
        self.place_window();
    }

    /// What an exit interrupted: it says that it was this event. What was offered is an interrupt.
    pub(crate) fn interrupted_event(&self, event: Event) -> Event {
        let offered = (self.vmcb().control.virtual_interrupt & VirtualInterrupt::VECTOR).bits();
        if self.offered && offered >> VirtualInterrupt::VECTOR.bits().trailing_zeros() == u64::from(event.vector()) {
            Event::encode(Injection::Interrupt(event.vector()), true)
        } else {
            event
        }
    }

    /// Injects an event again whose delivery an exit interrupted, or none in its place. What was offered and not taken is that event.
    pub(crate) fn inject_again(&mut self, event: Event) {
        if self.offered {
            self.end_offer();
        }
        if self.emulated_by_qemu && event.is_interrupt() {
            self.offer(event.vector());
        } else {
            self.vmcb_mut().control.event_injection = event.to_amd();
        }
    }
}

#[cfg(test)]
mod tests {
    use covisor_core::engine::Vcpu;

    use super::*;
    use crate::vcpu::tests::with_vcpu;
    use crate::vcpu::tests::with_vcpu_of_qemu;

    /// The virtual interrupt's field, and whether the window's exit is on.
    fn seen(vcpu: &SvmVcpu) -> (u64, bool) {
        let control = &vcpu.vmcb().control;
        (control.virtual_interrupt.bits(), control.instructions1.contains(Instructions1::VINTR))
    }

    /// The guest exits, and has taken what was offered, or not.
    fn exit(vcpu: &mut SvmVcpu, taken: bool) {
        vcpu.vmcb_mut().control.virtual_interrupt.set(VirtualInterrupt::IRQ, !taken);
        vcpu.look_after_offer();
    }

    const MASKING: u64 = 1 << 24;
    const OFFER: u64 = MASKING | 1 << 20 | 1 << 8;

    #[test]
    fn test_only_qemus_cpu_is_offered_interrupts() {
        with_vcpu(|vcpu| {
            vcpu.inject(Injection::Interrupt(0x31));
            assert_eq!((seen(vcpu), vcpu.vmcb().control.event_injection), ((MASKING, false), 0x8000_0031));
        });
        with_vcpu_of_qemu(|vcpu| {
            vcpu.inject(Injection::Interrupt(0x31));
            assert_eq!((seen(vcpu), vcpu.vmcb().control.event_injection), ((OFFER | 0x31 << 32, false), 0));
            assert!(vcpu.injection_waits());
            exit(vcpu, false);
            assert!(vcpu.injection_waits(), "an interrupt of the host's came first");
            exit(vcpu, true);
            assert!(!vcpu.injection_waits());
            assert_eq!(seen(vcpu), (MASKING, false));
            vcpu.inject(Injection::Nmi);
            assert_eq!(vcpu.vmcb().control.event_injection, 0x8000_0202, "that one comes once");
        });
    }

    #[test]
    fn test_the_window_for_the_next_one_opens_when_the_offer_is_taken() {
        with_vcpu_of_qemu(|vcpu| {
            vcpu.want_interrupt_window(Some(3));
            assert_eq!(seen(vcpu), (MASKING | 3 << 16 | 1 << 8, true));
            vcpu.inject(Injection::Interrupt(0x41));
            vcpu.want_interrupt_window(Some(2));
            vcpu.set_task_priority(1);
            assert_eq!(seen(vcpu), (OFFER | 0x41 << 32 | 1, false));
            exit(vcpu, true);
            assert_eq!(seen(vcpu), (MASKING | 2 << 16 | 1 << 8 | 1, true));
        });
    }

    #[test]
    fn test_the_hosts_interrupts_are_looked_for_after_each_stay_with_a_virtual_one() {
        with_vcpu_of_qemu(|vcpu| {
            assert!(!vcpu.virtual_on_qemu);
            vcpu.inject(Injection::Interrupt(0x31));
            for taken in [false, true] {
                assert!(vcpu.virtual_on_qemu);
                exit(vcpu, taken);
            }
            assert!(!vcpu.virtual_on_qemu);
            vcpu.want_interrupt_window(Some(3));
            assert!(vcpu.virtual_on_qemu);
        });
        with_vcpu(|vcpu| {
            vcpu.want_interrupt_window(Some(3));
            assert!(!vcpu.virtual_on_qemu, "other CPUs lose none");
        });
    }

    #[test]
    fn test_a_delivery_that_an_exit_interrupts_is_one_offer_still() {
        let interrupt = Event::encode(Injection::Interrupt(0x31), true);
        with_vcpu_of_qemu(|vcpu| {
            vcpu.inject(Injection::Interrupt(0x31));
            exit(vcpu, false);
            // An exception, by what QEMU says; another one is one.
            let said = Event::from_amd(0x8000_0331);
            assert_eq!(vcpu.interrupted_event(said), interrupt);
            let page_fault = Event::from_amd(0x8000_0b0e);
            assert_eq!(vcpu.interrupted_event(page_fault), page_fault);
            vcpu.inject_again(interrupt);
            assert_eq!((seen(vcpu), vcpu.vmcb().control.event_injection), ((OFFER | 0x31 << 32, false), 0));
            exit(vcpu, false);
            vcpu.inject_again(Event::NONE);
            assert_eq!(
                (seen(vcpu), vcpu.injection_waits()),
                ((MASKING, false), false),
                "another exception took its place"
            );
        });
    }
}
