//! One instruction (APM vol. 3).

use core::ops::ControlFlow;

use covisor_core::engine::Vcpu;
use covisor_core::exit::Exit;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;
use covisor_core::registers::RFlags;
use covisor_core::registers::SegmentName;
use covisor_core::test_vcpu::TestVcpu;

use crate::event;
use crate::event::TripleFault;
use crate::ram::Ram;

/// The instruction pointer's bits in real mode.
const IP: u64 = 0xffff;
/// Says that an operand has 32 bits.
const OPERAND_SIZE: u8 = 0x66;

/// What an instruction is read from.
struct Code<'a> {
    ram: &'a Ram,
    base: u64,
    /// Of the next byte.
    ip: u64,
}

impl Code<'_> {
    /// Reads a little-endian number of this many bytes.
    fn number(&mut self, bytes: u8) -> Result<u64, TripleFault> {
        let mut number = 0;
        for index in 0..bytes {
            let [byte] = self.ram.read(self.base + self.ip).map_err(|_| TripleFault)?;
            self.ip = (self.ip + 1) & IP;
            number |= u64::from(byte) << (index * 8);
        }
        Ok(number)
    }

    fn byte(&mut self) -> Result<u8, TripleFault> {
        Ok(self.number(1)?.to_le_bytes()[0])
    }
}

impl From<TripleFault> for Exit {
    fn from(_: TripleFault) -> Self {
        Self::Shutdown
    }
}

/// Whether there is an exit instead of the next instruction.
type Step = ControlFlow<Exit>;

/// Executes the instruction at RIP, or returns the exit that it makes, with the vCPU as it was before.
pub(crate) fn execute(vcpu: &mut TestVcpu, ram: &Ram) -> Step {
    let shadow = vcpu.interrupt_shadow;
    match try_execute(vcpu, ram) {
        Ok(()) => {
            // It lasts for one instruction.
            vcpu.interrupt_shadow &= !shadow;
            Step::Continue(())
        }
        Err(exit) => Step::Break(exit),
    }
}

fn try_execute(vcpu: &mut TestVcpu, ram: &Ram) -> Result<(), Exit> {
    vcpu.next_rip = None;
    let mut code = Code { ram, base: vcpu.segment(SegmentName::Cs).base, ip: vcpu.rip & IP };
    let (opcode, long) = match code.byte()? {
        OPERAND_SIZE => (code.byte()?, true),
        opcode => (opcode, false),
    };
    let wide = if long { 4 } else { 2 };
    // The lowest bit of most opcodes says whether the operand is more than a byte.
    let size = if opcode & 1 == 0 { 1 } else { wide };
    match opcode {
        // NOP.
        0x90 => {}
        // JMP.
        0xeb => {
            let distance = code.byte()?.cast_signed();
            code.ip = code.ip.wrapping_add_signed(distance.into()) & IP;
        }
        // MOV of a constant.
        0xb0..=0xb7 => {
            let value = code.number(1)?;
            // 4 to 7 are AH, CH, DH, BH.
            let from = if opcode & 4 == 0 { 0 } else { 8 };
            set(vcpu.gprs.get_mut(usize::from(opcode & 3)), from, 1, value);
        }
        0xb8..=0xbf => {
            let value = code.number(wide)?;
            set(vcpu.gprs.get_mut(usize::from(opcode & 7)), 0, wide, value);
        }
        // MOV between the accumulator and an address.
        0xa0..=0xa3 => move_accumulator(vcpu, &mut code, opcode & 2 != 0, size)?,
        // IN and OUT.
        0xe4..=0xe7 | 0xec..=0xef => {
            let [low, high, ..] = vcpu.gprs.rdx.to_le_bytes();
            let port = if opcode & 8 == 0 { code.byte()?.into() } else { u16::from_le_bytes([low, high]) };
            return Err(Exit::Port(PortAccess {
                port,
                size,
                write: opcode & 2 != 0,
                string: false,
                next_rip: code.ip,
            }));
        }
        // IRET.
        0xcf if !long => return Ok(event::go_back(vcpu, ram)?),
        // HLT.
        0xf4 => return exit_behind(vcpu, &code, Exit::Halt),
        // CLI.
        0xfa => vcpu.rflags &= !RFlags::FLAGS_IF.bits(),
        // STI.
        0xfb => {
            vcpu.interrupt_shadow |= vcpu.rflags & RFlags::FLAGS_IF.bits() == 0;
            vcpu.rflags |= RFlags::FLAGS_IF.bits();
        }
        // CPUID.
        0x0f if code.byte()? == 0xa2 => return exit_behind(vcpu, &code, Exit::Cpuid),
        _ => return Err(Exit::Shutdown),
    }
    vcpu.rip = code.ip;
    Ok(())
}

/// An exit of an instruction that core ends.
fn exit_behind(vcpu: &mut TestVcpu, code: &Code<'_>, exit: Exit) -> Result<(), Exit> {
    vcpu.next_rip = Some(code.ip);
    Err(exit)
}

/// MOV between the accumulator and DS and a 16-bit offset.
fn move_accumulator(vcpu: &mut TestVcpu, code: &mut Code<'_>, write: bool, size: u8) -> Result<(), Exit> {
    let gpa = vcpu.segment(SegmentName::Ds).base + code.number(2)?;
    let no_ram = |gpa| Exit::Memory(MemoryAccess { gpa, write, fetch: false, page_walk: false });
    let bytes = usize::from(size);
    if write {
        return code.ram.write(gpa, &vcpu.gprs.rax.to_le_bytes()[..bytes]).map_err(no_ram);
    }
    let value = match size {
        1 => code.ram.read(gpa).map(u8::from_le_bytes).map(u64::from),
        2 => code.ram.read(gpa).map(u16::from_le_bytes).map(u64::from),
        _ => code.ram.read(gpa).map(u32::from_le_bytes).map(u64::from),
    };
    set(&mut vcpu.gprs.rax, 0, size, value.map_err(no_ram)?);
    Ok(())
}

/// Sets this many bytes of a register, from a bit on. 32 bits clear the upper half, as core does it for IN.
fn set(register: &mut u64, from: u32, bytes: u8, value: u64) {
    let mask = u64::MAX >> (64 - u32::from(bytes) * 8) << from;
    *register = if bytes == 4 { value } else { *register & !mask | value << from };
}
