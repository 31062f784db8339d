//! The forms of MOV that compilers use for device memory, in few instructions: no decoder, no page walk.
//!
//! Takes 64-bit code with a plain load or store at the address where the CPU has just stopped one. Whatever else it
//! finds, it leaves to the decoder.

use super::Answer;
use super::DeviceSpace;
use super::Outcome;
use super::access::mask;
use super::skip;
use crate::engine::Vcpu;
use crate::exit::MemoryAccess;
use crate::memory::Memory;
use crate::paging::MAX_INSTRUCTION;

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Memory to the general register with this number; smaller than 4 bytes only where the rest of the register is
    /// cleared.
    Load(usize),
    /// Memory to the low bytes of that register, the others stay.
    LoadPart(usize),
    /// That register to memory.
    Store(usize),
    /// An immediate to memory.
    StoreImmediate(u64),
}

/// A decoded MOV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    kind: Kind,
    /// Bytes moved.
    size: u8,
    /// Linear address.
    address: u64,
    /// Length of the instruction.
    length: usize,
}

const OPERAND_SIZE_PREFIX: u8 = 0x66;

/// The bits of a REX prefix (APM vol. 3, 1.2.7).
mod rex {
    pub(super) const B: u8 = 1;
    pub(super) const X: u8 = 2;
    pub(super) const R: u8 = 4;
    pub(super) const W: u8 = 8;
}

/// Decodes the instruction. `None` says nothing of it.
#[inline]
fn decode<V: Vcpu>(vcpu: &V, bytes: &[u8; MAX_INSTRUCTION]) -> Option<Move> {
    // The longest form: prefix, REX, 2 of opcode, ModRM, SIB, displacement; or with 1 of opcode and an immediate: 13 bytes.
    let mut at = 0;
    let narrow = bytes[0] == OPERAND_SIZE_PREFIX;
    at += usize::from(narrow);
    let prefix = bytes[at];
    let has_rex = prefix & 0xf0 == 0x40;
    at += usize::from(has_rex);
    let rex = if has_rex { prefix } else { 0 };
    let size = if rex & rex::W != 0 {
        8
    } else if narrow {
        2
    } else {
        4
    };
    let mut opcode = u16::from(bytes[at]);
    at += 1;
    if opcode == 0x0f {
        opcode = 0x0f00 | u16::from(bytes[at]);
        at += 1;
    }
    let modrm = bytes[at];
    at += 1;
    let field = usize::from(modrm >> 3 & 7);
    let register = field | usize::from(rex & rex::R) << 1;
    // Without REX these are AH, CH, DH and BH.
    let plain_byte = has_rex || field < 4;
    let (kind, size, immediate) = match opcode {
        0x88 if plain_byte => (Kind::Store(register), 1, 0),
        0x89 => (Kind::Store(register), size, 0),
        0x8a if plain_byte => (Kind::LoadPart(register), 1, 0),
        0x8b if size == 2 => (Kind::LoadPart(register), 2, 0),
        0x8b => (Kind::Load(register), size, 0),
        0xc6 if field == 0 => (Kind::StoreImmediate(0), 1, 1),
        0xc7 if field == 0 => (Kind::StoreImmediate(0), size, if size == 2 { 2 } else { 4 }),
        0x0fb6 if size != 2 => (Kind::Load(register), 1, 0),
        0x0fb7 if size != 2 => (Kind::Load(register), 2, 0),
        _ => return None,
    };
    let mode = modrm >> 6;
    let gprs = vcpu.gprs();
    let base = usize::from(modrm & 7);
    let high_base = usize::from(rex & rex::B) << 3;
    let mut address = 0_u64;
    let mut displacement = match mode {
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    let mut next_relative = false;
    if base == 4 {
        let sib = bytes[at];
        at += 1;
        let index = usize::from(sib >> 3 & 7) | usize::from(rex & rex::X) << 2;
        if index != 4 {
            address = gprs.get(index) << (sib >> 6);
        }
        if sib & 7 == 5 && mode == 0 {
            displacement = 4;
        } else {
            address = address.wrapping_add(gprs.get(usize::from(sib & 7) | high_base));
        }
    } else if base == 5 && mode == 0 {
        displacement = 4;
        next_relative = true;
    } else {
        address = gprs.get(base | high_base);
    }
    let offset = match displacement {
        0 => 0,
        1 => i64::from(bytes[at].cast_signed()),
        _ => i64::from(read_i32(bytes, at)),
    };
    at += displacement;
    let kind = match immediate {
        0 => kind,
        1 => Kind::StoreImmediate(bytes[at].into()),
        2 => Kind::StoreImmediate(read_i32(bytes, at).cast_unsigned().into()),
        _ => Kind::StoreImmediate(i64::from(read_i32(bytes, at)).cast_unsigned()),
    };
    let length = at + immediate;
    address = address.wrapping_add_signed(offset);
    if next_relative {
        address = address.wrapping_add(vcpu.rip()).wrapping_add(length as u64);
    }
    Some(Move { kind, size, address, length })
}

/// The 4 bytes at `at`, which is below 12.
#[inline]
fn read_i32(bytes: &[u8; MAX_INSTRUCTION], at: usize) -> i32 {
    let mut word = [0; 4];
    for (index, byte) in word.iter_mut().enumerate() {
        *byte = bytes.get(at + index).copied().unwrap_or(0);
    }
    i32::from_le_bytes(word)
}

/// Carries out the instruction if it is a plain MOV with the operand at `access`, whose rights the CPU has checked.
#[inline]
pub(super) fn emulate<V: Vcpu, D: DeviceSpace>(
    vcpu: &mut V,
    memory: &Memory,
    devices: &mut D,
    access: MemoryAccess,
    bytes: &[u8; MAX_INSTRUCTION],
    answer: Option<Answer>,
) -> Option<Outcome> {
    let Move { kind, size, address, length } = decode(vcpu, bytes)?;
    let gpa = access.gpa;
    let offset = gpa % 4096;
    let writes = matches!(kind, Kind::Store(_) | Kind::StoreImmediate(_));
    if access.fetch
        || access.page_walk
        || access.write != writes
        || address % 4096 != offset
        || offset + u64::from(size) > 4096
        || memory.is_ram(gpa)
    {
        return None;
    }
    let next_rip = vcpu.rip().wrapping_add(length as u64);
    let stored = match kind {
        Kind::Store(register) => vcpu.gprs().get(register),
        Kind::StoreImmediate(value) => value,
        Kind::Load(register) | Kind::LoadPart(register) => {
            let Some(value) = load(devices, gpa, size, answer) else { return Some(Outcome::NeedRead { gpa, size }) };
            let value = value & mask(size);
            let to = vcpu.gprs_mut().get_mut(register);
            *to = if matches!(kind, Kind::LoadPart(_)) { *to & !mask(size) | value } else { value };
            skip(vcpu, next_rip);
            return Some(Outcome::Done);
        }
    };
    let value = stored & mask(size);
    let taken = devices.write(gpa, size, value);
    skip(vcpu, next_rip);
    Some(if taken { Outcome::Done } else { Outcome::Write { gpa, size, value } })
}

/// What the device has, in the driver or at the loader.
#[inline]
fn load<D: DeviceSpace>(devices: &mut D, gpa: u64, size: u8, answer: Option<Answer>) -> Option<u64> {
    devices.read(gpa, size).or(match answer {
        Some(Answer::Memory { gpa: at, size: of, value }) if (at, of) == (gpa, size) => Some(value),
        _ => None,
    })
}
