//! An engine for tests of a driver where no guest can be entered: it interprets the guest's instructions, of which it knows a
//! handful. It has no use for privileges, so it runs where a driver is an ordinary program, as under Wine, and there everything
//! around an engine is the real thing: calls, memory that the loader shares, exits, kicks, interrupts, doorbells.
//!
//! It stands in for AMD-V, and guests find a CPU in real mode:
//!
//! | instruction | |
//! |---|---|
//! | NOP, JMP with 8 bits, MOV of a constant to a register | |
//! | MOV between AL, AX or EAX and an address | in RAM; device memory makes an exit |
//! | IN, OUT | the port in the instruction or in DX |
//! | CLI, STI, IRET | interrupts come by the table at IDTR |
//! | HLT, CPUID | |
//!
//! Anything else ends the guest like a triple fault. An interrupt of the host's ends each stay after some thousand
//! instructions, so that whoever wants the vCPU need not wait for long.
//!
//! "Physical" addresses of the host's blocks are addresses of the driver: what [`covisor_core::host::Block`] has as both has to
//! be the same number.
//!
//! | module | concept |
//! |---|---|
//! | `engine` | core's engine |
//! | `ram` | the guest's memory |
//! | `instruction` | one instruction |
//! | `event` | interrupts and exceptions on their way into the guest |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod engine;
mod event;
mod instruction;
mod ram;
#[cfg(test)]
mod tests;

pub use engine::Interpreter;
pub use ram::Ram;
