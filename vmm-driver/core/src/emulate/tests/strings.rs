use super::*;
use crate::exit::PortAccess;

const DF: u64 = 1 << 10;
const ZF: u64 = 1 << 6;

fn string_port(port: u16, size: u8, write: bool) -> Cause {
    Cause::Port(PortAccess { port, size, write, string: true, next_rip: 0 })
}

#[test]
fn moves_between_ram_and_devices() {
    let mut machine = Machine::new();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rsi, gprs.rdi, gprs.rcx) = (DEVICE + 0x10, RAM + 0x20, 2);
    let code = [0xf3, 0xa5]; // rep movsd
    assert_eq!(machine.run_with(&code, 0x1122_3344), Outcome::Done);
    // One element; the instruction stays.
    let vcpu = &machine.guest.vcpu;
    assert_eq!((vcpu.rip, vcpu.gprs.rcx, vcpu.gprs.rsi, vcpu.gprs.rdi), (CODE, 1, DEVICE + 0x14, RAM + 0x24));
    assert_eq!(machine.run_with(&code, 0x5566_7788), Outcome::Done);
    assert_eq!(machine.guest.read_u64(RAM + 0x20), 0x5566_7788_1122_3344);
    assert_eq!((machine.guest.vcpu.rip, machine.guest.vcpu.gprs.rcx), (CODE + 2, 0));

    // Downward, to a device.
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.rflags |= DF;
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rsi, gprs.rdi) = (RAM + 0x20, DEVICE + 0x30);
    assert_eq!(machine.run(&[0xa4]), Outcome::Write { gpa: DEVICE_GPA + 0x30, size: 1, value: 0x44 }); // movsb
    assert_eq!((machine.guest.vcpu.gprs.rsi, machine.guest.vcpu.gprs.rdi), (RAM + 0x1f, DEVICE + 0x2f));
}

#[test]
fn no_repetition_at_all() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rdi = NOTHING;
    let outcome = machine.run(&[0xf3, 0x48, 0xab]); // rep stosq, rcx = 0
    machine.assert_done(outcome, 3);
}

#[test]
fn stores_loads_scans_and_compares() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rax = 0x1234;
    machine.guest.vcpu.gprs.rdi = DEVICE;
    assert_eq!(machine.run(&[0x66, 0xab]), Outcome::Write { gpa: DEVICE_GPA, size: 2, value: 0x1234 }); // stosw

    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.gprs.rsi = DEVICE;
    assert_eq!(machine.run_with(&[0xac], 0x99), Outcome::Done); // lodsb
    assert_eq!(machine.guest.vcpu.gprs.rax, 0x1299);

    // repne scasb: goes on while they differ.
    for (value, rip, zero) in [(0x98, CODE, 0), (0x99, CODE + 2, ZF)] {
        machine.guest.vcpu.rip = CODE;
        machine.guest.vcpu.gprs.rcx = 5;
        machine.guest.vcpu.gprs.rdi = DEVICE;
        assert_eq!(machine.run_with(&[0xf2, 0xae], value), Outcome::Done);
        assert_eq!((machine.guest.vcpu.rip, machine.guest.vcpu.rflags & ZF), (rip, zero));
    }
    // repe cmpsb: goes on while they are equal.
    machine.guest.write(RAM, &[7]);
    for (value, rip, zero) in [(7, CODE, ZF), (8, CODE + 2, 0)] {
        machine.guest.vcpu.rip = CODE;
        let gprs = &mut machine.guest.vcpu.gprs;
        (gprs.rsi, gprs.rdi, gprs.rcx) = (RAM, DEVICE, 5);
        assert_eq!(machine.run_with(&[0xf3, 0xa6], value), Outcome::Done);
        assert_eq!((machine.guest.vcpu.rip, machine.guest.vcpu.rflags & ZF), (rip, zero));
    }
    // Both from the loader cannot be replayed.
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.gprs.rsi = DEVICE + 8;
    machine.guest.vcpu.gprs.rdi = DEVICE;
    assert!(matches!(machine.run_with(&[0xa6], 1), Outcome::Unsupported(_)));
}

#[test]
fn ports_element_by_element() {
    let mut machine = Machine::new();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rdx, gprs.rdi, gprs.rcx) = (0xffff_1234, RAM, 2);
    machine.cause = string_port(0x1234, 2, false);
    let code = [0xf3, 0x66, 0x6d]; // rep insw
    machine.put(&code);
    assert_eq!(machine.step(None), Outcome::NeedPortRead { port: 0x1234, size: 2 });
    assert_eq!(machine.run_with(&code, 0xaaaa_bbbb), Outcome::Done);
    assert_eq!(machine.guest.vcpu.rip, CODE);
    assert_eq!(machine.run_with(&code, 0xcccc), Outcome::Done);
    assert_eq!(machine.guest.vcpu.rip, CODE + 3);
    assert_eq!(machine.guest.read_u64(RAM), 0xcccc_bbbb);

    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.gprs.rsi = RAM;
    machine.cause = string_port(0x1234, 4, true);
    assert_eq!(machine.run(&[0x6f]), Outcome::PortWrite { port: 0x1234, size: 4, value: 0xcccc_bbbb }); // outsd
    assert_eq!(machine.guest.vcpu.gprs.rsi, RAM + 4);
}

#[test]
fn a_page_fault_comes_before_the_port() {
    let mut machine = Machine::new();
    machine.cause = string_port(0, 1, false);
    machine.guest.vcpu.gprs.rdi = READ_ONLY;
    assert!(matches!(machine.run(&[0x6c]), Outcome::Fault(_)));
    assert_eq!(machine.guest.vcpu.cr2, READ_ONLY);
}

#[test]
fn ports_only_with_permission() {
    let mut machine = Machine::new();
    machine.guest.vcpu.cpl = 3;
    machine.guest.vcpu.gprs.rsi = RAM;
    // The guest has put OUTS in place of an access to device memory.
    machine.cause = memory_cause(DEVICE_GPA, true);
    assert!(matches!(machine.run(&[0x6e]), Outcome::Unsupported(_)));
    // And another instruction in place of OUTS, or another port or size.
    machine.cause = string_port(0x60, 1, true);
    assert!(matches!(machine.run(&[0x6e]), Outcome::Unsupported(_)));
    assert!(matches!(machine.run(&[0xa4]), Outcome::Unsupported(_)));
    assert!(matches!(machine.run(&[0x89, 0x03]), Outcome::Unsupported(_)));
    machine.guest.vcpu.gprs.rdx = 0x60;
    assert!(matches!(machine.run(&[0x6f]), Outcome::Unsupported(_)));
    assert_eq!(machine.run(&[0x6e]), Outcome::PortWrite { port: 0x60, size: 1, value: 0 });
    // With IOPL 3 there is nothing to check.
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.rflags |= 3 << 12;
    machine.cause = Cause::Other;
    assert_eq!(machine.run(&[0x6e]), Outcome::PortWrite { port: 0x60, size: 1, value: 0 });
}

#[test]
fn addresses_of_16_and_32_bits() {
    let mut machine = Machine::new();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rdi, gprs.rcx) = (0xdead_0000_0000_0000 | RAM, 0xdead_0000_0000_0001);
    let outcome = machine.run(&[0xf3, 0x67, 0xaa]); // rep stosb [edi]
    machine.assert_done(outcome, 3);
    assert_eq!((machine.guest.vcpu.gprs.rdi, machine.guest.vcpu.gprs.rcx), (RAM + 1, 0));

    let mut machine = Machine::protected_mode();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rsi, gprs.rcx) = (0x7777_ffff, 0x7777_0002);
    machine.guest.vcpu.segments[3].base = 0x8000;
    let code = [0xf3, 0x67, 0xac]; // rep lodsb [si]
    assert_eq!(machine.run(&code), Outcome::Done);
    let vcpu = &machine.guest.vcpu;
    assert_eq!((vcpu.rip, vcpu.gprs.rsi, vcpu.gprs.rcx), (CODE, 0x7777_0000, 0x7777_0001));
}
