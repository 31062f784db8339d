use super::*;
use crate::exit::Exception;
use crate::exit::Injection;
use crate::paging::error_code;

const DEBUG: Injection = Injection::Exception(Exception { vector: 1, error_code: None });

#[test]
fn operands_across_pages() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = RAM + 0xffd;
    machine.guest.vcpu.gprs.rax = 0x1122_3344_5566_7788;
    let outcome = machine.run(&[0x48, 0x89, 0x03]);
    machine.assert_done(outcome, 3);
    assert_eq!(machine.guest.read(RAM + 0xffd, 8), 0x1122_3344_5566_7788_u64.to_le_bytes());
    machine.guest.vcpu.rip = CODE;
    let outcome = machine.run(&[0x48, 0x03, 0x03]); // add rax, [rbx]
    machine.assert_done(outcome, 3);
    assert_eq!(machine.guest.vcpu.gprs.rax, 0x2244_6688_aacc_ef10);

    // The fault is of the second page, and the first is not written.
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.gprs.rbx = RAM + 0x1ffd;
    let expected = Outcome::Fault(Exception::page_fault(error_code::WRITE));
    assert_eq!(machine.run(&[0x48, 0x89, 0x03]), expected);
    assert_eq!(machine.guest.vcpu.cr2, RAM + 0x2000);
    assert_eq!(machine.guest.read(RAM + 0x1ffd, 3), [0; 3]);
    // From a device into nothing, and from RAM into a device.
    machine.guest.vcpu.gprs.rbx = DEVICE + 0xffd;
    assert_eq!(machine.run(&[0x48, 0x89, 0x03]), expected);
    machine.guest.map(DEVICE + 0x1000, 12, RAM | 7);
    assert!(matches!(machine.run(&[0x48, 0x89, 0x03]), Outcome::Unsupported(_)));
}

#[test]
fn code_across_pages() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE;
    machine.guest.vcpu.rip = CODE + 0xffe;
    let code = [0xc7, 0x03, 1, 2, 3, 4]; // mov dword [rbx], imm
    assert_eq!(machine.run(&code), Outcome::Write { gpa: DEVICE_GPA, size: 4, value: 0x0403_0201 });
    assert_eq!(machine.guest.vcpu.rip, CODE + 0x1004);
    machine.guest.vcpu.rip = CODE + 0x1ffe;
    machine.guest.write(CODE + 0x1ffe, &code[..2]);
    assert!(matches!(machine.step(None), Outcome::Fault(_)));
    assert_eq!(machine.guest.vcpu.cr2, CODE + 0x2000);
    // A short one at the end of its page needs no more.
    machine.guest.write(CODE + 0x1ffe, &[0x8b, 0x03]);
    assert!(matches!(machine.step(None), Outcome::NeedRead { .. }));
    // Fifteen prefixes are too many.
    machine.guest.vcpu.rip = CODE;
    assert_eq!(machine.run(&[0x66; 16]), Outcome::Unsupported([0x66; 8]));
}

#[test]
fn faults_leave_everything_as_it_was() {
    let mut machine = Machine::new();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rbx, gprs.rsi, gprs.rdi, gprs.rcx) = (READ_ONLY, DRIVER, READ_ONLY, 5);
    for code in [&[0x01, 0x03][..], &[0x87, 0x03], &[0x0f, 0xc1, 0x03], &[0xf3, 0xa4], &[0x8f, 0x03]] {
        let before = machine.guest.vcpu.clone();
        let code_of_fault = error_code::PRESENT | error_code::WRITE;
        assert_eq!(machine.run(code), Outcome::Fault(Exception::page_fault(code_of_fault)), "{code:x?}");
        assert_eq!(machine.guest.vcpu.cr2, READ_ONLY);
        machine.guest.vcpu.cr2 = before.cr2;
        assert_eq!(machine.guest.vcpu, before);
    }
}

#[test]
fn non_canonical_addresses() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = 1 << 47;
    machine.guest.vcpu.gprs.rsp = 1 << 63;
    assert_eq!(machine.run(&[0x8b, 0x03]), Outcome::Fault(Exception::GENERAL_PROTECTION));
    assert_eq!(machine.run(&[0x8b, 0x04, 0x24]), Outcome::Fault(Exception::STACK));
    machine.guest.vcpu.gprs.rbx = (1 << 47) - 2;
    assert_eq!(machine.run(&[0x8b, 0x03]), Outcome::Fault(Exception::GENERAL_PROTECTION));
}

#[test]
fn segments_and_their_limits() {
    let mut machine = Machine::protected_mode();
    machine.guest.vcpu.gprs.rbx = 0x100;
    let load = [0x8b, 0x03]; // mov eax, [ebx]
    let store = [0x89, 0x03];
    let refused = Outcome::Fault(Exception::GENERAL_PROTECTION);
    machine.guest.vcpu.segments[3].limit = 0x103;
    machine.guest.vcpu.segments[3].base = DEVICE_GPA;
    assert_eq!(machine.run(&load), Outcome::NeedRead { gpa: DEVICE_GPA + 0x100, size: 4 });
    machine.guest.vcpu.segments[3].limit = 0x102;
    assert_eq!(machine.run(&load), refused);
    // Expand-down: above the limit.
    machine.guest.vcpu.segments[3].attributes = 0xc97;
    assert_eq!(machine.run(&load), refused);
    machine.guest.vcpu.segments[3].limit = 0xff;
    assert_eq!(machine.run(&load), Outcome::NeedRead { gpa: DEVICE_GPA + 0x100, size: 4 });
    // Read-only data, execute-only code, not present.
    machine.guest.vcpu.segments[3].limit = 0xffff;
    for (attributes, reads) in [(0xc91, true), (0xc99, false), (0xc9b, true), (0xc13, false)] {
        machine.guest.vcpu.segments[3].attributes = attributes;
        assert_eq!(machine.run(&load) != refused, reads);
        assert_eq!(machine.run(&store), refused);
    }
    // Through the stack segment it is #SS.
    machine.guest.vcpu.segments[2].limit = 0;
    machine.guest.vcpu.gprs.rbp = 0x100;
    assert_eq!(machine.run(&[0x8b, 0x45, 0x00]), Outcome::Fault(Exception::STACK));
}

#[test]
fn real_mode() {
    let mut machine = Machine { guest: TestGuest::real_mode(), ..Machine::protected_mode() };
    machine.guest.vcpu.rip = 0xffff_0000 | CODE;
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.segments[1].base = 0x2_0000;
    machine.guest.vcpu.segments[3].base = 0xf_fff0;
    machine.guest.vcpu.gprs.rbx = 0xdead_1000;
    machine.guest.vcpu.gprs.rsi = 0xdead_0010;
    // mov ax, [bx + si + 2]: one megabyte and up, with A20 open.
    let outcome = machine.run_with(&[0x8b, 0x40, 0x02], 0x4711);
    machine.assert_done(outcome, 3);
    assert_eq!(machine.guest.vcpu.gprs.rax, 0x4711);
    // Real mode has no error codes.
    machine.guest.vcpu.gprs.rbx = 0xffed;
    let outcome = machine.run(&[0x8b, 0x40, 0x02]);
    assert_eq!(outcome, Outcome::Fault(Exception { vector: 13, error_code: None }));
    // Offsets of 16 bits wrap.
    machine.guest.vcpu.segments[3].base = 0;
    machine.guest.vcpu.gprs.rbx = 0xfff0;
    machine.guest.write(2, &[0x34, 0x12]);
    let outcome = machine.run(&[0x8b, 0x40, 0x02]);
    assert_eq!((outcome, machine.guest.vcpu.gprs.rax), (Outcome::Done, 0x1234));
}

#[test]
fn rip_has_32_bits_outside_64_bit_mode() {
    let mut machine = Machine::protected_mode();
    machine.guest.vcpu.segments[1].base = 0x2000;
    machine.guest.vcpu.rip = 0xffff_ffff;
    machine.guest.write(0x1fff, &[0x8b, 0x03]);
    machine.guest.vcpu.gprs.rbx = RAM;
    assert_eq!(machine.step(None), Outcome::Done);
    assert_eq!(machine.guest.vcpu.rip, 1);
}

#[test]
fn single_step_and_shadow() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE;
    machine.guest.vcpu.rflags |= 1 << 8 | 1 << 16;
    machine.guest.vcpu.interrupt_shadow = true;
    assert!(matches!(machine.run(&[0x89, 0x03]), Outcome::Write { .. }));
    let vcpu = &machine.guest.vcpu;
    assert_eq!((vcpu.injection, vcpu.dr6, vcpu.interrupt_shadow), (Some(DEBUG), 1 << 14, false));
    assert_eq!(vcpu.rflags & 1 << 16, 0, "RF is over");
    // Each element of a repeated instruction is a step.
    machine.guest.vcpu.injection = None;
    machine.guest.vcpu.rip = CODE;
    (machine.guest.vcpu.gprs.rdi, machine.guest.vcpu.gprs.rcx) = (RAM, 3);
    assert_eq!(machine.run(&[0xf3, 0xaa]), Outcome::Done);
    assert_eq!((machine.guest.vcpu.rip, machine.guest.vcpu.injection), (CODE, Some(DEBUG)));
}

#[test]
fn what_is_not_known_is_told() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE;
    for code in [&[0x0f, 0x10, 0x03][..], &[0x0f, 0x0b], &[0xf0, 0x89, 0x03], &[0x8e, 0x1b], &[0xd9, 0x03], &[0x90]] {
        let Outcome::Unsupported(bytes) = machine.run(code) else { panic!("{code:x?}") };
        assert!(bytes.starts_with(code));
    }
    machine.guest.map(NOTHING, 12, 0x7fff_f000 | 7);
    machine.guest.vcpu.rip = NOTHING + 4;
    assert_eq!(machine.step(None), Outcome::FetchOutsideRam(0x7fff_f004));
    machine.guest.vcpu.rip = CODE;
    machine.guest.vcpu.cr3 = 0x7fff_f000;
    assert_eq!(machine.step(None), Outcome::TableOutsideRam(0x7fff_f000));
}
