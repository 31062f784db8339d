//! Events on their way into the guest: what is injected at entry, and what an exit interrupted.
//!
//! AMD-V and VT-x describe an event in the same word: EVENTINJ and EXITINTINFO (APM vol. 2, 15.20 and 15.7.2), the VM-entry
//! interruption-information and the IDT-vectoring information (SDM vol. 3, 25.8.3 and 25.9.3). The error code is the upper
//! half of AMD-V's field; VT-x has a field of its own for it.

use covisor_abi::KillReason;

use crate::exit::Exception;
use crate::exit::Exit;
use crate::exit::Injection;

/// Bits 8 to 10: external interrupt.
const TYPE_INTERRUPT: u32 = 0 << 8;
/// NMI.
const TYPE_NMI: u32 = 2 << 8;
/// Hardware exception; AMD-V says so of what INT3 and INTO raise too.
const TYPE_EXCEPTION: u32 = 3 << 8;
/// INT n.
const TYPE_SOFTWARE_INTERRUPT: u32 = 4 << 8;
/// VT-x: INT1.
const TYPE_PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5 << 8;
/// VT-x: INT3 and INTO.
const TYPE_SOFTWARE_EXCEPTION: u32 = 6 << 8;
/// All bits of the type.
const TYPE_MASK: u32 = 7 << 8;
/// The error code is valid.
const ERROR_VALID: u32 = 1 << 11;
/// There is an event.
const VALID: u32 = 1 << 31;
/// #BP, raised by INT3.
const BREAKPOINT: u32 = 3;
/// #OF, raised by INTO.
const OVERFLOW: u32 = 4;

/// An event, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Vector, type, and what is valid.
    pub info: u32,
    /// The error code, where `info` says that it is valid.
    pub error: u32,
}

impl Event {
    /// No event.
    pub const NONE: Self = Self { info: 0, error: 0 };

    /// The event for an injection into a guest whose CR0.PE is set (`protected`) or not. Without it no exception has an error code
    /// (real mode): AMD-V would push the one that it is given (APM vol. 2, 15.20), VT-x refuses an entry with one (SDM vol. 3,
    /// 27.2.1.3).
    #[inline]
    #[must_use]
    pub fn encode(injection: Injection, protected: bool) -> Self {
        match injection {
            Injection::Interrupt(vector) => Self { info: u32::from(vector) | TYPE_INTERRUPT | VALID, error: 0 },
            Injection::Nmi => Self { info: 2 | TYPE_NMI | VALID, error: 0 },
            Injection::Exception(Exception { vector, error_code }) => {
                let error_code = error_code.filter(|_| protected);
                let error_valid = if error_code.is_some() { ERROR_VALID } else { 0 };
                Self {
                    info: u32::from(vector) | TYPE_EXCEPTION | VALID | error_valid,
                    error: error_code.unwrap_or_default(),
                }
            }
        }
    }

    /// From AMD-V's field.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub const fn from_amd(field: u64) -> Self {
        Self { info: field as u32, error: (field >> 32) as u32 }
    }

    /// As AMD-V's field.
    #[inline]
    #[must_use]
    pub const fn to_amd(self) -> u64 {
        (self.error as u64) << 32 | self.info as u64
    }

    /// Whether it is one.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.info & VALID != 0
    }

    /// Its vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.info.to_le_bytes()[0]
    }

    /// Whether it is an external interrupt.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.is_valid() && self.info & TYPE_MASK == TYPE_INTERRUPT
    }

    /// Whether it is a non-maskable interrupt.
    #[must_use]
    pub const fn is_nmi(self) -> bool {
        self.is_valid() && self.info & TYPE_MASK == TYPE_NMI
    }

    /// Whether it is an exception, not an interrupt.
    #[must_use]
    pub const fn is_exception(self) -> bool {
        self.is_valid()
            && matches!(
                self.info & TYPE_MASK,
                TYPE_EXCEPTION | TYPE_SOFTWARE_EXCEPTION | TYPE_PRIVILEGED_SOFTWARE_EXCEPTION
            )
    }

    /// What to inject again after an exit that interrupted the delivery. None of INT n, INT3, INTO and INT1: RIP still
    /// points to them, so the guest executes them again.
    #[must_use]
    pub const fn reinjection(self) -> Option<Self> {
        let vector = self.info & 0xff;
        match self.info & TYPE_MASK {
            _ if !self.is_valid() => None,
            TYPE_SOFTWARE_INTERRUPT | TYPE_SOFTWARE_EXCEPTION | TYPE_PRIVILEGED_SOFTWARE_EXCEPTION => None,
            TYPE_EXCEPTION if vector == BREAKPOINT || vector == OVERFLOW => None,
            _ => Some(self),
        }
    }
}

/// Deliveries in a row that may be interrupted by an exception before the guest is ended.
const MAX_FAILED_DELIVERIES: u32 = 1000;

/// What became of a vCPU's deliveries: a guest that faults on its own handlers without end is told by it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deliveries {
    /// So many in a row were interrupted by an exception.
    failed: u32,
}

impl Deliveries {
    /// An exit came that interrupted no delivery.
    #[inline]
    pub const fn succeeded(&mut self) {
        self.failed = 0;
    }

    /// `exit` came while `event` was delivered: what core is to hear, and what is to be injected again.
    ///
    /// The event is delivered again, or gives way to the exception that its delivery raised. That is one which the engine
    /// intercepts, #DB or #AC, and both are benign: with them no exception makes a double fault (APM vol. 2, 8.2.9; SDM
    /// vol. 3, table 6-5). Pairs that do are the CPU's own work, for it delivers the others by itself.
    #[must_use]
    pub fn interrupted(&mut self, event: Event, exit: Exit) -> (Exit, Option<Event>) {
        let Exit::Exception(exception) = exit else { return (exit, event.reinjection()) };
        if exception.vector == Exception::MACHINE_CHECK {
            // The host's, and the guest's end: nothing of the delivery counts any more.
            return (exit, None);
        }
        self.failed += 1;
        if self.failed > MAX_FAILED_DELIVERIES {
            return (Exit::Kill(KillReason::FaultLoop, u64::from(exception.vector)), None);
        }
        if event.is_exception() {
            return (exit, None);
        }
        // The interrupt was accepted and must not be lost; its delivery raises the exception again, if it was no accident.
        (Exit::HostInterrupt, event.reinjection())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBUG: Exit = Exit::Exception(Exception { vector: Exception::DEBUG, error_code: None });

    fn interrupt() -> Event {
        Event::encode(Injection::Interrupt(0x31), true)
    }

    fn page_fault() -> Event {
        Event::encode(Injection::Exception(Exception::page_fault(7)), true)
    }

    fn of_type(vector: u32, kind: u32) -> Event {
        Event { info: vector | kind | VALID, error: 0 }
    }

    #[test]
    fn test_injections_have_the_manuals_format() {
        assert_eq!(interrupt(), Event { info: 0x8000_0031, error: 0 });
        assert_eq!(Event::encode(Injection::Nmi, true), Event { info: 0x8000_0202, error: 0 });
        let undefined = Event::encode(Injection::Exception(Exception::INVALID_OPCODE), true);
        assert_eq!(undefined, Event { info: 0x8000_0306, error: 0 });
        assert_eq!(page_fault(), Event { info: 0x8000_0b0e, error: 7 });
        assert_eq!(page_fault().to_amd(), 0x0000_0007_8000_0b0e);
        assert_eq!(Event::from_amd(0x0000_0007_8000_0b0e), page_fault());
    }

    #[test]
    fn test_exceptions_in_real_mode_have_no_error_code_and_all_else_is_the_same() {
        let page_fault = Event::encode(Injection::Exception(Exception::page_fault(7)), false);
        assert_eq!(page_fault, Event { info: 0x8000_030e, error: 0 });
        for injection in [Injection::Interrupt(0x31), Injection::Nmi, Injection::Exception(Exception::INVALID_OPCODE)] {
            assert_eq!(Event::encode(injection, false), Event::encode(injection, true), "{injection:?}");
        }
    }

    #[test]
    fn test_interrupted_deliveries_are_repeated_but_software_ones() {
        for event in [interrupt(), page_fault(), Event::encode(Injection::Nmi, true)] {
            assert_eq!(event.reinjection(), Some(event));
        }
        for event in [
            Event { info: 0x31, error: 0 },
            of_type(0x80, TYPE_SOFTWARE_INTERRUPT),
            of_type(BREAKPOINT, TYPE_EXCEPTION),
            of_type(OVERFLOW, TYPE_EXCEPTION),
            of_type(BREAKPOINT, TYPE_SOFTWARE_EXCEPTION),
            of_type(OVERFLOW, TYPE_SOFTWARE_EXCEPTION),
            of_type(u32::from(Exception::DEBUG), TYPE_PRIVILEGED_SOFTWARE_EXCEPTION),
        ] {
            assert_eq!(event.reinjection(), None, "{event:x?}");
        }
    }

    #[test]
    fn test_exceptions_are_told_from_interrupts() {
        for event in [page_fault(), of_type(3, TYPE_SOFTWARE_EXCEPTION), of_type(1, TYPE_PRIVILEGED_SOFTWARE_EXCEPTION)]
        {
            assert!(event.is_exception(), "{event:x?}");
        }
        let invalid = Event { info: page_fault().info & !VALID, error: 7 };
        for event in [
            interrupt(),
            Event::encode(Injection::Nmi, true),
            of_type(0x80, TYPE_SOFTWARE_INTERRUPT),
            Event::NONE,
            invalid,
        ] {
            assert!(!event.is_exception(), "{event:x?}");
        }
    }

    #[test]
    fn test_the_event_comes_again_after_an_exit_that_is_no_exception() {
        let mut deliveries = Deliveries::default();
        assert_eq!(deliveries.interrupted(interrupt(), Exit::HostInterrupt), (Exit::HostInterrupt, Some(interrupt())));
        assert_eq!(deliveries.interrupted(page_fault(), Exit::Cpuid), (Exit::Cpuid, Some(page_fault())));
        let software = of_type(0x80, TYPE_SOFTWARE_INTERRUPT);
        assert_eq!(deliveries.interrupted(software, Exit::HostInterrupt), (Exit::HostInterrupt, None));
    }

    #[test]
    fn test_an_exception_takes_the_place_of_an_exception_and_not_of_an_interrupt() {
        let mut deliveries = Deliveries::default();
        assert_eq!(deliveries.interrupted(page_fault(), DEBUG), (DEBUG, None));
        assert_eq!(deliveries.interrupted(interrupt(), DEBUG), (Exit::HostInterrupt, Some(interrupt())));
    }

    #[test]
    fn test_a_machine_check_is_never_taken_for_an_accident_of_a_delivery() {
        let check = Exit::Exception(Exception { vector: Exception::MACHINE_CHECK, error_code: None });
        for event in [interrupt(), page_fault()] {
            assert_eq!(Deliveries::default().interrupted(event, check), (check, None));
        }
    }

    #[test]
    fn test_attack_exceptions_in_their_own_delivery_without_end() {
        let event = Event::encode(Injection::Exception(Exception { vector: Exception::DEBUG, error_code: None }), true);
        let mut deliveries = Deliveries::default();
        for _ in 0..MAX_FAILED_DELIVERIES {
            assert_eq!(deliveries.interrupted(event, DEBUG), (DEBUG, None));
        }
        let killed = (Exit::Kill(KillReason::FaultLoop, u64::from(Exception::DEBUG)), None);
        assert_eq!(deliveries.interrupted(event, DEBUG), killed);
        deliveries.succeeded();
        assert_eq!(deliveries.interrupted(event, DEBUG), (DEBUG, None), "only a row of them counts");
    }
}
