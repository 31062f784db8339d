//! What the devices see of the machine, and the machine of the devices: buses, interrupts, doorbells.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

pub use covisor_abi::DoorbellSpace;
use thiserror::Error;

pub use crate::sys::event::Event;
pub use crate::sys::memory::GuestRam;

/// A device on a [`Bus`].
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from where the device was put; the whole access is
    /// inside the device. `data` comes filled with ones, so a device leaves alone what it does not claim.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the buses hold it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Interrupts into the guest, from any thread.
pub trait InterruptController: Send + Sync {
    /// Sends a message-signalled interrupt (PCI 3.0, 6.8). The guest chose both values: the controller checks them.
    fn msi(&self, address: u64, data: u32);

    /// Sets the level of an I/O APIC input.
    fn line(&self, gsi: u32, level: bool);
}

/// Guest stores that signal an event without leaving the driver.
///
/// A device stays correct without a doorbell: a store that still arrives at the device signals the same event.
pub trait Doorbells: Send + Sync {
    /// From now on a store of up to `width` bytes to `address` signals `event`.
    ///
    /// # Errors
    ///
    /// The driver's own error, when it has no room for another one.
    fn add(&self, space: DoorbellSpace, address: u64, width: u32, event: &Event) -> io::Result<()>;

    /// Undoes [`Doorbells::add`] of the same place.
    ///
    /// # Errors
    ///
    /// The driver's own error, when there is no such doorbell.
    fn remove(&self, space: DoorbellSpace, address: u64, width: u32) -> io::Result<()>;
}

/// Why a range was not put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// A range holds nothing, or goes over the end of the address space.
    #[error("{base:#x}+{size:#x} is no range of bus addresses")]
    BadRange {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// Another device is there.
    #[error("{base:#x}+{size:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
        /// First address of the other device.
        other: u64,
    },
}

struct Entry {
    base: u64,
    /// Last address, inclusive.
    last: u64,
    device: SharedDevice,
}

/// An address space with devices: the I/O ports, or device memory.
///
/// An access that is in no device, or goes over a device's end, is not claimed: reads give ones, writes go nowhere.
/// Devices come and go while the guest runs (it may move them), so any thread may do anything at any time; no lock of
/// the bus is held while a device works.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`, without overlaps.
    entries: RwLock<Vec<Entry>>,
    /// Index of the entry of the latest access: the next one is mostly to the same device.
    latest: AtomicUsize,
}

impl Bus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + size`.
    ///
    /// # Errors
    ///
    /// The range is none, or is taken.
    pub fn insert(&self, base: u64, size: u64, device: SharedDevice) -> Result<(), BusError> {
        let bad = BusError::BadRange { base, size };
        let Some(last) = size.checked_sub(1).and_then(|length| base.checked_add(length)) else {
            return Err(bad);
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.partition_point(|entry| entry.base <= base);
        let before = at.checked_sub(1).and_then(|index| entries.get(index)).filter(|entry| entry.last >= base);
        let after = entries.get(at).filter(|entry| entry.base <= last);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap { base, size, other: other.base });
        }
        entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// Takes the device away that begins at `base`, and says whether one did.
    pub fn remove(&self, base: u64) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entries.binary_search_by_key(&base, |entry| entry.base) {
            Ok(index) => {
                entries.remove(index);
                true
            }
            Err(_) => false,
        }
    }

    /// The device that claims all of `address..address + length`, and the offset in it.
    #[must_use]
    #[inline]
    pub fn lookup(&self, address: u64, length: usize) -> Option<(SharedDevice, u64)> {
        let last = address.checked_add((length as u64).checked_sub(1)?)?;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let latest = entries.get(self.latest.load(Ordering::Relaxed));
        let entry = match latest.filter(|entry| entry.base <= address && last <= entry.last) {
            Some(entry) => entry,
            None => {
                let index = entries.partition_point(|entry| entry.base <= address).checked_sub(1)?;
                let entry = entries.get(index).filter(|entry| last <= entry.last)?;
                self.latest.store(index, Ordering::Relaxed);
                entry
            }
        };
        Some((Arc::clone(&entry.device), address - entry.base))
    }

    /// The guest reads: fills `data`, and says whether a device did.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        fill_with_ones(data);
        match self.lookup(address, data.len()) {
            Some((device, offset)) => {
                lock(&device).read(offset, data);
                true
            }
            None => false,
        }
    }

    /// The guest writes: says whether a device took it.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.lookup(address, data.len()) {
            Some((device, offset)) => {
                lock(&device).write(offset, data);
                true
            }
            None => false,
        }
    }
}

/// Fills with ones; the usual lengths without the call that a fill of any length is.
#[inline]
fn fill_with_ones(data: &mut [u8]) {
    match data {
        [a] => *a = 0xff,
        [a, b] => (*a, *b) = (0xff, 0xff),
        [a, b, c, d] => (*a, *b, *c, *d) = (0xff, 0xff, 0xff, 0xff),
        _ => data.fill(0xff),
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        formatter.debug_list().entries(entries.iter().map(|entry| entry.base..=entry.last)).finish()
    }
}

/// Locks `mutex`, also after a thread panicked with it: a device has no state that a half-done access could make
/// unsound, and the other devices must go on.
#[inline]
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Answers reads with its name, and remembers the last write.
    struct Named(u8, Option<u64>);

    impl BusDevice for Named {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&mut self, offset: u64, _data: &[u8]) {
            self.1 = Some(offset);
        }
    }

    fn named(name: u8) -> SharedDevice {
        Arc::new(Mutex::new(Named(name, None)))
    }

    #[test]
    fn test_an_access_goes_to_the_device_that_claims_it() {
        let bus = Bus::new();
        bus.insert(0x10, 4, named(1)).unwrap();
        bus.insert(0x14, 4, named(2)).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x12, &mut data));
        assert_eq!(data, [1, 1]);
        assert!(bus.read(0x14, &mut data));
        assert_eq!(data, [2, 2]);
        assert_eq!(bus.lookup(0x16, 2).unwrap().1, 2);
    }

    #[test]
    fn test_an_access_over_a_devices_end_is_not_claimed() {
        let bus = Bus::new();
        bus.insert(0x10, 4, named(1)).unwrap();
        bus.insert(0x14, 4, named(2)).unwrap();
        let mut data = [0; 4];
        assert!(!bus.read(0x12, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0x17, &data));
        assert!(!bus.read(u64::MAX, &mut data));
        assert!(!bus.read(0xf, &mut data));
    }

    #[test]
    fn test_overlaps_and_bad_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x10, 0x10, named(1)).unwrap();
        for (base, size) in [(0x10, 1), (0xf, 2), (0x1f, 1), (0x18, 0x100), (0, 0x100)] {
            assert_eq!(bus.insert(base, size, named(2)), Err(BusError::Overlap { base, size, other: 0x10 }));
        }
        assert_eq!(bus.insert(0x30, 0, named(2)), Err(BusError::BadRange { base: 0x30, size: 0 }));
        assert_eq!(bus.insert(u64::MAX, 2, named(2)), Err(BusError::BadRange { base: u64::MAX, size: 2 }));
        bus.insert(u64::MAX, 1, named(2)).unwrap();
        bus.insert(0x20, 1, named(2)).unwrap();
        bus.insert(0xf, 1, named(2)).unwrap();
    }

    #[test]
    fn test_a_removed_device_claims_nothing() {
        let bus = Bus::new();
        bus.insert(0x10, 4, named(1)).unwrap();
        assert!(!bus.remove(0x11));
        assert!(bus.remove(0x10));
        assert!(!bus.read(0x10, &mut [0]));
        bus.insert(0x12, 4, named(1)).unwrap();
    }

    proptest! {
        #[test]
        fn test_lookup_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..64, 1u64..16), 0..12),
            accesses in prop::collection::vec((0u64..96, 1usize..9), 0..32),
        ) {
            let bus = Bus::new();
            let mut model: Vec<(u64, u64)> = Vec::new();
            for (base, size) in ranges {
                let free = model.iter().all(|&(b, s)| base + size <= b || b + s <= base);
                prop_assert_eq!(bus.insert(base, size, named(0)).is_ok(), free);
                if free {
                    model.push((base, size));
                }
            }
            for (address, length) in accesses {
                let expected = model.iter().find(|&&(b, s)| b <= address && address + length as u64 <= b + s);
                prop_assert_eq!(bus.lookup(address, length).map(|found| address - found.1), expected.map(|range| range.0));
            }
        }
    }
}
