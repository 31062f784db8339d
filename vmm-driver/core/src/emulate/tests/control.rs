use super::*;
use crate::emulate::ControlAccess;
use crate::emulate::ControlOperation;
use crate::emulate::Register;
use crate::emulate::control_access;
use crate::emulate::length_of_current;
use crate::emulate::opcode;
use crate::exit::Exception;

fn control(machine: &mut Machine, code: &[u8]) -> Result<ControlAccess, Outcome> {
    machine.put(code);
    control_access(&mut machine.guest.vcpu, &machine.guest.memory)
}

#[test]
fn control_and_debug_registers() {
    let mut machine = Machine::new();
    let value = 0x1234_5678_9abc_def0;
    machine.guest.vcpu.gprs.r9 = value;
    for (code, operation) in [
        (&[0x41, 0x0f, 0x22, 0xc1][..], ControlOperation::Write { register: Register::Control(0), value }),
        (&[0x41, 0x0f, 0x22, 0xd9], ControlOperation::Write { register: Register::Control(3), value }),
        (&[0x0f, 0x20, 0xe7], ControlOperation::Read { register: Register::Control(4), gpr: 7 }),
        (&[0x44, 0x0f, 0x20, 0xc3], ControlOperation::Read { register: Register::Control(8), gpr: 3 }),
        (&[0x41, 0x0f, 0x23, 0xf9], ControlOperation::Write { register: Register::Debug(7), value }),
        (&[0x0f, 0x21, 0xe0], ControlOperation::Read { register: Register::Debug(6), gpr: 0 }), // dr4
        (&[0x0f, 0x06], ControlOperation::ClearTaskSwitched),
        (&[0x41, 0x0f, 0x01, 0xf1], ControlOperation::LoadMachineStatus { value: 0xdef0 }),
        (&[0x0f, 0x01, 0xe0], ControlOperation::StoreMachineStatus),
    ] {
        let expected = ControlAccess { operation, next_rip: CODE + code.len() as u64 };
        assert_eq!(control(&mut machine, code), Ok(expected), "{code:x?}");
    }
    // LMSW from RAM.
    machine.guest.write(RAM, &[0x0b, 0]);
    machine.guest.vcpu.gprs.rbx = RAM;
    let expected = ControlAccess { operation: ControlOperation::LoadMachineStatus { value: 11 }, next_rip: CODE + 3 };
    assert_eq!(control(&mut machine, &[0x0f, 0x01, 0x33]), Ok(expected));
    machine.guest.vcpu.gprs.rbx = DEVICE;
    assert!(matches!(control(&mut machine, &[0x0f, 0x01, 0x33]), Err(Outcome::Unsupported(_))));
}

#[test]
fn outside_64_bit_mode_registers_have_32_bits() {
    let mut machine = Machine::protected_mode();
    machine.guest.vcpu.gprs.rax = 0xffff_ffff_0000_0011;
    let operation = ControlOperation::Write { register: Register::Control(0), value: 0x11 };
    assert_eq!(control(&mut machine, &[0x0f, 0x22, 0xc0]), Ok(ControlAccess { operation, next_rip: CODE + 3 }));
}

#[test]
fn refuses_what_the_cpu_refuses() {
    let mut machine = Machine::new();
    machine.guest.vcpu.cr4 |= 8;
    let undefined = Err(Outcome::Fault(Exception::INVALID_OPCODE));
    assert_eq!(control(&mut machine, &[0x0f, 0x21, 0xe0]), undefined, "DR4 with CR4.DE");
    machine.guest.vcpu.dr7 = 1 << 13;
    assert_eq!(
        control(&mut machine, &[0x0f, 0x21, 0xc0]),
        Err(Outcome::Fault(Exception { vector: 1, error_code: None }))
    );
    assert_eq!((machine.guest.vcpu.dr7, machine.guest.vcpu.dr6), (0, 1 << 13));
    machine.guest.vcpu.cpl = 3;
    assert_eq!(control(&mut machine, &[0x0f, 0x06]), Err(Outcome::Fault(Exception::GENERAL_PROTECTION)));
    assert!(matches!(control(&mut machine, &[0x90]), Err(Outcome::Fault(_))));
    machine.guest.vcpu.cpl = 0;
    assert!(matches!(control(&mut machine, &[0x90]), Err(Outcome::Unsupported(_))));
}

#[test]
fn lengths() {
    let mut machine = Machine::new();
    let mut length = |code: &[u8], expected| {
        machine.put(code);
        length_of_current(&mut machine.guest.vcpu, &machine.guest.memory, expected).map(|rip| rip - CODE)
    };
    for expected in [
        opcode::CPUID,
        opcode::RDMSR,
        opcode::WRMSR,
        opcode::HLT,
        opcode::VMMCALL,
        opcode::VMCALL,
        opcode::PAUSE,
        opcode::INVD,
        opcode::WBINVD,
        opcode::XSETBV,
        opcode::RDPMC,
        opcode::RDTSC,
        opcode::RDTSCP,
    ] {
        assert_eq!(length(expected, expected), Ok(expected.len() as u64));
    }
    assert_eq!(length(&[0x66, 0x67, 0x0f, 0xa2], opcode::CPUID), Ok(4));
    assert_eq!(length(&[0x2e, 0x48, 0xf4], opcode::HLT), Ok(3));
    assert_eq!(length(&[0x66, 0xf3, 0x90], opcode::PAUSE), Ok(3));
    assert!(matches!(length(&[0x0f, 0x0b], opcode::CPUID), Err(Outcome::Unsupported(_))));
    machine.guest.vcpu.next_rip = Some(CODE + 9);
    assert_eq!(length_of_current(&mut machine.guest.vcpu, &machine.guest.memory, opcode::CPUID), Ok(CODE + 9));
}
