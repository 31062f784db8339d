//! Instructions on control and debug registers (APM vol. 3, chapter 4: MOV CRn, MOV DRn, CLTS, LMSW, SMSW).
//!
//! Only decoded here: which values a guest may set is the run loop's policy.

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register as Name;

use super::Cause;
use super::DeviceSpace;
use super::Step;
use super::access::Bus;
use super::decode::Decoded;
use super::exception;
use super::operand::Operand;
use super::operand::number_among;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::memory::Memory;
use crate::registers::CodeSize;
use crate::registers::Cr4;

/// A control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// CRn, n being 0, 2, 3, 4 or 8.
    Control(u8),
    /// DRn, n being 0 to 3, 6 or 7.
    Debug(u8),
}

/// What an instruction does to such a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlOperation {
    /// The register's value goes to general register `gpr`, with its upper half cleared outside 64-bit mode.
    Read {
        /// Which.
        register: Register,
        /// Number of the general register.
        gpr: usize,
    },
    /// `value`, with its upper half clear outside 64-bit mode, goes to the register.
    Write {
        /// Which.
        register: Register,
        /// The value of the general register.
        value: u64,
    },
    /// CLTS: clears CR0.TS.
    ClearTaskSwitched,
    /// LMSW: sets CR0's low four bits from `value`, but cannot clear PE.
    LoadMachineStatus {
        /// The operand.
        value: u16,
    },
    /// SMSW: [`super::emulate`] carries it out.
    StoreMachineStatus,
}

/// An instruction on a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAccess {
    /// What it does.
    pub operation: ControlOperation,
    /// RIP after it.
    pub next_rip: u64,
}

/// DR7.GD: debug registers are guarded (APM vol. 2, 13.1.1.4).
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR6.BD: a guarded debug register was accessed (APM vol. 2, 13.1.1.3).
const DR6_DEBUG_REGISTER: u64 = 1 << 13;

/// No device answers operands of LMSW.
struct NoDevices;

impl DeviceSpace for NoDevices {
    fn read(&mut self, _gpa: u64, _size: u8) -> Option<u64> {
        None
    }

    fn write(&mut self, _gpa: u64, _size: u8, _value: u64) -> bool {
        false
    }
}

/// Decodes the current instruction, which accesses a control or debug register. All checks that do not depend on the
/// value are made: privilege, registers that there are, CR4.DE, DR7.GD.
///
/// # Errors
/// [`super::Outcome::Fault`], [`super::Outcome::Unsupported`] where it is another instruction by now, or why code or operand
/// cannot be read.
pub fn control_access<V: Vcpu>(vcpu: &mut V, memory: &Memory) -> Step<ControlAccess> {
    let decoded = Decoded::current(vcpu, memory)?;
    let next_rip = decoded.next_rip(vcpu);
    let instruction = &decoded.instruction;
    let mnemonic = instruction.mnemonic();
    if mnemonic != Mnemonic::Smsw && vcpu.cpl() != 0 {
        return Err(exception(vcpu, Exception::GENERAL_PROTECTION));
    }
    let operation = match mnemonic {
        Mnemonic::Clts => ControlOperation::ClearTaskSwitched,
        Mnemonic::Smsw => ControlOperation::StoreMachineStatus,
        Mnemonic::Lmsw => ControlOperation::LoadMachineStatus { value: lmsw_operand(vcpu, memory, &decoded)? },
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register => {
            let (to, from) = (instruction.op0_register(), instruction.op1_register());
            match (special(to), number_of_gpr(from), special(from), number_of_gpr(to)) {
                (Some(register), Some(gpr), _, _) => {
                    let value = vcpu.gprs().get(gpr);
                    let value = if decoded.size == CodeSize::Bits64 { value } else { value & 0xffff_ffff };
                    ControlOperation::Write { register, value }
                }
                (_, _, Some(register), Some(gpr)) => ControlOperation::Read { register, gpr },
                _ => return Err(decoded.unsupported()),
            }
        }
        _ => return Err(decoded.unsupported()),
    };
    let operation = match operation {
        ControlOperation::Read { register, gpr } => ControlOperation::Read { register: existing(vcpu, register)?, gpr },
        ControlOperation::Write { register, value } => {
            ControlOperation::Write { register: existing(vcpu, register)?, value }
        }
        other => other,
    };
    Ok(ControlAccess { operation, next_rip })
}

/// The control or debug register that iced-x86 names so.
fn special(name: Name) -> Option<Register> {
    number_among(name, Name::CR0, Name::CR15)
        .map(Register::Control)
        .or_else(|| number_among(name, Name::DR0, Name::DR15).map(Register::Debug))
}

/// Number of a 32-bit or 64-bit general register.
fn number_of_gpr(name: Name) -> Option<usize> {
    number_among(name, Name::EAX, Name::R15D).or_else(|| number_among(name, Name::RAX, Name::R15)).map(usize::from)
}

/// The register itself: DR4 and DR5 may be other names of DR6 and DR7, and some numbers are free.
fn existing<V: Vcpu>(vcpu: &mut V, register: Register) -> Step<Register> {
    let register = match register {
        Register::Control(0 | 2 | 3 | 4 | 8) | Register::Debug(0..=3 | 6 | 7) => register,
        Register::Debug(number @ (4 | 5)) if vcpu.cr4() & Cr4::CR4_DEBUGGING_EXTENSIONS.bits() as u64 == 0 => {
            Register::Debug(number + 2)
        }
        _ => return Err(exception(vcpu, Exception::INVALID_OPCODE)),
    };
    if matches!(register, Register::Debug(_)) && vcpu.dr7() & DR7_GENERAL_DETECT != 0 {
        vcpu.set_dr7(vcpu.dr7() & !DR7_GENERAL_DETECT);
        vcpu.set_dr6(vcpu.dr6() | DR6_DEBUG_REGISTER);
        return Err(exception(vcpu, Exception { vector: Exception::DEBUG, error_code: None }));
    }
    Ok(register)
}

/// The operand of LMSW: a register or RAM.
fn lmsw_operand<V: Vcpu>(vcpu: &mut V, memory: &Memory, decoded: &Decoded) -> Step<u16> {
    let mut devices = NoDevices;
    let mut bus = Bus::new(vcpu, memory, &mut devices, decoded, Cause::Other, None);
    let operand = Operand::of(&mut bus, 0, 2, false)?;
    let value = operand.read(&mut bus, 2);
    #[expect(clippy::cast_possible_truncation, reason = "the operand has 16 bits")]
    value.map(|value| value as u16).map_err(|outcome| match outcome {
        super::Outcome::NeedRead { .. } => decoded.unsupported(),
        other => other,
    })
}
