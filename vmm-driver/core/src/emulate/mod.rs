//! Instructions that the CPU could not finish: their length, what they do to control registers, and the accesses to
//! device memory and string port I/O, which are carried out here (with iced-x86 as the decoder).
//!
//! **Replay.** [`emulate`] runs an instruction from its start and commits registers, flags and RIP only at its end. Where
//! a value has to come from the loader it stops with [`Outcome::NeedRead`] and nothing committed; the run loop asks and
//! calls again with the [`Answer`]. A store to the loader is the last thing an instruction does and comes out as
//! [`Outcome::Write`] with the instruction committed. So there is no state of the emulator's between two calls, and a guest that
//! changes its code meanwhile gets what its new code does.
//!
//! A repeated string instruction does one element per call, as if an interrupt came after each.
//!
//! Not done: alignment checks (#AC) and data breakpoints on emulated accesses.
//!
//! Everything here runs in guest context: no allocation (the decoder's tables are made by [`warm_up`]), no locks, no
//! host calls.

mod access;
mod alu;
mod control;
mod decode;
mod execute;
mod operand;
mod quick;
mod string;

pub use control::ControlAccess;
pub use control::ControlOperation;
pub use control::Register;
pub use control::control_access;
pub use decode::length_of_current;
pub use decode::opcode;
pub use decode::warm_up;
pub use execute::emulate;

use crate::debug_registers::DR6_SINGLE_STEP;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::exit::Injection;
use crate::exit::MemoryAccess;
use crate::exit::PortAccess;
use crate::paging;
use crate::paging::FetchFault;
use crate::registers::CodeSize;
use crate::registers::Cr0;
use crate::registers::RFlags;

/// Devices in the driver that the guest reaches by device memory: local APIC, I/O APIC, doorbells.
pub trait DeviceSpace {
    /// Reads `size` (1, 2, 4 or 8) bytes at `gpa`; `None` where the loader has to answer. May be called again for the
    /// same access when the instruction is replayed.
    fn read(&mut self, gpa: u64, size: u8) -> Option<u64>;
    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value` at `gpa`; false where the loader has to do it.
    fn write(&mut self, gpa: u64, size: u8, value: u64) -> bool;
}

/// Why an instruction is emulated. It keeps a guest that changes its code between exit and emulation from reaching more
/// than the CPU let it reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// [`crate::exit::Exit::Memory`].
    Memory(MemoryAccess),
    /// [`crate::exit::Exit::Port`] with `string`; the CPU has checked the permission for this port.
    Port(PortAccess),
    /// Anything else.
    Other,
}

/// What the loader read for the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answers [`Outcome::NeedRead`].
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u8,
        /// What is there.
        value: u64,
    },
    /// Answers [`Outcome::NeedPortRead`].
    Port {
        /// The port.
        port: u16,
        /// Bytes.
        size: u8,
        /// What is there.
        value: u64,
    },
}

/// How an emulation ended. Nothing of the instruction is committed if not stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On with the guest: the instruction, or one element of a repeated one, is committed, or the guest is to run it
    /// again because its memory changed under the emulation. A single-step #DB was injected if due.
    Done,
    /// Ask the loader, and call again with the answer.
    NeedRead {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes: 1, 2, 4 or 8. All of them are in one page.
        size: u8,
    },
    /// Committed; deliver this store before the guest goes on. A single-step #DB was injected if due.
    Write {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes: 1, 2, 4 or 8. All of them are in one page.
        size: u8,
        /// What to store; the upper bytes are 0.
        value: u64,
    },
    /// Ask the port's device, and call again with the answer.
    NeedPortRead {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// Committed; deliver this port write before the guest goes on. A single-step #DB was injected if due.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// What to write; the upper bytes are 0.
        value: u32,
    },
    /// Inject this; CR2 is set where it is a page fault.
    Fault(Exception),
    /// An instruction, or a use of one, that the emulator does not know. Its first bytes.
    Unsupported([u8; 8]),
    /// The RAM at this guest-physical address has no host memory yet: run the instruction again when it has.
    Absent(u64),
    /// A page table at this guest-physical address is not in RAM.
    TableOutsideRam(u64),
    /// Code at this guest-physical address is not in RAM.
    FetchOutsideRam(u64),
}

/// The value of a step of an emulation, or how the emulation ends at it.
type Step<T> = Result<T, Outcome>;

/// Ends the instruction at RIP: goes to `next_rip`, ends the interrupt shadow, and injects #DB where the guest
/// single-steps.
#[inline]
pub fn skip<V: Vcpu>(vcpu: &mut V, next_rip: u64) {
    vcpu.set_rip(next_rip);
    complete(vcpu);
}

/// What happens at the end of each instruction or element, wherever RIP goes.
#[inline]
fn complete<V: Vcpu>(vcpu: &mut V) {
    vcpu.set_interrupt_shadow(false);
    let flags = vcpu.rflags();
    if flags & (RFlags::FLAGS_RF | RFlags::FLAGS_TF).bits() != 0 {
        complete_debugged(vcpu, flags);
    }
}

#[cold]
fn complete_debugged<V: Vcpu>(vcpu: &mut V, flags: u64) {
    vcpu.set_rflags(flags & !RFlags::FLAGS_RF.bits());
    if flags & RFlags::FLAGS_TF.bits() != 0 && !vcpu.injection_waits() {
        vcpu.set_dr6(vcpu.dr6() | DR6_SINGLE_STEP);
        vcpu.inject(Injection::Exception(Exception { vector: Exception::DEBUG, error_code: None }));
    }
}

/// An exception as the vCPU's mode has it: real mode has no error codes (APM vol. 2, 8.2).
#[cold]
fn exception<V: Vcpu>(vcpu: &V, mut exception: Exception) -> Outcome {
    if vcpu.cr0() & Cr0::CR0_PROTECTED_MODE.bits() as u64 == 0 {
        exception.error_code = None;
    }
    Outcome::Fault(exception)
}

/// A failed translation of `linear`.
#[cold]
fn translation_fault<V: Vcpu>(vcpu: &mut V, linear: u64, fault: paging::Fault) -> Outcome {
    match fault {
        paging::Fault::Page(error_code) => {
            vcpu.set_cr2(linear);
            Outcome::Fault(Exception::page_fault(error_code))
        }
        paging::Fault::TableOutsideRam(gpa) => Outcome::TableOutsideRam(gpa),
    }
}

/// A failed fetch.
#[cold]
fn fetch_fault<V: Vcpu>(vcpu: &mut V, fault: FetchFault) -> Outcome {
    match fault {
        FetchFault::Translation(linear, fault) => translation_fault(vcpu, linear, fault),
        FetchFault::OutsideRam(gpa) => Outcome::FetchOutsideRam(gpa),
    }
}

/// `rip` plus the length of the instruction there. EIP of 16-bit code is not cut to 16 bits: the next fetch is checked
/// against the limit of CS.
#[inline]
#[must_use]
pub fn advance(size: CodeSize, rip: u64, length: usize) -> u64 {
    let next = rip.wrapping_add(length as u64);
    if size == CodeSize::Bits64 { next } else { next & 0xffff_ffff }
}

#[cfg(test)]
mod tests;
