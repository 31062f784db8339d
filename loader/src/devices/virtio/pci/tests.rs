//! The transport as a driver sees it: everything goes through ports, to a device with a real worker.

use std::sync::Condvar;
use std::time::Duration;
use std::time::Instant;

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::*;
use crate::devices::pci::CONFIG_PORTS;
use crate::devices::pci::CONFIG_PORTS_SIZE;
use crate::devices::pci::ConfigPorts;
use crate::devices::pci::Windows;
use crate::devices::power::ResetRegister;
use crate::devices::testing::Bells;
use crate::devices::testing::Interrupts;
use crate::devices::virtio::QueueLayout;
use crate::devices::virtio::block;
use crate::devices::virtio::console;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::TestQueue;
use crate::devices::virtio::testing::ram;
use crate::disk::BlockBackend;
use crate::disk::MemoryBackend;
use crate::platform::Bus;
use crate::platform::lock;

const ACKNOWLEDGED: u8 = 0b0011;
const FEATURES_OK: u8 = 0b1011;
const DRIVER_OK: u8 = 0b1111;
const NEEDS_RESET: u8 = 0x40;

/// Where the first function's ranges are.
const PORTS: u64 = 0xc000;
const TABLE: u64 = 0xd000_0000;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;

struct Machine {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    root: Arc<PciRoot>,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    bells: Arc<Bells>,
}

impl Machine {
    fn new() -> Self {
        Self::with_bells(128)
    }

    fn with_bells(room: usize) -> Self {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let windows = Windows { ports: 0xc000..0xd000, memory: 0xd000_0000..0xd001_0000 };
        let interrupts = Arc::new(Interrupts::default());
        let root = Arc::new(PciRoot::new(windows, &ports, &memory, interrupts.clone()));
        let config = ConfigPorts::new(Arc::clone(&root), ResetRegister::new(Arc::new(|_| ())));
        ports.insert(CONFIG_PORTS, CONFIG_PORTS_SIZE, Arc::new(Mutex::new(config))).unwrap();
        Self { ports, memory, root, ram: ram(), interrupts, bells: Arc::new(Bells::new(room)) }
    }

    fn attach(&self, device: VirtioDevice, msix: bool) -> u8 {
        let resources = VirtioResources { memory: Arc::clone(&self.ram), doorbells: self.bells.clone(), msix };
        let slot = VirtioPci::attach(&self.root, 1..32, device, &resources).unwrap();
        // Ports, memory, bus mastering.
        self.write_config(slot, 4, &[7, 0]);
        slot
    }

    fn select(&self, slot: u8, register: u8) -> u64 {
        let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & !3);
        self.ports.write(0xcf8, &address.to_le_bytes());
        0xcfc + u64::from(register & 3)
    }

    fn read_config(&self, slot: u8, register: u8) -> u32 {
        let mut data = [0; 4];
        self.ports.read(self.select(slot, register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write_config(&self, slot: u8, register: u8, data: &[u8]) {
        self.ports.write(self.select(slot, register), data);
    }

    fn read(&self, register: u8, length: usize) -> u64 {
        let mut data = [0; 8];
        self.ports.read(PORTS + u64::from(register), &mut data[..length]);
        u64::from_le_bytes(data)
    }

    fn write(&self, register: u8, data: &[u8]) {
        self.ports.write(PORTS + u64::from(register), data);
    }

    fn status(&self) -> u8 {
        u8::try_from(self.read(0x14, 1)).unwrap()
    }

    fn set_status(&self, status: u8) {
        self.write(0x14, &[status]);
    }

    fn set_features(&self, features: u64) {
        for select in 0..2_u32 {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, &u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap().to_le_bytes());
        }
    }

    fn set_queue(&self, queue: u16, layout: &QueueLayout) {
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x18, &layout.size.to_le_bytes());
        for (register, address) in [(0x20, layout.descriptors), (0x28, layout.available), (0x30, layout.used)] {
            let bytes = address.to_le_bytes();
            self.write(register, &bytes[..4]);
            self.write(register + 4, &bytes[4..]);
        }
    }

    fn enable_queue(&self, queue: u16) {
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
    }

    fn layout(&self, queue: u16) -> QueueLayout {
        self.write(0x16, &queue.to_le_bytes());
        let wide = |register: u8| self.read(register, 4) | self.read(register + 4, 4) << 32;
        QueueLayout {
            size: u16::try_from(self.read(0x18, 2)).unwrap(),
            descriptors: wide(0x20),
            available: wide(0x28),
            used: wide(0x30),
        }
    }

    /// Negotiates and starts queue 0.
    fn start(&self, queue: &TestQueue) {
        self.set_status(ACKNOWLEDGED);
        self.set_features(feature::VERSION_1);
        self.set_status(FEATURES_OK);
        assert_eq!(self.status(), FEATURES_OK);
        self.set_queue(0, &queue.layout());
        self.enable_queue(0);
        self.set_status(DRIVER_OK);
    }

    fn reset(&self) {
        self.set_status(0);
        wait_until(|| self.status() == 0);
    }

    fn queue(&self) -> TestQueue {
        TestQueue::at(Arc::clone(&self.ram), 0, 16, 0)
    }

    /// Uses MSI-X, with message 0x40 + vector for each, and all unmasked.
    fn use_msix(&self, slot: u8, vectors: u8) {
        for vector in 0..vectors {
            let at = TABLE + u64::from(vector) * 16;
            self.memory.write(at, &0xfee0_0000_u64.to_le_bytes());
            self.memory.write(at + 8, &u64::from(0x40 + vector).to_le_bytes());
        }
        // The capability is the first.
        self.write_config(slot, 0x42, &[0, 0x80]);
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn disk() -> VirtioDevice {
    block::device("disk", "id", Box::new(MemoryBackend::new(vec![0x5a; 64 * 512], false))).unwrap()
}

/// Asks the disk for its first sector.
fn offer_read(queue: &TestQueue) {
    queue.fill(HEADER, &[0; 16]);
    queue.fill(DATA, &[0; 512]);
    queue.fill(STATUS, &[0xff]);
    queue.offer(0, &[Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)]);
}

fn is_read(queue: &TestQueue) -> bool {
    queue.take_used() == [(0, 513)] && queue.bytes(DATA, 512) == [0x5a; 512]
}

#[test]
fn test_linux_finds_all_structures() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), true);
    assert_eq!(machine.read_config(slot, 0), 0x1042_1af4);
    let mut at = u8::try_from(machine.read_config(slot, 0x34) & 0xff).unwrap();
    let mut found = Vec::new();
    while at != 0 {
        let [id, next, length, kind] = machine.read_config(slot, at).to_le_bytes();
        if id == 9 {
            let word = |offset: u8| machine.read_config(slot, at + offset);
            found.push((kind, length, word(4) & 0xff, word(8), word(12)));
            if kind == 2 {
                assert_eq!(word(16), 4);
            }
        }
        at = next;
    }
    assert_eq!(
        found,
        [(1, 16, 0, 0, 0x40), (3, 16, 0, 0x40, 1), (4, 16, 0, 0x80, 0x40), (2, 20, 0, 0xc0, 0x40), (5, 20, 0, 0, 0)]
    );
    // Without MSI-X there is no memory range.
    let other = machine.attach(disk(), false);
    assert_eq!((machine.read_config(other, 0x14), machine.read_config(other, 0x40) & 0xff), (0, 9));
}

#[test]
fn test_a_request_is_served_on_a_doorbell_and_interrupts_by_msix() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), true);
    machine.use_msix(slot, 2);
    let queue = machine.queue();
    machine.write(0x1a, &1_u16.to_le_bytes());
    assert_eq!(machine.read(0x1a, 2), 1);
    machine.write(0x1a, &2_u16.to_le_bytes());
    assert_eq!(machine.read(0x1a, 2), 0xffff);
    machine.write(0x1a, &1_u16.to_le_bytes());
    machine.start(&queue);
    assert_eq!(machine.bells.addresses(), [0xc0c0]);
    offer_read(&queue);
    assert!(machine.bells.ring(0xc0c0));
    wait_until(|| is_read(&queue));
    wait_until(|| machine.interrupts.take_messages() == [(0xfee0_0000, 0x41)]);
    assert!(machine.interrupts.take_lines().is_empty());
}

#[test]
fn test_a_request_is_served_without_doorbells_and_interrupts_by_the_pin() {
    let machine = Machine::with_bells(0);
    let slot = machine.attach(disk(), false);
    let queue = machine.queue();
    machine.start(&queue);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| is_read(&queue));
    wait_until(|| machine.interrupts.take_lines() == [(17, true)]);
    assert_eq!(machine.read_config(slot, 4) >> 16 & 8, 8);
    assert_eq!(machine.read(0x40, 1), 1);
    assert_eq!(machine.interrupts.take_lines(), [(17, false)]);
    assert_eq!((machine.read(0x40, 1), machine.read_config(slot, 4) >> 16 & 8), (0, 0));
    // The command register can forbid the pin.
    machine.write_config(slot, 4, &[7, 4]);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| is_read(&queue));
    assert!(machine.interrupts.take_lines().is_empty());
    wait_until(|| machine.read_config(slot, 4) >> 16 & 8 == 8);
    machine.write_config(slot, 4, &[7, 0]);
    assert_eq!(machine.interrupts.take_lines(), [(17, true)]);
}

#[test]
fn test_the_device_touches_nothing_without_bus_mastering() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), false);
    let queue = machine.queue();
    machine.start(&queue);
    machine.write_config(slot, 4, &[3, 0]);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    std::thread::sleep(Duration::from_millis(50));
    assert!(queue.take_used().is_empty());
    machine.write_config(slot, 4, &[7, 0]);
    wait_until(|| is_read(&queue));
}

#[test]
fn test_doorbells_follow_the_range() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), false);
    let queue = machine.queue();
    machine.start(&queue);
    machine.write_config(slot, 0x10, &0xc800_u32.to_le_bytes());
    assert_eq!(machine.bells.addresses(), [0xc8c0]);
    machine.write_config(slot, 4, &[6, 0]);
    assert!(machine.bells.addresses().is_empty());
    machine.write_config(slot, 4, &[7, 0]);
    offer_read(&queue);
    assert!(machine.bells.ring(0xc8c0));
    wait_until(|| is_read(&queue));
    // A reset leaves them, and starting again adds none.
    machine.write_config(slot, 0x10, &0xc000_u32.to_le_bytes());
    machine.reset();
    machine.start(&machine.queue());
    assert_eq!(machine.bells.addresses(), [0xc0c0]);
    drop(machine.ports);
    drop(machine.root);
    assert!(machine.bells.addresses().is_empty());
}

#[test]
fn test_registers_are_reached_through_configuration_space() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), false);
    // The last capability: at 0x40 + 16 + 16 + 16 + 20.
    let at = 0x84;
    assert_eq!(machine.read_config(slot, at).to_le_bytes()[3], 5);
    let access = |offset: u32, length: u32| {
        machine.write_config(slot, at + 8, &offset.to_le_bytes());
        machine.write_config(slot, at + 12, &length.to_le_bytes());
    };
    access(0x12, 2);
    assert_eq!(machine.read_config(slot, at + 16) & 0xffff, 1);
    access(0x14, 1);
    machine.write_config(slot, at + 16, &[ACKNOWLEDGED]);
    assert_eq!(machine.status(), ACKNOWLEDGED);
    // What it selects must be one register of the range.
    for (offset, length) in [(0x100, 1), (0xfe, 4), (0x14, 3), (0x14, 0), (u32::MAX, 1), (0x15, 2)] {
        access(offset, length);
        machine.write_config(slot, at + 16, &[0; 4]);
        assert_eq!(machine.status(), ACKNOWLEDGED);
    }
    machine.write_config(slot, at + 4, &[1]);
    access(0x14, 1);
    machine.write_config(slot, at + 16, &[0]);
    assert_eq!(machine.status(), ACKNOWLEDGED);
}

#[test]
fn test_device_configuration_is_read_only_memory() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    assert_eq!(machine.read(0x80, 4), 64);
    machine.write(0x80, &[0xff; 4]);
    assert_eq!(machine.read(0x80, 8), 64);
    assert_eq!(machine.read(0xbc, 4), 0);
}

#[test]
fn test_a_configuration_change_interrupts() {
    let machine = Machine::new();
    let (device, handle) = console::console("console").unwrap();
    let slot = machine.attach(device, true);
    machine.use_msix(slot, 3);
    machine.write(0x10, &0_u16.to_le_bytes());
    machine.start(&machine.queue());
    handle.size.set(100, 50);
    wait_until(|| machine.interrupts.take_messages() == [(0xfee0_0000, 0x40)]);
    assert_eq!(machine.read(0x80, 4), 50 << 16 | 100);
}

/// Attack F2 2, whole: the device stops in words, says so to the driver, and a reset makes it whole.
#[test]
fn test_attack_2_broken_ring_needs_reset() {
    let machine = Machine::new();
    let slot = machine.attach(disk(), true);
    machine.use_msix(slot, 2);
    machine.write(0x10, &0_u16.to_le_bytes());
    let queue = machine.queue();
    machine.start(&queue);
    queue.set_available_index(0x1234);
    machine.bells.ring(0xc0c0);
    wait_until(|| machine.status() == DRIVER_OK | NEEDS_RESET);
    wait_until(|| machine.interrupts.take_messages() == [(0xfee0_0000, 0x40)]);
    // It stays so, whatever the driver does short of a reset.
    queue.set_available_index(0);
    machine.set_status(DRIVER_OK);
    assert_eq!(machine.status(), DRIVER_OK | NEEDS_RESET);
    machine.reset();
    queue.write(0x4000, 0_u32);
    let queue = machine.queue();
    machine.start(&queue);
    offer_read(&queue);
    machine.bells.ring(0xc0c0);
    wait_until(|| is_read(&queue));
}

/// Attack F2 3 (CVE-2026-5747): the queue's size and addresses rewritten after it is enabled, and in use.
#[test]
fn test_attack_3_queue_rewritten_after_activation() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    let queue = machine.queue();
    machine.set_status(ACKNOWLEDGED);
    machine.set_features(feature::VERSION_1);
    machine.set_status(FEATURES_OK);
    machine.set_queue(0, &queue.layout());
    machine.enable_queue(0);
    let evil = QueueLayout { size: 256, descriptors: !0xfff, available: 0x7fff_f000, used: 0x1f_ffc0 };
    machine.set_queue(0, &evil);
    assert_eq!(machine.layout(0), queue.layout());
    machine.set_status(DRIVER_OK);
    machine.set_queue(0, &evil);
    assert_eq!(machine.layout(0), queue.layout());
    // Nor can it be disabled, or another one enabled.
    machine.write(0x1c, &0_u16.to_le_bytes());
    assert_eq!(machine.read(0x1c, 2), 1);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| is_read(&queue));
}

/// Attack F2 3: a queue that was not enabled before the driver was ready stays out of use.
#[test]
fn test_attack_3_queue_enabled_after_activation() {
    let machine = Machine::new();
    let (device, handle) = console::named_port("port", "name").unwrap();
    machine.attach(device, false);
    let queue = machine.queue();
    machine.start(&queue);
    let other = TestQueue::at(Arc::clone(&machine.ram), 0x1_0000, 16, 1);
    machine.set_queue(1, &other.layout());
    machine.enable_queue(1);
    assert_eq!((machine.read(0x1c, 2), machine.layout(1).used), (0, 0));
    other.offer(0, &[Buffer::readable(DATA, 4)]);
    machine.write(0xc4, &1_u16.to_le_bytes());
    assert_eq!(handle.output.receive_timeout(&mut [0; 4], Duration::from_millis(50)), None);
}

/// Attack F2 4, whole: a queue outside RAM does not start the device.
#[test]
fn test_attack_4_queue_outside_ram_needs_reset() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    let layout = QueueLayout { used: u64::MAX - 3, ..machine.queue().layout() };
    machine.set_status(ACKNOWLEDGED);
    machine.set_features(feature::VERSION_1);
    machine.set_status(FEATURES_OK);
    machine.set_queue(0, &layout);
    machine.enable_queue(0);
    machine.set_status(DRIVER_OK);
    assert_eq!(machine.status(), DRIVER_OK | NEEDS_RESET);
    // The interrupt status byte tells of it.
    assert_eq!(machine.read(0x40, 1), 2);
    machine.reset();
    machine.start(&machine.queue());
    assert_eq!(machine.status(), DRIVER_OK);
}

/// Attack F2 7: negotiation out of order.
#[test]
fn test_attack_7_negotiation_out_of_order() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    // Ready without features, features that were not offered, and none of version 1.
    machine.set_status(0b0111);
    assert_eq!(machine.status(), ACKNOWLEDGED);
    for features in [0, feature::VERSION_1 | 1 << 63, feature::INDIRECT_DESC] {
        machine.set_features(features);
        machine.set_status(DRIVER_OK);
        assert_eq!(machine.status(), ACKNOWLEDGED);
    }
    machine.set_features(feature::VERSION_1);
    machine.set_status(FEATURES_OK);
    // What is agreed on stays, and bits are not taken back.
    machine.set_features(u64::MAX);
    machine.write(0x08, &0_u32.to_le_bytes());
    assert_eq!(machine.read(0x0c, 4), 0);
    machine.set_status(1);
    assert_eq!(machine.status(), FEATURES_OK);
    machine.set_status(NEEDS_RESET | FEATURES_OK);
    assert_eq!(machine.status(), FEATURES_OK);
    machine.reset();
    assert_eq!(machine.status(), 0);
}

/// How far a read of a slow disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// None has begun.
    None,
    /// It waits.
    Begun,
    /// It may go on, and so may those that follow.
    Free,
}

/// A disk that takes its time: reads wait until they may go on.
#[derive(Debug)]
struct Slow(MemoryBackend, Arc<(Mutex<Reading>, Condvar)>);

impl BlockBackend for Slow {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> std::io::Result<()> {
        let mut read = lock(&self.1.0);
        while *read != Reading::Free {
            *read = Reading::Begun;
            read = self.1.1.wait(read).unwrap();
        }
        drop(read);
        self.0.read_at(offset, buffers)
    }
    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> std::io::Result<()> {
        self.0.write_at(offset, buffers)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, length: u64) -> std::io::Result<()> {
        self.0.discard(offset, length)
    }
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> std::io::Result<()> {
        self.0.write_zeroes(offset, length, unmap)
    }
}

/// Attack F2 7: a reset while a request is under way. The vCPU does not wait for the disk, nothing can be set up until
/// the device has let go of guest memory, and afterwards it does not touch it any more.
#[test]
fn test_attack_7_reset_races_with_io() {
    let machine = Machine::new();
    let gate = Arc::new((Mutex::new(Reading::None), Condvar::new()));
    let backend = Slow(MemoryBackend::new(vec![0x5a; 64 * 512], false), Arc::clone(&gate));
    machine.attach(block::device("disk", "id", Box::new(backend)).unwrap(), false);
    let queue = machine.queue();
    machine.start(&queue);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| *lock(&gate.0) == Reading::Begun);
    let start = Instant::now();
    machine.set_status(0);
    machine.set_status(ACKNOWLEDGED);
    machine.set_queue(0, &QueueLayout::default());
    assert_eq!((machine.status(), machine.layout(0)), (DRIVER_OK, queue.layout()));
    assert!(start.elapsed() < Duration::from_secs(5));
    *lock(&gate.0) = Reading::Free;
    gate.1.notify_all();
    wait_until(|| machine.status() == 0);
    // From here on the memory is the driver's.
    queue.fill(DATA, &[0; 512]);
    queue.fill(STATUS, &[0xff]);
    queue.write(0x4000, 0_u32);
    let again = machine.queue();
    again.set_available_index(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((queue.bytes(DATA, 512), queue.bytes(STATUS, 1)), (vec![0; 512], vec![0xff]));
    machine.start(&again);
    offer_read(&again);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| is_read(&again));
}

/// Attack F2 7: resets one after another, from a driver that does not wait.
#[test]
fn test_attack_7_reset_storm() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    for _ in 0..200 {
        machine.set_status(0);
        machine.set_status(ACKNOWLEDGED);
        machine.set_features(feature::VERSION_1);
        machine.set_status(FEATURES_OK);
        machine.set_queue(0, &machine.queue().layout());
        machine.enable_queue(0);
        machine.set_status(DRIVER_OK);
        machine.write(0xc0, &0_u16.to_le_bytes());
    }
    machine.reset();
    let queue = machine.queue();
    machine.start(&queue);
    offer_read(&queue);
    machine.write(0xc0, &0_u16.to_le_bytes());
    wait_until(|| is_read(&queue));
}

/// Attack F2 8: notifications without end, before, while and after the device works.
#[test]
fn test_attack_8_infinite_kicks() {
    let machine = Machine::new();
    machine.attach(disk(), false);
    let kick = || (0..5000_u16).for_each(|_| machine.write(0xc0, &0_u16.to_le_bytes()));
    kick();
    let queue = machine.queue();
    machine.start(&queue);
    kick();
    offer_read(&queue);
    kick();
    wait_until(|| is_read(&queue));
    machine.reset();
    kick();
    assert_eq!(machine.status(), 0);
}

#[test]
fn test_the_machine_goes_down_with_devices_in_use() {
    let machine = Machine::new();
    machine.attach(disk(), true);
    machine.start(&machine.queue());
    drop(machine);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Attack F2 7: accesses of every width at every register, of the device and of configuration space.
    #[test]
    fn test_any_access_is_survived(
        accesses in prop::collection::vec(
            (0u64..0x200, prop::sample::select(vec![1_usize, 2, 4, 8]), any::<u64>(), 0u8..3), 0..200),
    ) {
        let machine = Machine::new();
        let slot = machine.attach(disk(), true);
        for (offset, width, value, what) in accesses {
            let mut data = value.to_le_bytes();
            let data = &mut data[..width];
            match what {
                0 => _ = machine.ports.read(PORTS + offset, data),
                1 => _ = machine.ports.write(PORTS + offset, data),
                _ => machine.write_config(slot, offset.to_le_bytes()[0], data),
            }
        }
        // It is still there.
        prop_assert_eq!(machine.read_config(slot, 0), 0x1042_1af4);
        machine.write_config(slot, 0x10, &0xc000_u32.to_le_bytes());
        machine.write_config(slot, 4, &[7, 0]);
        machine.reset();
    }
}
