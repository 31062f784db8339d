//! Events: what is injected at entry, and what an exit interrupted (APM vol. 2, 15.20 and 15.7.2; one format).

use covisor_core::exit::Exception;
use covisor_core::exit::Injection;

/// Bits 8 to 10: external interrupt.
const TYPE_INTERRUPT: u64 = 0 << 8;
/// NMI.
const TYPE_NMI: u64 = 2 << 8;
/// Exception.
const TYPE_EXCEPTION: u64 = 3 << 8;
/// Software interrupt.
const TYPE_SOFTWARE: u64 = 4 << 8;
/// All bits of the type.
const TYPE_MASK: u64 = 7 << 8;
/// The error code is valid.
const ERROR_VALID: u64 = 1 << 11;
/// There is an event.
const VALID: u64 = 1 << 31;
/// #BP, raised by INT3.
const BREAKPOINT: u64 = 3;
/// #OF, raised by INTO.
const OVERFLOW: u64 = 4;

/// The event field for an injection.
pub(crate) fn encode(injection: Injection) -> u64 {
    match injection {
        Injection::Interrupt(vector) => u64::from(vector) | TYPE_INTERRUPT | VALID,
        Injection::Nmi => 2 | TYPE_NMI | VALID,
        Injection::Exception(Exception { vector, error_code }) => {
            let error = error_code.map_or(0, |code| u64::from(code) << 32 | ERROR_VALID);
            u64::from(vector) | TYPE_EXCEPTION | VALID | error
        }
    }
}

/// Whether an event field holds an event.
#[inline]
pub(crate) const fn is_valid(event: u64) -> bool {
    event & VALID != 0
}

/// What to inject again after an exit that interrupted the delivery of `event`; 0 for nothing. INT n, INT3 and INTO are
/// executed again instead: RIP still points to them.
pub(crate) const fn reinjection(event: u64) -> u64 {
    let vector = event & 0xff;
    match event & TYPE_MASK {
        _ if !is_valid(event) => 0,
        TYPE_SOFTWARE => 0,
        TYPE_EXCEPTION if vector == BREAKPOINT || vector == OVERFLOW => 0,
        _ => event,
    }
}

/// Whether `event` is an exception: then one that its delivery raised takes its place.
pub(crate) const fn is_exception(event: u64) -> bool {
    is_valid(event) && event & TYPE_MASK == TYPE_EXCEPTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_injections_have_the_manuals_format() {
        assert_eq!(encode(Injection::Interrupt(0x31)), 0x8000_0031);
        assert_eq!(encode(Injection::Nmi), 0x8000_0202);
        assert_eq!(encode(Injection::Exception(Exception::INVALID_OPCODE)), 0x8000_0306);
        assert_eq!(encode(Injection::Exception(Exception::page_fault(7))), 0x0000_0007_8000_0b0e);
    }

    #[test]
    fn test_interrupted_deliveries_are_repeated_but_software_ones() {
        let interrupt = encode(Injection::Interrupt(0x31));
        assert_eq!(reinjection(interrupt), interrupt);
        assert_eq!(reinjection(0x31), 0, "not valid");
        assert_eq!(reinjection(0x80 | TYPE_SOFTWARE | VALID), 0);
        assert_eq!(reinjection(BREAKPOINT | TYPE_EXCEPTION | VALID), 0);
        let fault = encode(Injection::Exception(Exception::page_fault(2)));
        assert_eq!(reinjection(fault), fault);
    }
}
