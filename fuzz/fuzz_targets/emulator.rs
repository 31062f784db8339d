//! The instruction emulator and the page walks: compared with the CPU on harmless instructions, and on any code in any
//! mode with damaged page tables for not going wrong.
#![no_main]

use covisor_core::emulate::Answer;
use covisor_core::emulate::Cause;
use covisor_core::emulate::DeviceSpace;
use covisor_core::emulate::Outcome;
use covisor_core::emulate::control_access;
use covisor_core::emulate::emulate;
use covisor_core::emulate::length_of_current;
use covisor_core::emulate::opcode;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;
use covisor_core::paging::entry;
use covisor_core::test_support::TestGuest;
use covisor_core::test_support::compare_with_cpu;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// Linear addresses: code, RAM, device memory, and what is not mapped.
const CODE: u64 = 0x1000;
const RAM: u64 = 0x4000;
const DEVICE: u64 = 0x10_0000;
const DEVICE_GPA: u64 = 0xfe00_0000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    if input.flag() {
        compare_with_cpu(input.rest());
    } else {
        any_code(&mut input);
    }
});

/// The driver has half of the device page.
struct Devices(u64);

impl DeviceSpace for Devices {
    fn read(&mut self, gpa: u64, size: u8) -> Option<u64> {
        check_access(gpa, size);
        (gpa & 0x800 != 0).then_some(self.0)
    }

    fn write(&mut self, gpa: u64, size: u8, value: u64) -> bool {
        check_access(gpa, size);
        check_value(size, value);
        gpa & 0x800 != 0
    }
}

/// Devices get whole accesses in one page, and none of RAM.
fn check_access(gpa: u64, size: u8) {
    assert!(matches!(size, 1 | 2 | 4 | 8));
    assert!(gpa % 4096 + u64::from(size) <= 4096);
    assert!(gpa >= TestGuest::RAM);
}

fn check_value(size: u8, value: u64) {
    assert!(size == 8 || value >> (size * 8) == 0);
}

fn guest(input: &mut Input<'_>) -> TestGuest {
    let mode = input.byte() % 5;
    let mut guest = match mode {
        0 => TestGuest::real_mode(),
        1 => TestGuest::protected_mode(),
        2 => TestGuest::paging_32bit(),
        3 => TestGuest::paging_pae(),
        _ => TestGuest::long_mode(),
    };
    if mode >= 2 {
        let rights = entry::PRESENT | entry::WRITABLE | entry::USER;
        for page in [CODE, CODE + 0x1000, RAM, RAM + 0x1000] {
            guest.map(page, 12, page | rights);
        }
        guest.map(DEVICE, 12, DEVICE_GPA | rights);
        // Damage to the tables.
        for _ in 0..input.byte() % 4 {
            let place = TestGuest::TABLES + u64::from((input.word() % 0x4000) & !7);
            let value = guest.read_u64(place) ^ input.number();
            guest.write(place, &value.to_le_bytes());
        }
    }
    let vcpu = &mut guest.vcpu;
    vcpu.rip = CODE + u64::from(input.word()) % 0x2000;
    for number in 0..16 {
        let value = match input.byte() % 4 {
            0 => DEVICE + u64::from(input.word()) % 0x1000,
            1 => RAM + u64::from(input.word()) % 0x2000,
            _ => input.number(),
        };
        *vcpu.gprs.get_mut(number) = value;
    }
    vcpu.rflags = input.long() & 0x0025_4dd5 | 2;
    vcpu.cpl = if input.flag() { 3 } else { 0 };
    vcpu.cr4 ^= input.number() & 0x30_0808;
    vcpu.interrupt_shadow = input.flag();
    vcpu.dr7 = input.number() & 0x2000;
    if input.flag() {
        let number = usize::from(input.byte() % 6);
        let segment = &mut vcpu.segments[number];
        segment.base = input.number();
        segment.limit = u32::from(input.word()) << (input.byte() % 16);
        segment.attributes ^= u16::from(input.byte());
    }
    guest
}

fn any_code(input: &mut Input<'_>) {
    let mut guest = guest(input);
    let mut devices = Devices(input.long());
    let cause = match input.byte() % 4 {
        0 => Cause::Other,
        1 => Cause::Port(PortAccess {
            port: guest.vcpu.gprs.rdx as u16,
            size: 1 << (input.byte() % 3),
            write: input.flag(),
            string: true,
            next_rip: 0,
        }),
        _ => Cause::Memory(MemoryAccess {
            gpa: DEVICE_GPA + u64::from(input.word()) % 0x1000,
            write: input.flag(),
            fetch: false,
            page_walk: false,
        }),
    };
    let value = input.long();
    let mut code = [0; 15];
    input.fill(&mut code);
    guest.write(guest.vcpu.rip % (TestGuest::TABLES - 16), &code);

    let expected = [opcode::CPUID, opcode::WRMSR, opcode::HLT, opcode::PAUSE, opcode::XSETBV];
    let _ = length_of_current(&mut guest.vcpu.clone(), &guest.memory, expected[usize::from(code[0]) % expected.len()]);
    let _ = control_access(&mut guest.vcpu.clone(), &guest.memory);

    for _ in 0..4 {
        let before = guest.vcpu.clone();
        let mut outcome = emulate(&mut guest.vcpu, &guest.memory, &mut devices, cause, None);
        let answer = match outcome {
            Outcome::NeedRead { gpa, size } => Some(Answer::Memory { gpa, size, value }),
            Outcome::NeedPortRead { port, size } => Some(Answer::Port { port, size, value }),
            _ => None,
        };
        if answer.is_some() {
            assert_eq!(guest.vcpu, before, "nothing is committed");
            outcome = emulate(&mut guest.vcpu, &guest.memory, &mut devices, cause, answer);
        }
        match outcome {
            Outcome::Done => {}
            Outcome::NeedRead { .. } | Outcome::NeedPortRead { .. } => panic!("an answer is enough"),
            Outcome::Absent(gpa) => panic!("all of the guest's RAM is there, at {gpa:#x} too"),
            Outcome::Write { gpa, size, value } => {
                check_access(gpa, size);
                check_value(size, value);
            }
            Outcome::PortWrite { size, value, .. } => {
                assert!(matches!(size, 1 | 2 | 4));
                check_value(size, value.into());
            }
            Outcome::Fault(exception) => {
                assert!(matches!(exception.vector, 1 | 6 | 12 | 13 | 14));
                guest.vcpu.cr2 = before.cr2;
                assert_eq!(guest.vcpu, before, "a fault commits nothing");
                return;
            }
            Outcome::Unsupported(_) | Outcome::TableOutsideRam(_) | Outcome::FetchOutsideRam(_) => {
                assert_eq!(guest.vcpu, before, "nothing is committed");
                return;
            }
        }
        guest.vcpu.injection = None;
    }
}
