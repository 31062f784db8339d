use super::*;

#[test]
fn loads_of_every_kind() {
    let value = 0x8182_8384_8586_8788_u64;
    for (code, rax) in [
        (&[0x8a, 0x03][..], 0x1111_1111_1111_1188),               // mov al, [rbx]
        (&[0x8a, 0x23], 0x1111_1111_1111_8811),                   // mov ah, [rbx]
        (&[0x66, 0x8b, 0x03], 0x1111_1111_1111_8788),             // mov ax, [rbx]
        (&[0x8b, 0x03], 0x8586_8788),                             // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], value),                             // mov rax, [rbx]
        (&[0x0f, 0xb6, 0x03], 0x88),                              // movzx eax, byte [rbx]
        (&[0x48, 0x0f, 0xb7, 0x03], 0x8788),                      // movzx rax, word [rbx]
        (&[0x66, 0x0f, 0xbe, 0x03], 0x1111_1111_1111_ff88),       // movsx ax, byte [rbx]
        (&[0x0f, 0xbf, 0x03], 0xffff_8788),                       // movsx eax, word [rbx]
        (&[0x48, 0x63, 0x03], 0xffff_ffff_8586_8788),             // movsxd rax, dword [rbx]
        (&[0x0f, 0x38, 0xf0, 0x03], 0x8887_8685),                 // movbe eax, [rbx]
        (&[0x66, 0x0f, 0x38, 0xf0, 0x03], 0x1111_1111_1111_8887), // movbe ax, [rbx]
        (&[0x48, 0x0f, 0x38, 0xf0, 0x03], value.swap_bytes()),    // movbe rax, [rbx]
    ] {
        let mut machine = Machine::new();
        machine.guest.vcpu.gprs.rax = 0x1111_1111_1111_1111;
        machine.guest.vcpu.gprs.rbx = DEVICE + 0x10;
        let outcome = machine.run_with(code, value);
        machine.assert_done(outcome, code.len() as u64);
        assert_eq!(machine.guest.vcpu.gprs.rax, rax, "{code:x?}");
    }
}

#[test]
fn stores_of_every_kind() {
    let value = 0x8182_8384_8586_8788_u64;
    for (code, size, expected) in [
        (&[0x88, 0x03][..], 1, 0x88),                   // mov [rbx], al
        (&[0x88, 0x23], 1, 0x87),                       // mov [rbx], ah
        (&[0x66, 0x89, 0x03], 2, 0x8788),               // mov [rbx], ax
        (&[0x89, 0x03], 4, 0x8586_8788),                // mov [rbx], eax
        (&[0x48, 0x89, 0x03], 8, value),                // mov [rbx], rax
        (&[0x0f, 0xc3, 0x03], 4, 0x8586_8788),          // movnti [rbx], eax
        (&[0x48, 0x0f, 0xc3, 0x03], 8, value),          // movnti [rbx], rax
        (&[0x0f, 0x38, 0xf1, 0x03], 4, 0x8887_8685),    // movbe [rbx], eax
        (&[0xc6, 0x03, 0x42], 1, 0x42),                 // mov byte [rbx], 42h
        (&[0xc7, 0x03, 1, 2, 3, 0x84], 4, 0x8403_0201), // mov dword [rbx], imm
        (&[0x48, 0xc7, 0x03, 1, 2, 3, 0x84], 8, 0xffff_ffff_8403_0201),
    ] {
        let mut machine = Machine::new();
        machine.guest.vcpu.gprs.rax = value;
        machine.guest.vcpu.gprs.rbx = DEVICE + 0x10;
        let outcome = machine.run(code);
        assert_eq!(outcome, Outcome::Write { gpa: DEVICE_GPA + 0x10, size, value: expected }, "{code:x?}");
        assert_eq!(machine.guest.vcpu.rip, CODE + code.len() as u64);
        // The same to the driver's device and to RAM.
        for (linear, gpa) in [(DRIVER + 8, DRIVER_GPA + 8), (RAM + 8, RAM + 8)] {
            let mut machine = Machine::new();
            machine.guest.vcpu.gprs.rax = value;
            machine.guest.vcpu.gprs.rbx = linear;
            let outcome = machine.run(code);
            machine.assert_done(outcome, code.len() as u64);
            if linear == RAM + 8 {
                assert_eq!(machine.guest.read_u64(gpa), expected);
            } else {
                assert_eq!(machine.devices.writes, [(gpa, size, expected)]);
            }
        }
    }
}

#[test]
fn absolute_addresses_of_64_bits() {
    let mut machine = Machine::new();
    let mut code = vec![0x48, 0xa1]; // mov rax, [moffs]
    code.extend((DRIVER + 0x20).to_le_bytes());
    machine.devices.words.insert(DRIVER_GPA + 0x20, 0x1234_5678_9abc_def0);
    let outcome = machine.run(&code);
    machine.assert_done(outcome, 10);
    assert_eq!(machine.guest.vcpu.gprs.rax, 0x1234_5678_9abc_def0);
    machine.guest.vcpu.rip = CODE;
    let mut code = vec![0xa2]; // mov [moffs], al
    code.extend((DEVICE + 0x21).to_le_bytes());
    assert_eq!(machine.run(&code), Outcome::Write { gpa: DEVICE_GPA + 0x21, size: 1, value: 0xf0 });
}

#[test]
fn effective_addresses() {
    let mut machine = Machine::new();
    let gprs = &mut machine.guest.vcpu.gprs;
    (gprs.rbx, gprs.rcx, gprs.r12, gprs.rsp) = (DEVICE, 3, DEVICE + 0x100, DEVICE + 0x200);
    gprs.rbp = 0xffff_ffff_0010_0300;
    for (code, offset) in [
        (&[0x8b, 0x44, 0x8b, 0x04][..], 3 * 4 + 4),    // mov eax, [rbx + rcx*4 + 4]
        (&[0x8b, 0x43, 0x7c], 0x7c),                   // mov eax, [rbx + 7ch]
        (&[0x41, 0x8b, 0x44, 0x24, 0xf8], 0xf8),       // mov eax, [r12 - 8]
        (&[0x8b, 0x04, 0x24], 0x200),                  // mov eax, [rsp]
        (&[0x67, 0x8b, 0x45, 0x04], 0x304),            // mov eax, [ebp + 4]
        (&[0x8b, 0x04, 0x25, 0x80, 0, 0x10, 0], 0x80), // mov eax, [100080h]
        (&[0x8b, 0x05, 0x04, 0xf0, 0x0f, 0], 0x0a),    // mov eax, [rip + ff004h]
    ] {
        machine.guest.vcpu.rip = CODE;
        assert_eq!(machine.run(code), Outcome::NeedRead { gpa: DEVICE_GPA + offset, size: 4 }, "{code:x?}");
    }
    // Only FS and GS have a base in 64-bit mode.
    machine.guest.vcpu.segments[5].base = 0x40;
    machine.guest.vcpu.segments[3].base = 0x80;
    assert_eq!(machine.run(&[0x65, 0x8b, 0x03]), Outcome::NeedRead { gpa: DEVICE_GPA + 0x40, size: 4 });
    assert_eq!(machine.run(&[0x3e, 0x8b, 0x03]), Outcome::NeedRead { gpa: DEVICE_GPA, size: 4 });
}

#[test]
fn pushes_and_pops_memory() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE + 8;
    let outcome = machine.run_with(&[0xff, 0x33], 0x1122_3344_5566_7788); // push qword [rbx]
    machine.assert_done(outcome, 2);
    assert_eq!(machine.guest.vcpu.gprs.rsp, RAM + 0x7f8);
    assert_eq!(machine.guest.read_u64(RAM + 0x7f8), 0x1122_3344_5566_7788);
    machine.guest.vcpu.rip = CODE;
    // pop qword [rbx]
    assert_eq!(
        machine.run(&[0x8f, 0x03]),
        Outcome::Write { gpa: DEVICE_GPA + 8, size: 8, value: 0x1122_3344_5566_7788 }
    );
    assert_eq!(machine.guest.vcpu.gprs.rsp, RAM + 0x800);
}

#[test]
fn an_answer_to_another_question_is_ignored() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE;
    machine.put(&[0x8b, 0x03]);
    for answer in [
        Answer::Memory { gpa: DEVICE_GPA + 4, size: 4, value: 1 },
        Answer::Memory { gpa: DEVICE_GPA, size: 8, value: 1 },
        Answer::Port { port: 0, size: 4, value: 1 },
    ] {
        assert_eq!(machine.step(Some(answer)), Outcome::NeedRead { gpa: DEVICE_GPA, size: 4 });
    }
}

#[test]
fn the_exits_address_saves_the_walk() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = NOTHING + 0x24;
    machine.cause = memory_cause(DEVICE_GPA + 0x24, true);
    // It is for this access only: the same offset in the page, and a write.
    assert_eq!(machine.run(&[0x89, 0x03]), Outcome::Write { gpa: DEVICE_GPA + 0x24, size: 4, value: 0 });
    machine.guest.vcpu.rip = CODE;
    assert!(matches!(machine.run(&[0x8b, 0x03]), Outcome::Fault(_)));
    assert!(matches!(machine.run(&[0x89, 0x43, 0x01]), Outcome::Fault(_)));
}

#[test]
fn machine_status_word() {
    let mut machine = Machine::new();
    machine.guest.vcpu.gprs.rbx = DEVICE;
    machine.guest.vcpu.cr0 |= 0x10;
    let value = machine.guest.vcpu.cr0 & 0xffff;
    assert_eq!(machine.run(&[0x0f, 0x01, 0x23]), Outcome::Write { gpa: DEVICE_GPA, size: 2, value });
    machine.guest.vcpu.rip = CODE;
    let outcome = machine.run(&[0x0f, 0x01, 0xe0]); // smsw eax
    machine.assert_done(outcome, 3);
    assert_eq!(machine.guest.vcpu.gprs.rax, machine.guest.vcpu.cr0);
}
