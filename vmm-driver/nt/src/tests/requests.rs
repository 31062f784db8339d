//! Requests on the device.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::ExitReason;
use covisor_abi::Handshake;
use covisor_abi::Kick;
use covisor_abi::MAGIC;
use covisor_abi::Run;
use covisor_abi::VERSION;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use covisor_core::exit::Exit;
use covisor_core::exit::PortAccess;
use covisor_core::test_support::MockEngine;

use crate::Answer;
use crate::Kapi;
use crate::NtStatus;
use crate::kapi::Irql;
use crate::tests::Open;
use crate::tests::end;
use crate::tests::kernel::Config;
use crate::tests::kernel::Fake;
use crate::tests::kernel::Kernel;
use crate::tests::machine;
use crate::tests::new_irp;
use crate::tests::start;

/// A write to a port that is the loader's.
const PORT_WRITE: Exit = Exit::Port(PortAccess { port: 0x3f8, size: 1, write: true, string: false, next_rip: 0xfff1 });

fn interrupted() -> Result<u32, NtStatus> {
    Ok(ExitReason::Interrupted as u32)
}

/// Runs a vCPU that does nothing in another thread, on CPU 1. The flag says when it has been in the guest.
fn run_elsewhere(
    open: Open,
    irp: crate::kapi::Irp,
    vcpu: u32,
) -> (std::sync::Arc<crate::tests::kernel::Thread>, std::thread::JoinHandle<Result<u32, NtStatus>>, &'static AtomicBool)
{
    let entered: &'static AtomicBool = Box::leak(Box::default());
    let (thread, running) = open.kernel.spawn(1, 1, move || {
        let open = open;
        MockEngine::set_script(Box::new(move |_| {
            entered.store(true, Ordering::SeqCst);
            Some(Exit::HostInterrupt)
        }));
        open.call_with(irp, Call::Run, Run { vcpu, ..Run::default() }).map(|run| run.exit)
    });
    (thread, running, entered)
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

#[test]
fn test_a_guest_runs_and_asks_the_loader() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    MockEngine::set_script(Box::new(|_| {
        assert_eq!(Fake::irql(), Irql::PASSIVE, "whatever comes for the host ends the stay in the guest");
        Some(PORT_WRITE)
    }));
    let before = kernel.at_ease.load(Ordering::SeqCst);
    let run = open.run().expect("it runs");
    assert_eq!((run.exit, run.address), (ExitReason::PortWrite as u32, 0x3f8));
    assert_eq!(Fake::irql(), Irql::PASSIVE);
    assert_eq!(kernel.at_ease.load(Ordering::SeqCst) - before, 1, "a tick finds a thread, not DISPATCH_LEVEL");
    open.cleanup();
    open.close();
    end(kernel);
}

#[test]
#[should_panic(expected = "DR7 was 0x400 and is 0x455")]
fn test_an_engine_that_leaves_a_watched_register_changed_is_found_out() {
    let open = Open::new(machine()).build(0x10000);
    MockEngine::set_script(Box::new(|_| {
        Kernel::set_dr7(0x455);
        Some(PORT_WRITE)
    }));
    let _ = open.run();
}

#[test]
fn test_the_driver_tells_its_version_and_takes_no_other() {
    let kernel = machine();
    let open = Open::new(kernel);
    let greeting = Handshake { magic: MAGIC, version: VERSION + 1, ..Handshake::default() };
    let answer = open.call(Call::Handshake, greeting).expect("it answers");
    assert_eq!(answer.version, VERSION);
    assert_eq!(open.call(Call::VmCreate, VmCreate { vcpus: 1, engine: 0 }).err(), Some(NtStatus::REVISION_MISMATCH));
    assert_eq!(open.run().err(), Some(NtStatus::NOT_FOUND));
    open.close();
    end(kernel);
}

#[test]
fn test_sizes_are_the_structure_s_exactly() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let mismatch = Answer { status: NtStatus::INFO_LENGTH_MISMATCH, information: 0 };
    let mut buffer = [0; 1024];
    for call in Call::ALL {
        let size = call.size();
        for (input, output) in
            [(0, 0), (0, size), (size, 0), (size - 1, size), (size, size - 1), (size + 1, size + 1), (1024, 1024)]
        {
            let answer = open.control(new_irp(), call.nt_code(), &mut buffer, input, output);
            assert_eq!(answer, mismatch, "{call:?} {input} {output}");
        }
    }
    open.close();
    end(kernel);
}

#[test]
fn test_codes_that_are_no_calls_are_refused() {
    let kernel = machine();
    let open = Open::new(kernel);
    let refused = Answer { status: NtStatus::INVALID_DEVICE_REQUEST, information: 0 };
    for code in
        [0, Call::Run.nt_code() | 3, Call::Run.nt_code() & !(3 << 14), Call::MemoryDiscard.nt_code() + 4, u32::MAX]
    {
        assert_eq!(open.control(new_irp(), code, &mut [0; 64], 48, 48), refused, "{code:#x}");
    }
    open.close();
    end(kernel);
}

#[test]
fn test_attack_a_handle_in_another_process_is_of_no_use() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    Kernel::enter_process(2);
    for call in Call::ALL {
        let mut buffer = vec![0; call.size()];
        let size = buffer.len();
        let answer = open.control(new_irp(), call.nt_code(), &mut buffer, size, size);
        assert_eq!(answer.status, NtStatus::ACCESS_DENIED, "{call:?}");
    }
    Kernel::enter_process(1);
    open.close();
    end(kernel);
}

#[test]
fn test_a_kick_from_another_thread_ends_a_run() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let (_, running, entered) = run_elsewhere(open, new_irp(), 1);
    wait_for(entered);
    open.call(Call::Kick, Kick { vcpu: 1, reserved: 0 }).expect("it is there");
    assert_eq!(running.join().unwrap(), interrupted());
    open.close();
    end(kernel);
}

#[test]
fn test_a_cancel_ends_a_run() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let irp = new_irp();
    let (_, running, entered) = run_elsewhere(open, irp, 0);
    wait_for(entered);
    kernel.cancel(irp);
    assert_eq!(running.join().unwrap(), interrupted());
    open.close();
    end(kernel);
}

#[test]
fn test_a_run_that_is_cancelled_before_it_begins_does_not() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let irp = new_irp();
    kernel.cancel(irp);
    MockEngine::set_script(Box::new(|_| unreachable!("it does not enter the guest")));
    assert_eq!(open.call_with(irp, Call::Run, Run::default()).err(), Some(NtStatus::CANCELLED));
    MockEngine::set_script(Box::new(|_| Some(PORT_WRITE)));
    assert_eq!(open.run().map(|run| run.exit), Ok(ExitReason::PortWrite as u32), "the next one does");
    open.close();
    end(kernel);
}

/// Whatever moment a cancel comes at, the run ends, and the next one is not hurt.
#[test]
fn test_a_cancel_at_any_moment_ends_a_run() {
    let kernel = machine();
    for round in 0..200_u32 {
        let open = Open::new(kernel).build(0x1000);
        let irp = new_irp();
        let (_, running, _) = run_elsewhere(open, irp, 0);
        for _ in 0..round % 50 * 20 {
            std::hint::spin_loop();
        }
        kernel.cancel(irp);
        assert!([interrupted(), Err(NtStatus::CANCELLED)].contains(&running.join().unwrap()));
        open.close();
    }
    end(kernel);
}

/// The fake kernel looks that no request is completed before.
#[test]
fn test_a_run_that_ends_by_itself_waits_for_its_cancel_routine() {
    let kernel = machine();
    kernel.cancel_takes_ms.store(30, Ordering::SeqCst);
    let open = Open::new(kernel).build(0x10000);
    let irp = new_irp();
    let (_, running, entered) = run_elsewhere(open, irp, 0);
    wait_for(entered);
    let (_, canceller) = kernel.spawn(2, 1, move || kernel.cancel(irp));
    while !kernel.cancels() {
        std::thread::yield_now();
    }
    open.call(Call::Kick, Kick { vcpu: 0, reserved: 0 }).expect("it is there");
    assert_eq!(running.join().unwrap(), interrupted());
    canceller.join().unwrap();
    open.close();
    end(kernel);
}

/// Two threads run the same vCPU by turns, and each is cancelled: none misses its own because the other one took it.
#[test]
fn test_a_cancel_is_for_the_run_that_it_names() {
    let kernel = machine();
    for _ in 0..50 {
        let open = Open::new(kernel).build(0x1000);
        let runs = [1, 2].map(|cpu| {
            let irp = new_irp();
            let (_, running) = kernel.spawn(cpu, 1, move || {
                let open = open;
                MockEngine::set_script(Box::new(|_| Some(Exit::HostInterrupt)));
                loop {
                    match open.call_with(irp, Call::Run, Run::default()).map(|run| run.exit) {
                        Err(NtStatus::DEVICE_BUSY) => std::thread::yield_now(),
                        ended => return ended,
                    }
                }
            });
            (irp, running)
        });
        // The one that waits for the other has to be asked too before it can tell.
        runs.iter().for_each(|(irp, _)| kernel.cancel(*irp));
        for (_, running) in runs {
            assert!([interrupted(), Err(NtStatus::CANCELLED)].contains(&running.join().unwrap()));
        }
        open.close();
    }
    end(kernel);
}

#[test]
fn test_a_vcpu_runs_in_one_thread_at_a_time() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let irp = new_irp();
    let (_, running, entered) = run_elsewhere(open, irp, 0);
    wait_for(entered);
    assert_eq!(open.run().err(), Some(NtStatus::DEVICE_BUSY));
    assert_eq!(open.call(Call::VcpuGet, VcpuState::default()).err(), Some(NtStatus::DEVICE_BUSY));
    kernel.cancel(irp);
    assert_eq!(running.join().unwrap(), interrupted());
    let beyond = Run { vcpu: 64, ..Run::default() };
    assert_eq!(open.call(Call::Run, beyond).err(), Some(NtStatus::NOT_FOUND));
    open.close();
    end(kernel);
}

#[test]
fn test_closing_the_last_handle_ends_a_run_and_lets_none_begin() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let (_, running, entered) = run_elsewhere(open, new_irp(), 0);
    wait_for(entered);
    open.cleanup();
    assert_eq!(running.join().unwrap(), interrupted());
    // One that was on its way.
    assert_eq!(open.run().err(), Some(NtStatus::CANCELLED));
    open.close();
    end(kernel);
}

#[test]
fn test_the_end_of_its_thread_ends_a_run() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let (thread, running, entered) = run_elsewhere(open, new_irp(), 0);
    wait_for(entered);
    kernel.terminate(&thread);
    assert_eq!(running.join().unwrap(), Err(NtStatus::CANCELLED));
    open.close();
    end(kernel);
}

/// A guest that halts, with interrupts on.
fn halt(open: Open, irp: crate::kapi::Irp, halted: &'static AtomicBool) -> Result<u32, NtStatus> {
    MockEngine::set_script(Box::new(move |vcpu| {
        vcpu.rflags |= 1 << 9;
        vcpu.next_rip = Some(vcpu.rip.wrapping_add(1));
        halted.store(true, Ordering::SeqCst);
        Some(Exit::Halt)
    }));
    open.call_with(irp, Call::Run, Run::default()).map(|run| run.exit)
}

#[test]
fn test_a_halt_ends_by_a_cancel_by_a_close_and_by_the_end_of_the_thread() {
    let kernel = machine();
    for way in 0..3 {
        let open = Open::new(kernel).build(0x10000);
        let irp = new_irp();
        let halted: &'static AtomicBool = Box::leak(Box::default());
        let (thread, running) = kernel.spawn(1, 1, move || {
            let open = open;
            halt(open, irp, halted)
        });
        wait_for(halted);
        let expected = match way {
            0 => {
                kernel.cancel(irp);
                interrupted()
            }
            1 => {
                open.cleanup();
                interrupted()
            }
            _ => {
                kernel.terminate(&thread);
                Err(NtStatus::CANCELLED)
            }
        };
        assert_eq!(running.join().unwrap(), expected);
        open.close();
    }
    end(kernel);
}

#[test]
fn test_a_doorbell_sets_the_loader_s_event() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let bell = |event| DoorbellChange { address: 0x3f8, space: 0, width: 1, event };
    assert_eq!(open.call(Call::DoorbellAdd, bell(-2)).err(), Some(NtStatus::NOT_FOUND));
    open.call(Call::DoorbellAdd, bell(0x150)).expect("it is an event");
    assert_eq!(open.call(Call::DoorbellAdd, bell(0x150)).err(), Some(NtStatus::OBJECT_NAME_COLLISION));
    assert_eq!(ring_and_cancel(open, new_irp()), interrupted());
    assert_eq!(kernel.signals(0x150), 1);
    open.close();
    end(kernel);
}

/// Runs a guest that writes to the port once; another thread cancels it then.
fn ring_and_cancel(open: Open, irp: crate::kapi::Irp) -> Result<u32, NtStatus> {
    let rung: &'static AtomicUsize = Box::leak(Box::default());
    MockEngine::set_script(Box::new(move |_| match rung.fetch_add(1, Ordering::SeqCst) {
        0 => Some(PORT_WRITE),
        _ => Some(Exit::HostInterrupt),
    }));
    let (_, canceller) = open.kernel.spawn(2, 1, move || {
        let open = open;
        while rung.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        open.kernel.cancel(irp);
    });
    let run = open.call_with(irp, Call::Run, Run::default()).map(|run| run.exit);
    canceller.join().unwrap();
    run
}

#[test]
fn test_who_shuts_the_gate_waits_for_those_inside() {
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static LEFT: AtomicBool = AtomicBool::new(false);
    let kernel = machine();
    let gate = kernel.port().gate();
    let (_, inside) = kernel.spawn(1, 1, || {
        gate.enter::<Fake>().unwrap();
        INSIDE.store(true, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(30));
        LEFT.store(true, Ordering::SeqCst);
        gate.leave();
    });
    wait_for(&INSIDE);
    gate.shut::<Fake>(|| {});
    assert!(LEFT.load(Ordering::SeqCst));
    gate.open::<Fake>();
    inside.join().unwrap();
    end(kernel);
}

#[test]
fn test_a_sleeping_machine_has_no_guest_and_no_extension_on() {
    // The scheduler has no wish that would end a stay in the guest.
    extern "C" fn should_yield() -> u32 {
        0
    }
    let mut config = Config::default();
    config.routines.insert("KeShouldYieldProcessor", should_yield as *const () as usize);
    let kernel = Kernel::boot(config);
    start(kernel).expect("it starts");
    let open = Open::new(kernel).build(0x10000);
    let irp = new_irp();
    let entries: &'static AtomicUsize = Box::leak(Box::default());
    let (_, running) = kernel.spawn(1, 1, move || {
        let open = open;
        MockEngine::set_script(Box::new(move |_| {
            entries.fetch_add(1, Ordering::SeqCst);
            Some(Exit::HostInterrupt)
        }));
        open.call_with(irp, Call::Run, Run::default()).map(|run| run.exit)
    });
    while entries.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    for _ in 0..20 {
        // The mock engine checks that each CPU is switched off once, and on again before it enters a guest.
        kernel.port().sleeps();
        let before = entries.load(Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(entries.load(Ordering::SeqCst), before, "nothing runs");
        kernel.port().wakes();
        while entries.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
    }
    // A machine that goes down does not wake again; its threads still end.
    kernel.port().sleeps();
    kernel.port().wakes();
    kernel.cancel(irp);
    assert_eq!(running.join().unwrap(), interrupted());
    open.close();
    end(kernel);
}

#[test]
fn test_a_thread_ends_while_the_machine_sleeps() {
    let kernel = machine();
    let open = Open::new(kernel).build(0x10000);
    let (thread, running, entered) = run_elsewhere(open, new_irp(), 0);
    wait_for(entered);
    kernel.port().sleeps();
    kernel.terminate(&thread);
    assert_eq!(running.join().unwrap(), Err(NtStatus::CANCELLED));
    kernel.port().wakes();
    assert_eq!(open.call(Call::VcpuGet, VcpuState::default()).err(), None);
    open.close();
    end(kernel);
}

#[test]
fn test_without_memory_a_handle_says_so() {
    let kernel = Kernel::boot(Config { pages_at_once: 0, ..Config::default() });
    start(kernel).expect("it starts");
    let open = Open::new(kernel);
    open.greet();
    open.call(Call::VmCreate, VmCreate { vcpus: 1, engine: 0 }).expect("the engine is there");
    let memory = covisor_abi::MemoryAdd { size: 0x1000, ..covisor_abi::MemoryAdd::default() };
    assert_eq!(open.call(Call::MemoryAdd, memory).err(), Some(NtStatus::NO_MEMORY));
    open.close();
    end(kernel);
}
