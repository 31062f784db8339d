//! Interrupt pins (PCI 3.0, 2.2.6): every function has INTA, wired to one of eight I/O APIC inputs by its slot.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;

use crate::platform::InterruptController;
use crate::platform::lock;

/// The first I/O APIC input of pins.
const FIRST_GSI: u32 = 16;
/// I/O APIC inputs of pins.
const LINES: u8 = 8;

/// The global system interrupt of a slot's pin; ACPI's `_PRT` says the same.
#[must_use]
pub const fn gsi_of_slot(slot: u8) -> u32 {
    FIRST_GSI + (slot % LINES) as u32
}

/// The lines that pins share.
pub struct IntxLines {
    controller: Arc<dyn InterruptController>,
    /// For each line, the slots that assert it: it is high while there is one.
    asserted: Mutex<[u32; LINES as usize]>,
}

impl IntxLines {
    /// Eight lines into `controller`, all low.
    #[must_use]
    pub fn new(controller: Arc<dyn InterruptController>) -> Self {
        Self { controller, asserted: Mutex::new([0; LINES as usize]) }
    }

    /// The pin of the function at `slot`.
    #[must_use]
    pub fn pin(self: &Arc<Self>, slot: u8) -> IntxPin {
        IntxPin { lines: Arc::clone(self), slot }
    }
}

impl fmt::Debug for IntxLines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IntxLines").field("asserted", &self.asserted).finish_non_exhaustive()
    }
}

/// The interrupt pin of one function.
#[derive(Clone, Debug)]
pub struct IntxPin {
    lines: Arc<IntxLines>,
    slot: u8,
}

impl IntxPin {
    /// Asserts the pin, or not.
    pub fn set(&self, level: bool) {
        let mut asserted = lock(&self.lines.asserted);
        let line = &mut asserted[usize::from(self.slot % LINES)];
        let before = *line != 0;
        let bit = 1 << (self.slot % super::SLOTS);
        *line = *line & !bit | if level { bit } else { 0 };
        let after = *line != 0;
        // Under the lock, so that the controller sees the levels in their order.
        if before != after {
            self.lines.controller.line(gsi_of_slot(self.slot), after);
        }
    }

    /// The controller behind the line, for interrupts that do not take it.
    #[must_use]
    pub fn controller(&self) -> &Arc<dyn InterruptController> {
        &self.lines.controller
    }

    /// Its line.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        gsi_of_slot(self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::Interrupts;

    #[test]
    fn test_a_shared_line_is_high_while_any_pin_is() {
        let interrupts = Arc::new(Interrupts::default());
        let lines = Arc::new(IntxLines::new(interrupts.clone()));
        let (first, second) = (lines.pin(3), lines.pin(11));
        first.set(true);
        second.set(true);
        first.set(true);
        first.set(false);
        second.set(false);
        second.set(false);
        assert_eq!(interrupts.take_lines(), [(19, true), (19, false)]);
    }
}
