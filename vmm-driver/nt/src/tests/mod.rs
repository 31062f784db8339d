//! The port on a kernel that is a fake, with an engine that is one.

mod attacks;
mod host;
mod kernel;
mod memory;
mod requests;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use covisor_abi::Call;
use covisor_abi::Handshake;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::Run;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VmCreate;
use covisor_core::device::entry;
use covisor_core::host::OutOfMemory;
use covisor_core::test_support::MockEngine;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::Answer;
use crate::Control;
use crate::Nt;
use crate::NtStatus;
use crate::StartError;
use crate::kapi::Irp;
use crate::tests::kernel::Config;
use crate::tests::kernel::Fake;
use crate::tests::kernel::Kernel;

/// Starts the port with an engine.
fn start(kernel: &'static Kernel) -> Result<(), StartError> {
    let engines = || Ok::<_, OutOfMemory>(vec![entry::<Nt<Fake>, MockEngine>()?]);
    // SAFETY: once for each kernel, before all else.
    unsafe { kernel.port().start_with(engines) }
}

/// A machine with the driver.
fn machine() -> &'static Kernel {
    let kernel = Kernel::boot(Config::default());
    start(kernel).expect("it starts");
    kernel
}

/// Ends the driver, and looks that nothing is left.
fn end(kernel: &'static Kernel) {
    // SAFETY: nothing else is called any more.
    assert!(unsafe { kernel.port().stop() });
    kernel.assert_clean();
}

/// A request that was not there before.
fn new_irp() -> Irp {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    Kernel::irp(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An open handle.
#[derive(Clone, Copy, Debug)]
struct Open {
    kernel: &'static Kernel,
    context: NonNull<c_void>,
}

// SAFETY: the context is for any thread; tests close it when no other one uses it.
unsafe impl Send for Open {}

impl Open {
    fn new(kernel: &'static Kernel) -> Self {
        Self { kernel, context: kernel.port().create().expect("there is memory") }
    }

    /// A device control request of any kind.
    fn control(&self, irp: Irp, code: u32, buffer: &mut [u8], input: usize, output: usize) -> Answer {
        assert!(buffer.len() >= input.max(output));
        let control = Control { code, buffer: buffer.as_mut_ptr(), input, output };
        // SAFETY: the context is open, and the buffer is as the function wants it.
        let answer = unsafe { self.kernel.port().control(self.context, irp, control) };
        self.kernel.complete(irp);
        answer
    }

    fn call_with<T: IntoBytes + FromBytes + Immutable>(&self, irp: Irp, call: Call, value: T) -> Result<T, NtStatus> {
        let mut buffer = value.as_bytes().to_vec();
        let size = buffer.len();
        match self.control(irp, call.nt_code(), &mut buffer, size, size) {
            Answer { status: NtStatus::SUCCESS, information } => {
                assert_eq!(information, size);
                Ok(T::read_from_bytes(&buffer).expect("the structure's size"))
            }
            Answer { status, information } => {
                assert_eq!(information, 0, "nothing is copied back on an error");
                Err(status)
            }
        }
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(&self, call: Call, value: T) -> Result<T, NtStatus> {
        self.call_with(new_irp(), call, value)
    }

    fn run(&self) -> Result<Run, NtStatus> {
        self.call(Call::Run, Run::default())
    }

    fn greet(&self) {
        let greeting = Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() };
        self.call(Call::Handshake, greeting).expect("the versions are the same");
    }

    /// Makes it a VM with memory and two vCPUs.
    fn build(self, bytes: u64) -> Self {
        self.greet();
        self.call(Call::VmCreate, VmCreate { vcpus: 2, ..VmCreate::default() }).expect("the engine is there");
        self.call(Call::MemoryAdd, MemoryAdd { size: bytes, ..MemoryAdd::default() }).expect("there is memory");
        for vcpu in 0..2 {
            self.call(Call::VcpuCreate, VcpuCreate { vcpu, flags: 0 }).expect("it is the next");
        }
        self
    }

    fn cleanup(&self) {
        // SAFETY: it is open.
        unsafe { self.kernel.port().cleanup(self.context) };
    }

    fn close(self) {
        // SAFETY: it is open, and this is its end.
        unsafe { self.kernel.port().close(self.context) };
    }
}

#[test]
fn test_a_driver_that_starts_and_stops_leaves_nothing() {
    let kernel = machine();
    end(kernel);
}

#[test]
fn test_an_unload_is_refused_while_a_handle_is_open() {
    let kernel = machine();
    let open = Open::new(kernel);
    // SAFETY: only the handle brings anything.
    assert!(!unsafe { kernel.port().stop() });
    open.build(0x10000);
    open.cleanup();
    open.close();
    end(kernel);
}

#[test]
fn test_a_machine_with_processor_groups_is_refused_in_words() {
    extern "C" fn count(group: u16) -> u32 {
        assert_eq!(group, 0xffff);
        96
    }
    let mut config = Config::default();
    config.routines.insert("KeQueryActiveProcessorCountEx", count as *const () as usize);
    let error = start(Kernel::boot(config)).unwrap_err();
    assert_eq!(error, StartError::ProcessorGroups(96));
    assert!(error.to_string().contains("96 processors in several processor groups"), "{error}");
    assert_eq!(NtStatus::from(error), NtStatus::NOT_SUPPORTED);
}

#[test]
fn test_a_machine_without_a_clock_is_refused_in_words() {
    let error = start(Kernel::boot(Config { frequency: 0, ..Config::default() })).unwrap_err();
    assert_eq!(error, StartError::NoClock);
    assert!(error.to_string().contains("time stamp counter"), "{error}");
}

#[test]
fn test_a_driver_without_memory_does_not_start() {
    let kernel = Kernel::boot(Config::default());
    // SAFETY: once, before all else.
    let started = unsafe { kernel.port().start_with(|| Err(OutOfMemory)) };
    assert_eq!(started, Err(StartError::OutOfMemory(OutOfMemory)));
    assert_eq!(kernel.port().create(), Err(NtStatus::DEVICE_NOT_READY));
    kernel.assert_clean();
}
