//! Integer arithmetic with its flags (APM vol. 1, 3.1.4).

use super::access::mask;
use crate::registers::RFlags;

const CARRY: u64 = RFlags::FLAGS_CF.bits();
const PARITY: u64 = RFlags::FLAGS_PF.bits();
const AUXILIARY: u64 = RFlags::FLAGS_AF.bits();
const ZERO: u64 = RFlags::FLAGS_ZF.bits();
const SIGN: u64 = RFlags::FLAGS_SF.bits();
const OVERFLOW: u64 = RFlags::FLAGS_OF.bits();

/// The status flags.
pub(super) const STATUS: u64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;

/// A result and the status flags that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) value: u64,
    pub(super) flags: u64,
}

/// An operation of two operands that gives all status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

const fn sign_bit(size: u8) -> u64 {
    1 << (size * 8 - 1)
}

/// Parity, zero and sign of a result that is cut to `size`.
const fn of_result(value: u64, size: u8) -> u64 {
    let mut flags = 0;
    if (value & 0xff).count_ones().is_multiple_of(2) {
        flags |= PARITY;
    }
    if value == 0 {
        flags |= ZERO;
    }
    if value & sign_bit(size) != 0 {
        flags |= SIGN;
    }
    flags
}

/// `a + b + carry`; `a` and `b` are cut to `size`.
pub(super) fn add(a: u64, b: u64, carry: bool, size: u8) -> Sum {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = a.wrapping_add(b).wrapping_add(carry.into()) & mask(size);
    let mut flags = of_result(value, size) | (a ^ b ^ value) & AUXILIARY;
    if wide > u128::from(mask(size)) {
        flags |= CARRY;
    }
    if (a ^ value) & (b ^ value) & sign_bit(size) != 0 {
        flags |= OVERFLOW;
    }
    Sum { value, flags }
}

/// `a - b - borrow`; `a` and `b` are cut to `size`.
pub(super) fn subtract(a: u64, b: u64, borrow: bool, size: u8) -> Sum {
    let value = a.wrapping_sub(b).wrapping_sub(borrow.into()) & mask(size);
    let mut flags = of_result(value, size) | (a ^ b ^ value) & AUXILIARY;
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CARRY;
    }
    if (a ^ b) & (a ^ value) & sign_bit(size) != 0 {
        flags |= OVERFLOW;
    }
    Sum { value, flags }
}

/// A logical operation's result. The auxiliary flag is undefined; CPUs clear it.
fn logical(value: u64, size: u8) -> Sum {
    Sum { value, flags: of_result(value, size) }
}

/// `a` and `b` are cut to `size`; `flags` are those before.
pub(super) fn compute(operation: Operation, a: u64, b: u64, flags: u64, size: u8) -> Sum {
    let carry = flags & CARRY != 0;
    match operation {
        Operation::Add => add(a, b, false, size),
        Operation::Adc => add(a, b, carry, size),
        Operation::Sub => subtract(a, b, false, size),
        Operation::Sbb => subtract(a, b, carry, size),
        Operation::And => logical(a & b, size),
        Operation::Or => logical(a | b, size),
        Operation::Xor => logical(a ^ b, size),
    }
}

/// INC and DEC: addition or subtraction of 1 that leaves the carry flag as it was in `flags`.
pub(super) fn step(a: u64, up: bool, flags: u64, size: u8) -> Sum {
    let sum = if up { add(a, 1, false, size) } else { subtract(a, 1, false, size) };
    Sum { value: sum.value, flags: sum.flags & !CARRY | flags & CARRY }
}

/// BT and its kin: the carry flag becomes bit `number` of `value`; the others, undefined, stay.
pub(super) const fn bit_flags(value: u64, number: u64, flags: u64) -> u64 {
    flags & STATUS & !CARRY | value >> number & 1
}
