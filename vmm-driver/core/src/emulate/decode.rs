//! From bytes at RIP to an instruction.

use iced_x86::Decoder;
use iced_x86::DecoderError;
use iced_x86::DecoderOptions;
use iced_x86::Instruction;
use iced_x86::Mnemonic;

use super::Outcome;
use super::Step;
use super::advance;
use super::fetch_fault;
use crate::engine::Vcpu;
use crate::memory::Memory;
use crate::paging::MAX_INSTRUCTION;
use crate::paging::code_size;
use crate::paging::fetch;
use crate::paging::fetch_rest;
use crate::paging::peek_usual;
use crate::registers::CodeSize;

/// The encodings without prefixes of instructions whose length [`length_of_current`] is asked for.
pub mod opcode {
    /// CPUID.
    pub const CPUID: &[u8] = &[0x0f, 0xa2];
    /// RDMSR.
    pub const RDMSR: &[u8] = &[0x0f, 0x32];
    /// WRMSR.
    pub const WRMSR: &[u8] = &[0x0f, 0x30];
    /// HLT.
    pub const HLT: &[u8] = &[0xf4];
    /// VMMCALL (AMD).
    pub const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];
    /// VMCALL (Intel).
    pub const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
    /// PAUSE.
    pub const PAUSE: &[u8] = &[0xf3, 0x90];
    /// INVD.
    pub const INVD: &[u8] = &[0x0f, 0x08];
    /// WBINVD.
    pub const WBINVD: &[u8] = &[0x0f, 0x09];
    /// XSETBV.
    pub const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
    /// RDPMC.
    pub const RDPMC: &[u8] = &[0x0f, 0x33];
    /// RDTSC.
    pub const RDTSC: &[u8] = &[0x0f, 0x31];
    /// RDTSCP.
    pub const RDTSCP: &[u8] = &[0x0f, 0x01, 0xf9];
}

/// Makes the decoder's tables, which takes memory. Once, when the driver is loaded and before any vCPU runs.
pub fn warm_up() {
    for bits in [16, 32, 64] {
        core::hint::black_box(Decoder::with_ip(bits, opcode::HLT, 0, DecoderOptions::AMD).decode());
    }
}

/// The bytes at RIP and what they mean.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) instruction: Instruction,
    pub(super) bytes: [u8; MAX_INSTRUCTION],
    pub(super) size: CodeSize,
}

impl Decoded {
    /// The instruction that the vCPU is at.
    pub(super) fn current<V: Vcpu>(vcpu: &mut V, memory: &Memory) -> Step<Self> {
        let mut bytes = [0; MAX_INSTRUCTION];
        let length = fetch(vcpu, memory, &mut bytes).map_err(|fault| fetch_fault(vcpu, fault))?;
        Self::of(vcpu, memory, bytes, length)
    }

    /// The instruction that starts with these `length` bytes.
    pub(super) fn of<V: Vcpu>(
        vcpu: &mut V,
        memory: &Memory,
        mut bytes: [u8; MAX_INSTRUCTION],
        mut length: usize,
    ) -> Step<Self> {
        let size = code_size(vcpu);
        loop {
            // Used where it is made: it is large for the host's stack.
            let mut decoder = Decoder::try_with_ip(size.bits(), &bytes[..length], vcpu.rip(), DecoderOptions::AMD);
            let Ok(decoder) = &mut decoder else { return Err(unsupported(&bytes)) };
            let instruction = decoder.decode();
            if !instruction.is_invalid() {
                return Ok(Self { instruction, bytes, size });
            }
            if decoder.last_error() != DecoderError::NoMoreBytes || length == MAX_INSTRUCTION {
                return Err(unsupported(&bytes));
            }
            length = fetch_rest(vcpu, memory, &mut bytes, length).map_err(|fault| fetch_fault(vcpu, fault))?;
        }
    }

    /// Where the instruction after this one is.
    pub(super) fn next_rip<V: Vcpu>(&self, vcpu: &V) -> u64 {
        advance(self.size, vcpu.rip(), self.instruction.len())
    }

    /// The emulation ends here: this instruction is not known.
    #[cold]
    pub(super) fn unsupported(&self) -> Outcome {
        unsupported(&self.bytes)
    }
}

fn unsupported(bytes: &[u8; MAX_INSTRUCTION]) -> Outcome {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    Outcome::Unsupported(first)
}

/// RIP after the current instruction, which the CPU said is the one with this encoding (see [`opcode`]), maybe with
/// prefixes. Quick where the CPU tells, or where there are no prefixes.
///
/// # Errors
/// [`Outcome::Unsupported`] where there is another instruction by now, or why the code cannot be read.
#[inline(always)]
pub fn length_of_current<V: Vcpu>(vcpu: &mut V, memory: &Memory, expected: &[u8]) -> Step<u64> {
    // Inlined where `expected` is known, so that the comparison is one of words.
    if let Some(next) = vcpu.next_rip() {
        return Ok(next);
    }
    let mut wanted = 0;
    for (place, byte) in expected.iter().enumerate() {
        wanted |= u64::from(*byte) << (place * 8);
    }
    let mask = u64::MAX >> (64 - expected.len() * 8);
    if peek_current(vcpu, memory).is_some_and(|first| first & mask == wanted) {
        return Ok(advance(code_size(vcpu), vcpu.rip(), expected.len()));
    }
    decode_length(vcpu, memory, expected)
}

/// One copy of [`peek_usual`] for all instructions.
#[inline(never)]
fn peek_current<V: Vcpu>(vcpu: &V, memory: &Memory) -> Option<u64> {
    peek_usual(vcpu, memory)
}

#[cold]
fn decode_length<V: Vcpu>(vcpu: &mut V, memory: &Memory, expected: &[u8]) -> Step<u64> {
    let decoded = Decoded::current(vcpu, memory)?;
    if Some(decoded.instruction.mnemonic()) != mnemonic(decoded.size, expected) {
        return Err(decoded.unsupported());
    }
    Ok(decoded.next_rip(vcpu))
}

/// What an encoding without prefixes is.
#[inline(never)]
fn mnemonic(size: CodeSize, encoding: &[u8]) -> Option<Mnemonic> {
    let mut decoder = Decoder::try_with_ip(size.bits(), encoding, 0, DecoderOptions::AMD);
    decoder.as_mut().ok().map(|decoder| decoder.decode().mnemonic())
}
