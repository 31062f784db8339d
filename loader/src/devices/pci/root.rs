//! The bus: its functions, and where their ranges answer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;

use thiserror::Error;

use super::BarKind;
use super::HostBridge;
use super::IntxLines;
use super::IntxPin;
use super::PciFunction;
use super::SLOTS;
use super::config::BARS;
use crate::platform::Bus;
use crate::platform::InterruptController;
use crate::platform::SharedDevice;
use crate::platform::lock;

/// The interrupt pin of every function (PCI 3.0, 6.2.4).
const INTA: u8 = 1;

/// Where functions' ranges can be; ACPI's `_CRS` of the bus says the same.
#[derive(Clone, Debug)]
pub struct Windows {
    /// I/O ports.
    pub ports: Range<u64>,
    /// Device memory, below 4 GiB.
    pub memory: Range<u64>,
}

impl Windows {
    fn of(&self, kind: BarKind) -> &Range<u64> {
        match kind {
            BarKind::Ports => &self.ports,
            BarKind::Memory => &self.memory,
        }
    }
}

/// Why a function was not put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots hold a function.
    #[error("the machine has no PCI slot left: it takes {} devices", SLOTS - 1)]
    NoSlot,
    /// A range does not fit the window.
    #[error("no {size:#x} bytes are left of the PCI window {}: use fewer devices", describe(.kind))]
    NoRoom {
        /// The window's address space.
        kind: BarKind,
        /// Bytes wanted.
        size: u32,
    },
}

fn describe(kind: &BarKind) -> &'static str {
    match kind {
        BarKind::Ports => "for I/O ports",
        BarKind::Memory => "for device memory",
    }
}

/// A function on its way to a slot, and what answers in the ranges of its base address registers.
pub struct NewFunction {
    /// The function.
    pub function: Arc<Mutex<dyn PciFunction>>,
    /// Number of the base address register, and its device.
    pub ranges: Vec<(usize, SharedDevice)>,
}

impl fmt::Debug for NewFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NewFunction").field("ranges", &self.ranges.len()).finish_non_exhaustive()
    }
}

struct Placed {
    bar: usize,
    device: SharedDevice,
    /// Where it is on its bus now.
    at: Option<u64>,
}

struct Slot {
    function: Arc<Mutex<dyn PciFunction>>,
    ranges: Vec<Placed>,
}

struct State {
    slots: [Option<Slot>; SLOTS as usize],
}

impl State {
    /// Where functions' ranges of this kind are, or are to be.
    fn occupied(&self, kind: BarKind) -> Vec<Range<u64>> {
        let mut occupied = Vec::new();
        for slot in self.slots.iter().flatten() {
            let function = lock(&slot.function);
            let config = function.config();
            let ranges = (0..BARS).filter_map(|index| Some((config.bar(index)?, config.bar_base(index)?)));
            occupied
                .extend(ranges.filter(|(bar, _)| bar.kind == kind).map(|(bar, base)| base..base + u64::from(bar.size)));
        }
        occupied
    }
}

/// PCI bus 0.
///
/// The guest may move ranges about. One that it puts outside the windows, over another device or (by the command
/// register) away answers nowhere until it is put at a free place.
pub struct PciRoot {
    windows: Windows,
    // Weak, for the buses hold the functions' devices.
    ports: Weak<Bus>,
    memory: Weak<Bus>,
    lines: Arc<IntxLines>,
    state: Mutex<State>,
}

impl PciRoot {
    /// A bus with a host bridge in slot 0, and room for functions' ranges in `windows`.
    #[must_use]
    pub fn new(
        windows: Windows,
        ports: &Arc<Bus>,
        memory: &Arc<Bus>,
        controller: Arc<dyn InterruptController>,
    ) -> Self {
        let mut slots = [const { None }; SLOTS as usize];
        slots[0] = Some(Slot { function: Arc::new(Mutex::new(HostBridge::new())), ranges: Vec::new() });
        Self {
            state: Mutex::new(State { slots }),
            windows,
            ports: Arc::downgrade(ports),
            memory: Arc::downgrade(memory),
            lines: Arc::new(IntxLines::new(controller)),
        }
    }

    /// Puts the function that `build` makes for a slot's interrupt pin into the first free slot of `slots`, and gives its number.
    /// Its ranges get addresses, and its command register is 0, as firmware leaves it to operating systems.
    ///
    /// # Errors
    ///
    /// No slot is free, or a window is full.
    pub fn add(
        &self,
        slots: impl IntoIterator<Item = u8>,
        build: impl FnOnce(IntxPin) -> NewFunction,
    ) -> Result<u8, PciError> {
        let mut state = lock(&self.state);
        let is_free = |slot: &u8| matches!(state.slots.get(usize::from(*slot)), Some(None));
        let slot = slots.into_iter().find(is_free).ok_or(PciError::NoSlot)?;
        let pin = self.lines.pin(slot);
        let gsi = pin.gsi();
        let NewFunction { function, ranges } = build(pin);
        {
            let mut function = lock(&function);
            let config = function.config_mut();
            for kind in [BarKind::Ports, BarKind::Memory] {
                let mut occupied = state.occupied(kind);
                for index in 0..BARS {
                    if let Some(bar) = config.bar(index).filter(|bar| bar.kind == kind) {
                        let address = self.place(&occupied, kind, bar.size)?;
                        config.set_bar_address(index, address);
                        occupied.push(address.into()..u64::from(address) + u64::from(bar.size));
                    }
                }
            }
            config.set_interrupt(INTA, u8::try_from(gsi).unwrap_or(u8::MAX));
        }
        let ranges = ranges.into_iter().map(|(bar, device)| Placed { bar, device, at: None }).collect();
        state.slots[usize::from(slot)] = Some(Slot { function, ranges });
        Ok(slot)
    }

    /// The first free place for `size` bytes in the window, aligned to their size.
    fn place(&self, occupied: &[Range<u64>], kind: BarKind, size: u32) -> Result<u32, PciError> {
        let window = self.windows.of(kind);
        let size_64 = u64::from(size);
        let mut base = window.start.next_multiple_of(size_64);
        // Each time over one that is in the way.
        while let Some(other) = occupied.iter().find(|other| other.start < base + size_64 && base < other.end) {
            base = other.end.next_multiple_of(size_64);
        }
        let fits = base + size_64 <= window.end;
        u32::try_from(base).ok().filter(|_| fits).ok_or(PciError::NoRoom { kind, size })
    }

    /// Takes the function out of a slot, whatever the guest does with it, and gives it.
    pub fn take(&self, slot: u8) -> Option<Arc<Mutex<dyn PciFunction>>> {
        let mut state = lock(&self.state);
        let Slot { function, ranges } = state.slots.get_mut(usize::from(slot))?.take()?;
        {
            let mut function = lock(&function);
            for range in ranges {
                let bus = function.config().bar(range.bar).and_then(|bar| self.bus(bar.kind));
                if let (Some(address), Some(bus)) = (range.at, bus) {
                    bus.remove(address);
                    function.moved(range.bar, None);
                }
            }
        }
        // What went away may have made room for another function's range.
        for slot in state.slots.iter_mut().flatten() {
            self.put(slot);
        }
        Some(function)
    }

    /// Whether a slot holds a function that no driver in the guest uses.
    #[must_use]
    pub fn is_idle(&self, slot: u8) -> bool {
        let state = lock(&self.state);
        let slot = state.slots.get(usize::from(slot)).and_then(Option::as_ref);
        slot.is_some_and(|slot| lock(&slot.function).is_idle())
    }

    /// The guest reads configuration space; `data` comes filled with ones, which an empty slot leaves.
    pub fn read_config(&self, slot: u8, offset: u8, data: &mut [u8]) {
        let state = lock(&self.state);
        if let Some(Some(slot)) = state.slots.get(usize::from(slot)) {
            lock(&slot.function).read_config(offset, data);
        }
    }

    /// The guest writes configuration space.
    pub fn write_config(&self, slot: u8, offset: u8, data: &[u8]) {
        let mut state = lock(&self.state);
        let Some(Some(slot)) = state.slots.get_mut(usize::from(slot)) else { return };
        lock(&slot.function).write_config(offset, data);
        if self.withdraw(slot) {
            // What went away may have made room for another function's range.
            for slot in state.slots.iter_mut().flatten() {
                self.put(slot);
            }
        }
    }

    /// Takes ranges off the bus that are to be elsewhere, and says whether any range is to be somewhere else now.
    fn withdraw(&self, slot: &mut Slot) -> bool {
        let mut function = lock(&slot.function);
        let mut changed = false;
        for range in &mut slot.ranges {
            let wanted = function.config().bar_address(range.bar);
            if wanted == range.at {
                continue;
            }
            changed = true;
            let bus = function.config().bar(range.bar).and_then(|bar| self.bus(bar.kind));
            if let (Some(address), Some(bus)) = (range.at.take(), bus) {
                bus.remove(address);
                function.moved(range.bar, None);
            }
        }
        changed
    }

    /// Puts ranges on the bus that are to be there and are not.
    fn put(&self, slot: &mut Slot) {
        let mut function = lock(&slot.function);
        for range in slot.ranges.iter_mut().filter(|range| range.at.is_none()) {
            let Some(bar) = function.config().bar(range.bar) else { continue };
            let Some(address) = function.config().bar_address(range.bar) else { continue };
            let size = u64::from(bar.size);
            let window = self.windows.of(bar.kind);
            let inside = window.start <= address && address.saturating_add(size) <= window.end;
            if let Some(bus) = self.bus(bar.kind)
                && inside
                && bus.insert(address, size, Arc::clone(&range.device)).is_ok()
            {
                range.at = Some(address);
                function.moved(range.bar, range.at);
            }
        }
    }

    fn bus(&self, kind: BarKind) -> Option<Arc<Bus>> {
        match kind {
            BarKind::Ports => self.ports.upgrade(),
            BarKind::Memory => self.memory.upgrade(),
        }
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PciRoot").field("windows", &self.windows).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
