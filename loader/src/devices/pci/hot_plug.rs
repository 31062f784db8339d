//! Functions that come and go while the guest runs, by ACPI.
//!
//! There is no standard for the registers: ACPI's tables have the code that uses them ([`crate::acpi`]). The guest is told by the
//! generic event device that slots changed, asks which, and when its drivers have let a function go it says so.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use super::PciFunction;
use super::PciRoot;
use crate::devices::power::EventSource;
use crate::platform::BusDevice;
use crate::platform::lock;

/// The first port of the registers.
pub const HOT_PLUG_PORT: u64 = 0x610;
/// Ports of the registers.
pub const HOT_PLUG_PORTS: u64 = 12;
/// The slots whose functions can come and go.
pub const HOT_SLOTS: Range<u8> = 16..32;

/// Register: slots that got a function, a bit each; reading takes them.
const ADDED: u64 = 0;
/// Register: slots whose function is to go; reading takes them.
const LEAVING: u64 = 4;
/// Register: the guest writes which slots' functions it has let go.
const EJECT: u64 = 8;

/// Takes word, on a vCPU's thread, that functions were let go.
pub type EjectSink = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    added: u32,
    leaving: u32,
    ejected: Vec<(u8, Arc<Mutex<dyn PciFunction>>)>,
}

struct Shared {
    state: Mutex<State>,
    event: EventSource,
}

/// The machine's side.
#[derive(Clone)]
pub struct HotPlug {
    shared: Arc<Shared>,
}

impl HotPlug {
    /// What tells the guest by `event`.
    #[must_use]
    pub fn new(event: EventSource) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), event }) }
    }

    /// The registers, for functions on `root`; `sink` hears of those that the guest lets go.
    #[must_use]
    pub fn registers(&self, root: Arc<PciRoot>, sink: EjectSink) -> HotPlugRegisters {
        HotPlugRegisters { shared: Arc::clone(&self.shared), root, sink }
    }

    /// Tells the guest that a slot got a function.
    pub fn added(&self, slot: u8) {
        let mut state = lock(&self.shared.state);
        state.added |= bit(slot);
        state.leaving &= !bit(slot);
        self.shared.event.signal();
    }

    /// Asks the guest to let a slot's function go.
    pub fn leave(&self, slot: u8) {
        lock(&self.shared.state).leaving |= bit(slot);
        self.shared.event.signal();
    }

    /// The functions that the guest has let go since this was asked last, with the slots that they were in.
    #[must_use]
    pub fn take_ejected(&self) -> Vec<(u8, Arc<Mutex<dyn PciFunction>>)> {
        std::mem::take(&mut lock(&self.shared.state).ejected)
    }
}

impl fmt::Debug for HotPlug {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HotPlug").finish_non_exhaustive()
    }
}

const fn bit(slot: u8) -> u32 {
    1 << (slot % super::SLOTS)
}

/// The guest's side.
pub struct HotPlugRegisters {
    shared: Arc<Shared>,
    root: Arc<PciRoot>,
    sink: EjectSink,
}

impl BusDevice for HotPlugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.shared.state);
        let value = match (offset, data.len()) {
            (ADDED, 4) => std::mem::take(&mut state.added),
            (LEAVING, 4) => std::mem::take(&mut state.leaving),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    /// The functions are off the bus at once. They are ended elsewhere, for that may take long.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        if offset != EJECT {
            return;
        }
        let slots = u32::from_le_bytes(bytes);
        for slot in HOT_SLOTS.filter(|slot| slots & bit(*slot) != 0) {
            if let Some(function) = self.root.take(slot) {
                lock(&self.shared.state).ejected.push((slot, function));
                (self.sink)();
            }
        }
    }
}

impl fmt::Debug for HotPlugRegisters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HotPlugRegisters").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::devices::pci::ConfigSpace;
    use crate::devices::pci::Identity;
    use crate::devices::pci::NewFunction;
    use crate::devices::pci::Windows;
    use crate::devices::power::EVENT_HOT_PLUG;
    use crate::devices::power::EventRegister;
    use crate::devices::testing::Interrupts;
    use crate::platform::Bus;

    struct Function(ConfigSpace);

    impl PciFunction for Function {
        fn config(&self) -> &ConfigSpace {
            &self.0
        }

        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.0
        }
    }

    fn read(registers: &mut dyn BusDevice, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn test_the_guest_is_told_what_came_and_lets_it_go() {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let windows = Windows { ports: 0xc000..0xd000, memory: 0xd000_0000..0xd000_4000 };
        let interrupts = Arc::new(Interrupts::default());
        let root = Arc::new(PciRoot::new(windows, &ports, &memory, interrupts.clone()));
        let mut events = EventRegister::new(interrupts, 9);
        let hot_plug = HotPlug::new(events.hot_plug());
        let heard = Arc::new(AtomicUsize::new(0));
        let hears = Arc::clone(&heard);
        let sink = Arc::new(move || {
            hears.fetch_add(1, Ordering::Relaxed);
        });
        let mut registers = hot_plug.registers(Arc::clone(&root), sink);
        let add = |slots| {
            let identity =
                Identity { vendor: 1, device: 2, revision: 0, class: [0xff, 0, 0], subsystem_vendor: 0, subsystem: 0 };
            let function = Arc::new(Mutex::new(Function(ConfigSpace::new(&identity))));
            root.add(slots, |_| NewFunction { function, ranges: Vec::new() }).unwrap()
        };
        assert_eq!((add(HOT_SLOTS), add(1..HOT_SLOTS.start)), (16, 1));
        hot_plug.added(16);
        let mut byte = [0];
        events.read(0, &mut byte);
        assert_eq!(byte, [EVENT_HOT_PLUG]);
        assert_eq!((read(&mut registers, ADDED), read(&mut registers, ADDED)), (1 << 16, 0));
        hot_plug.leave(16);
        assert_eq!((read(&mut registers, LEAVING), read(&mut registers, LEAVING)), (1 << 16, 0));
        // Accesses of other widths, and to slots that stay or are empty, do nothing.
        registers.write(EJECT, &[0xff]);
        registers.write(LEAVING, &[0xff; 4]);
        registers.write(EJECT, &(1_u32 << 1 | 1 << 17).to_le_bytes());
        assert!(hot_plug.take_ejected().is_empty() && heard.load(Ordering::Relaxed) == 0);
        registers.write(EJECT, &u32::MAX.to_le_bytes());
        assert_eq!(heard.load(Ordering::Relaxed), 1);
        let ejected: Vec<u8> = hot_plug.take_ejected().into_iter().map(|(slot, _)| slot).collect();
        assert_eq!(ejected, [16]);
        assert!(root.take(16).is_none() && root.take(1).is_some());
        // Its slot is free for another.
        assert_eq!(add(HOT_SLOTS), 16);
    }
}
