//! Tests of paravirtual guests, by the device's calls and an engine without a CPU.

use std::cell::RefCell;
use std::rc::Rc;

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::IO_APIC_BASE;
use covisor_abi::IrqLine;
use covisor_abi::LOCAL_APIC_BASE;
use covisor_abi::MemoryAdd;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::VmCreate;
use covisor_abi::paravirtual::RAM_LIMIT;

use super::*;
use crate::device::CallError;
use crate::device::Driver;
use crate::device::Handle;
use crate::device::entry;
use crate::exit::Exception;
use crate::exit::Exit;
use crate::exit::MemoryAccess;
use crate::exit::PortAccess;
use crate::exit::PowerRequest;
use crate::msr::index;
use crate::registers::SegmentName;
use crate::test_support::MockHost;
use crate::test_support::MockParavirtualEngine;
use crate::test_support::TestVcpu;
use crate::test_support::machine::Machine;

const CONSOLE: u8 = PV_LINE_BASE + CONSOLE_GSI.to_le_bytes()[0];
/// A line of a device's.
const LINE: u8 = 9;
const DEVICE: u8 = PV_LINE_BASE + LINE;

/// An exit that asks for nothing.
const NOTHING: Exit = Exit::InterruptWindow;

/// A machine whose guest has looked at its console for the first time.
fn machine() -> Machine {
    let machine = Machine::new::<MockParavirtualEngine>();
    assert_eq!(play(&machine, [NOTHING]).1, [CONSOLE]);
    machine
}

/// Runs a guest that makes these exits. How `RUN` ended, and the interrupts that came meanwhile.
fn play(machine: &Machine, exits: impl IntoIterator<Item = Exit>) -> (Result<Run, CallError>, Vec<u8>) {
    let mut exits: Vec<_> = exits.into_iter().collect();
    exits.reverse();
    let came = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&came);
    MockParavirtualEngine::set_script(Box::new(move |vcpu: &mut TestVcpu| {
        seen.borrow_mut().extend(vcpu.injected.drain(..));
        // Nothing of this is the guest's to say.
        vcpu.rflags = 2;
        vcpu.interrupt_shadow = true;
        vcpu.task_priority = 15;
        exits.pop()
    }));
    let result = machine.run(0);
    let vectors = came.take().into_iter().map(|injection| match injection {
        Injection::Interrupt(vector) => vector,
        other => panic!("{other:?}"),
    });
    (result, vectors.collect())
}

fn set_line(machine: &Machine, gsi: u32, level: u32) {
    machine.call(Call::IrqLine, IrqLine { gsi, level }).expect("the line is there");
}

fn end_of(gsi: u8) -> Exit {
    Exit::EndOfInterrupt { gsi }
}

#[test]
fn test_an_asserted_line_comes_again_after_its_end() {
    let machine = machine();
    set_line(&machine, LINE.into(), 1);
    assert_eq!(play(&machine, [NOTHING]).1, [DEVICE]);
    assert_eq!(play(&machine, [NOTHING, NOTHING]).1, [], "it is in service");
    assert_eq!(play(&machine, [end_of(LINE + 1), NOTHING]).1, [], "another one's end");
    assert_eq!(play(&machine, [end_of(LINE), NOTHING]).1, [DEVICE], "still asserted");
    set_line(&machine, LINE.into(), 0);
    assert_eq!(play(&machine, [end_of(LINE), NOTHING]).1, []);
    set_line(&machine, LINE.into(), 1);
    assert_eq!(play(&machine, [end_of(u8::MAX), NOTHING]).1, [DEVICE]);
}

#[test]
fn test_all_that_waits_comes_at_once() {
    let machine = machine();
    for gsi in 0..MAX_GSI {
        set_line(&machine, gsi, 1);
    }
    let (_, mut came) = play(&machine, [Exit::SetTimer(Some(0)), NOTHING]);
    came.sort_unstable();
    let mut all: Vec<u8> = (PV_LINE_BASE..).take(MAX_GSI as usize).collect();
    all.push(PV_TIMER_VECTOR);
    assert_eq!(came, all);
}

#[test]
fn test_lines_from_before_the_first_run_are_not_lost() {
    let machine = Machine::new::<MockParavirtualEngine>();
    set_line(&machine, LINE.into(), 1);
    set_line(&machine, CONSOLE_GSI, 1);
    set_line(&machine, CONSOLE_GSI, 0);
    let (_, mut came) = play(&machine, [NOTHING]);
    came.sort_unstable();
    assert_eq!(came, [CONSOLE, DEVICE]);
}

#[test]
fn test_each_pulse_on_the_consoles_line_comes_without_an_end() {
    let machine = machine();
    for _ in 0..3 {
        set_line(&machine, CONSOLE_GSI, 1);
        set_line(&machine, CONSOLE_GSI, 0);
        assert_eq!(play(&machine, [NOTHING]).1, [CONSOLE]);
    }
}

#[test]
fn test_an_event_ends_a_halt() {
    let machine = machine();
    let asleep = |machine: &Machine, exits: Vec<Exit>| {
        let entries = MockParavirtualEngine::entries();
        let (result, came) = play(machine, exits);
        assert!(matches!(result, Err(CallError::Interrupted)));
        (came, MockParavirtualEngine::entries() - entries)
    };
    assert_eq!(asleep(&machine, vec![Exit::Halt, NOTHING]), (vec![], 1));
    assert_eq!(asleep(&machine, vec![NOTHING]), (vec![], 0), "nothing came");
    set_line(&machine, LINE.into(), 1);
    assert_eq!(asleep(&machine, vec![NOTHING]), (vec![DEVICE], 1));
    assert_eq!(asleep(&machine, vec![end_of(LINE), Exit::Halt, NOTHING]), (vec![DEVICE], 1), "it came with the end");
}

#[test]
fn test_the_timer_counts_as_the_hosts_counter() {
    let machine = machine();
    assert_eq!(play(&machine, [Exit::SetTimer(Some(1)), NOTHING]).1, [PV_TIMER_VECTOR], "it has been");
    let deadline = tsc() + 500_000_000;
    assert_eq!(play(&machine, [Exit::SetTimer(Some(deadline)), NOTHING]).1, []);
    while tsc() < deadline {
        std::hint::spin_loop();
    }
    assert_eq!(play(&machine, [NOTHING]).1, [PV_TIMER_VECTOR]);
    let deadline = tsc() + 500_000_000;
    assert_eq!(play(&machine, [Exit::SetTimer(Some(deadline)), Exit::SetTimer(None)]).1, []);
    while tsc() < deadline {
        std::hint::spin_loop();
    }
    assert_eq!(play(&machine, [NOTHING]).1, [], "it is off");
}

#[test]
fn test_ends_are_told_and_final() {
    for (exit, reason) in [
        (Exit::Power(PowerRequest::Off), ExitReason::PowerOff),
        (Exit::Power(PowerRequest::Reset), ExitReason::Reset),
        (Exit::HaltForever, ExitReason::HaltedForever),
    ] {
        let machine = machine();
        for _ in 0..2 {
            let run = play(&machine, [exit]).0.expect("it runs to its end");
            assert_eq!(run.exit, reason as u32);
        }
    }
}

#[test]
fn test_cpuid_and_msrs_are_those_of_paravirtual_guests() {
    let machine = machine();
    let mut step = 0;
    MockParavirtualEngine::set_script(Box::new(move |vcpu| {
        step += 1;
        vcpu.next_rip = Some(0x1000 + step);
        match step {
            1 => {
                vcpu.gprs.rax = 0x4000_0000;
                Some(Exit::Cpuid)
            }
            2 => {
                assert_eq!([vcpu.gprs.rbx, vcpu.gprs.rcx], [u64::from(u32::from_le_bytes(*b"XenV")), 0x6558_4d4d]);
                vcpu.gprs.rcx = index::GS_BASE.into();
                vcpu.gprs.set_edx_eax(0xffff_8880_0000_0000);
                Some(Exit::WriteMsr)
            }
            3 => {
                assert_eq!((vcpu.rip, vcpu.segments[SegmentName::Gs as usize].base), (0x1002, 0xffff_8880_0000_0000));
                vcpu.gprs.rcx = index::LSTAR.into();
                Some(Exit::ReadMsr)
            }
            _ => {
                let fault = Injection::Exception(Exception::GENERAL_PROTECTION);
                assert_eq!((vcpu.rip, vcpu.injected.last()), (0x1002, Some(&fault)));
                None
            }
        }
    }));
    machine.run_to_signal();
}

#[test]
fn test_the_interrupt_controllers_are_no_memory() {
    for base in [LOCAL_APIC_BASE, IO_APIC_BASE] {
        let machine = machine();
        // MOV AX, [0].
        // SAFETY: guest RAM, which nobody else uses now, has room for an instruction.
        unsafe { machine.ram.add(0x100).cast::<[u8; 3]>().write_unaligned([0xa1, 0, 0]) };
        MockParavirtualEngine::set_script(Box::new(move |vcpu| {
            vcpu.rip = 0x100;
            vcpu.segments[SegmentName::Cs as usize].base = 0;
            vcpu.segments[SegmentName::Ds as usize].base = base;
            Some(Exit::Memory(MemoryAccess { gpa: base, write: false, fetch: false, page_walk: false }))
        }));
        let run = machine.run(0).expect("the loader is asked");
        assert_eq!((run.exit, run.address, run.size), (ExitReason::MemoryRead as u32, base, 2));
    }
    let msi = Msi { address: LOCAL_APIC_BASE, data: u32::from(PV_TIMER_VECTOR), reserved: 0 };
    assert!(matches!(machine().call(Call::Msi, msi), Err(CallError::Invalid)));
}

#[test]
fn test_the_timer_that_linux_would_calibrate_by_is_not_there() {
    let machine = machine();
    let mut reads = 0;
    MockParavirtualEngine::set_script(Box::new(move |vcpu| {
        reads += 1;
        let read = PortAccess { port: 0x42, size: 1, write: false, string: false, next_rip: 0x1000 };
        if reads == 1 {
            vcpu.gprs.rax = 0x1234;
            return Some(Exit::Port(read));
        }
        assert_eq!((vcpu.gprs.rax, vcpu.rip), (0x1200, 0x1000));
        None
    }));
    machine.run_to_signal();
}

#[test]
fn test_there_is_one_vcpu_and_ram_below_the_devices() {
    let engine = entry::<MockHost, MockParavirtualEngine>().expect("there is memory");
    let driver: &_ = Box::leak(Box::new(Driver::new(vec![engine]).expect("there is memory")));
    let machine = Machine { handle: Handle::new(driver).expect("there is memory"), ..machine() };
    machine.greet();
    let create = |vcpus| machine.call(Call::VmCreate, VmCreate { vcpus, ..VmCreate::default() });
    assert!(matches!(create(2), Err(CallError::Invalid)));
    assert!(create(1).is_ok());
    let add = |gpa, size| machine.call(Call::MemoryAdd, MemoryAdd { gpa, size, ..MemoryAdd::default() });
    for (gpa, size) in [(RAM_LIMIT, 0x1000), (RAM_LIMIT - 0x1000, 0x2000), (u64::MAX - 0xfff, 0x2000)] {
        assert!(matches!(add(gpa, size), Err(CallError::Invalid)));
    }
    assert!(add(RAM_LIMIT - 0x1000, 0x1000).is_ok());
}
