//! Power: the reset register, the sleep registers of hardware-reduced ACPI; and the events that ACPI tells, the power button
//! among them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use crate::platform::BusDevice;
use crate::platform::InterruptController;

/// Port of the reset register, which [`crate::devices::pci::ConfigPorts`] answers.
pub const RESET_PORT: u64 = 0xcf9;
/// What ACPI's tables tell the guest to write there.
pub const RESET_VALUE: u8 = 0x06;
/// Port of the sleep control register; the sleep status register follows.
pub const SLEEP_PORT: u64 = 0x600;
/// Ports of [`SleepRegisters`].
pub const SLEEP_PORTS: u64 = 2;
/// The sleep type of the state S5, soft off, in ACPI's `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Port of the [`EventRegister`].
pub const EVENT_PORT: u64 = 0x604;
/// Ports of the [`EventRegister`].
pub const EVENT_PORTS: u64 = 1;
/// Bit of the [`EventRegister`] that tells of the power button.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Bit of the [`EventRegister`] that tells of devices that came or are to go.
pub const EVENT_HOT_PLUG: u8 = 1 << 1;

/// What the guest wants of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Start anew.
    Reset,
    /// Switch off.
    PowerOff,
}

/// Takes power events, on the vCPU's thread that caused them: it must only take note.
pub type PowerSink = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// Reset control: how hard the next reset is (Intel ICH9 data sheet, 13.7.5).
const RESET_SYSTEM: u8 = 1 << 1;
/// Reset control: its rising edge resets.
const RESET_CPU: u8 = 1 << 2;
/// Reset control: power goes off and on again.
const RESET_FULL: u8 = 1 << 3;

/// The reset control register at port 0xcf9 (Intel ICH9 data sheet, 13.7.5; the FADT names it too).
pub struct ResetRegister {
    value: u8,
    sink: PowerSink,
}

impl ResetRegister {
    /// A register that tells `sink`.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self { value: 0, sink }
    }

    /// What it holds.
    #[must_use]
    pub fn read(&self) -> u8 {
        self.value
    }

    /// The guest writes it.
    pub fn write(&mut self, value: u8) {
        if value & RESET_CPU != 0 && self.value & RESET_CPU == 0 {
            (self.sink)(PowerEvent::Reset);
        }
        self.value = value & (RESET_SYSTEM | RESET_CPU | RESET_FULL);
    }
}

impl fmt::Debug for ResetRegister {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ResetRegister").field("value", &self.value).finish_non_exhaustive()
    }
}

/// Sleep control: enter the state now (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep control: the state's type.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
/// Offset of the sleep status register.
const SLEEP_STATUS: u64 = 1;

/// The sleep control and sleep status registers (ACPI 6.5, 4.8.3.7). The only state they know is soft off.
pub struct SleepRegisters {
    sink: PowerSink,
}

impl SleepRegisters {
    /// Registers that tell `sink`.
    #[must_use]
    pub fn new(sink: PowerSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for SleepRegisters {
    /// Both read 0: the control register is write-only, and the machine never woke from a state.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let &[value, ..] = data
            && offset < SLEEP_STATUS
            && value & SLEEP_ENABLE != 0
            && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5
        {
            (self.sink)(PowerEvent::PowerOff);
        }
    }
}

impl fmt::Debug for SleepRegisters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SleepRegisters").finish_non_exhaustive()
    }
}

struct Events {
    pending: AtomicU8,
    /// The guest's operating system uses ACPI.
    is_heard: AtomicBool,
    controller: Arc<dyn InterruptController>,
    gsi: u32,
}

/// What the generic event device (ACPI 6.5, 5.6.9) has to tell: a byte of pending events. Its line is asserted while
/// there is one; reading takes them.
pub struct EventRegister {
    events: Arc<Events>,
}

impl EventRegister {
    /// A register whose events assert `gsi`, level-triggered.
    #[must_use]
    pub fn new(controller: Arc<dyn InterruptController>, gsi: u32) -> Self {
        Self {
            events: Arc::new(Events { pending: AtomicU8::new(0), is_heard: AtomicBool::new(false), controller, gsi }),
        }
    }

    /// The power button.
    #[must_use]
    pub fn power_button(&self) -> EventSource {
        EventSource { events: Arc::clone(&self.events), bit: EVENT_POWER_BUTTON }
    }

    /// What tells of devices that came or are to go.
    #[must_use]
    pub fn hot_plug(&self) -> EventSource {
        EventSource { events: Arc::clone(&self.events), bit: EVENT_HOT_PLUG }
    }
}

impl BusDevice for EventRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        // The line first: a button pressed in between asserts it again.
        self.events.controller.line(self.events.gsi, false);
        *byte = self.events.pending.swap(0, Ordering::SeqCst);
    }

    /// The device's `_INI` writes, which an operating system calls that will take its events.
    fn write(&mut self, _offset: u64, _data: &[u8]) {
        self.events.is_heard.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for EventRegister {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EventRegister").field("gsi", &self.events.gsi).finish_non_exhaustive()
    }
}

/// Tells the guest's operating system of one kind of event.
#[derive(Clone)]
pub struct EventSource {
    events: Arc<Events>,
    bit: u8,
}

impl EventSource {
    /// There is such an event.
    pub fn signal(&self) {
        self.events.pending.fetch_or(self.bit, Ordering::SeqCst);
        self.events.controller.line(self.events.gsi, true);
    }

    /// Whether the guest's operating system is up to its use of ACPI, and so will hear of events.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.events.is_heard.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for EventSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EventSource").field("bit", &self.bit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::devices::testing::Interrupts;
    use crate::platform::lock;

    fn sink() -> (Arc<Mutex<Vec<PowerEvent>>>, PowerSink) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        (events, Arc::new(move |event| lock(&sink).push(event)))
    }

    #[test]
    fn test_reset_is_on_the_rising_edge() {
        let (events, sink) = sink();
        let mut register = ResetRegister::new(sink);
        // As Linux does it: first the kind, then the edge.
        register.write(0x02);
        assert!(lock(&events).is_empty());
        register.write(0x06);
        assert_eq!(*lock(&events), [PowerEvent::Reset]);
        register.write(0xff);
        assert_eq!(lock(&events).len(), 1);
        assert_eq!(register.read(), 0x0e);
    }

    #[test]
    fn test_only_s5_switches_off() {
        let (events, sink) = sink();
        let mut registers = SleepRegisters::new(sink);
        for (offset, value) in [(0, 0), (0, SLEEP_TYPE_S5 << 2), (0, SLEEP_ENABLE), (0, 0xff), (1, 0x34)] {
            registers.write(offset, &[value]);
        }
        assert!(lock(&events).is_empty());
        registers.write(0, &[SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE]);
        assert_eq!(*lock(&events), [PowerEvent::PowerOff]);
        let mut data = [0xff; 2];
        registers.read(0, &mut data);
        assert_eq!(data, [0; 2]);
    }

    #[test]
    fn test_a_guest_hears_once_it_has_said_so() {
        let mut register = EventRegister::new(Arc::new(Interrupts::default()), 9);
        let button = register.power_button();
        register.read(0, &mut [0]);
        assert!(!button.is_heard());
        register.write(0, &[1]);
        assert!(button.is_heard());
    }

    #[test]
    fn test_an_event_asserts_its_line_until_it_is_read() {
        let interrupts = Arc::new(Interrupts::default());
        let mut register = EventRegister::new(interrupts.clone(), 9);
        register.power_button().signal();
        assert_eq!(interrupts.take_lines(), [(9, true)]);
        let mut data = [0xff];
        register.read(0, &mut data);
        assert_eq!((data, interrupts.take_lines()), ([EVENT_POWER_BUTTON], vec![(9, false)]));
        register.hot_plug().signal();
        register.power_button().signal();
        register.read(0, &mut data);
        assert_eq!(data, [EVENT_POWER_BUTTON | EVENT_HOT_PLUG]);
        register.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
