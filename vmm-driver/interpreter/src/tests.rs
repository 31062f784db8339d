//! Guests, by the device's calls.

use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::ExitReason;
use covisor_abi::Handshake;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use covisor_core::device::CallError;
use covisor_core::device::Driver;
use covisor_core::device::Handle;
use covisor_core::device::entry;
use covisor_core::test_support::MockHost;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::Interpreter;

/// Bytes of a page.
const PAGE: usize = 0x1000;
/// Where the guest's code is.
const CODE: usize = 0x100;
/// Where DS begins: behind the end of RAM at [`RAM`] there is device memory.
const DATA: u64 = 0xf000;
const RAM: u64 = 0x1_0000;
/// DS and CS, by their number in the instruction encoding.
const DS: usize = 3;
const CS: usize = 1;
/// RSP and RAX as well.
const RSP: usize = 4;
const RAX: usize = 0;
/// The local APIC's address, and of its registers the one that switches it on.
const APIC: u64 = covisor_abi::LOCAL_APIC_BASE;
/// RFLAGS.IF, and the bit that is always set.
const INTERRUPTS: u64 = 1 << 9 | 1 << 1;

struct Machine {
    handle: Box<Handle<MockHost>>,
    ram: *mut u8,
}

impl Machine {
    /// A machine that executes `code`.
    fn new(code: &[u8]) -> Self {
        let engine = entry::<MockHost, Interpreter>().unwrap();
        let driver: &_ = Box::leak(Box::new(Driver::new(vec![engine]).unwrap()));
        let mut machine = Self { handle: Handle::new(driver).unwrap(), ram: std::ptr::null_mut() };
        machine.call(Call::Handshake, Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() }).unwrap();
        machine.call(Call::VmCreate, VmCreate { vcpus: 1, ..VmCreate::default() }).unwrap();
        let memory = machine.call(Call::MemoryAdd, MemoryAdd { size: RAM, ..MemoryAdd::default() }).unwrap();
        machine.call(Call::VcpuCreate, VcpuCreate::default()).unwrap();
        // Every page is a block of its own here, and only the first one's address is told: all that tests look at is there.
        machine.ram = std::ptr::with_exposed_provenance_mut(usize::try_from(memory.map).unwrap());
        machine.set(|state| {
            state.segments[CS].base = 0;
            state.segments[CS].selector = 0;
            state.segments[DS].base = DATA;
            state.rip = CODE as u64;
            state.gprs[RSP] = 0x800;
        });
        machine.write(CODE, code);
        machine
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(&self, call: Call, value: T) -> Result<T, CallError> {
        let mut buffer = value.as_bytes().to_vec();
        self.handle.call(call, &mut buffer)?;
        Ok(T::read_from_bytes(&buffer).unwrap())
    }

    fn state(&self) -> VcpuState {
        self.call(Call::VcpuGet, VcpuState::default()).unwrap()
    }

    fn set(&self, change: impl FnOnce(&mut VcpuState)) {
        let mut state = self.state();
        change(&mut state);
        self.call(Call::VcpuSet, state).unwrap();
    }

    /// Writes to the first page.
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= PAGE, "it is the first page");
        // SAFETY: the page is there as long as the machine, and nobody else uses it now.
        unsafe { self.ram.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Runs to the loader, which answers `data` to what it was asked before: why, address, value and size.
    fn run(&self, data: u64) -> (ExitReason, u64, u64, u32) {
        let run = self.call(Call::Run, Run { data, ..Run::default() }).unwrap();
        (ExitReason::from_u32(run.exit).unwrap(), run.address, run.data, run.size)
    }

    /// Runs until a signal comes, which the host has for it at once.
    fn run_to_signal(&self) {
        MockHost::set_signal(true);
        assert_eq!(self.call(Call::Run, Run::default()).err(), Some(CallError::Interrupted));
        MockHost::set_signal(false);
    }
}

#[test]
fn test_ports_of_all_sizes_reach_the_loader_and_answers_the_guest() {
    let machine = Machine::new(&[
        0xb0, 0x41, 0xe6, 0x10, // MOV AL, 41h; OUT 10h, AL
        0xba, 0x34, 0x12, 0xed, // MOV DX, 1234h; IN AX, DX
        0xef, // OUT DX, AX
        0x66, 0xb8, 0x78, 0x56, 0x34, 0x12, 0x66, 0xef, // MOV EAX, 12345678h; OUT DX, EAX
        0xb4, 0x99, 0xe5, 0x20, // MOV AH, 99h; IN AX, 20h
        0xf4, // HLT
    ]);
    assert_eq!(machine.run(0), (ExitReason::PortWrite, 0x10, 0x41, 1));
    assert_eq!(machine.run(0), (ExitReason::PortRead, 0x1234, 0, 2));
    assert_eq!(machine.run(0xbeef), (ExitReason::PortWrite, 0x1234, 0xbeef, 2));
    assert_eq!(machine.run(0), (ExitReason::PortWrite, 0x1234, 0x1234_5678, 4));
    assert_eq!(machine.run(0), (ExitReason::PortRead, 0x20, 0, 2));
    assert_eq!(machine.state().gprs[RAX], 0x1234_9978, "before the answer");
    assert_eq!(machine.run(0x5a5a).0, ExitReason::HaltedForever);
    assert_eq!(machine.state().gprs[RAX], 0x1234_5a5a);
}

#[test]
fn test_moves_reach_ram_and_device_memory() {
    let machine = Machine::new(&[
        0xb8, 0xcd, 0xab, 0xa3, 0xf0, 0x0f, // MOV AX, abcdh; MOV [0ff0h], AX
        0xa2, 0x08, 0x10, // MOV [1008h], AL
        0xa0, 0xf1, 0x0f, // MOV AL, [0ff1h]
        0xa2, 0xff, 0x0f, // MOV [0fffh], AL
        0xa1, 0x10, 0x10, // MOV AX, [1010h]
        0xe7, 0x10, // OUT 10h, AX
        0xf4,
    ]);
    assert_eq!(machine.run(0), (ExitReason::MemoryWrite, RAM + 8, 0xcd, 1));
    assert_eq!(machine.run(0), (ExitReason::MemoryRead, RAM + 0x10, 0, 2));
    assert_eq!(machine.run(0x4321), (ExitReason::PortWrite, 0x10, 0x4321, 2));
    assert_eq!(machine.run(0).0, ExitReason::HaltedForever);
}

#[test]
fn test_what_it_does_not_know_is_a_triple_fault() {
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0x01], &[0x66, 0xcf], &[0xf0], &[0xc3]] {
        assert_eq!(Machine::new(code).run(0).0, ExitReason::Shutdown, "{code:x?}");
    }
    let machine = Machine::new(&[0xeb, 0xfe]);
    machine.set(|state| state.rip = RAM - 1);
    assert_eq!(machine.run(0).0, ExitReason::Shutdown, "behind RAM there is no code: the pages are zeros");
    let machine = Machine::new(&[0xf4]);
    machine.set(|state| state.cr0 |= 1);
    assert_eq!(machine.run(0).0, ExitReason::Shutdown, "protected mode");
}

#[test]
fn test_a_loop_is_left_for_the_host_and_goes_on() {
    // MOV AL, 1; JMP to itself
    let machine = Machine::new(&[0xb0, 0x01, 0xeb, 0xfe]);
    machine.run_to_signal();
    machine.write(CODE + 2, &[0xe6, 0x33, 0xf4]);
    assert_eq!(machine.run(0), (ExitReason::PortWrite, 0x33, 1, 1));
    let stats = machine.call(Call::Stats, covisor_abi::Stats::default()).unwrap();
    assert!(stats.counts[covisor_abi::StatsKind::Exits as usize] >= 1);
}

#[test]
fn test_cpuid_is_cores() {
    // MOV EAX, 0; CPUID; OUT 10h, EAX; HLT
    let machine = Machine::new(&[0x66, 0xb8, 0, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xe7, 0x10, 0xf4]);
    let (exit, _, highest, size) = machine.run(0);
    assert_eq!((exit, size), (ExitReason::PortWrite, 4));
    assert!(highest >= 1, "{highest:#x}");
}

#[test]
fn test_an_interrupt_is_taken_in_its_window_and_goes_back() {
    let machine = Machine::new(&[
        0xfa, // CLI
        0x66, 0xb8, 0xff, 0x01, 0, 0, // MOV EAX, 1ffh
        0x66, 0xa3, 0xf0, 0x00, // MOV [f0h], EAX: the APIC is on
        0xe6, 0x10, // OUT 10h, AL
        0xe6, 0x11, // OUT 11h, AL
        0xfb, // STI
        0xe6, 0x12, // OUT 12h, AL: the interrupt waits for it
        0xe6, 0x13, // OUT 13h, AL
        0xfa, 0xf4, // CLI; HLT
    ]);
    machine.set(|state| {
        state.segments[DS].base = APIC;
        state.rflags = INTERRUPTS;
        state.idtr.base = 0;
        state.idtr.limit = 0x3ff;
    });
    // Vector 30h, at 0:400h: OUT 77h, AL; IRET
    machine.write(0x30 * 4, &[0x00, 0x04, 0, 0]);
    machine.write(0x400, &[0xe6, 0x77, 0xcf]);
    assert_eq!(machine.run(0).1, 0x10);
    machine.call(Call::Msi, Msi { address: APIC, data: 0x30, reserved: 0 }).unwrap();
    assert_eq!([(); 5].map(|()| machine.run(0).1), [0x11, 0x12, 0x77, 0x13, 0]);
    assert_eq!(machine.state().gprs[RSP], 0x800);
}

#[test]
fn test_an_interrupt_without_a_vector_is_a_triple_fault() {
    let machine = Machine::new(&[0x66, 0xb8, 0xff, 0x01, 0, 0, 0x66, 0xa3, 0xf0, 0x00, 0xe6, 0x10, 0xf4]);
    machine.set(|state| {
        state.segments[DS].base = APIC;
        state.rflags = INTERRUPTS;
        state.idtr.limit = 0x30 * 4 + 2;
    });
    assert_eq!(machine.run(0).1, 0x10);
    machine.call(Call::Msi, Msi { address: APIC, data: 0x30, reserved: 0 }).unwrap();
    assert_eq!(machine.run(0).0, ExitReason::Shutdown);
}

#[test]
fn test_a_doorbell_is_rung_without_the_loader() {
    let machine = Machine::new(&[0xe6, 0x20, 0xf4]);
    let bell = DoorbellChange { address: 0x20, space: 0, width: 1, event: 7 };
    machine.call(Call::DoorbellAdd, bell).unwrap();
    assert_eq!(machine.run(0).0, ExitReason::HaltedForever);
    assert_eq!(MockHost::signals(7), 1);
}
