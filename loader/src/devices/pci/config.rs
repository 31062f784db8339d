//! A function's configuration space (PCI 3.0, 6.1).

use bitflags::bitflags;

/// Bytes of configuration space.
const SIZE: usize = 256;

/// Base address registers of a type 0 header.
pub(super) const BARS: usize = 6;

/// Registers of the type 0 header, by offset.
pub(crate) mod register {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const CLASS: usize = 0x09;
    pub(crate) const CACHE_LINE_SIZE: usize = 0x0c;
    pub(crate) const LATENCY_TIMER: usize = 0x0d;
    pub(crate) const BAR0: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const INTERRUPT_PIN: usize = 0x3d;
}

/// Where the header ends and capabilities begin.
const HEADER_SIZE: u8 = 0x40;

/// Status: an interrupt is asserted, were it not for `COMMAND` (PCI 3.0, 6.2.3).
const STATUS_INTERRUPT: u8 = 1 << 3;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Base address register: I/O space (PCI 3.0, 6.2.5.1).
const BAR_IS_PORTS: u32 = 1;
const BAR_PORT_FLAGS: u32 = 0b11;
const BAR_MEMORY_FLAGS: u32 = 0b1111;

bitflags! {
    /// The command register (PCI 3.0, 6.2.2); bits of things that no function here does read 0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Ranges in I/O space answer.
        const PORTS = 1 << 0;
        /// Ranges in memory space answer.
        const MEMORY = 1 << 1;
        /// The function may write memory: DMA and message-signalled interrupts.
        const BUS_MASTER = 1 << 2;
        /// The function must not assert its interrupt pin.
        const NO_INTX = 1 << 10;
    }
}

/// Which address space a base address register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Ports,
    /// Memory below 4 GiB, not prefetchable.
    Memory,
}

/// A base address register.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Its address space.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u32,
}

/// What a function is, in its header.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface (PCI 3.0, appendix D).
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The registers of a function, and which bits of them the guest can write.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    registers: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<Bar>; BARS],
    /// Where the next capability goes.
    capabilities_end: u8,
    /// Where the link to the next capability goes.
    last_link: usize,
}

impl ConfigSpace {
    /// Configuration space with a header and nothing else.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            registers: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BARS],
            capabilities_end: HEADER_SIZE,
            last_link: register::CAPABILITIES,
        };
        let [base, sub, interface] = identity.class;
        space.set(register::VENDOR, &identity.vendor.to_le_bytes());
        space.set(register::DEVICE, &identity.device.to_le_bytes());
        space.set(register::REVISION, &[identity.revision]);
        space.set(register::CLASS, &[interface, sub, base]);
        space.set(register::SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.set(register::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(register::COMMAND, &Command::all().bits().to_le_bytes());
        // Plain storage for the operating system's use (PCI 3.0, 6.2.4).
        space.allow(register::CACHE_LINE_SIZE, &[0xff]);
        space.allow(register::LATENCY_TIMER, &[0xff]);
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives the function base address register `index`, of `size` bytes, a power of two of at least 16.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16);
        self.bars[index] = Some(Bar { kind, size });
        let at = register::BAR0 + 4 * index;
        let flags = match kind {
            BarKind::Ports => BAR_IS_PORTS,
            BarKind::Memory => 0,
        };
        self.set(at, &flags.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows its id and link, `writable` are the bits of `body` that the guest can write.
    /// Gives its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.capabilities_end;
        let start = usize::from(at);
        self.set(start, &[id, 0]);
        self.set(start + 2, body);
        self.allow(start + 2, writable);
        self.set(self.last_link, &[at]);
        self.registers[register::STATUS] |= STATUS_CAPABILITIES;
        self.last_link = start + 1;
        // Capabilities are aligned to four bytes (PCI 3.0, 6.7).
        let end = (start + 2 + body.len()).next_multiple_of(4);
        self.capabilities_end = u8::try_from(end).expect("the capabilities of a function fit its configuration space");
        at
    }

    /// Says which interrupt pin the function has (1 is INTA) and which line the firmware found it on.
    pub fn set_interrupt(&mut self, pin: u8, line: u8) {
        self.set(register::INTERRUPT_PIN, &[pin]);
        self.set(register::INTERRUPT_LINE, &[line]);
    }

    /// Sets the status bit that tells of an asserted pin.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let status = &mut self.registers[register::STATUS];
        *status = *status & !STATUS_INTERRUPT | if asserted { STATUS_INTERRUPT } else { 0 };
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> Command {
        let bits = [self.registers[register::COMMAND], self.registers[register::COMMAND + 1]];
        Command::from_bits_truncate(u16::from_le_bytes(bits))
    }

    /// Base address register `index`.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Puts base address register `index` at `address`, a multiple of its size.
    pub fn set_bar_address(&mut self, index: usize, address: u32) {
        let at = register::BAR0 + 4 * index;
        let flags = self.dword(at) & self.bar(index).map_or(0, |bar| flags_of(bar.kind));
        self.set(at, &(address | flags).to_le_bytes());
    }

    /// Where base address register `index` answers now: nowhere without its bit in the command register.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let enabled = match bar.kind {
            BarKind::Ports => Command::PORTS,
            BarKind::Memory => Command::MEMORY,
        };
        self.bar_base(index).filter(|_| self.command().contains(enabled))
    }

    /// Where base address register `index` is to answer, whether it does or not.
    #[must_use]
    pub fn bar_base(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        Some(u64::from(self.dword(register::BAR0 + 4 * index) & !flags_of(bar.kind)))
    }

    /// The 32-bit register at `offset`.
    #[must_use]
    pub(crate) fn dword(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.registers[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }

    /// Sets registers whatever the guest may do with them.
    pub(crate) fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.registers[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }

    /// Reads registers; past the end there are none.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(&self.registers[usize::from(offset)..]) {
            *byte = *register;
        }
    }

    /// Writes what of the registers can be written.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let start = usize::from(offset);
        let registers = self.registers[start..].iter_mut().zip(&self.writable[start..]);
        for (&byte, (register, &mask)) in data.iter().zip(registers) {
            *register = *register & !mask | byte & mask;
        }
    }
}

const fn flags_of(kind: BarKind) -> u32 {
    match kind {
        BarKind::Ports => BAR_PORT_FLAGS,
        BarKind::Memory => BAR_MEMORY_FLAGS,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [0x01, 0x80, 0x00],
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        });
        space.add_bar(0, BarKind::Ports, 0x100);
        space.add_bar(1, BarKind::Memory, 0x1000);
        space.add_capability(0x09, &[1, 2, 3], &[0, 0xff, 0]);
        space.add_capability(0x11, &[0; 10], &[]);
        space
    }

    fn read(space: &ConfigSpace, offset: u8) -> u32 {
        let mut bytes = [0xff; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn test_the_header_says_what_the_function_is() {
        let space = space();
        assert_eq!(read(&space, 0), 0x1042_1af4);
        assert_eq!(read(&space, 8), 0x0180_0001);
        assert_eq!(read(&space, 0x2c), 0x0040_1af4);
    }

    #[test]
    fn test_capabilities_are_linked() {
        let space = space();
        assert_eq!(read(&space, 0x34) & 0xff, 0x40);
        assert_eq!(read(&space, 0x40), 0x0201_4809);
        assert_eq!(read(&space, 0x48) & 0xffff, 0x0011);
        assert_eq!(read(&space, 0x04) >> 16, 0x10);
    }

    #[test]
    fn test_sizing_a_bar_gives_its_size_and_keeps_its_flags() {
        let mut space = space();
        space.set_bar_address(0, 0xc000);
        assert_eq!(read(&space, 0x10), 0xc001);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(read(&space, 0x10), 0xffff_ff01);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read(&space, 0x14), 0xffff_f000);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(read(&space, 0x18), 0);
    }

    #[test]
    fn test_a_bar_answers_only_with_its_command_bit() {
        let mut space = space();
        space.set_bar_address(0, 0xc000);
        space.set_bar_address(1, 0xd000_0000);
        assert_eq!(space.bar_address(0), None);
        space.write(0x04, &[1]);
        assert_eq!((space.bar_address(0), space.bar_address(1)), (Some(0xc000), None));
        space.write(0x04, &Command::MEMORY.bits().to_le_bytes());
        assert_eq!((space.bar_address(0), space.bar_address(1)), (None, Some(0xd000_0000)));
        assert_eq!(space.bar_address(2), None);
    }

    #[test]
    fn test_only_writable_bits_change() {
        let mut space = space();
        space.write(0, &[0; 4]);
        assert_eq!(read(&space, 0), 0x1042_1af4);
        space.write(0x42, &[0xee, 0xee]);
        assert_eq!(read(&space, 0x40), 0xee01_4809);
        space.write(0x04, &[0xff; 4]);
        assert_eq!(read(&space, 0x04), 0x0010_0407);
    }

    proptest! {
        /// Attack F2 7: accesses at odd widths and offsets, over the end too.
        #[test]
        fn test_odd_accesses_are_the_bytes_of_even_ones(
            accesses in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..9)), 0..32),
        ) {
            let mut whole = space();
            let mut bytewise = space();
            for (offset, data) in accesses {
                whole.write(offset, &data);
                for (index, byte) in data.iter().enumerate() {
                    if let Ok(offset) = u8::try_from(usize::from(offset) + index) {
                        bytewise.write(offset, &[*byte]);
                    }
                }
                let mut read = vec![0xff; data.len()];
                whole.read(offset, &mut read);
                let mut expected = vec![0xff; data.len()];
                for (index, byte) in expected.iter_mut().enumerate() {
                    if let Ok(offset) = u8::try_from(usize::from(offset) + index) {
                        bytewise.read(offset, std::slice::from_mut(byte));
                    }
                }
                prop_assert_eq!(read, expected);
            }
        }
    }
}
