//! The bus as the guest sees it, through its ports.

use proptest::prelude::*;

use super::*;
use crate::devices::pci::CONFIG_PORTS;
use crate::devices::pci::CONFIG_PORTS_SIZE;
use crate::devices::pci::ConfigPorts;
use crate::devices::pci::ConfigSpace;
use crate::devices::pci::Identity;
use crate::devices::power::PowerEvent;
use crate::devices::power::ResetRegister;
use crate::devices::testing::Interrupts;
use crate::layout::Model;
use crate::platform::BusDevice;

/// A function with a port range and a memory range, that remembers where it was told that they are.
struct Function {
    config: ConfigSpace,
    at: [Option<u64>; 2],
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn moved(&mut self, bar: usize, address: Option<u64>) {
        self.at[bar] = address;
    }
}

/// Reads its name.
struct Range(u8);

impl BusDevice for Range {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

struct Machine {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    root: Arc<PciRoot>,
    power: Arc<Mutex<Vec<PowerEvent>>>,
}

impl Machine {
    fn new() -> Self {
        Self::with_ports(0xc000..0xc400)
    }

    fn with_ports(window: std::ops::Range<u64>) -> Self {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let windows = Windows { ports: window, memory: 0xd000_0000..0xd000_4000 };
        let root = Arc::new(PciRoot::new(windows, &ports, &memory, Arc::new(Interrupts::default())));
        let power = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::clone(&power);
        let reset = ResetRegister::new(Arc::new(move |event| lock(&events).push(event)));
        let device = Arc::new(Mutex::new(ConfigPorts::new(Arc::clone(&root), reset)));
        ports.insert(CONFIG_PORTS, CONFIG_PORTS_SIZE, device).unwrap();
        Self { ports, memory, root, power }
    }

    fn add(&self, name: u8) -> (u8, Arc<Mutex<Function>>) {
        let identity = Identity {
            vendor: 0x1234,
            device: u16::from(name),
            revision: 0,
            class: [0xff, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(&identity);
        config.add_bar(0, BarKind::Ports, 0x100);
        config.add_bar(1, BarKind::Memory, 0x1000);
        let function = Arc::new(Mutex::new(Function { config, at: [None; 2] }));
        let made = NewFunction {
            function: function.clone(),
            ranges: vec![(0, Arc::new(Mutex::new(Range(name)))), (1, Arc::new(Mutex::new(Range(name))))],
        };
        (self.root.add(1..SLOTS, |_| made).unwrap(), function)
    }

    fn select(&self, slot: u8, register: u8) {
        let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & !3);
        assert!(self.ports.write(0xcf8, &address.to_le_bytes()));
    }

    fn read(&self, slot: u8, register: u8) -> u32 {
        self.select(slot, register);
        let mut data = [0; 4];
        assert!(self.ports.read(0xcfc, &mut data));
        u32::from_le_bytes(data)
    }

    fn write(&self, slot: u8, register: u8, value: u32) {
        self.select(slot, register);
        assert!(self.ports.write(0xcfc, &value.to_le_bytes()));
    }

    fn name_at(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }
}

#[test]
fn test_linux_finds_the_bus() {
    let machine = Machine::new();
    // pci_check_type1 of arch/x86/pci/direct.c.
    machine.ports.write(0xcfb, &[1]);
    machine.ports.write(0xcf8, &0x8000_0000_u32.to_le_bytes());
    let mut address = [0; 4];
    machine.ports.read(0xcf8, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
    assert_eq!(machine.read(0, 8) >> 16, 0x0600);
    assert_eq!(machine.read(1, 0), u32::MAX);
}

#[test]
fn test_only_function_0_of_bus_0_is_there() {
    let machine = Machine::new();
    for address in [0x8001_0000_u32, 0x8000_0100, 0x0000_0000] {
        machine.ports.write(0xcf8, &address.to_le_bytes());
        let mut data = [0; 4];
        machine.ports.read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn test_functions_get_slots_addresses_and_interrupts() {
    let machine = Machine::new();
    let (first, _) = machine.add(0xa);
    let (second, _) = machine.add(0xb);
    assert_eq!((first, second), (1, 2));
    assert_eq!(machine.read(1, 0x10), 0xc001);
    assert_eq!(machine.read(2, 0x10), 0xc101);
    assert_eq!(machine.read(2, 0x14), 0xd000_1000);
    assert_eq!(machine.read(2, 0x3c), 0x0112);
    assert_eq!(Machine::name_at(&machine.ports, 0xc000), 0xff);
}

#[test]
fn test_the_bus_and_its_windows_fill_up() {
    let machine = Machine::new();
    for name in 0..4 {
        machine.add(name);
    }
    let identity = Identity { vendor: 0, device: 0, revision: 0, class: [0; 3], subsystem_vendor: 0, subsystem: 0 };
    let mut config = ConfigSpace::new(&identity);
    config.add_bar(0, BarKind::Ports, 0x100);
    let function =
        || -> Arc<Mutex<dyn PciFunction>> { Arc::new(Mutex::new(Function { config: config.clone(), at: [None; 2] })) };
    let made = machine.root.add(1..SLOTS, |_| NewFunction { function: function(), ranges: Vec::new() });
    assert_eq!(made, Err(PciError::NoRoom { kind: BarKind::Ports, size: 0x100 }));
    for _ in 0..27 {
        let bridge = NewFunction { function: Arc::new(Mutex::new(HostBridge::new())), ranges: Vec::new() };
        machine.root.add(1..SLOTS, |_| bridge).unwrap();
    }
    let bridge = NewFunction { function: Arc::new(Mutex::new(HostBridge::new())), ranges: Vec::new() };
    assert_eq!(machine.root.add(1..SLOTS, |_| bridge), Err(PciError::NoSlot));
}

#[test]
fn test_ranges_follow_the_command_and_address_registers() {
    let machine = Machine::new();
    let (slot, function) = machine.add(0xa);
    machine.write(slot, 4, 0b11);
    assert_eq!(lock(&function).at, [Some(0xc000), Some(0xd000_0000)]);
    assert_eq!(Machine::name_at(&machine.ports, 0xc0ff), 0xa);
    assert_eq!(Machine::name_at(&machine.memory, 0xd000_0fff), 0xa);

    machine.write(slot, 0x10, 0xc300);
    assert_eq!(Machine::name_at(&machine.ports, 0xc000), 0xff);
    assert_eq!(Machine::name_at(&machine.ports, 0xc300), 0xa);
    assert_eq!(lock(&function).at[0], Some(0xc300));

    machine.write(slot, 4, 0);
    assert_eq!(lock(&function).at, [None, None]);
    assert_eq!(Machine::name_at(&machine.ports, 0xc300), 0xff);
}

#[test]
fn test_a_range_outside_its_window_answers_nowhere() {
    let machine = Machine::new();
    let (slot, function) = machine.add(0xa);
    machine.write(slot, 4, 0b11);
    for (port, memory) in [(0x0cf8, 0xfee0_0000), (0xffff_ff00, 0xffff_f000), (0, 0), (0xc400, 0x1000)] {
        machine.write(slot, 0x10, port);
        machine.write(slot, 0x14, memory);
        assert_eq!(lock(&function).at, [None, None]);
    }
    // The configuration ports still work, and the range comes back.
    machine.write(slot, 0x10, 0xc200);
    assert_eq!(Machine::name_at(&machine.ports, 0xc200), 0xa);
}

#[test]
fn test_a_paravirtual_guest_may_put_a_range_wherever_linux_does() {
    let (first, count) = Model::Paravirtual.pci_ports();
    let machine = Machine::with_ports(first.into()..u64::from(first) + u64::from(count));
    let (slot, _) = machine.add(0xa);
    machine.write(slot, 4, 1);
    // The lowest ports and the highest that Linux gives away; not those below, which are devices' of fixed places.
    for (port, name) in [(0x1000, 0xa), (0xff00, 0xa), (0x0f00, 0xff)] {
        machine.write(slot, 0x10, port);
        assert_eq!(Machine::name_at(&machine.ports, port.into()), name, "{port:#x}");
    }
}

#[test]
fn test_of_two_ranges_at_one_place_the_first_answers() {
    let machine = Machine::new();
    let (first, _) = machine.add(0xa);
    let (second, moved) = machine.add(0xb);
    machine.write(first, 4, 1);
    machine.write(second, 4, 1);
    machine.write(second, 0x10, 0xc000);
    assert_eq!(Machine::name_at(&machine.ports, 0xc000), 0xa);
    assert_eq!(lock(&moved).at[0], None);
    // When the first goes away, the second is found there.
    machine.write(first, 4, 0);
    assert_eq!(Machine::name_at(&machine.ports, 0xc000), 0xb);
}

#[test]
fn test_the_reset_register_is_between_the_ports() {
    let machine = Machine::new();
    machine.ports.write(0xcf9, &[6]);
    assert_eq!(*lock(&machine.power), [PowerEvent::Reset]);
}

#[test]
fn test_an_access_over_the_ports_end_is_not_claimed() {
    let machine = Machine::new();
    let mut data = [0; 4];
    assert!(!machine.ports.read(0xcfe, &mut data));
    assert!(!machine.ports.read(0xcf6, &mut data));
}

proptest! {
    /// Attack F2 7: accesses of every width at every port, whatever address is selected.
    #[test]
    fn test_config_accesses_at_odd_widths_are_survived(
        accesses in prop::collection::vec(
            (any::<u32>(), 0xcf8u64..0xd00, prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 0..64),
    ) {
        let machine = Machine::new();
        machine.add(0xa);
        machine.add(0xb);
        for (address, port, mut data, write) in accesses {
            // Mostly slots that are there.
            machine.ports.write(0xcf8, &(address & 0x8000_1fff | 0x8000_0000).to_le_bytes());
            if write {
                machine.ports.write(port, &data);
            } else {
                machine.ports.read(port, &mut data);
            }
        }
        // The ports are still where they were.
        prop_assert_eq!(machine.read(0, 8) >> 16, 0x0600);
    }
}

#[test]
fn test_a_function_that_is_taken_leaves_its_ranges_to_the_next() {
    let machine = Machine::new();
    let (first, _) = machine.add(1);
    let (second, function) = machine.add(2);
    machine.root.write_config(second, 4, &[3, 0]);
    let at = lock(&function).at;
    assert!(at[0].is_some() && at[1].is_some());
    let ports_answer = |address: Option<u64>| address.is_some_and(|address| machine.ports.read(address, &mut [0]));
    assert!(ports_answer(at[0]));
    assert!(machine.root.take(second).is_some() && machine.root.take(second).is_none());
    assert_eq!(lock(&function).at, [None; 2]);
    assert!(!ports_answer(at[0]));
    assert!(!machine.root.is_idle(second) && machine.root.is_idle(first));
    // As often as one likes, though the window has room for four.
    for _ in 0..10 {
        let (slot, function) = machine.add(3);
        machine.root.write_config(slot, 4, &[3, 0]);
        assert_eq!(lock(&function).at, at);
        machine.root.take(slot);
    }
}
