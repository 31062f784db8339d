//! The machine: its making, its vCPUs' threads, its end.

mod devices;
mod disks;
mod pause;
mod reclaim;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use self::devices::Devices;
use self::devices::PowerButton;
use self::disks::Disks;
pub use self::pause::Pause;
use self::reclaim::Reclaim;
use crate::devices::pci::EjectSink;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::devices::power::PowerSink;
use crate::devices::reports::Reports;
use crate::devices::virtio::VirtioResources;
use crate::devices::virtio::balloon;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::console::ConsoleSize;
use crate::disk::BlockBackend;
use crate::driver::Vcpu;
use crate::driver::Vm;
use crate::firmware;
use crate::layout::Model;
use crate::platform::Bus;
use crate::platform::Doorbells;
use crate::platform::Event;
use crate::run::Prepared;
use crate::run::RunError;
use crate::vcpu;
use crate::vcpu::VcpuEnd;
use covisor_abi::DoorbellSpace;
use covisor_abi::VcpuCreate;

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
    /// A guest's earliest messages, if it sends any: what comes out of the serial port where that is not the console, or on
    /// a paravirtual machine by calls.
    pub early_output: Option<HostInput>,
    /// The exec agent's port.
    pub exec: (HostInput, HostOutput),
}

impl fmt::Debug for Ends {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ends").field("exec", &self.exec).finish_non_exhaustive()
    }
}

/// A machine. Dropping it ends its vCPUs, then its devices.
pub struct Machine {
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    pause: Arc<Pause>,
    balloon: Option<Balloon>,
    vcpu_sink: VcpuSink,
    power_button: PowerButton,
    console_size: Option<ConsoleSize>,
    disks: Disks,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    _test_doorbell: Option<Event>,
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
        eject_sink: EjectSink,
    ) -> Result<(Self, Ends), RunError> {
        let cpus = prepared.config.cpus;
        let (ram, on_demand) = vm.add_memory(&prepared.ram.ranges())?;
        let ram = Arc::new(ram);
        let flags = if prepared.config.test_page_tables { VcpuCreate::CHECKS } else { 0 };
        let vcpus = (0..cpus).map(|index| vm.create_vcpu(index, flags)).collect::<Result<Vec<_>, _>>()?;

        let state = prepared.load(&ram)?;
        if prepared.model() == Model::Pc {
            firmware::install(&ram, cpus).map_err(device)?;
        }
        if let Some(first) = vcpus.first() {
            first.set_state(&state)?;
        }

        let stop = Arc::new(AtomicBool::new(false));
        let power_sink = stopping(power_sink, &stop);
        let msix = prepared.model() == Model::Pc;
        let resources = VirtioResources { memory: ram, doorbells: vm.clone(), msix };
        let mut devices = Devices::new(&vm, &resources, prepared.model(), Arc::clone(&power_sink))?;
        let ends = devices.add_all(&vm, &resources, prepared)?;
        let pause = Arc::<Pause>::default();
        let balloon = on_demand.then(|| {
            let (vm, ram, pause) = (Arc::clone(&vm), Arc::clone(&resources.memory), Arc::clone(&pause));
            let reports = Reports::new(balloon::NAME);
            devices.add_balloon(&resources, Reclaim { vm, ram, pause, cpus, reports })
        });
        let balloon = balloon.transpose()?;
        let power_button = devices.add_power(&vm, &resources, prepared.model(), power_sink, eject_sink)?;
        let test_doorbell = prepared.config.test_doorbell.map(|port| test_doorbell(&vm, port)).transpose()?;
        let Devices { ports, memory, console_size, disks, .. } = devices;
        let threads = Vec::new();
        let machine = Self {
            vm,
            vcpus,
            threads,
            stop,
            pause,
            balloon,
            vcpu_sink,
            power_button,
            console_size,
            disks,
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
        // SAFETY: every x86-64 CPU has RDTSC, and hosts let programs use it.
        log::debug!("the guest starts at time stamp counter {}", unsafe { core::arch::x86_64::_rdtsc() });
        for mut vcpu in self.vcpus.drain(..) {
            let (ports, memory) = (Arc::clone(&self.ports), Arc::clone(&self.memory));
            let (stop, sink) = (Arc::clone(&self.stop), Arc::clone(&self.vcpu_sink));
            let pause = Arc::clone(&self.pause);
            let builder = thread::Builder::new().name(format!("vcpu-{}", vcpu.index())).stack_size(VCPU_STACK);
            self.threads.push(builder.spawn(move || sink(vcpu::run(&mut vcpu, &ports, &memory, &stop, &pause)))?);
        }
        Ok(())
    }

    /// The terminal has this size now.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(size) = &self.console_size {
            size.set(columns, rows);
        }
    }

    /// Gives the guest a disk; whether it could be told of it.
    ///
    /// # Errors
    /// When the bus has no room left.
    pub fn add_disk(&mut self, name: &str, backend: Box<dyn BlockBackend>) -> Result<bool, RunError> {
        self.disks.add(name, backend)
    }

    /// Asks the guest to let a disk go. `None` where there is no such disk, else whether the guest could be asked.
    pub fn remove_disk(&mut self, name: &str) -> Option<bool> {
        self.disks.remove(name)
    }

    /// Ends the disks that the guest has let go, and gives their names.
    pub fn settle_disks(&mut self) -> Vec<String> {
        self.disks.settle()
    }

    /// The disks: name, slot, and whether it is to go.
    pub fn disks(&self) -> impl Iterator<Item = (&str, u8, bool)> {
        self.disks.list()
    }

    /// The balloon. There is none where the guest's memory stays as it is.
    #[must_use]
    pub fn balloon(&self) -> Option<&Balloon> {
        self.balloon.as_ref()
    }

    /// The host's clock was set: a paravirtual guest is shown the new time when its vCPU runs again, which it does at once.
    pub fn show_clock(&self) {
        for vcpu in (0..).take(self.threads.len()) {
            if let Err(error) = self.vm.kick(vcpu) {
                log::warn!("vCPU {vcpu} cannot be told of the clock: {error}");
            }
        }
    }

    /// Asks the guest's operating system to shut down.
    pub fn press_power_button(&self) {
        self.power_button.press();
    }

    /// Whether the guest's kernel hears of the power button by now. Who acts on it in the guest may still have to start.
    pub fn hears_power_button(&self) -> bool {
        self.power_button.is_heard()
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
fn test_doorbell(vm: &Vm, port: u16) -> Result<Event, RunError> {
    let event = Event::new().map_err(device)?;
    vm.add(DoorbellSpace::Port, port.into(), 4, &event).map_err(device)?;
    Ok(event)
}

/// A device that cannot be had.
fn device(error: impl fmt::Display) -> RunError {
    RunError::Device(error.to_string())
}
