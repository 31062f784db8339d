//! A machine, by the device's calls.

use covisor_abi::Call;
use covisor_abi::Handshake;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::Run;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VmCreate;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::device::CallError;
use crate::device::Driver;
use crate::device::Handle;
use crate::device::entry;
use crate::engine::Engine;
use crate::test_support::MockHost;

/// The machine, with 64 KiB of RAM.
pub(crate) struct Machine {
    pub(crate) driver: &'static Driver<MockHost>,
    pub(crate) handle: Box<Handle<MockHost>>,
    pub(crate) ram: *mut u8,
}

impl Machine {
    /// One that the engine `E` runs.
    pub(crate) fn new<E: Engine>() -> Self {
        Self::with_vcpus::<E>(1)
    }

    /// The same with so many vCPUs.
    pub(crate) fn with_vcpus<E: Engine>(vcpus: u32) -> Self {
        let mut machine = Self::bare::<E>(vcpus);
        let memory = MemoryAdd { size: 0x1_0000, ..MemoryAdd::default() };
        let memory = machine.call(Call::MemoryAdd, memory).expect("there is memory");
        for vcpu in 0..vcpus {
            machine.call(Call::VcpuCreate, VcpuCreate { vcpu, ..VcpuCreate::default() }).expect("it is the next");
        }
        // The mock host's `map` is an address of this process.
        let ram = usize::try_from(memory.map).expect("it is an address");
        machine.ram = std::ptr::with_exposed_provenance_mut(ram);
        machine
    }

    /// One without RAM and vCPUs, which may have so many.
    pub(crate) fn bare<E: Engine>(vcpus: u32) -> Self {
        let engine = entry::<MockHost, E>().expect("there is memory");
        let driver: &_ = Box::leak(Box::new(Driver::new(vec![engine]).expect("there is memory")));
        let handle = Handle::new(driver).expect("there is memory");
        let machine = Self { driver, handle, ram: std::ptr::null_mut() };
        machine.greet();
        machine.call(Call::VmCreate, VmCreate { vcpus, ..VmCreate::default() }).expect("the engine is there");
        machine
    }

    /// Makes the call that comes before all others.
    pub(crate) fn greet(&self) {
        let greeting = Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() };
        self.call(Call::Handshake, greeting).expect("the versions are the same");
    }

    /// Makes a call.
    pub(crate) fn call<T: IntoBytes + FromBytes + Immutable>(&self, call: Call, value: T) -> Result<T, CallError> {
        let mut buffer = value.as_bytes().to_vec();
        self.handle.call(call, &mut buffer)?;
        Ok(T::read_from_bytes(&buffer).expect("the structure's size"))
    }

    /// Runs the vCPU until it needs the loader, which is to answer `data`.
    pub(crate) fn run(&self, data: u64) -> Result<Run, CallError> {
        self.call(Call::Run, Run { data, ..Run::default() })
    }

    /// Runs it until its script has ended and a signal comes.
    pub(crate) fn run_to_signal(&self) {
        MockHost::set_signal(false);
        assert!(matches!(self.run(0), Err(CallError::Interrupted)));
    }
}
