//! The device's calls from a hostile loader, and behind `RUN` the answers to all exits of a hostile guest; the engine
//! and the host are mocks.
#![no_main]

use std::sync::OnceLock;

use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::EngineKind;
use covisor_abi::Handshake;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::Segment;
use covisor_abi::Stats;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use covisor_core::device::Driver;
use covisor_core::device::Handle;
use covisor_core::device::entry;
use covisor_core::exit::ControlRegister;
use covisor_core::exit::Exception;
use covisor_core::exit::Exit;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;
use covisor_core::test_support::MockEngine;
use covisor_core::test_support::MockHost;
use covisor_core::test_support::MockOnDemandEngine;
use covisor_core::test_support::TestVcpu;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes;

/// `IA32_PRED_CMD`: its write goes to the CPU, which this process must not do.
const PRED_CMD: u64 = 0x49;
/// Calls in one input.
const CALLS: usize = 32;
/// Exits in one `RUN`.
const EXITS: u8 = 32;

fn driver() -> &'static Driver<MockHost> {
    static DRIVER: OnceLock<Driver<MockHost>> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let engines = [entry::<MockHost, MockOnDemandEngine>(), entry::<MockHost, MockEngine>()];
        Driver::new(engines.map(|engine| engine.expect("there is memory")).into()).expect("there is memory")
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let blocks = MockHost::blocks();
    let handle = Handle::new(driver()).expect("there is memory");
    if input.flag() {
        let engine = if input.flag() { EngineKind::Vmx } else { EngineKind::Svm };
        // Most inputs are to come further than to the handshake.
        for (call, mut buffer) in [handshake(), create_vm(engine as u32, 1), add_memory(0, 16), create_vcpu(0)] {
            assert_eq!(handle.call(call, &mut buffer), Ok(()));
        }
    }
    for _ in 0..CALLS {
        if input.is_empty() {
            break;
        }
        let (call, mut buffer) = any_call(&mut input);
        if call == Call::Run {
            set_script(&mut input);
        }
        let _ = handle.call(call, &mut buffer);
    }
    let _ = handle.with_ram_page(input.number(), |_| {});
    drop(handle);
    assert_eq!(MockHost::blocks(), blocks, "a closed handle gives its memory back");
});

fn handshake() -> (Call, Vec<u8>) {
    let value = Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() };
    (Call::Handshake, value.as_bytes().to_vec())
}

fn create_vm(engine: u32, vcpus: u32) -> (Call, Vec<u8>) {
    (Call::VmCreate, VmCreate { engine, vcpus }.as_bytes().to_vec())
}

fn add_memory(gpa: u64, pages: u64) -> (Call, Vec<u8>) {
    let value = MemoryAdd { gpa, size: pages << 12, ..MemoryAdd::default() };
    (Call::MemoryAdd, value.as_bytes().to_vec())
}

fn create_vcpu(vcpu: u32) -> (Call, Vec<u8>) {
    (Call::VcpuCreate, VcpuCreate { vcpu, ..VcpuCreate::default() }.as_bytes().to_vec())
}

/// A call with plausible fields, or with damaged ones.
fn any_call(input: &mut Input<'_>) -> (Call, Vec<u8>) {
    let call = Call::ALL[usize::from(input.byte()) % Call::ALL.len()];
    let small = |input: &mut Input<'_>| u32::from(input.byte() % 4);
    let mut buffer = match call {
        Call::Handshake => handshake().1,
        Call::VmCreate => create_vm(small(input), small(input)).1,
        // No more memory than the fuzzer may use.
        Call::MemoryAdd => add_memory(input.number() & !0xfff, input.number() % 256).1,
        Call::VcpuCreate => create_vcpu(small(input)).1,
        Call::VcpuSet | Call::VcpuGet => state(input).as_bytes().to_vec(),
        Call::Run => Run { vcpu: small(input), data: input.long(), ..Run::default() }.as_bytes().to_vec(),
        Call::IrqLine => IrqLine { gsi: small(input) * 7, level: small(input) }.as_bytes().to_vec(),
        Call::Msi => {
            let value =
                Msi { address: 0xfee0_0000 | input.number() & 0xf_ffff, data: input.word().into(), reserved: 0 };
            value.as_bytes().to_vec()
        }
        Call::DoorbellAdd | Call::DoorbellRemove => {
            let width = 1 << (input.byte() % 4);
            let value =
                DoorbellChange { address: input.number(), space: small(input), width, event: input.byte().into() };
            value.as_bytes().to_vec()
        }
        Call::Kick => Kick { vcpu: small(input), reserved: 0 }.as_bytes().to_vec(),
        Call::Stats => Stats { vcpu: small(input), ..Stats::default() }.as_bytes().to_vec(),
        Call::MemoryDiscard => {
            let (gpa, size) = (input.number() & !0xfff, input.number() & !0xfff);
            MemoryDiscard { gpa, size, ..MemoryDiscard::default() }.as_bytes().to_vec()
        }
    };
    assert_eq!(buffer.len(), call.size());
    for _ in 0..input.byte().saturating_sub(200) % 8 {
        let at = usize::from(input.word()) % buffer.len();
        buffer[at] ^= input.byte();
    }
    if call == Call::MemoryAdd {
        // The size's upper bytes.
        buffer[11..16].fill(0);
    }
    (call, buffer)
}

fn state(input: &mut Input<'_>) -> VcpuState {
    let mut state =
        VcpuState { vcpu: u32::from(input.byte() % 4), rflags: input.long() & 0x0024_4fd7, ..VcpuState::default() };
    for gpr in &mut state.gprs {
        *gpr = input.number();
    }
    state.rip = input.number();
    state.segments = [Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xc93 }; 6];
    state.segments[1].attributes = if input.flag() { 0xa9b } else { 0xc9b };
    (state.cr0, state.cr4, state.efer) = match input.byte() % 4 {
        0 => (0x10, 0, 0),
        1 => (0x11, 0, 0),
        2 => (0x8005_0033, 0x6b0, 0xd01),
        _ => (input.number(), input.number(), input.number()),
    };
    state.cr3 = input.number();
    state
}

/// The guest: what it does is in the next bytes.
fn set_script(input: &mut Input<'_>) {
    let exits = input.byte() % EXITS;
    let mut bytes = vec![0; usize::from(exits) * 48];
    input.fill(&mut bytes);
    let mut position = 0;
    let script = move |vcpu: &mut TestVcpu| {
        let chunk = bytes.get(position..position + 48)?;
        position += 48;
        // Time goes on.
        MockHost::advance(1000);
        Some(act(vcpu, &mut Input::new(chunk)))
    };
    MockEngine::set_script(Box::new(script));
}

/// Changes the registers as guests can without an exit, and exits.
fn act(vcpu: &mut TestVcpu, input: &mut Input<'_>) -> Exit {
    let kind = input.byte();
    for _ in 0..input.byte() % 4 {
        let number = usize::from(input.byte());
        *vcpu.gprs.get_mut(number) = input.number();
    }
    if input.flag() {
        vcpu.rip = input.number();
        vcpu.rflags = input.long() & 0x0025_4dd5 | 2;
        vcpu.interrupt_shadow = input.flag();
        vcpu.nmi_blocked = input.flag();
        vcpu.task_priority = input.byte() & 15;
        vcpu.cpl = input.byte() & 3;
        vcpu.next_rip = input.flag().then_some(vcpu.rip.wrapping_add(2));
    }
    match kind % 20 {
        0 => Exit::HostInterrupt,
        1 => Exit::InterruptWindow,
        2 => Exit::Cpuid,
        3 => Exit::ReadMsr,
        4 | 5 => {
            if vcpu.gprs.rcx as u32 == PRED_CMD as u32 {
                vcpu.gprs.rcx = 0;
            }
            Exit::WriteMsr
        }
        6 | 7 => Exit::Port(PortAccess {
            port: input.word(),
            size: 1 << (input.byte() % 3),
            write: input.flag(),
            string: input.flag(),
            next_rip: if input.flag() { vcpu.rip.wrapping_add(1) } else { 0 },
        }),
        8..=10 => {
            let pages = [0xfee0_0000, 0xfec0_0000, input.number() & !0xfff];
            Exit::Memory(MemoryAccess {
                gpa: pages[usize::from(input.byte()) % 3] + u64::from(input.word()) % 0x1000,
                write: input.flag(),
                fetch: input.byte() > 250,
                page_walk: input.byte() > 250,
            })
        }
        11 => Exit::Halt,
        12 => Exit::Pause,
        13 => Exit::Hypercall,
        14 => {
            let registers = [ControlRegister::Cr0, ControlRegister::Cr3, ControlRegister::Cr4, ControlRegister::Cr8];
            Exit::ControlRegister(registers[usize::from(input.byte()) % 4])
        }
        15 => Exit::DebugRegister,
        16 => Exit::Xsetbv,
        17 => Exit::CacheFlush,
        18 => Exit::Exception(Exception { vector: input.byte() & 31, error_code: None }),
        _ => [Exit::ReadPmc, Exit::Undefined, Exit::Shutdown][usize::from(input.byte()) % 3],
    }
}
