//! Compares the emulator with the CPU on instructions made from arbitrary bytes.

use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::emulate::Cause;
use crate::emulate::DeviceSpace;
use crate::emulate::Outcome;
use crate::emulate::emulate;
use crate::paging::entry;
use crate::registers::Gprs;
use crate::test_support::NATIVE_CODE;
use crate::test_support::NATIVE_DATA;
use crate::test_support::NATIVE_DATA_SIZE;
use crate::test_support::Native;
use crate::test_support::NativeState;
use crate::test_support::TestGuest;

/// Opcodes of the emulator's instructions that have a ModRM byte, with the values of its middle field that make them so
/// (bit n: n is), the bytes of an immediate (4: 2 with an operand-size prefix), and the status flags they leave undefined.
const WITH_MODRM: &[(&[u8], u8, usize, u64)] = &[
    (&[0x00], 0xff, 0, 0),
    (&[0x01], 0xff, 0, 0),
    (&[0x02], 0xff, 0, 0),
    (&[0x03], 0xff, 0, 0),
    (&[0x08], 0xff, 0, AF),
    (&[0x09], 0xff, 0, AF),
    (&[0x0a], 0xff, 0, AF),
    (&[0x0b], 0xff, 0, AF),
    (&[0x10], 0xff, 0, 0),
    (&[0x11], 0xff, 0, 0),
    (&[0x12], 0xff, 0, 0),
    (&[0x13], 0xff, 0, 0),
    (&[0x18], 0xff, 0, 0),
    (&[0x19], 0xff, 0, 0),
    (&[0x1a], 0xff, 0, 0),
    (&[0x1b], 0xff, 0, 0),
    (&[0x20], 0xff, 0, AF),
    (&[0x21], 0xff, 0, AF),
    (&[0x22], 0xff, 0, AF),
    (&[0x23], 0xff, 0, AF),
    (&[0x28], 0xff, 0, 0),
    (&[0x29], 0xff, 0, 0),
    (&[0x2a], 0xff, 0, 0),
    (&[0x2b], 0xff, 0, 0),
    (&[0x30], 0xff, 0, AF),
    (&[0x31], 0xff, 0, AF),
    (&[0x32], 0xff, 0, AF),
    (&[0x33], 0xff, 0, AF),
    (&[0x38], 0xff, 0, 0),
    (&[0x39], 0xff, 0, 0),
    (&[0x3a], 0xff, 0, 0),
    (&[0x3b], 0xff, 0, 0),
    (&[0x63], 0xff, 0, 0),
    (&[0x80], 0xff, 1, AF),
    (&[0x81], 0xff, 4, AF),
    (&[0x83], 0xff, 1, AF),
    (&[0x84], 0xff, 0, AF),
    (&[0x85], 0xff, 0, AF),
    (&[0x86], 0xff, 0, 0),
    (&[0x87], 0xff, 0, 0),
    (&[0x88], 0xff, 0, 0),
    (&[0x89], 0xff, 0, 0),
    (&[0x8a], 0xff, 0, 0),
    (&[0x8b], 0xff, 0, 0),
    (&[0x8f], 0x01, 0, 0),
    (&[0xc6], 0x01, 1, 0),
    (&[0xc7], 0x01, 4, 0),
    (&[0xf6], 0x01, 1, AF),
    (&[0xf7], 0x01, 4, AF),
    (&[0xf6], 0x0c, 0, 0),
    (&[0xf7], 0x0c, 0, 0),
    (&[0xfe], 0x03, 0, 0),
    (&[0xff], 0x43, 0, 0),
    (&[0x0f, 0xa3], 0xff, 0, BIT),
    (&[0x0f, 0xab], 0xff, 0, BIT),
    (&[0x0f, 0xb3], 0xff, 0, BIT),
    (&[0x0f, 0xbb], 0xff, 0, BIT),
    (&[0x0f, 0xba], 0xf0, 1, BIT),
    (&[0x0f, 0xb0], 0xff, 0, 0),
    (&[0x0f, 0xb1], 0xff, 0, 0),
    (&[0x0f, 0xb6], 0xff, 0, 0),
    (&[0x0f, 0xb7], 0xff, 0, 0),
    (&[0x0f, 0xbe], 0xff, 0, 0),
    (&[0x0f, 0xbf], 0xff, 0, 0),
    (&[0x0f, 0xc0], 0xff, 0, 0),
    (&[0x0f, 0xc1], 0xff, 0, 0),
    (&[0x0f, 0xc3], 0xff, 0, 0),
    (&[0x0f, 0x38, 0xf0], 0xff, 0, 0),
    (&[0x0f, 0x38, 0xf1], 0xff, 0, 0),
];

/// String instructions.
const STRINGS: [u8; 10] = [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];

const AF: u64 = 1 << 4;
/// What BT and its kin leave undefined: PF, AF, SF, OF.
const BIT: u64 = 1 << 2 | AF | 1 << 7 | 1 << 11;
/// Direction flag.
const DF: u64 = 1 << 10;
/// The flags that are compared.
const FLAGS: u64 = 0xcd5;

/// Arbitrary bytes, consumed from the front.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }
}

/// One instruction that is harmless with these registers.
#[derive(Clone, Debug)]
struct Case {
    code: Vec<u8>,
    state: NativeState,
    /// Flags that the instruction leaves undefined.
    undefined: u64,
}

impl Case {
    fn make(bytes: &mut Bytes<'_>) -> Option<Self> {
        let mut state = NativeState::default();
        for value in &mut state.gprs {
            // Small and special values are as likely as others.
            *value = match bytes.byte()? {
                0..=63 => bytes.word()?,
                64..=127 => u64::from(bytes.byte()?),
                128..=159 => u64::from(bytes.byte()?).wrapping_neg(),
                shift => 1_u64.rotate_left(shift.into()).wrapping_sub((shift >> 6 & 1).into()),
            };
        }
        state.flags = bytes.word()? & FLAGS;
        if bytes.byte()? % 8 == 0 { Self::string(bytes, state) } else { Self::with_modrm(bytes, state) }
    }

    fn string(bytes: &mut Bytes<'_>, mut state: NativeState) -> Option<Self> {
        let choice = bytes.byte()?;
        let mut code = Vec::new();
        for (bit, prefix) in [(0, 0x67), (1, 0x66), (2, 0xf3), (3, 0xf2)] {
            if choice >> bit & 1 != 0 {
                code.push(prefix);
            }
        }
        if choice >> 4 & 1 != 0 {
            code.push(0x48);
        }
        code.push(STRINGS[usize::from(bytes.byte()?) % STRINGS.len()]);
        // Up to 31 elements, in either direction, from the middle of each page.
        state.gprs[1] = u64::from(bytes.byte()? % 32);
        state.gprs[6] = NATIVE_DATA + 0x780 + u64::from(bytes.byte()?);
        state.gprs[7] = NATIVE_DATA + 0x1780 + u64::from(bytes.byte()?);
        Some(Self { code, state, undefined: 0 })
    }

    fn with_modrm(bytes: &mut Bytes<'_>, state: NativeState) -> Option<Self> {
        let (opcode, fields, immediate, undefined) = WITH_MODRM[usize::from(bytes.byte()?) % WITH_MODRM.len()];
        let choice = bytes.byte()?;
        let mut code = Vec::new();
        for (bit, prefix) in [(0, 0x67), (1, 0x66), (2, 0xf0)] {
            if choice >> bit & 1 != 0 {
                code.push(prefix);
            }
        }
        if choice & 8 != 0 {
            code.push(0x40 | choice >> 4);
        }
        code.extend(opcode);
        let (first, second) = (bytes.byte()?, bytes.byte()?);
        let mut modrm = first;
        while fields >> (modrm >> 3 & 7) & 1 == 0 {
            modrm = modrm.wrapping_add(8);
        }
        code.extend([modrm, second]);
        // Displacement and immediate; what is too much is cut off below.
        for _ in 0..8 + immediate {
            code.push(bytes.byte()?);
        }
        let instruction = decode(&code);
        if instruction.is_invalid() {
            return None;
        }
        code.truncate(instruction.len());
        let mut case = Self { code, state, undefined };
        case.aim(bytes.byte()?, instruction)?;
        Some(case)
    }

    /// Changes a register or the displacement so that the memory operand lies in the data pages, and keeps the stack
    /// there for PUSH and POP.
    fn aim(&mut self, choice: u8, instruction: Instruction) -> Option<()> {
        let stack = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop);
        if stack {
            self.state.gprs[4] = NATIVE_DATA + 0x1800;
        }
        let memory = (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory);
        if memory.is_none() {
            // POP and CMPXCHG on a register never get to the emulator.
            return (!stack && instruction.mnemonic() != Mnemonic::Cmpxchg).then_some(());
        }
        // Any byte, or the edge between the two pages.
        let target = NATIVE_DATA
            + if choice.is_multiple_of(2) { 0x800 + u64::from(choice) } else { 0xff8 + u64::from(choice % 16) };
        let counts_bits = instruction.op1_kind() == OpKind::Register
            && matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let long = (Register::RAX as u8..=Register::R15 as u8).contains(&(base as u8));
        let first = if long { Register::RAX } else { Register::EAX };
        let number = (base as u8).checked_sub(first as u8).filter(|number| *number < 16)?;
        if counts_bits {
            // The bit is at most 512 bytes away, in both directions.
            let counter = gpr_number(instruction.op1_register())?;
            if counter == number {
                return None;
            }
            let value = self.state.gprs[usize::from(counter)];
            self.state.gprs[usize::from(counter)] = (value & 0xfff).wrapping_sub(value >> 12 & 0xfff);
        }
        if base == index || stack && number == 4 {
            return None;
        }
        let address = self.address(&instruction);
        let register = &mut self.state.gprs[usize::from(number)];
        *register = register.wrapping_add(target.wrapping_sub(address));
        if !long {
            // Only the low half counts; the address is below 4 GiB.
            *register = *register & 0xffff_ffff | u64::from(choice) << 56;
        }
        let address = self.address(&instruction);
        (address == target).then_some(())
    }

    /// The memory operand's address, by iced-x86's own arithmetic.
    fn address(&self, instruction: &Instruction) -> u64 {
        let index =
            (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory).unwrap_or(0);
        instruction
            .virtual_address(index, 0, |register, _, _| {
                Some(gpr_number(register).map_or(0, |number| {
                    let value = self.state.gprs[usize::from(number)];
                    if (register as u8) < Register::RAX as u8 { value & 0xffff_ffff } else { value }
                }))
            })
            .unwrap_or(0)
    }
}

/// Number of a general register of two bytes or more.
fn gpr_number(register: Register) -> Option<u8> {
    let number = (register as u8).checked_sub(Register::AX as u8)?;
    (number < 48).then_some(number % 16)
}

fn decode(code: &[u8]) -> Instruction {
    Decoder::with_ip(64, code, NATIVE_CODE, DecoderOptions::AMD).decode()
}

/// There are no devices.
struct Nothing;

impl DeviceSpace for Nothing {
    fn read(&mut self, _gpa: u64, _size: u8) -> Option<u64> {
        None
    }

    fn write(&mut self, _gpa: u64, _size: u8, _value: u64) -> bool {
        false
    }
}

/// Makes an instruction with its registers and data from `bytes`, runs it natively and in the emulator, and says whether
/// there was one.
///
/// # Panics
/// Where the two differ.
pub fn compare_with_cpu(bytes: &[u8]) -> bool {
    let mut bytes = Bytes(bytes);
    let Some(case) = Case::make(&mut bytes) else { return false };
    let mut data = [0; NATIVE_DATA_SIZE];
    for (byte, value) in data.iter_mut().zip(bytes.0.iter().cycle()) {
        *byte = *value;
    }

    let mut native = Native::new();
    native.data().copy_from_slice(&data);
    // SAFETY: Case makes only instructions that access registers and the data pages: `aim` has put the operand there.
    let expected = unsafe { native.run(&case.code, &case.state) };
    let expected_data = native.data().to_vec();
    drop(native);

    let mut guest = guest(&case, &data);
    let end = NATIVE_CODE + case.code.len() as u64;
    // A repeated instruction takes one call for each element.
    for _ in 0..32 {
        let outcome = emulate(&mut guest.vcpu, &guest.memory, &mut Nothing, Cause::Other, None);
        assert_eq!(outcome, Outcome::Done, "{case:x?}");
        if guest.vcpu.rip == end {
            break;
        }
    }
    assert_eq!(guest.vcpu.rip, end, "{case:x?}");
    let compared = FLAGS & !case.undefined;
    let actual = NativeState { gprs: guest.vcpu.gprs.to_array(), flags: guest.vcpu.rflags & compared };
    let expected = NativeState { flags: expected.flags & compared, ..expected };
    assert_eq!(actual, expected, "{case:x?}");
    assert_eq!(guest.vcpu.rflags & DF, case.state.flags & DF);
    assert!(guest.read(DATA_GPA, NATIVE_DATA_SIZE) == expected_data, "memory differs: {case:x?}");
    true
}

/// Where a guest has the code and the data.
const CODE_GPA: u64 = 0x1000;
const DATA_GPA: u64 = 0x4000;

fn guest(case: &Case, data: &[u8]) -> TestGuest {
    let mut guest = TestGuest::long_mode();
    let rights = entry::PRESENT | entry::USER | entry::WRITABLE;
    guest.map(NATIVE_CODE, 12, CODE_GPA | rights);
    for offset in (0..NATIVE_DATA_SIZE as u64).step_by(4096) {
        guest.map(NATIVE_DATA + offset, 12, (DATA_GPA + offset) | rights);
    }
    guest.write(CODE_GPA, &case.code);
    guest.write(DATA_GPA, data);
    guest.vcpu.cpl = 3;
    guest.vcpu.rip = NATIVE_CODE;
    guest.vcpu.rflags = case.state.flags | 2;
    let mut gprs = Gprs::default();
    gprs.set_array(&case.state.gprs);
    guest.vcpu.gprs = gprs;
    guest
}
