//! MSI-X (PCI 3.0, 6.8.2): a table of messages in a memory range, with a mask and a pending bit for each.

use std::fmt;
use std::sync::Arc;

use super::ConfigSpace;
use crate::platform::BusDevice;
use crate::platform::InterruptController;

/// Capability id of MSI-X (PCI 3.0, appendix H).
const CAPABILITY: u8 = 0x11;
/// Message control: MSI-X is in use.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_MASK: u16 = 1 << 14;
/// Offset of message control in the capability.
const CONTROL_OFFSET: u8 = 2;

/// Bytes of the range that holds the table and the pending bits.
pub(crate) const MSIX_RANGE_SIZE: u32 = 0x1000;
/// Where the pending bits are in it; the table is at 0.
const PENDING_OFFSET: u32 = 0x800;
/// Bytes of a table entry: address, address high, data, vector control.
const ENTRY_SIZE: usize = 16;
/// Most vectors that fit.
const MAX_VECTORS: u16 = 128;
/// Vector control: this vector is masked.
const VECTOR_MASKED: u32 = 1;

/// Gives a function the MSI-X capability, with its table in base address register `bar`. Gives the capability's offset.
pub fn add_msix_capability(config: &mut ConfigSpace, bar: u8, vectors: u16) -> u8 {
    let mut body = [0; 10];
    body[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
    body[6..10].copy_from_slice(&(PENDING_OFFSET | u32::from(bar)).to_le_bytes());
    config.add_capability(CAPABILITY, &body, &(CONTROL_ENABLE | CONTROL_MASK).to_le_bytes())
}

/// Message control of the capability at `capability`: (in use, all masked).
pub(crate) fn msix_control(config: &ConfigSpace, capability: u8) -> (bool, bool) {
    let mut bytes = [0; 2];
    config.read(capability + CONTROL_OFFSET, &mut bytes);
    let control = u16::from_le_bytes(bytes);
    (control & CONTROL_ENABLE != 0, control & CONTROL_MASK != 0)
}

#[derive(Clone, Copy)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// The table, the pending bits and what the capability says about them.
pub struct MsixTable {
    controller: Arc<dyn InterruptController>,
    vectors: Vec<Vector>,
    enabled: bool,
    masked: bool,
    bus_master: bool,
}

impl MsixTable {
    /// A table of `vectors` entries, at most 128, all masked (PCI 3.0, 6.8.2.9).
    #[must_use]
    pub fn new(vectors: u16, controller: Arc<dyn InterruptController>) -> Self {
        debug_assert!(vectors <= MAX_VECTORS);
        let vector = Vector { address: 0, data: 0, masked: true, pending: false };
        Self {
            controller,
            vectors: vec![vector; usize::from(vectors.min(MAX_VECTORS))],
            enabled: false,
            masked: false,
            bus_master: false,
        }
    }

    /// Vectors in the table.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the guest uses MSI-X instead of the pin.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Sets what the capability and the command register say, and sends what waited for it.
    pub fn set_control(&mut self, enabled: bool, masked: bool, bus_master: bool) {
        (self.enabled, self.masked, self.bus_master) = (enabled, masked, bus_master);
        for index in 0..self.vectors.len() {
            self.send_pending(index);
        }
    }

    /// Sends the message of `vector`, now or when nothing masks it any more. A vector that is not there sends nothing.
    pub fn signal(&mut self, vector: u16) {
        let index = usize::from(vector);
        if let Some(entry) = self.vectors.get_mut(index) {
            entry.pending = true;
            self.send_pending(index);
        }
    }

    /// Forgets interrupts that wait.
    pub fn clear_pending(&mut self) {
        for entry in &mut self.vectors {
            entry.pending = false;
        }
    }

    fn send_pending(&mut self, index: usize) {
        let open = self.enabled && !self.masked && self.bus_master;
        if let Some(entry) = self.vectors.get_mut(index)
            && open
            && entry.pending
            && !entry.masked
        {
            entry.pending = false;
            self.controller.msi(entry.address, entry.data);
        }
    }

    /// The 32-bit register at `offset`, a multiple of four.
    fn register(&self, offset: u64) -> u32 {
        let Ok(offset) = usize::try_from(offset) else { return 0 };
        if let Some(bits) = offset.checked_sub(PENDING_OFFSET as usize) {
            let first = bits * 8;
            let pending = self.vectors.iter().enumerate().skip(first).take(32).filter(|(_, entry)| entry.pending);
            return pending.fold(0, |word, (index, _)| word | 1 << (index - first));
        }
        let Some(entry) = self.vectors.get(offset / ENTRY_SIZE) else { return 0 };
        match offset % ENTRY_SIZE {
            0 => low(entry.address),
            4 => high(entry.address),
            8 => entry.data,
            _ => u32::from(entry.masked),
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let index = offset / ENTRY_SIZE;
        let Some(entry) = self.vectors.get_mut(index) else { return };
        match offset % ENTRY_SIZE {
            0 => entry.address = u64::from(high(entry.address)) << 32 | u64::from(value),
            4 => entry.address = u64::from(value) << 32 | u64::from(low(entry.address)),
            8 => entry.data = value,
            _ => {
                entry.masked = value & VECTOR_MASKED != 0;
                self.send_pending(index);
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

impl BusDevice for MsixTable {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (offset..).zip(data) {
            *byte = self.register(index & !3).to_le_bytes()[(index & 3) as usize];
        }
    }

    /// Whole aligned registers only, as the specification demands of software (PCI 3.0, 6.8.2).
    fn write(&mut self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        for (offset, bytes) in (offset..).step_by(4).zip(data.chunks(4)) {
            if let Ok(bytes) = bytes.try_into() {
                self.set_register(offset, u32::from_le_bytes(bytes));
            }
        }
    }
}

impl fmt::Debug for MsixTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MsixTable")
            .field("vectors", &self.vectors.len())
            .field("enabled", &self.enabled)
            .field("masked", &self.masked)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::testing::Interrupts;

    fn table(vectors: u16) -> (Arc<Interrupts>, MsixTable) {
        let interrupts = Arc::new(Interrupts::default());
        let mut table = MsixTable::new(vectors, interrupts.clone());
        for index in 0..vectors {
            let at = u64::from(index) * 16;
            table.write(at, &(0x0000_0001_fee0_0000_u64 + u64::from(index)).to_le_bytes());
            table.write(at + 8, &(0x40 + u32::from(index)).to_le_bytes());
        }
        (interrupts, table)
    }

    #[test]
    fn test_an_unmasked_vector_sends_its_message() {
        let (interrupts, mut table) = table(2);
        table.set_control(true, false, true);
        table.write(16 + 12, &[0; 4]);
        table.signal(1);
        assert_eq!(interrupts.take_messages(), [(0x1_fee0_0001, 0x41)]);
        table.signal(7);
        assert!(interrupts.take_messages().is_empty());
    }

    #[test]
    fn test_a_masked_interrupt_waits_for_every_mask() {
        let (interrupts, mut table) = table(2);
        table.set_control(true, true, true);
        table.signal(0);
        let mut pending = [0; 4];
        table.read(0x800, &mut pending);
        assert_eq!(pending, [1, 0, 0, 0]);
        table.set_control(true, false, true);
        assert!(interrupts.take_messages().is_empty());
        table.write(12, &[0; 4]);
        assert_eq!(interrupts.take_messages(), [(0x1_fee0_0000, 0x40)]);
        table.read(0x800, &mut pending);
        assert_eq!(pending, [0; 4]);
    }

    #[test]
    fn test_nothing_is_sent_without_bus_mastering() {
        let (interrupts, mut table) = table(1);
        table.write(12, &[0; 4]);
        table.set_control(true, false, false);
        table.signal(0);
        assert!(interrupts.take_messages().is_empty());
        table.set_control(true, false, true);
        assert_eq!(interrupts.take_messages().len(), 1);
    }

    #[test]
    fn test_the_table_reads_back() {
        let (_, mut table) = table(2);
        let mut entry = [0; 8];
        table.read(16, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1_fee0_0001);
        table.read(24, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1_0000_0041);
        table.read(32, &mut entry);
        assert_eq!(entry, [0; 8]);
    }

    proptest! {
        /// Attack F2 7: accesses of any width anywhere in the range.
        #[test]
        fn test_any_access_is_survived(
            accesses in prop::collection::vec((0u64..0x1000, prop::collection::vec(any::<u8>(), 1..9)), 0..64),
        ) {
            let (_, mut table) = table(7);
            table.set_control(true, false, true);
            for (offset, mut data) in accesses {
                table.write(offset, &data);
                table.signal(u16::from(data[0]));
                table.read(offset, &mut data);
            }
        }
    }
}
