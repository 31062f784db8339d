use super::*;
use crate::registers::RFlags;

const STATUS: u64 = 0x8d5;

/// Reads, changes and writes both the loader's and the driver's device.
#[track_caller]
fn check(code: &[u8], old: u64, rax: u64, new: Option<(u8, u64)>, rax_after: u64, flags: RFlags) {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rax = rax;
    machine.guest.vcpu.gprs.rbx = DEVICE + 8;
    let outcome = machine.run_with(code, old);
    match new {
        Some((size, value)) => assert_eq!(outcome, Outcome::Write { gpa: DEVICE_GPA + 8, size, value }),
        None => assert_eq!(outcome, Outcome::Done),
    }
    assert_eq!(machine.guest.vcpu.rip, CODE + code.len() as u64);
    assert_eq!(machine.guest.vcpu.gprs.rax, rax_after);
    assert_eq!(machine.guest.vcpu.rflags & STATUS, flags.bits());

    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rax = rax;
    machine.guest.vcpu.gprs.rbx = DRIVER + 8;
    machine.devices.words.insert(DRIVER_GPA + 8, old);
    let outcome = machine.run(code);
    machine.assert_done(outcome, code.len() as u64);
    assert_eq!(
        machine.devices.writes,
        new.iter().map(|(size, value)| (DRIVER_GPA + 8, *size, *value)).collect::<Vec<_>>()
    );
    assert_eq!(machine.guest.vcpu.rflags & STATUS, flags.bits());
}

#[test]
fn read_modify_write() {
    let none = RFlags::empty();
    let (cf, pf, af, zf, sf, of) =
        (RFlags::FLAGS_CF, RFlags::FLAGS_PF, RFlags::FLAGS_AF, RFlags::FLAGS_ZF, RFlags::FLAGS_SF, RFlags::FLAGS_OF);
    check(&[0x01, 0x03], 0xffff_ffff, 1, Some((4, 0)), 1, cf | pf | af | zf); // add [rbx], eax
    check(&[0x00, 0x03], 0x7f, 1, Some((1, 0x80)), 1, sf | of | af); // add [rbx], al
    check(&[0xf0, 0x09, 0x03], 0x80, 1, Some((4, 0x81)), 1, pf); // lock or [rbx], eax
    check(&[0x48, 0x21, 0x03], 0xff00, 0xff, Some((8, 0)), 0xff, pf | zf); // and [rbx], rax
    check(&[0x66, 0x31, 0x03], 0xff00, 0x7f00, Some((2, 0x8000)), 0x7f00, pf | sf); // xor [rbx], ax
    check(&[0x29, 0x03], 0, 1, Some((4, 0xffff_ffff)), 1, cf | pf | af | sf); // sub [rbx], eax
    check(&[0x83, 0x2b, 0xff], 1, 0, Some((4, 2)), 0, cf | af); // sub dword [rbx], -1
    check(&[0x81, 0x3b, 5, 0, 0, 0], 5, 7, None, 7, pf | zf); // cmp dword [rbx], 5
    check(&[0xf7, 0x03, 1, 0, 0, 0x80], 0x8000_0000, 7, None, 7, pf | sf); // test dword [rbx], imm
    check(&[0x3b, 0x03], 6, 5, None, 5, cf | pf | af | sf); // cmp eax, [rbx]
    check(&[0x03, 0x03], 6, 5, None, 11, none); // add eax, [rbx]
    check(&[0xff, 0x03], 0x7fff_ffff, 0, Some((4, 0x8000_0000)), 0, pf | af | sf | of); // inc dword [rbx]
    check(&[0xfe, 0x0b], 0, 0, Some((1, 0xff)), 0, pf | af | sf); // dec byte [rbx]
    check(&[0xf7, 0x1b], 1, 0, Some((4, 0xffff_ffff)), 0, cf | pf | af | sf); // neg dword [rbx]
    check(&[0xf7, 0x13], 1, 0, Some((4, 0xffff_fffe)), 0, none); // not dword [rbx]
    check(&[0x87, 0x03], 1, 2, Some((4, 2)), 1, none); // xchg [rbx], eax
    check(&[0xf0, 0x0f, 0xc1, 0x03], 1, 2, Some((4, 3)), 1, pf); // lock xadd [rbx], eax
    check(&[0x0f, 0xb1, 0x0b], 2, 2, Some((4, 0)), 2, pf | zf); // cmpxchg [rbx], ecx: equal
    check(&[0x0f, 0xb1, 0x0b], 3, 2, Some((4, 3)), 3, cf | pf | af | sf); // different
    check(&[0x0f, 0xba, 0x23, 33], 2, 0, None, 0, cf); // bt dword [rbx], 33
    check(&[0x0f, 0xba, 0x2b, 0], 2, 0, Some((4, 3)), 0, none); // bts dword [rbx], 0
    check(&[0x0f, 0xba, 0x33, 1], 2, 0, Some((4, 0)), 0, cf); // btr dword [rbx], 1
    check(&[0x0f, 0xba, 0x3b, 1], 3, 0, Some((4, 1)), 0, cf); // btc dword [rbx], 1
}

#[test]
fn carry_goes_in() {
    for (code, expected) in [(&[0x11, 0x03][..], 8), (&[0x19, 0x03], 2)] {
        let mut machine = Machine::new();
        machine.guest.vcpu.rflags |= 1;
        machine.guest.vcpu.gprs.rax = 2;
        machine.guest.vcpu.gprs.rbx = DEVICE;
        assert_eq!(machine.run_with(code, 5), Outcome::Write { gpa: DEVICE_GPA, size: 4, value: expected });
    }
}

#[test]
fn bits_are_counted_from_the_operand_on() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE + 0x100;
    for (number, gpa) in [(0_i64, 0x100), (35, 0x104), (-1, 0xfc), (-32, 0xfc), (-33, 0xf8), (0x7ff, 0x1fc)] {
        machine.guest.vcpu.gprs.rax = number.cast_unsigned();
        assert_eq!(machine.run(&[0x0f, 0xab, 0x03]), Outcome::NeedRead { gpa: DEVICE_GPA + gpa, size: 4 }); // bts [rbx], eax
    }
    machine.guest.vcpu.gprs.rax = 35;
    let outcome = machine.run_with(&[0x0f, 0xab, 0x03], 8);
    assert_eq!(outcome, Outcome::Write { gpa: DEVICE_GPA + 0x104, size: 4, value: 8 });
    assert_eq!(machine.guest.vcpu.rflags & 1, 1);
}

#[test]
fn register_forms() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rax = 0xffff_ffff_0000_0003;
    let outcome = machine.run(&[0x0f, 0xc1, 0xc0]); // xadd eax, eax
    machine.assert_done(outcome, 3);
    assert_eq!(machine.guest.vcpu.gprs.rax, 6);
}
