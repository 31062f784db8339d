//! Virtio over PCI (virtio 1.2, 4.1), without the legacy interface.

mod common;
mod interrupt;
mod layout;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use covisor_abi::DoorbellSpace;
use thiserror::Error;

use self::common::CommonConfig;
use self::common::Effect;
use self::interrupt::Interrupt;
use super::DeviceConfig;
use super::DriverSignal;
use super::Gate;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use super::feature;
use super::worker::Breakdown;
use super::worker::Worker;
use crate::devices::pci::BarKind;
use crate::devices::pci::Command;
use crate::devices::pci::ConfigSpace;
use crate::devices::pci::Identity;
use crate::devices::pci::IntxPin;
use crate::devices::pci::MSIX_RANGE_SIZE;
use crate::devices::pci::MsixTable;
use crate::devices::pci::NewFunction;
use crate::devices::pci::PciError;
use crate::devices::pci::PciFunction;
use crate::devices::pci::PciRoot;
use crate::devices::pci::add_msix_capability;
use crate::devices::pci::msix_control;
use crate::devices::reports::Reports;
use crate::platform::BusDevice;
use crate::platform::Doorbells;
use crate::platform::Event;
use crate::platform::GuestRam;
use crate::platform::SharedDevice;

/// The vendor id of virtio (virtio 1.2, 4.1.2).
const VENDOR: u16 = 0x1af4;
/// What to add to the virtio device id.
const DEVICE_BASE: u16 = 0x1040;
/// Not a transitional device.
const REVISION: u8 = 1;
/// Subsystem ids of non-transitional devices are at least this (virtio 1.2, 4.1.2.1).
const SUBSYSTEM: u16 = 0x40;

/// What a virtio function needs of the machine.
#[derive(Clone)]
pub struct VirtioResources {
    /// Guest RAM.
    pub memory: Arc<GuestRam>,
    /// Doorbells for notifications.
    pub doorbells: Arc<dyn Doorbells>,
    /// Whether to offer MSI-X. The guests of engine `coop` have no use for it.
    pub msix: bool,
}

impl fmt::Debug for VirtioResources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("VirtioResources").field("msix", &self.msix).finish_non_exhaustive()
    }
}

/// Why a device did not start when its driver was ready.
#[derive(Debug, Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("its thread did not start: {0}")]
    Thread(std::io::Error),
    #[error("its thread died before")]
    Dead,
}

enum Handler {
    /// No driver uses the device.
    Parked(Box<dyn QueueHandler>),
    /// The queues are in use.
    Running(Worker),
    /// It was lost to a panic.
    Lost,
}

/// What the worker's thread says to the registers.
struct Health {
    reports: Reports,
    interrupt: Arc<Interrupt>,
    broken: AtomicBool,
}

impl Health {
    /// The device needs a reset: tells the user.
    fn report(&self, error: &dyn fmt::Display) {
        self.reports.warn(&format_args!("stopped until the guest resets it: {error}"));
    }
}

impl Breakdown for Arc<Health> {
    fn broken(&self, error: &QueueError) {
        self.report(error);
        self.broken.store(true, Ordering::Release);
        self.interrupt.config_changed();
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    config: ConfigSpace,
    /// Offset of the MSI-X capability.
    msix_capability: Option<u8>,
    /// Offset of the capability through which configuration space reaches the registers.
    access_capability: u8,
    common: CommonConfig,
    device: Box<dyn DeviceConfig>,
    handler: Handler,
    /// The driver has asked for a reset, and the worker has not stopped yet.
    resetting: bool,
    event: Arc<Event>,
    gate: Arc<Gate>,
    health: Arc<Health>,
    interrupt: Arc<Interrupt>,
    memory: Arc<GuestRam>,
    doorbells: Arc<dyn Doorbells>,
    /// Where the registers are.
    address: Option<u64>,
    /// Ports that have doorbells. They stay over a reset, for doorbells are few and ringing one too often does no harm.
    rung: Vec<u64>,
}

impl VirtioPci {
    /// Puts `device` on the bus, into the first free one of `slots`, and gives its slot.
    ///
    /// # Errors
    ///
    /// These slots, or the windows of the bus, are full.
    pub fn attach(
        root: &PciRoot,
        slots: impl IntoIterator<Item = u8>,
        device: VirtioDevice,
        resources: &VirtioResources,
    ) -> Result<u8, PciError> {
        root.add(slots, |pin| Self::function(device, resources, pin))
    }

    fn function(device: VirtioDevice, resources: &VirtioResources, pin: IntxPin) -> NewFunction {
        let queues = device.queue_sizes.len();
        debug_assert!(queues <= layout::MAX_QUEUES && device.config.size() <= layout::DEVICE_SIZE);
        let id = device.kind as u16;
        let mut config = ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + id,
            revision: REVISION,
            class: device.kind.pci_class(),
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM + id,
        });
        config.add_bar(usize::from(layout::REGISTERS_BAR), BarKind::Ports, layout::REGISTERS_SIZE);
        let mut ranges: Vec<(usize, SharedDevice)> = Vec::new();
        let (mut msix, mut msix_capability) = (None, None);
        if resources.msix {
            // One vector for each queue and one for configuration changes.
            let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
            let table = Arc::new(Mutex::new(MsixTable::new(vectors, Arc::clone(pin.controller()))));
            config.add_bar(usize::from(layout::MSIX_BAR), BarKind::Memory, MSIX_RANGE_SIZE);
            msix_capability = Some(add_msix_capability(&mut config, layout::MSIX_BAR, vectors));
            ranges.push((usize::from(layout::MSIX_BAR), table.clone()));
            msix = Some(table);
        }
        let access_capability = layout::add_capabilities(&mut config, device.config.size() > 0);
        let interrupt = Arc::new(Interrupt::new(pin, msix, queues));
        let offered = device.features | feature::COMMON;
        let function = Arc::new(Mutex::new(Self {
            config,
            msix_capability,
            access_capability,
            common: CommonConfig::new(offered, &device.queue_sizes, Arc::clone(&interrupt)),
            device: device.config,
            handler: Handler::Parked(device.handler),
            resetting: false,
            event: device.event,
            gate: Arc::new(Gate::default()),
            health: Arc::new(Health {
                reports: Reports::new(&device.name),
                interrupt: Arc::clone(&interrupt),
                broken: AtomicBool::new(false),
            }),
            interrupt,
            memory: Arc::clone(&resources.memory),
            doorbells: Arc::clone(&resources.doorbells),
            address: None,
            rung: Vec::new(),
        }));
        ranges.push((usize::from(layout::REGISTERS_BAR), function.clone()));
        NewFunction { function, ranges }
    }

    /// The driver is ready: hands copies of its queues to a worker.
    fn start(&mut self) {
        if let Err(error) = self.try_start() {
            self.health.report(&error);
            self.common.set_needs_reset();
            self.interrupt.config_changed();
        }
    }

    fn try_start(&mut self) -> Result<(), StartError> {
        let features = self.common.accepted();
        let gate = Arc::new(Gate::default());
        gate.set_bus_master(self.config.command().contains(Command::BUS_MASTER));
        let mut queues = Vec::new();
        for (index, registers) in (0_u16..).zip(self.common.queues()) {
            let queue = registers.enabled.then(|| {
                VirtQueue::new(
                    index,
                    &registers.layout,
                    registers.max,
                    features & feature::EVENT_IDX != 0,
                    Arc::clone(&self.memory),
                    self.interrupt.clone(),
                    Arc::clone(&gate),
                )
            });
            queues.push(queue.transpose()?);
        }
        let mut handler = match std::mem::replace(&mut self.handler, Handler::Lost) {
            Handler::Parked(handler) => handler,
            other => {
                self.handler = other;
                return Err(StartError::Dead);
            }
        };
        self.gate = gate;
        self.health.broken.store(false, Ordering::Release);
        handler.start(features);
        let (event, gate, health) = (Arc::clone(&self.event), Arc::clone(&self.gate), Arc::clone(&self.health));
        match Worker::start(
            self.health.reports.name(),
            handler,
            Rings::new(queues, self.interrupt.clone()),
            event,
            gate,
            health,
        ) {
            Ok(worker) => self.handler = Handler::Running(worker),
            Err((error, handler)) => {
                self.handler = Handler::Parked(handler);
                return Err(StartError::Thread(error));
            }
        }
        self.hang_doorbells();
        Ok(())
    }

    /// Gives the notification ports of the queues in use doorbells, as far as the driver has room for them.
    fn hang_doorbells(&mut self) {
        let Some(base) = self.address else { return };
        for (port, registers) in (base + u64::from(layout::NOTIFY)..).step_by(4).zip(self.common.queues()) {
            if registers.enabled
                && !self.rung.contains(&port)
                && self.doorbells.add(DoorbellSpace::Port, port, layout::NOTIFY_STRIDE.into(), &self.event).is_ok()
            {
                self.rung.push(port);
            }
        }
    }

    fn take_doorbells_down(&mut self) {
        for port in self.rung.drain(..) {
            // It was hung, so it is there; and while the machine goes down it does not matter.
            _ = self.doorbells.remove(DoorbellSpace::Port, port, layout::NOTIFY_STRIDE.into());
        }
    }

    /// The driver asks for a reset: the worker is told to stop, and the status reads 0 once it has (virtio 1.2, 4.1.4.3.1).
    fn begin_reset(&mut self) {
        if let Handler::Running(worker) = &self.handler {
            worker.stop();
        }
        self.resetting = true;
        self.try_finish_reset();
    }

    /// Completes a reset if the worker has stopped.
    fn try_finish_reset(&mut self) {
        if !self.resetting {
            return;
        }
        self.handler = match std::mem::replace(&mut self.handler, Handler::Lost) {
            Handler::Running(worker) if !worker.is_stopped() => {
                self.handler = Handler::Running(worker);
                return;
            }
            Handler::Running(worker) => worker.join().map_or(Handler::Lost, Handler::Parked),
            other => other,
        };
        self.resetting = false;
        self.health.broken.store(false, Ordering::Release);
        self.common.reset();
        self.interrupt.reset();
    }

    fn read_register(&mut self, offset: u8, data: &mut [u8]) {
        match offset {
            layout::COMMON..layout::ISR => {
                self.try_finish_reset();
                if self.health.broken.load(Ordering::Acquire) {
                    self.common.set_needs_reset();
                }
                self.common.read(offset, self.device.generation(), data);
            }
            layout::ISR => {
                data.fill(0);
                data[0] = self.interrupt.take_status();
            }
            layout::DEVICE..layout::NOTIFY => self.device.read(usize::from(offset - layout::DEVICE), data),
            _ => data.fill(0),
        }
    }

    fn write_register(&mut self, offset: u8, data: &[u8]) {
        match offset {
            layout::COMMON..layout::ISR => {
                self.try_finish_reset();
                // Until the status reads 0 there is nothing to set up.
                if !self.resetting {
                    match self.common.write(offset, data) {
                        Effect::None => {}
                        Effect::Reset => self.begin_reset(),
                        Effect::Start => self.start(),
                    }
                }
            }
            layout::DEVICE..layout::NOTIFY => self.device.write(usize::from(offset - layout::DEVICE), data),
            // A queue's notification that no doorbell caught.
            layout::NOTIFY.. => self.event.signal(),
            _ => {}
        }
    }

    /// The registers that the access capability selects, unless it selects none.
    fn selected(&self) -> Option<(u8, usize)> {
        let field = |at| self.config.dword(usize::from(self.access_capability + at));
        let [bar, ..] = field(layout::ACCESS_BAR).to_le_bytes();
        let (offset, length) = (field(layout::ACCESS_OFFSET), field(layout::ACCESS_LENGTH));
        let valid = bar == layout::REGISTERS_BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && offset < layout::REGISTERS_SIZE;
        valid.then_some((u8::try_from(offset).ok()?, usize::try_from(length).ok()?))
    }

    /// Whether an access to configuration space touches the access capability's data.
    fn touches_access(&self, offset: u8, length: usize) -> bool {
        let start = usize::from(offset);
        let data = usize::from(self.access_capability + layout::ACCESS_DATA);
        start < usize::from(self.access_capability + layout::ACCESS_SIZE) && data < start + length
    }

    /// Takes over what configuration space says of interrupts and DMA.
    fn apply_control(&mut self) {
        let command = self.config.command();
        let msix = self.msix_capability.map_or((false, false), |at| msix_control(&self.config, at));
        let bus_master = command.contains(Command::BUS_MASTER);
        self.interrupt.set_control(msix, bus_master, command.contains(Command::NO_INTX));
        self.gate.set_bus_master(bus_master);
        if bus_master {
            // For what waited for it.
            self.event.signal();
        }
    }
}

impl PciFunction for VirtioPci {
    fn is_idle(&self) -> bool {
        // A reset that is not over yet may still write.
        !self.resetting && !matches!(self.handler, Handler::Running(_)) && !self.common.has_driver()
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.config.set_interrupt_status(self.interrupt.is_pending());
        if self.touches_access(offset, data.len())
            && let Some((register, length)) = self.selected()
        {
            let mut value = [0; 4];
            self.read_register(register, &mut value[..length]);
            self.config.set(usize::from(self.access_capability + layout::ACCESS_DATA), &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        let before = (self.config.command(), self.msix_capability.map(|at| msix_control(&self.config, at)));
        self.config.write(offset, data);
        if self.touches_access(offset, data.len())
            && let Some((register, length)) = self.selected()
        {
            let value = self.config.dword(usize::from(self.access_capability + layout::ACCESS_DATA)).to_le_bytes();
            self.write_register(register, &value[..length]);
        }
        let after = (self.config.command(), self.msix_capability.map(|at| msix_control(&self.config, at)));
        if before != after {
            self.apply_control();
        }
    }

    fn moved(&mut self, bar: usize, address: Option<u64>) {
        if bar != usize::from(layout::REGISTERS_BAR) {
            return;
        }
        self.address = address;
        self.take_doorbells_down();
        if self.common.is_started() {
            self.hang_doorbells();
        }
    }
}

/// The registers, as the range of ports has them.
impl BusDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Ok(offset) = u8::try_from(offset) {
            self.read_register(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u8::try_from(offset) {
            self.write_register(offset, data);
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.take_doorbells_down();
        if let Handler::Running(worker) = std::mem::replace(&mut self.handler, Handler::Lost) {
            worker.stop();
            worker.join();
        }
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("VirtioPci").field("name", &self.health.reports.name()).finish_non_exhaustive()
    }
}
