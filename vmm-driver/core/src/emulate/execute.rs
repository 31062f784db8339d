//! Carries out one instruction.

use iced_x86::Code;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register as Name;

use super::Answer;
use super::Cause;
use super::DeviceSpace;
use super::Outcome;
use super::Step;
use super::access::Bus;
use super::access::mask;
use super::alu;
use super::alu::Operation;
use super::decode::Decoded;
use super::exception;
use super::fetch_fault;
use super::operand::Gpr;
use super::operand::Operand;
use super::operand::effective_address;
use super::operand::linear;
use super::operand::linear_of_operand;
use super::operand::memory_size;
use super::operand::number;
use super::operand::operand_size;
use super::quick;
use super::skip;
use super::string;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::memory::Memory;
use crate::paging::MAX_INSTRUCTION;
use crate::paging::code_size;
use crate::paging::fetch;
use crate::registers::CodeSize;
use crate::registers::Cr4;
use crate::registers::SegmentName;
use crate::registers::attributes;

/// Carries out the instruction at RIP: see the [module](super). `answer` is what the loader read for it, if it was asked
/// before; an answer to something that the instruction does not ask is ignored.
pub fn emulate<V: Vcpu, D: DeviceSpace>(
    vcpu: &mut V,
    memory: &Memory,
    devices: &mut D,
    cause: Cause,
    answer: Option<Answer>,
) -> Outcome {
    let mut bytes = [0; MAX_INSTRUCTION];
    let length = match fetch(vcpu, memory, &mut bytes) {
        Ok(length) => length,
        Err(fault) => return fetch_fault(vcpu, fault),
    };
    if let Cause::Memory(access) = cause
        && length == MAX_INSTRUCTION
        && code_size(vcpu) == CodeSize::Bits64
        && let Some(outcome) = quick::emulate(vcpu, memory, devices, access, &bytes, answer)
    {
        return outcome;
    }
    emulate_decoded(vcpu, memory, devices, cause, answer, (bytes, length))
}

/// Every instruction, by the decoder.
#[inline(never)]
fn emulate_decoded<V: Vcpu, D: DeviceSpace>(
    vcpu: &mut V,
    memory: &Memory,
    devices: &mut D,
    cause: Cause,
    answer: Option<Answer>,
    (bytes, length): ([u8; MAX_INSTRUCTION], usize),
) -> Outcome {
    let decoded = match Decoded::of(vcpu, memory, bytes, length) {
        Ok(decoded) => decoded,
        Err(outcome) => return outcome,
    };
    let mut bus = Bus::new(vcpu, memory, devices, &decoded, cause, answer);
    match execute(&mut bus) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

fn execute<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Outcome> {
    let instruction = &bus.decoded.instruction;
    if let Some(element) = string::Element::of(instruction.code()) {
        return string::execute(bus, element);
    }
    if matches!(bus.cause, Cause::Port(_)) {
        return Err(bus.decoded.unsupported());
    }
    let pending = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => move_value(bus, |value, _| value)?,
        Mnemonic::Movzx => move_value(bus, |value, _| value)?,
        Mnemonic::Movsx | Mnemonic::Movsxd => move_value(bus, sign_extend)?,
        Mnemonic::Movbe => move_value(bus, |value, size| value.swap_bytes() >> (64 - u32::from(size) * 8))?,
        Mnemonic::Add => combine(bus, Operation::Add)?,
        Mnemonic::Or => combine(bus, Operation::Or)?,
        Mnemonic::Adc => combine(bus, Operation::Adc)?,
        Mnemonic::Sbb => combine(bus, Operation::Sbb)?,
        Mnemonic::And => combine(bus, Operation::And)?,
        Mnemonic::Sub => combine(bus, Operation::Sub)?,
        Mnemonic::Xor => combine(bus, Operation::Xor)?,
        Mnemonic::Cmp => compare(bus, Operation::Sub)?,
        Mnemonic::Test => compare(bus, Operation::And)?,
        Mnemonic::Inc => modify(bus, |value, flags, size| alu::step(value, true, flags, size))?,
        Mnemonic::Dec => modify(bus, |value, flags, size| alu::step(value, false, flags, size))?,
        Mnemonic::Neg => modify(bus, |value, _, size| alu::subtract(0, value, false, size))?,
        Mnemonic::Not => {
            modify(bus, |value, flags, size| alu::Sum { value: !value & mask(size), flags: flags & alu::STATUS })?
        }
        Mnemonic::Xchg => exchange(bus)?,
        Mnemonic::Xadd => exchange_and_add(bus)?,
        Mnemonic::Cmpxchg => compare_and_exchange(bus)?,
        Mnemonic::Bt => test_bit(bus, None)?,
        Mnemonic::Bts => test_bit(bus, Some(|value, bit| value | bit))?,
        Mnemonic::Btr => test_bit(bus, Some(|value, bit| value & !bit))?,
        Mnemonic::Btc => test_bit(bus, Some(|value, bit| value ^ bit))?,
        Mnemonic::Push => push(bus)?,
        Mnemonic::Pop => pop(bus)?,
        Mnemonic::Smsw => store_machine_status(bus)?,
        _ => return Err(bus.decoded.unsupported()),
    };
    let next_rip = bus.decoded.next_rip(bus.vcpu);
    skip(bus.vcpu, next_rip);
    Ok(pending.unwrap_or(Outcome::Done))
}

/// Size of operand `index`, or the end of the emulation.
fn size_of<V: Vcpu, D: DeviceSpace>(bus: &Bus<'_, V, D>, index: u32) -> Step<u8> {
    operand_size(&bus.decoded.instruction, index).ok_or_else(|| bus.decoded.unsupported())
}

/// Sets the status flags.
pub(super) fn set_status<V: Vcpu>(vcpu: &mut V, flags: u64) {
    let rest = vcpu.rflags() & !alu::STATUS;
    vcpu.set_rflags(rest | flags & alu::STATUS);
}

/// `value` of `size` bytes with its sign in all 64 bits.
#[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the sign is what this is about")]
const fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = 64 - size as u32 * 8;
    ((value << unused) as i64 >> unused) as u64
}

/// MOV and its kin: `convert` gets the source and its size.
fn move_value<V: Vcpu, D: DeviceSpace>(
    bus: &mut Bus<'_, V, D>,
    convert: impl Fn(u64, u8) -> u64,
) -> Step<Option<Outcome>> {
    let to_size = size_of(bus, 0)?;
    let from_size = if is_immediate(bus, 1) { to_size } else { size_of(bus, 1)? };
    let to = Operand::of(bus, 0, to_size, true)?;
    let value = Operand::of(bus, 1, from_size, false)?.read(bus, from_size)?;
    Ok(to.write(bus, to_size, convert(value, from_size)))
}

fn is_immediate<V: Vcpu, D: DeviceSpace>(bus: &Bus<'_, V, D>, index: u32) -> bool {
    !matches!(bus.decoded.instruction.op_kind(index), OpKind::Register | OpKind::Memory)
}

/// ADD and its kin.
fn combine<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>, operation: Operation) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let to = Operand::of(bus, 0, size, true)?;
    let other = Operand::of(bus, 1, size, false)?.read(bus, size)?;
    let old = to.read(bus, size)?;
    let sum = alu::compute(operation, old, other, bus.vcpu.rflags(), size);
    let pending = to.replace(bus, size, old, sum.value)?;
    set_status(bus.vcpu, sum.flags);
    Ok(pending)
}

/// CMP and TEST.
fn compare<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>, operation: Operation) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let a = Operand::of(bus, 0, size, false)?.read(bus, size)?;
    let b = Operand::of(bus, 1, size, false)?.read(bus, size)?;
    let sum = alu::compute(operation, a, b, bus.vcpu.rflags(), size);
    set_status(bus.vcpu, sum.flags);
    Ok(None)
}

/// INC and its kin: `change` gets the operand, the flags and the size.
fn modify<V: Vcpu, D: DeviceSpace>(
    bus: &mut Bus<'_, V, D>,
    change: impl Fn(u64, u64, u8) -> alu::Sum,
) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let operand = Operand::of(bus, 0, size, true)?;
    let old = operand.read(bus, size)?;
    let sum = change(old, bus.vcpu.rflags(), size);
    let pending = operand.replace(bus, size, old, sum.value)?;
    set_status(bus.vcpu, sum.flags);
    Ok(pending)
}

fn exchange<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let a = Operand::of(bus, 0, size, true)?;
    let b = Operand::of(bus, 1, size, true)?;
    let (old_a, old_b) = (a.read(bus, size)?, b.read(bus, size)?);
    // One of them is a register at least.
    let pending_a = a.replace(bus, size, old_a, old_b)?;
    let pending_b = b.replace(bus, size, old_b, old_a)?;
    Ok(pending_a.or(pending_b))
}

fn exchange_and_add<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let to = Operand::of(bus, 0, size, true)?;
    let from = Operand::of(bus, 1, size, true)?;
    let (old, addend) = (to.read(bus, size)?, from.read(bus, size)?);
    let sum = alu::add(old, addend, false, size);
    let pending = to.replace(bus, size, old, sum.value)?;
    from.write(bus, size, old);
    if matches!(to, Operand::Register(_)) {
        // Both may be the same register, which then holds the sum.
        to.write(bus, size, sum.value);
    }
    set_status(bus.vcpu, sum.flags);
    Ok(pending)
}

fn compare_and_exchange<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let to = Operand::of(bus, 0, size, true)?;
    if matches!(to, Operand::Register(_)) {
        return Err(bus.decoded.unsupported());
    }
    let new = Operand::of(bus, 1, size, false)?.read(bus, size)?;
    let old = to.read(bus, size)?;
    let accumulator = Gpr::numbered(number::RAX, size);
    let sum = alu::subtract(accumulator.read(bus.vcpu.gprs()), old, false, size);
    let equal = sum.value == 0;
    // Memory is written in any case (APM vol. 3, CMPXCHG).
    let pending = to.replace(bus, size, old, if equal { new } else { old })?;
    if !equal {
        accumulator.write(bus.vcpu.gprs_mut(), old);
    }
    set_status(bus.vcpu, sum.flags);
    Ok(pending)
}

/// BT, and what is done to the bit: `change` gets the operand and the bit.
fn test_bit<V: Vcpu, D: DeviceSpace>(
    bus: &mut Bus<'_, V, D>,
    change: Option<fn(u64, u64) -> u64>,
) -> Step<Option<Outcome>> {
    let size = size_of(bus, 0)?;
    let bits = u64::from(size) * 8;
    let write = change.is_some();
    let number = Operand::of(bus, 1, size, false)?.read(bus, size)?;
    let in_memory = bus.decoded.instruction.op0_kind() == OpKind::Memory;
    let operand = if in_memory && !is_immediate(bus, 1) {
        // A register counts bits from the operand on, in both directions.
        let signed = sign_extend(number, size).cast_signed();
        let displacement = signed.div_euclid(bits.cast_signed()) * i64::from(size);
        let offset = effective_address(bus, displacement.cast_unsigned());
        let linear = linear_of_operand(bus, offset, size, write)?;
        Operand::Memory(bus.locate(linear, size, write)?)
    } else {
        Operand::of(bus, 0, size, write)?
    };
    let number = number % bits;
    let old = operand.read(bus, size)?;
    let flags = alu::bit_flags(old, number, bus.vcpu.rflags());
    let pending = match change {
        Some(change) => operand.replace(bus, size, old, change(old, 1 << number))?,
        None => None,
    };
    set_status(bus.vcpu, flags);
    Ok(pending)
}

/// Size of the stack pointer in bytes.
fn stack_size<V: Vcpu, D: DeviceSpace>(bus: &Bus<'_, V, D>) -> u8 {
    if bus.decoded.size == CodeSize::Bits64 {
        8
    } else if bus.vcpu.segment(SegmentName::Ss).attributes & attributes::DEFAULT_BIG != 0 {
        4
    } else {
        2
    }
}

/// PUSH of memory.
fn push<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    if !matches!(bus.decoded.instruction.code(), Code::Push_rm16 | Code::Push_rm32 | Code::Push_rm64) {
        return Err(bus.decoded.unsupported());
    }
    let size = size_of(bus, 0)?;
    let value = Operand::of(bus, 0, size, false)?.read(bus, size)?;
    bus.has_two_operands();
    let pointer_size = stack_size(bus);
    let pointer = Gpr::numbered(number::RSP, pointer_size);
    let top = pointer.read(bus.vcpu.gprs()).wrapping_sub(size.into()) & mask(pointer_size);
    let linear = linear(bus, SegmentName::Ss, top, size, true)?;
    let place = bus.locate(linear, size, true)?;
    let pending = bus.write(place, size, value);
    pointer.write(bus.vcpu.gprs_mut(), top);
    Ok(pending)
}

/// POP to memory.
fn pop<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    let instruction = &bus.decoded.instruction;
    // The stack pointer as a base counts after the POP: not worth its code here.
    if !matches!(instruction.code(), Code::Pop_rm16 | Code::Pop_rm32 | Code::Pop_rm64)
        || instruction.op0_kind() != OpKind::Memory
        || matches!(instruction.memory_base(), Name::RSP | Name::ESP)
    {
        return Err(bus.decoded.unsupported());
    }
    let size = memory_size(instruction).ok_or_else(|| bus.decoded.unsupported())?;
    let to = Operand::of(bus, 0, size, true)?;
    bus.has_two_operands();
    let pointer_size = stack_size(bus);
    let pointer = Gpr::numbered(number::RSP, pointer_size);
    let top = pointer.read(bus.vcpu.gprs());
    let linear = linear(bus, SegmentName::Ss, top, size, false)?;
    let place = bus.locate(linear, size, false)?;
    let value = bus.read(place, size)?;
    let pending = to.write(bus, size, value);
    pointer.write(bus.vcpu.gprs_mut(), top.wrapping_add(size.into()) & mask(pointer_size));
    Ok(pending)
}

/// SMSW. To memory it stores 16 bits, to a register as many as that has.
fn store_machine_status<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>) -> Step<Option<Outcome>> {
    if bus.vcpu.cr4() & Cr4::CR4_ENABLE_UMIP.bits() as u64 != 0 && bus.vcpu.cpl() != 0 {
        return Err(exception(bus.vcpu, Exception::GENERAL_PROTECTION));
    }
    let size = size_of(bus, 0)?;
    let to = Operand::of(bus, 0, size, true)?;
    let value = bus.vcpu.cr0() & mask(size);
    Ok(to.write(bus, size, value))
}
