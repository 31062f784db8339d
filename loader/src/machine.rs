//! The machine: which device is where, its vCPUs' threads, its end.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use crate::devices::pci::CONFIG_PORTS;
use crate::devices::pci::CONFIG_PORTS_SIZE;
use crate::devices::pci::ConfigPorts;
use crate::devices::pci::PciRoot;
use crate::devices::pci::Windows;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::devices::power::EVENT_PORT;
use crate::devices::power::EVENT_PORTS;
use crate::devices::power::EventRegister;
use crate::devices::power::PowerButton;
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
use crate::devices::virtio::block;
use crate::devices::virtio::console;
use crate::devices::virtio::console::ConsoleHandle;
use crate::devices::virtio::console::ConsoleSize;
use crate::devices::virtio::entropy;
use crate::driver::Vcpu;
use crate::driver::Vm;
use crate::firmware;
use crate::layout::EVENT_GSI;
use crate::layout::PCI_MEMORY;
use crate::layout::PCI_PORTS;
use crate::platform::Bus;
use crate::platform::BusDevice;
use crate::platform::Doorbells;
use crate::platform::EventFd;
use crate::platform::GuestRam;
use crate::platform::InterruptController;
use crate::platform::SharedDevice;
use crate::run::Console;
use crate::run::Prepared;
use crate::run::RunError;
use crate::vcpu;
use crate::vcpu::VcpuEnd;
use covisor_abi::DoorbellSpace;
use covisor_exec_protocol::PORT_NAME;

/// Stack of a vCPU's thread: the run loop and the devices' registers need little.
const VCPU_STACK: usize = 256 << 10;

/// Takes the end of a vCPU, on its thread.
pub type VcpuSink = Arc<dyn Fn(VcpuEnd) + Send + Sync>;

/// The host's ends of the guest's streams.
pub struct Ends {
    /// What comes out of the console.
    pub console_output: HostInput,
    /// What goes into it.
    pub console_input: HostOutput,
    /// What comes out of the serial port where that is not the console: a guest's earliest messages, if it sends any.
    pub serial_output: Option<HostInput>,
    /// The exec agent's port.
    pub exec: Option<(HostInput, HostOutput)>,
}

impl fmt::Debug for Ends {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ends").field("exec", &self.exec.is_some()).finish_non_exhaustive()
    }
}

/// A machine. Dropping it ends its vCPUs, then its devices.
pub struct Machine {
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    vcpu_sink: VcpuSink,
    power_button: PowerButton,
    console_size: Option<ConsoleSize>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    _test_doorbell: Option<EventFd>,
}

impl Machine {
    /// Makes the machine, with the kernel in its memory and the first vCPU before its first instruction.
    ///
    /// # Errors
    /// When driver or host refuse, or the files changed since they were checked.
    pub fn new(
        vm: Arc<Vm>,
        prepared: &mut Prepared,
        power_sink: PowerSink,
        vcpu_sink: VcpuSink,
    ) -> Result<(Self, Ends), RunError> {
        let cpus = prepared.config.cpus;
        let ram = Arc::new(vm.add_memory(&prepared.ram.ranges())?);
        let vcpus = (0..cpus).map(|index| vm.create_vcpu(index)).collect::<Result<Vec<_>, _>>()?;

        let state = prepared.load(&ram)?;
        firmware::install(&ram, cpus).map_err(device)?;
        if let Some(first) = vcpus.first() {
            first.set_state(&state)?;
        }

        let stop = Arc::new(AtomicBool::new(false));
        let mut devices = Devices::new(&vm, stopping(power_sink, &stop))?;
        let ends = devices.add_all(&vm, ram, prepared)?;
        let test_doorbell = prepared.config.test_doorbell.map(|port| test_doorbell(&vm, port)).transpose()?;
        let Devices { ports, memory, power_button, console_size, .. } = devices;
        let threads = Vec::new();
        let machine = Self {
            vm,
            vcpus,
            threads,
            stop,
            vcpu_sink,
            power_button,
            console_size,
            ports,
            memory,
            _test_doorbell: test_doorbell,
        };
        Ok((machine, ends))
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// When the host has no threads for them.
    pub fn start(&mut self) -> io::Result<()> {
        for mut vcpu in self.vcpus.drain(..) {
            let (ports, memory) = (Arc::clone(&self.ports), Arc::clone(&self.memory));
            let (stop, sink) = (Arc::clone(&self.stop), Arc::clone(&self.vcpu_sink));
            let builder = thread::Builder::new().name(format!("vcpu-{}", vcpu.index())).stack_size(VCPU_STACK);
            self.threads.push(builder.spawn(move || sink(vcpu::run(&mut vcpu, &ports, &memory, &stop)))?);
        }
        Ok(())
    }

    /// The terminal has this size now.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(size) = &self.console_size {
            size.set(columns, rows);
        }
    }

    /// Asks the guest's operating system to shut down.
    pub fn press_power_button(&self) {
        self.power_button.press();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for (vcpu, handle) in (0..).zip(self.threads.drain(..)) {
            if let Err(error) = self.vm.kick(vcpu) {
                log::warn!("vCPU {vcpu} cannot be stopped: {error}");
            }
            // A panic on its thread was reported there.
            let _ = handle.join();
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Machine").field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// A power event stops the vCPU that causes it before its next instruction.
fn stopping(sink: PowerSink, stop: &Arc<AtomicBool>) -> PowerSink {
    let stop = Arc::clone(stop);
    Arc::new(move |event| {
        stop.store(true, Ordering::Release);
        sink(event);
    })
}

/// A doorbell that nobody waits on; its event lasts as long as what is returned.
fn test_doorbell(vm: &Vm, port: u16) -> Result<EventFd, RunError> {
    let event = EventFd::new(0).map_err(device)?;
    vm.add(DoorbellSpace::Port, port.into(), 4, &event).map_err(device)?;
    Ok(event)
}

/// A device that cannot be had.
fn device(error: impl fmt::Display) -> RunError {
    RunError::Device(error.to_string())
}

fn window(start: u64, size: u64) -> Range<u64> {
    start..start + size
}

/// The buses and what is on them.
struct Devices {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    root: Arc<PciRoot>,
    power_button: PowerButton,
    console_size: Option<ConsoleSize>,
}

impl Devices {
    /// The buses, with the PCI host bridge and the power registers.
    fn new(vm: &Arc<Vm>, power: PowerSink) -> Result<Self, RunError> {
        let interrupts: Arc<dyn InterruptController> = vm.clone();
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let windows = Windows {
            ports: window(PCI_PORTS.0.into(), PCI_PORTS.1.into()),
            memory: window(PCI_MEMORY.0, PCI_MEMORY.1),
        };
        let root = Arc::new(PciRoot::new(windows, &ports, &memory, Arc::clone(&interrupts)));
        let reset = ResetRegister::new(Arc::clone(&power));
        let events = EventRegister::new(interrupts, EVENT_GSI);
        let power_button = events.power_button();
        let devices = Self { ports, memory, root, power_button, console_size: None };
        devices.at(CONFIG_PORTS, CONFIG_PORTS_SIZE, ConfigPorts::new(Arc::clone(&devices.root), reset))?;
        devices.at(SLEEP_PORT, SLEEP_PORTS, SleepRegisters::new(power))?;
        devices.at(EVENT_PORT, EVENT_PORTS, events)?;
        Ok(devices)
    }

    fn at(&self, base: u64, size: u64, new: impl BusDevice + 'static) -> Result<(), RunError> {
        self.put(base, size, Arc::new(Mutex::new(new)))
    }

    fn put(&self, base: u64, size: u64, new: SharedDevice) -> Result<(), RunError> {
        self.ports.insert(base, size, new).map_err(device)
    }

    /// The devices that depend on the configuration: console, exec port, disks, entropy.
    fn add_all(&mut self, vm: &Arc<Vm>, memory: Arc<GuestRam>, prepared: &mut Prepared) -> Result<Ends, RunError> {
        let resources = VirtioResources { memory, doorbells: vm.clone(), msix: true };
        let (serial, serial_output, serial_input) = Serial::new(vm.clone());
        self.put(SERIAL_PORT, SERIAL_PORTS, serial)?;
        let (console_output, console_input, serial_output) = match prepared.config.console {
            Console::Serial => (serial_output, serial_input, None),
            Console::Hvc => {
                let (console, ConsoleHandle { input, output, size }) = console::console("console").map_err(device)?;
                self.attach(console, &resources)?;
                self.console_size = Some(size);
                (output, input, Some(serial_output))
            }
        };
        let mut exec = None;
        if prepared.config.exec.is_some() {
            let (port, handle) = console::named_port("exec", PORT_NAME).map_err(device)?;
            self.attach(port, &resources)?;
            exec = Some((handle.output, handle.input));
        }
        for (index, disk) in prepared.take_disks()?.into_iter().enumerate() {
            let name = format!("disk{index}");
            self.attach(block::device(&name, &name, Box::new(disk)).map_err(device)?, &resources)?;
        }
        self.attach(entropy::device("entropy").map_err(device)?, &resources)?;
        Ok(Ends { console_output, console_input, serial_output, exec })
    }

    fn attach(&self, new: VirtioDevice, resources: &VirtioResources) -> Result<(), RunError> {
        VirtioPci::attach(&self.root, new, resources).map(drop).map_err(device)
    }
}
