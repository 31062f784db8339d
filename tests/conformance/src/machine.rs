//! Handles, and VMs in them.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use covisor::sys::memory::Region;
use covisor::sys::transport::DEVICE_PATH;
use covisor::sys::transport::Transport;
use covisor_abi::Call;
use covisor_abi::EngineKind;
use covisor_abi::ExitReason;
use covisor_abi::Handshake;
use covisor_abi::Kick;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Run;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use vm_memory::Bytes;
use vm_memory::GuestMemoryRegion;
use vm_memory::MemoryRegionAddress;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::code::CODE;
use crate::code::Code;
use crate::code::MARK;
use crate::host::Caller;

/// The RAM of a guest here: one large page, which is the least that the driver gives under Wine.
pub(crate) const RAM: u64 = 2 << 20;

/// Index of RAX in [`VcpuState::gprs`].
pub(crate) const RAX: usize = 0;
/// Index of RSP.
const RSP: usize = 4;
/// Indexes in [`VcpuState::segments`].
const CS: usize = 1;
pub(crate) const DS: usize = 3;

/// The top of a guest's stack.
const STACK: u64 = 0x8000;

/// How long a guest may take to come to its mark.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open handle.
#[derive(Debug)]
pub(crate) struct Handle(Transport);

impl Handle {
    /// Opens the device.
    pub(crate) fn open() -> Checked<Self> {
        done("opening the device", Transport::open(Path::new(DEVICE_PATH))).map(Self)
    }

    /// The same, with the versions compared.
    pub(crate) fn greeted() -> Checked<Self> {
        let handle = Self::open()?;
        let mut greeting = greeting();
        done("the handshake", handle.call(Call::Handshake, &mut greeting))?;
        ensure!(greeting.version == VERSION, "the driver has version {}", greeting.version);
        Ok(handle)
    }

    /// The same, made a VM with so many vCPUs, of which none is there yet.
    pub(crate) fn with_vm(vcpus: u32) -> Checked<Self> {
        let handle = Self::greeted()?;
        done("making the VM", handle.call(Call::VmCreate, &mut VmCreate { engine: EngineKind::Auto as u32, vcpus }))?;
        Ok(handle)
    }

    /// A call.
    pub(crate) fn call<T: FromBytes + IntoBytes + Immutable>(&self, call: Call, value: &mut T) -> io::Result<()> {
        self.0.call(call, value)
    }

    /// Gives the VM RAM, and says where.
    pub(crate) fn add_memory(&self, gpa: u64, size: u64) -> io::Result<u64> {
        let mut add = MemoryAdd { gpa, size, ..MemoryAdd::default() };
        self.call(Call::MemoryAdd, &mut add).map(|()| add.map)
    }

    /// Discards memory: bytes that were given back, and bytes that the VM has then.
    pub(crate) fn discard(&self, gpa: u64, size: u64) -> io::Result<(u64, u64)> {
        let mut discard = MemoryDiscard { gpa, size, ..MemoryDiscard::default() };
        self.call(Call::MemoryDiscard, &mut discard).map(|()| (discard.freed, discard.allocated))
    }

    /// Gives the VM a vCPU.
    pub(crate) fn create_vcpu(&self, vcpu: u32, flags: u32) -> io::Result<()> {
        self.call(Call::VcpuCreate, &mut VcpuCreate { vcpu, flags })
    }

    /// A vCPU's registers.
    pub(crate) fn state(&self, vcpu: u32) -> io::Result<VcpuState> {
        let mut state = VcpuState { vcpu, ..VcpuState::default() };
        self.call(Call::VcpuGet, &mut state).map(|()| state)
    }

    /// Sets them.
    pub(crate) fn set_state(&self, state: &VcpuState) -> io::Result<()> {
        self.call(Call::VcpuSet, &mut state.clone())
    }

    /// Runs a vCPU, with the answer to what it has read.
    pub(crate) fn run(&self, vcpu: u32, data: u64) -> io::Result<Run> {
        let mut run = Run { vcpu, data, ..Run::default() };
        self.call(Call::Run, &mut run).map(|()| run)
    }

    /// Kicks a vCPU.
    pub(crate) fn kick(&self, vcpu: u32) -> io::Result<()> {
        self.call(Call::Kick, &mut Kick { vcpu, reserved: 0 })
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0
    }

    pub(crate) fn into_transport(self) -> Transport {
        self.0
    }
}

/// A handshake as it should be.
pub(crate) fn greeting() -> Handshake {
    Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() }
}

/// A guest's RAM.
#[derive(Debug)]
pub(crate) struct Ram(Region);

impl Ram {
    /// Maps what the driver has given at these addresses.
    pub(crate) fn map(handle: &Handle, gpa: u64, map: u64, size: u64) -> Checked<Self> {
        let size = usize::try_from(size).map_err(|error| error.to_string())?;
        done("mapping RAM", handle.0.map(gpa, map, size)).map(Self)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let slice = self.0.get_slice(MemoryRegionAddress(offset), bytes.len()).expect("it is inside");
        slice.write_slice(bytes, 0).expect("it fits");
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let slice = self.0.get_slice(MemoryRegionAddress(offset), bytes.len()).expect("it is inside");
        slice.read_slice(bytes, 0).expect("it fits");
    }

    pub(crate) fn byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }

    /// The address of a byte in this process.
    pub(crate) fn pointer(&self, offset: u64) -> *mut u8 {
        let slice = self.0.get_slice(MemoryRegionAddress(offset), 1).expect("it is inside");
        slice.ptr_guard_mut().as_ptr()
    }
}

/// A VM with RAM and vCPUs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) handle: Handle,
    pub(crate) ram: Ram,
}

impl Machine {
    /// One with so many vCPUs, which begin with this code.
    pub(crate) fn with_vcpus(vcpus: u32, code: &Code) -> Checked<Self> {
        let handle = Handle::with_vm(vcpus)?;
        let map = done("giving the VM RAM", handle.add_memory(0, RAM))?;
        let ram = Ram::map(&handle, 0, map, RAM)?;
        ram.write(CODE, code.bytes());
        let machine = Self { handle, ram };
        for vcpu in 0..vcpus {
            done("making a vCPU", machine.handle.create_vcpu(vcpu, 0))?;
            machine.set(vcpu, |_| ())?;
        }
        Ok(machine)
    }

    /// One with one vCPU.
    pub(crate) fn new(code: &Code) -> Checked<Self> {
        Self::with_vcpus(1, code)
    }

    /// Sets a vCPU's registers to those of real mode at [`CODE`] without interrupt handlers, and changed so.
    pub(crate) fn set(&self, vcpu: u32, change: impl FnOnce(&mut VcpuState)) -> Checked {
        let mut state = done("reading registers", self.handle.state(vcpu))?;
        state.rip = CODE;
        state.gprs[RSP] = STACK;
        state.segments[CS].base = 0;
        state.segments[CS].selector = 0;
        state.idtr.limit = 0;
        change(&mut state);
        done("setting registers", self.handle.set_state(&state))
    }

    /// Runs a vCPU that must return with this reason.
    pub(crate) fn run(&self, vcpu: u32, reason: ExitReason) -> Checked<Run> {
        self.answer(vcpu, 0, reason)
    }

    /// The same with the answer to what it has read.
    pub(crate) fn answer(&self, vcpu: u32, data: u64, reason: ExitReason) -> Checked<Run> {
        let run = done("running a vCPU", self.handle.run(vcpu, data))?;
        ensure!(run.exit == reason as u32, "a vCPU returned {run:?}, and not for {reason:?}");
        ensure!(run.vcpu == vcpu && run.kill == 0, "a vCPU returned {run:?}");
        Ok(run)
    }

    /// Runs the only vCPU until it writes to a port, and checks what and where.
    pub(crate) fn run_to_port(&self, port: u64, data: u64, size: u32) -> Checked {
        let run = self.run(0, ExitReason::PortWrite)?;
        let is_so = (run.address, run.data, run.size) == (port, data, size);
        ensure!(is_so, "{data:#x} was to be written to port {port:#x}, {size} bytes, and not: {run:?}");
        Ok(())
    }

    /// Waits until a guest has come to its mark.
    pub(crate) fn wait_for_mark(&self) -> Checked {
        let start = Instant::now();
        while self.ram.byte(MARK.into()) == 0 {
            ensure!(start.elapsed() < PATIENCE, "the guest does not come to its mark");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Runs a vCPU in another thread, which must come to its mark; `meanwhile` has to end that. Gives how it ended, and what
    /// `meanwhile` gives.
    pub(crate) fn while_runs<T>(
        &self,
        vcpu: u32,
        meanwhile: impl FnOnce(Caller) -> Checked<T>,
    ) -> Checked<(io::Result<Run>, T)> {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let running = scope.spawn(move || {
                // Who waits for it is there.
                _ = sender.send(Caller::current());
                self.handle.run(vcpu, 0)
            });
            let caller = receiver.recv().map_err(|error| error.to_string())?;
            let seen = self.wait_for_mark().and_then(|()| meanwhile(caller));
            if seen.is_err() {
                // It is told what went wrong, and not that the thread does not end.
                done("a kick", self.handle.kick(vcpu))?;
            }
            let run = running.join().map_err(|_| "the vCPU's thread panicked".to_owned())?;
            Ok((run, seen?))
        })
    }
}

/// The `Run` that a kick ended.
pub(crate) fn is_interrupted(run: &io::Result<Run>) -> bool {
    matches!(run, Ok(run) if run.exit == ExitReason::Interrupted as u32)
}
