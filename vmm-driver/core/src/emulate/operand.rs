//! Operands: general registers, immediates, and memory by effective address, segment and limit.

use iced_x86::Instruction;
use iced_x86::MemorySize;
use iced_x86::OpKind;
use iced_x86::Register as Name;

use super::DeviceSpace;
use super::Outcome;
use super::Step;
use super::access::Bus;
use super::access::Place;
use super::access::mask;
use super::exception;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::registers::CodeSize;
use crate::registers::Cr0;
use crate::registers::Gprs;
use crate::registers::RFlags;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::attributes;
use crate::registers::is_canonical;

/// Which register `name` is of those that iced-x86 has from `first` to `last`, counted from 0.
pub(super) fn number_among(name: Name, first: Name, last: Name) -> Option<u8> {
    let (name, first, last) = (name as u8, first as u8, last as u8);
    (first..=last).contains(&name).then(|| name - first)
}

/// A general register or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gpr {
    number: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub(super) size: u8,
    /// AH, CH, DH or BH.
    high: bool,
}

impl Gpr {
    /// The register that iced-x86 names so.
    pub(super) fn named(name: Name) -> Option<Self> {
        const BYTE: u8 = Name::AL as u8;
        const LAST_BYTE: u8 = Name::R15L as u8;
        const WORD: u8 = Name::AX as u8;
        const LAST_WORD: u8 = Name::R15W as u8;
        const DWORD: u8 = Name::EAX as u8;
        const LAST_DWORD: u8 = Name::R15D as u8;
        const QWORD: u8 = Name::RAX as u8;
        const LAST_QWORD: u8 = Name::R15 as u8;
        let name = name as u8;
        let (number, size) = match name {
            BYTE..=LAST_BYTE => (name - BYTE, 1),
            WORD..=LAST_WORD => (name - WORD, 2),
            DWORD..=LAST_DWORD => (name - DWORD, 4),
            QWORD..=LAST_QWORD => (name - QWORD, 8),
            _ => return None,
        };
        Some(match (size, number) {
            // The byte registers' names go AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8L.
            (1, 4..=7) => Self { number: number - 4, size, high: true },
            (1, 8..) => Self { number: number - 4, size, high: false },
            _ => Self { number, size, high: false },
        })
    }

    /// Register `number` with `size` bytes.
    pub(super) const fn numbered(number: u8, size: u8) -> Self {
        Self { number, size, high: false }
    }

    pub(super) fn read(self, gprs: &Gprs) -> u64 {
        let value = gprs.get(self.number.into());
        if self.high { value >> 8 & 0xff } else { value & mask(self.size) }
    }

    /// Writes it; a 4-byte write clears the upper half (APM vol. 1, 3.1.2).
    pub(super) fn write(self, gprs: &mut Gprs, value: u64) {
        let register = gprs.get_mut(self.number.into());
        *register = match self.size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => *register & !0xffff | value & 0xffff,
            _ if self.high => *register & !0xff00 | (value & 0xff) << 8,
            _ => *register & !0xff | value & 0xff,
        };
    }
}

/// Numbers of registers in the instruction encoding.
pub(super) mod number {
    pub(in crate::emulate) const RAX: u8 = 0;
    pub(in crate::emulate) const RCX: u8 = 1;
    pub(in crate::emulate) const RSP: u8 = 4;
    pub(in crate::emulate) const RSI: u8 = 6;
    pub(in crate::emulate) const RDI: u8 = 7;
}

/// Size in bytes of the memory operand; `None` where it is no plain integer.
pub(super) fn memory_size(instruction: &Instruction) -> Option<u8> {
    match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Some(1),
        MemorySize::UInt16 | MemorySize::Int16 => Some(2),
        MemorySize::UInt32 | MemorySize::Int32 => Some(4),
        MemorySize::UInt64 | MemorySize::Int64 => Some(8),
        _ => None,
    }
}

/// Size in bytes of operand `index`, a register or memory.
pub(super) fn operand_size(instruction: &Instruction, index: u32) -> Option<u8> {
    if instruction.op_kind(index) == OpKind::Register {
        Gpr::named(instruction.op_register(index)).map(|register| register.size)
    } else {
        memory_size(instruction)
    }
}

/// An operand, ready to be read and written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Register(Gpr),
    Immediate(u64),
    Memory(Place),
}

impl Operand {
    /// Operand `index` of the instruction, with `size` bytes if it is in memory, for writing or only for reading.
    pub(super) fn of<V: Vcpu, D: DeviceSpace>(
        bus: &mut Bus<'_, V, D>,
        index: u32,
        size: u8,
        write: bool,
    ) -> Step<Self> {
        let decoded = bus.decoded;
        match decoded.instruction.op_kind(index) {
            OpKind::Register => Gpr::named(decoded.instruction.op_register(index))
                .map(Self::Register)
                .ok_or_else(|| decoded.unsupported()),
            OpKind::Memory => {
                let offset = effective_address(bus, 0);
                let linear = linear_of_operand(bus, offset, size, write)?;
                bus.locate(linear, size, write).map(Self::Memory)
            }
            _ => decoded.instruction.try_immediate(index).map(Self::Immediate).map_err(|_| decoded.unsupported()),
        }
    }

    pub(super) fn read<V: Vcpu, D: DeviceSpace>(self, bus: &mut Bus<'_, V, D>, size: u8) -> Step<u64> {
        match self {
            Self::Register(register) => Ok(register.read(bus.vcpu.gprs())),
            Self::Immediate(value) => Ok(value & mask(size)),
            Self::Memory(place) => bus.read(place, size),
        }
    }

    /// Writes it; immediates are never written.
    pub(super) fn write<V: Vcpu, D: DeviceSpace>(
        self,
        bus: &mut Bus<'_, V, D>,
        size: u8,
        value: u64,
    ) -> Option<Outcome> {
        match self {
            Self::Register(register) => {
                register.write(bus.vcpu.gprs_mut(), value);
                None
            }
            Self::Immediate(_) => None,
            Self::Memory(place) => bus.write(place, size, value),
        }
    }

    /// Writes it after it was read as `old`: see [`Bus::replace`].
    pub(super) fn replace<V: Vcpu, D: DeviceSpace>(
        self,
        bus: &mut Bus<'_, V, D>,
        size: u8,
        old: u64,
        new: u64,
    ) -> Step<Option<Outcome>> {
        match self {
            Self::Memory(place) => bus.replace(place, size, old, new),
            other => Ok(other.write(bus, size, new)),
        }
    }
}

/// Bytes of the addresses that the memory operand is computed with.
fn address_size(instruction: &Instruction) -> u8 {
    let of_register = |name| match name {
        Name::EIP => Some(4),
        Name::RIP => Some(8),
        other => Gpr::named(other).map(|register| register.size),
    };
    of_register(instruction.memory_base()).or_else(|| of_register(instruction.memory_index())).unwrap_or(
        match instruction.memory_displ_size() {
            2 => 2,
            4 => 4,
            _ => 8,
        },
    )
}

/// The offset that the memory operand has in its segment, `displacement` bytes further.
pub(super) fn effective_address<V: Vcpu, D: DeviceSpace>(bus: &Bus<'_, V, D>, displacement: u64) -> u64 {
    let instruction = &bus.decoded.instruction;
    let register = |name| Gpr::named(name).map_or(0, |register| register.read(bus.vcpu.gprs()));
    // RIP as a base is in the decoder's displacement already.
    instruction
        .memory_displacement64()
        .wrapping_add(register(instruction.memory_base()))
        .wrapping_add(register(instruction.memory_index()).wrapping_mul(instruction.memory_index_scale().into()))
        .wrapping_add(displacement)
        & mask(address_size(instruction))
}

/// The segment that iced-x86 names so.
fn segment_named(name: Name) -> SegmentName {
    match name {
        Name::ES => SegmentName::Es,
        Name::CS => SegmentName::Cs,
        Name::SS => SegmentName::Ss,
        Name::FS => SegmentName::Fs,
        Name::GS => SegmentName::Gs,
        _ => SegmentName::Ds,
    }
}

/// Linear address of the memory operand, whose segment may be overridden by a prefix.
pub(super) fn linear_of_operand<V: Vcpu, D: DeviceSpace>(
    bus: &Bus<'_, V, D>,
    offset: u64,
    size: u8,
    write: bool,
) -> Step<u64> {
    linear(bus, segment_named(bus.decoded.instruction.memory_segment()), offset, size, write)
}

/// Linear address of `size` bytes at `offset` in a segment, with the checks of the vCPU's mode (APM vol. 2, 4.12 and
/// 5.3.1).
pub(super) fn linear<V: Vcpu, D: DeviceSpace>(
    bus: &Bus<'_, V, D>,
    name: SegmentName,
    offset: u64,
    size: u8,
    write: bool,
) -> Step<u64> {
    let last = u64::from(size) - 1;
    let fault =
        || exception(bus.vcpu, if name == SegmentName::Ss { Exception::STACK } else { Exception::GENERAL_PROTECTION });
    if bus.decoded.size == CodeSize::Bits64 {
        let base = match name {
            SegmentName::Fs | SegmentName::Gs => bus.vcpu.segment(name).base,
            _ => 0,
        };
        let linear = base.wrapping_add(offset);
        if is_canonical(linear) && is_canonical(linear.wrapping_add(last)) {
            return Ok(linear);
        }
        return Err(fault());
    }
    let segment = bus.vcpu.segment(name);
    let protected =
        bus.vcpu.cr0() & Cr0::CR0_PROTECTED_MODE.bits() as u64 != 0 && bus.vcpu.rflags() & RFlags::FLAGS_VM.bits() == 0;
    if within_limit(&segment, protected, offset, offset + last) && (!protected || has_rights(&segment, write)) {
        return Ok(segment.base.wrapping_add(offset) & 0xffff_ffff);
    }
    Err(fault())
}

/// Whether the bytes from `first` to `last` are in the segment. Only protected mode has expand-down segments.
fn within_limit(segment: &Segment, protected: bool, first: u64, last: u64) -> bool {
    let limit = segment.limit.into();
    if protected && segment.attributes & (attributes::CODE | attributes::EXPAND_DOWN) == attributes::EXPAND_DOWN {
        let top = if segment.attributes & attributes::DEFAULT_BIG != 0 { 0xffff_ffff } else { 0xffff };
        first > limit && last <= top
    } else {
        last <= limit
    }
}

/// Whether the segment can be read, or written.
const fn has_rights(segment: &Segment, write: bool) -> bool {
    let code = segment.attributes & attributes::CODE != 0;
    // Bit 1 of the type: code is readable, data is writable.
    let extra = segment.attributes & attributes::READABLE_WRITABLE != 0;
    let allowed = if write { !code && extra } else { !code || extra };
    segment.attributes & attributes::PRESENT != 0 && allowed
}
