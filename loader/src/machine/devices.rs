//! The machine's buses, and which device is where on them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use super::Ends;
use super::device;
use super::disks::Disks;
use crate::devices::pci::CONFIG_PORTS;
use crate::devices::pci::CONFIG_PORTS_SIZE;
use crate::devices::pci::ConfigPorts;
use crate::devices::pci::EjectSink;
use crate::devices::pci::HOT_PLUG_PORT;
use crate::devices::pci::HOT_PLUG_PORTS;
use crate::devices::pci::HotPlug;
use crate::devices::pci::PciRoot;
use crate::devices::pci::SLOTS;
use crate::devices::pci::Windows;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::devices::power::EVENT_PORT;
use crate::devices::power::EVENT_PORTS;
use crate::devices::power::EventRegister;
use crate::devices::power::EventSource;
use crate::devices::power::PowerSink;
use crate::devices::power::ResetRegister;
use crate::devices::power::SLEEP_PORT;
use crate::devices::power::SLEEP_PORTS;
use crate::devices::power::SleepRegisters;
use crate::devices::serial::SERIAL_PORT;
use crate::devices::serial::SERIAL_PORTS;
use crate::devices::serial::Serial;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::VirtioPci;
use crate::devices::virtio::VirtioResources;
use crate::devices::virtio::balloon;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::balloon::MemorySink;
use crate::devices::virtio::console;
use crate::devices::virtio::console::ConsoleHandle;
use crate::devices::virtio::console::ConsoleSize;
use crate::devices::virtio::entropy;
use crate::devices::virtio::fs;
use crate::devices::virtio::input;
use crate::devices::virtio::input::PowerKey;
use crate::devices::virtio::net;
use crate::devices::xen_console::CONSOLE_PORTS;
use crate::devices::xen_console::EARLY_CONSOLE_PORTS;
use crate::devices::xen_console::EarlyConsole;
use crate::devices::xen_console::XenConsole;
use crate::devices::xen_console::XenConsoleHandle;
use crate::driver::Vm;
use crate::layout::EVENT_GSI;
use crate::layout::Model;
use crate::layout::PCI_MEMORY;
use crate::platform::Bus;
use crate::platform::BusDevice;
use crate::platform::InterruptController;
use crate::platform::SharedDevice;
use crate::run::Console;
use crate::run::Prepared;
use crate::run::RunError;
use covisor_abi::paravirtual::CONSOLE_PORT;
use covisor_abi::paravirtual::EARLY_CONSOLE_PORT;
use covisor_exec_protocol::PORT_NAME;

fn window(start: u64, size: u64) -> Range<u64> {
    start..start + size
}

/// What comes out of the console, what goes into it, and [`Ends::early_output`].
type Streams = (HostInput, HostOutput, Option<HostInput>);

/// The power button, as this kind of machine has it.
#[derive(Debug)]
pub(super) enum PowerButton {
    Acpi(EventSource),
    Keyboard(PowerKey),
}

impl PowerButton {
    pub(super) fn press(&self) {
        match self {
            Self::Acpi(button) => button.signal(),
            Self::Keyboard(key) => key.press(),
        }
    }

    /// Whether the guest's kernel hears of it by now.
    pub(super) fn is_heard(&self) -> bool {
        match self {
            Self::Acpi(button) => button.is_heard(),
            Self::Keyboard(key) => key.is_heard(),
        }
    }
}

/// The buses and what is on them.
pub(super) struct Devices {
    pub(super) ports: Arc<Bus>,
    pub(super) memory: Arc<Bus>,
    root: Arc<PciRoot>,
    pub(super) console_size: Option<ConsoleSize>,
    pub(super) disks: Disks,
}

impl Devices {
    /// The buses, with the PCI host bridge and its reset register.
    pub(super) fn new(
        vm: &Arc<Vm>,
        resources: &VirtioResources,
        model: Model,
        power: PowerSink,
    ) -> Result<Self, RunError> {
        let interrupts: Arc<dyn InterruptController> = vm.clone();
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let (first_port, port_count) = model.pci_ports();
        let windows =
            Windows { ports: window(first_port.into(), port_count.into()), memory: window(PCI_MEMORY.0, PCI_MEMORY.1) };
        let root = Arc::new(PciRoot::new(windows, &ports, &memory, interrupts));
        let reset = ResetRegister::new(power);
        let disks = Disks::new(&root, resources);
        let devices = Self { ports, memory, root, console_size: None, disks };
        devices.at(CONFIG_PORTS, CONFIG_PORTS_SIZE, ConfigPorts::new(Arc::clone(&devices.root), reset))?;
        Ok(devices)
    }

    /// How the guest is asked to shut down, and on a PC switches itself off: by ACPI there. A paravirtual kernel has none; it
    /// gets the same key from a keyboard.
    /// ACPI also tells it of disks that come and go, of which `eject` hears when they were let go.
    pub(super) fn add_power(
        &mut self,
        vm: &Arc<Vm>,
        resources: &VirtioResources,
        model: Model,
        power: PowerSink,
        eject: EjectSink,
    ) -> Result<PowerButton, RunError> {
        match model {
            Model::Pc => {
                let events = EventRegister::new(vm.clone(), EVENT_GSI);
                let button = events.power_button();
                let hot_plug = HotPlug::new(events.hot_plug());
                self.at(SLEEP_PORT, SLEEP_PORTS, SleepRegisters::new(power))?;
                self.at(EVENT_PORT, EVENT_PORTS, events)?;
                self.at(HOT_PLUG_PORT, HOT_PLUG_PORTS, hot_plug.registers(Arc::clone(&self.root), eject))?;
                self.disks.tell_by(hot_plug);
                Ok(PowerButton::Acpi(button))
            }
            Model::Paravirtual => {
                let (keyboard, key) = input::power_key("power").map_err(device)?;
                self.attach(keyboard, resources)?;
                Ok(PowerButton::Keyboard(key))
            }
        }
    }

    fn at(&self, base: u64, size: u64, new: impl BusDevice + 'static) -> Result<(), RunError> {
        self.put(base, size, Arc::new(Mutex::new(new)))
    }

    fn put(&self, base: u64, size: u64, new: SharedDevice) -> Result<(), RunError> {
        self.ports.insert(base, size, new).map_err(device)
    }

    /// The devices that depend on the configuration: console, exec port, disks, network adapters, shared folders, entropy.
    pub(super) fn add_all(
        &mut self,
        vm: &Arc<Vm>,
        resources: &VirtioResources,
        prepared: &mut Prepared,
    ) -> Result<Ends, RunError> {
        let (console_output, console_input, early_output) = match prepared.console_ring() {
            Some(page) => self.add_xen_console(vm, resources, page, prepared.config.console)?,
            None => self.add_consoles(vm, resources, prepared.config.console)?,
        };
        let (port, exec) = console::named_port("exec", PORT_NAME).map_err(device)?;
        self.attach(port, resources)?;
        let exec = (exec.output, exec.input);
        for (name, disk) in prepared.take_disks()? {
            self.disks.attach(&name, disk)?;
        }
        for (index, network) in prepared.take_networks()?.into_iter().enumerate() {
            let adapter = net::device(&format!("net{index}"), network.mac, network.backend).map_err(device)?;
            self.attach(adapter, resources)?;
        }
        for (index, share) in prepared.take_shares()?.into_iter().enumerate() {
            let name = format!("share{index}");
            self.attach(fs::device(&name, &share.tag, share.files, share.read_only).map_err(device)?, resources)?;
        }
        self.attach(entropy::device("entropy").map_err(device)?, resources)?;
        Ok(Ends { console_output, console_input, early_output, exec })
    }

    /// The balloon, whose memory goes to `sink`.
    pub(super) fn add_balloon(
        &self,
        resources: &VirtioResources,
        sink: impl MemorySink + 'static,
    ) -> Result<Balloon, RunError> {
        let (new, balloon) = balloon::device(Box::new(sink)).map_err(device)?;
        self.attach(new, resources)?;
        Ok(balloon)
    }

    /// A PC's serial port, and the virtio console unless the serial port is the console.
    fn add_consoles(
        &mut self,
        vm: &Arc<Vm>,
        resources: &VirtioResources,
        chosen: Console,
    ) -> Result<Streams, RunError> {
        let (serial, serial_output, serial_input) = Serial::new(vm.clone());
        self.put(SERIAL_PORT, SERIAL_PORTS, serial)?;
        if chosen == Console::Serial {
            return Ok((serial_output, serial_input, None));
        }
        let (console, ConsoleHandle { input, output, size }) = console::console("console").map_err(device)?;
        self.attach(console, resources)?;
        self.console_size = Some(size);
        Ok((output, input, Some(serial_output)))
    }

    /// Xen's console, with its ring at `page`; what comes out of it begins with the earliest messages if the serial port, which
    /// has them elsewhere, was chosen.
    fn add_xen_console(
        &self,
        vm: &Arc<Vm>,
        resources: &VirtioResources,
        page: u64,
        chosen: Console,
    ) -> Result<Streams, RunError> {
        let (console, XenConsoleHandle { input, output, writer }) =
            XenConsole::new(page, Arc::clone(&resources.memory), vm.as_ref(), vm.clone()).map_err(device)?;
        self.at(CONSOLE_PORT.into(), CONSOLE_PORTS, console)?;
        let (early, early_output) = match chosen {
            Console::Serial => (EarlyConsole::new(writer), None),
            Console::Hvc => {
                let (early, stream) = EarlyConsole::with_stream();
                (early, Some(stream))
            }
        };
        self.at(EARLY_CONSOLE_PORT.into(), EARLY_CONSOLE_PORTS, early)?;
        Ok((output, input, early_output))
    }

    fn attach(&self, new: VirtioDevice, resources: &VirtioResources) -> Result<(), RunError> {
        // First those slots from which nothing can be taken.
        VirtioPci::attach(&self.root, 1..SLOTS, new, resources).map(drop).map_err(device)
    }
}
