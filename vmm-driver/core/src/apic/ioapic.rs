//! The I/O APIC (Intel 82093AA data sheet, with the EOI register of version 0x20): 24 inputs, for devices that have no
//! message-signalled interrupts.
//!
//! A level of an input means asserted; polarity is between device and board, and ignored here.

use covisor_abi::MAX_GSI;

use super::message::Delivery;
use super::message::Destination;
use super::message::Message;

/// Number of inputs.
const INPUTS: usize = MAX_GSI as usize;

/// Offsets in the page (82093AA, 3.1).
mod offset {
    /// Which register the window shows.
    pub(super) const SELECT: u64 = 0x00;
    /// The window.
    pub(super) const WINDOW: u64 = 0x10;
    /// End of interrupt, by vector.
    pub(super) const EOI: u64 = 0x40;
}

/// Registers behind the window (82093AA, 3.2).
mod register {
    /// Id.
    pub(super) const ID: u8 = 0x00;
    /// Version and number of inputs.
    pub(super) const VERSION: u8 = 0x01;
    /// Arbitration id, a copy of the id.
    pub(super) const ARBITRATION: u8 = 0x02;
    /// First of the redirection table, two to an entry.
    pub(super) const TABLE: u8 = 0x10;
}

/// Version 0x20, last input.
const VERSION: u32 = (MAX_GSI - 1) << 16 | 0x20;
/// The id's bits.
const ID_MASK: u32 = 0x0f00_0000;

/// An entry of the redirection table (82093AA, 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// What software may write: all fields but delivery status and remote IRR.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;
    const RESET: Self = Self(Self::MASKED);

    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The message that it sends; `None` for a delivery mode or vector that guests do not have.
    fn message(self) -> Option<Message> {
        let [vector, mode, .., destination] = self.0.to_le_bytes();
        let delivery = Delivery::from_code(mode).filter(|delivery| delivery.takes(vector))?;
        let destination = Destination::from_byte(destination, self.has(Self::LOGICAL));
        Some(Message { destination, delivery, vector, level: self.has(Self::LEVEL) })
    }
}

/// What about an input makes an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// That it becomes asserted.
    Edge,
    /// That it is asserted, until its end of interrupt, and then again.
    Level,
}

/// The I/O APIC. Its calls return the message that they send, if any, for the caller to deliver.
#[derive(Clone, Debug)]
pub struct IoApic {
    entries: [Entry; INPUTS],
    /// Bit n: input n is asserted.
    lines: u32,
    id: u32,
    select: u8,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// As after reset: all inputs masked.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [Entry::RESET; INPUTS], lines: 0, id: 0, select: 0 }
    }

    /// Programs an input, for a guest that does not do it: it sends vCPU 0 this interrupt. A level counts also where it came
    /// before; an edge may have, so the interrupt is sent in any case. Inputs that do not exist are ignored.
    pub fn connect(&mut self, input: u32, vector: u8, trigger: Trigger) -> Option<Message> {
        let number = usize::try_from(input).ok().filter(|number| *number < INPUTS)?;
        let mode = match trigger {
            Trigger::Edge => 0,
            Trigger::Level => Entry::LEVEL,
        };
        self.entries[number] = Entry(u64::from(vector) | mode);
        match trigger {
            Trigger::Edge => self.entries[number].message(),
            Trigger::Level => self.serve_level(number),
        }
    }

    /// Sets the level of an input; numbers that do not exist are ignored.
    pub fn set_line(&mut self, input: u32, asserted: bool) -> Option<Message> {
        let number = usize::try_from(input).ok().filter(|number| *number < INPUTS)?;
        let was = self.lines & 1 << number != 0;
        if asserted {
            self.lines |= 1 << number;
        } else {
            self.lines &= !(1 << number);
        }
        let entry = self.entries[number];
        match (entry.has(Entry::LEVEL), asserted) {
            (true, _) => self.serve_level(number),
            // An edge that meets a mask is lost, as in hardware.
            (false, true) if !was && !entry.has(Entry::MASKED) => entry.message(),
            (false, _) => None,
        }
    }

    /// Sends what a level-triggered input has to send: it is asserted, not masked, and not in service.
    fn serve_level(&mut self, number: usize) -> Option<Message> {
        let entry = &mut self.entries[number];
        let asserted = self.lines & 1 << number != 0;
        if !asserted || !entry.has(Entry::LEVEL) || entry.has(Entry::MASKED | Entry::REMOTE_IRR) {
            return None;
        }
        let message = entry.message()?;
        if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) {
            entry.0 |= Entry::REMOTE_IRR;
        }
        Some(message)
    }

    /// A local APIC's EOI of a level-triggered interrupt. Where the line is still asserted, the interrupt is sent again.
    ///
    /// Inputs that share a vector share its interrupt: the message that is sent serves all of them with the same
    /// destination; one with another destination waits for the next EOI of the vector.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Option<Message> {
        let shares = |entry: Entry| entry.vector() == vector && entry.has(Entry::LEVEL);
        for entry in self.entries.iter_mut().filter(|entry| shares(**entry)) {
            entry.0 &= !Entry::REMOTE_IRR;
        }
        let mut sent = None;
        for number in 0..INPUTS {
            let entry = self.entries[number];
            if shares(entry) && (sent.is_none() || sent == entry.message()) {
                sent = self.serve_level(number).or(sent);
            }
        }
        sent
    }

    /// Reads `size` bytes at `offset` in the page; 0 for what is not a register.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let value = match offset {
            offset::SELECT => u32::from(self.select),
            offset::WINDOW => self.read_register(),
            _ => 0,
        };
        u64::from(value) & u64::MAX >> (64 - u32::from(size.clamp(1, 8)) * 8)
    }

    /// Writes to the page: 32 bits, or the lower half of 64; the index also by a byte.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Option<Message> {
        let [byte, ..] = value.to_le_bytes();
        #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
        match (offset, size) {
            (offset::SELECT, _) => self.select = byte,
            (offset::WINDOW, 4..) => return self.write_register(value as u32),
            (offset::EOI, 4..) => return self.end_of_interrupt(byte),
            _ => {}
        }
        None
    }

    /// The entry that the index means, and whether its upper half.
    fn selected(&self) -> Option<(usize, bool)> {
        let half = self.select.checked_sub(register::TABLE)?;
        let number = usize::from(half >> 1);
        (number < INPUTS).then_some((number, half & 1 != 0))
    }

    fn read_register(&self) -> u32 {
        match (self.select, self.selected()) {
            (register::ID | register::ARBITRATION, _) => self.id,
            (register::VERSION, _) => VERSION,
            (_, Some((number, upper))) => {
                let shift = if upper { 32 } else { 0 };
                let [a, b, c, d, ..] = (self.entries[number].0 >> shift).to_le_bytes();
                u32::from_le_bytes([a, b, c, d])
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32) -> Option<Message> {
        if self.select == register::ID {
            self.id = value & ID_MASK;
        }
        let (number, upper) = self.selected()?;
        let entry = &mut self.entries[number];
        let (kept, value) = if upper {
            (u64::from(u32::MAX), u64::from(value) << 32)
        } else {
            (!u64::from(u32::MAX), u64::from(value))
        };
        let read_only = entry.0 & Entry::REMOTE_IRR;
        entry.0 = (entry.0 & kept | value) & Entry::WRITABLE | read_only;
        if !entry.has(Entry::LEVEL) {
            // Linux relies on it: switched to edge and back, an interrupt is no longer in service.
            entry.0 &= !Entry::REMOTE_IRR;
        }
        self.serve_level(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    const REMOTE_IRR: u32 = 1 << 14;

    fn set(io_apic: &mut IoApic, register: u8, value: u32) -> Option<Message> {
        assert_eq!(io_apic.write(offset::SELECT, 4, register.into()), None);
        io_apic.write(offset::WINDOW, 4, value.into())
    }

    fn get(io_apic: &mut IoApic, register: u8) -> u32 {
        assert_eq!(io_apic.write(offset::SELECT, 1, register.into()), None);
        io_apic.read(offset::WINDOW, 4).try_into().unwrap()
    }

    fn entry(input: u8) -> u8 {
        register::TABLE + 2 * input
    }

    fn message(destination: u32, vector: u8, level: bool) -> Option<Message> {
        Some(Message { destination: Destination::Physical(destination), delivery: Delivery::Fixed, vector, level })
    }

    #[test]
    fn registers() {
        let mut io_apic = IoApic::new();
        assert_eq!(get(&mut io_apic, register::VERSION), 0x0017_0020);
        assert_eq!(set(&mut io_apic, register::ID, u32::MAX), None);
        assert_eq!(get(&mut io_apic, register::ID), 0x0f00_0000);
        assert_eq!(get(&mut io_apic, entry(23)), MASKED);
        assert_eq!(set(&mut io_apic, entry(23), u32::MAX), None);
        assert_eq!(set(&mut io_apic, entry(23) + 1, u32::MAX), None);
        assert_eq!(get(&mut io_apic, entry(23)), 0x1_afff);
        assert_eq!(get(&mut io_apic, entry(23) + 1), 0xff00_0000);
        assert_eq!(get(&mut io_apic, entry(24)), 0);
        assert_eq!(get(&mut io_apic, 0xff), 0);
        assert_eq!(io_apic.read(offset::SELECT, 4), 0xff);
        assert_eq!(io_apic.read(0x20, 4), 0);
    }

    #[test]
    fn edges() {
        let mut io_apic = IoApic::new();
        assert_eq!(io_apic.set_line(4, true), None, "masked");
        assert_eq!(set(&mut io_apic, entry(4) + 1, 2 << 24), None);
        assert_eq!(set(&mut io_apic, entry(4), 0x31), None, "the edge was before");
        assert_eq!(io_apic.set_line(4, true), None, "no edge");
        assert_eq!(io_apic.set_line(4, false), None);
        assert_eq!(io_apic.set_line(4, true), message(2, 0x31, false));
        assert_eq!(io_apic.end_of_interrupt(0x31), None);
        assert_eq!(get(&mut io_apic, entry(4)), 0x31);
        assert_eq!(io_apic.set_line(24, true), None);
        assert_eq!(io_apic.set_line(u32::MAX, true), None);
    }

    #[test]
    fn levels() {
        let mut io_apic = IoApic::new();
        assert_eq!(set(&mut io_apic, entry(10), LEVEL | MASKED | 0x51), None);
        assert_eq!(io_apic.set_line(10, true), None, "masked");
        assert_eq!(set(&mut io_apic, entry(10), LEVEL | 0x51), message(0, 0x51, true), "unmasked while asserted");
        assert_eq!(get(&mut io_apic, entry(10)), LEVEL | REMOTE_IRR | 0x51);
        assert_eq!(io_apic.set_line(10, false), None);
        assert_eq!(io_apic.set_line(10, true), None, "in service");
        assert_eq!(io_apic.end_of_interrupt(0x50), None, "another vector");
        assert_eq!(io_apic.end_of_interrupt(0x51), message(0, 0x51, true), "still asserted");
        assert_eq!(io_apic.set_line(10, false), None);
        assert_eq!(io_apic.write(offset::EOI, 4, 0x51), None);
        assert_eq!(get(&mut io_apic, entry(10)), LEVEL | 0x51);
        assert_eq!(io_apic.set_line(10, true), message(0, 0x51, true));
        assert_eq!(set(&mut io_apic, entry(10), MASKED | 0x51), None);
        assert_eq!(
            set(&mut io_apic, entry(10), LEVEL | 0x51),
            message(0, 0x51, true),
            "edge and back ends the service"
        );
    }

    #[test]
    fn shared_vectors() {
        let mut io_apic = IoApic::new();
        for input in [1, 2, 3] {
            set(&mut io_apic, entry(input), LEVEL | 0x60);
        }
        set(&mut io_apic, entry(3) + 1, 1 << 24);
        assert_eq!(io_apic.set_line(1, true), message(0, 0x60, true));
        assert_eq!(io_apic.set_line(2, true), message(0, 0x60, true));
        assert_eq!(io_apic.set_line(3, true), message(1, 0x60, true));
        assert_eq!(io_apic.end_of_interrupt(0x60), message(0, 0x60, true));
        assert_eq!(get(&mut io_apic, entry(2)), LEVEL | REMOTE_IRR | 0x60);
        assert_eq!(get(&mut io_apic, entry(3)), LEVEL | 0x60);
        io_apic.set_line(1, false);
        io_apic.set_line(2, false);
        assert_eq!(io_apic.end_of_interrupt(0x60), message(1, 0x60, true));
    }

    proptest! {
        #[test]
        fn hostile_guests_get_nowhere(
            steps in proptest::collection::vec((0..4_u8, 0..0x60_u64, 0..9_u8, any::<u64>()), 0..200),
        ) {
            let mut io_apic = IoApic::new();
            for (step, at, size, value) in steps {
                let window = if at & 1 == 0 { offset::SELECT } else { offset::WINDOW };
                let sent = match step {
                    0 => io_apic.write(at, size, value),
                    1 => io_apic.write(window, 4, value & 0x1_afff),
                    2 => io_apic.set_line(u32::try_from(at).unwrap(), value & 1 != 0),
                    _ => io_apic.end_of_interrupt(value.to_le_bytes()[0]),
                };
                prop_assert!(sent.is_none_or(|message| message.delivery.takes(message.vector)));
                prop_assert!(io_apic.read(at, size) <= u64::from(u32::MAX));
            }
        }
    }
}
