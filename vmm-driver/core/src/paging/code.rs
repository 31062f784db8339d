//! The guest's code: how large it is, where, and its bytes.
//!
//! Everything here runs in guest context.

use core::ptr::NonNull;

use covisor_abi::PAGE_SIZE;

use super::Access;
use super::Fault;
use super::entry;
use super::translate_any;
use super::translate_usual;
use crate::engine::Vcpu;
use crate::memory::Memory;
use crate::registers::CodeSize;
use crate::registers::Efer;
use crate::registers::SegmentName;
use crate::registers::attributes;

/// The longest instruction.
pub const MAX_INSTRUCTION: usize = 15;

/// Why no instruction byte could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFault {
    /// No translation; the linear address, for CR2.
    Translation(u64, Fault),
    /// The code is at this guest-physical address, which is not RAM.
    OutsideRam(u64),
}

/// The size of code that the vCPU executes now.
#[inline]
pub fn code_size<V: Vcpu>(vcpu: &V) -> CodeSize {
    let code = vcpu.segment(SegmentName::Cs).attributes;
    if code & attributes::LONG != 0 && vcpu.efer() & Efer::LMA.bits() != 0 {
        CodeSize::Bits64
    } else if code & attributes::DEFAULT_BIG != 0 {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    }
}

/// Linear address of the current instruction. The CPU has checked RIP against the limit of CS before it came here.
#[inline]
pub fn linear_rip<V: Vcpu>(vcpu: &V) -> u64 {
    if code_size(vcpu) == CodeSize::Bits64 {
        vcpu.rip()
    } else {
        vcpu.segment(SegmentName::Cs).base.wrapping_add(vcpu.rip()) & 0xffff_ffff
    }
}

/// Pointer to the code at `linear`, in the usual case.
#[inline(always)]
fn code_usual<V: Vcpu>(vcpu: &V, memory: &Memory, linear: u64) -> Option<NonNull<u8>> {
    let access = Access { write: false, fetch: true, user: vcpu.cpl() == 3 };
    let gpa = translate_usual(vcpu, memory, linear, access)?;
    memory.page_to_read(gpa).map(|page| byte_of(page, gpa))
}

/// Pointer to the code at `linear`.
#[cold]
fn code<V: Vcpu>(vcpu: &V, memory: &Memory, linear: u64) -> Result<NonNull<u8>, FetchFault> {
    let access = Access { write: false, fetch: true, user: vcpu.cpl() == 3 };
    let gpa = translate_any(vcpu, memory, linear, access).map_err(|fault| FetchFault::Translation(linear, fault))?;
    memory.page_to_read(gpa).map(|page| byte_of(page, gpa)).ok_or(FetchFault::OutsideRam(gpa))
}

/// The byte at `gpa`, whose page this is.
#[inline]
fn byte_of(page: NonNull<u8>, gpa: u64) -> NonNull<u8> {
    // SAFETY: the page has PAGE_SIZE bytes and the offset is below that.
    unsafe { page.add((gpa % PAGE_SIZE) as usize) }
}

/// How many bytes there are from a linear address to the end of its page.
#[expect(clippy::cast_possible_truncation, reason = "at most a page")]
#[inline]
const fn left_in_page(linear: u64) -> usize {
    (PAGE_SIZE - linear % PAGE_SIZE) as usize
}

/// Eight bytes at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Word(u64);

/// The first 8 bytes of the current instruction of 64-bit code, for a quick look at its opcode: the first is the lowest
/// byte. `None` where its page ends before, or the walk leaves the region of RAM where it began.
///
/// Nothing is checked and nothing is marked as accessed: the CPU has just done both, or it could not have begun to
/// execute here. Tables that have changed since lead to some other bytes of the guest's; so what is read must be good
/// for nothing but a comparison with the instruction that the CPU has named.
#[must_use]
pub fn peek_usual<V: Vcpu>(vcpu: &V, memory: &Memory) -> Option<u64> {
    let rip = vcpu.rip();
    if code_size(vcpu) != CodeSize::Bits64 || left_in_page(rip) < 8 {
        return None;
    }
    let view = memory.view(vcpu.cr3())?;
    let mut value = view.read_entry(vcpu.cr3() & entry::ADDRESS, rip >> 39)?;
    let mut shift = 39;
    while shift > 12 {
        shift -= 9;
        value = view.read_entry(value & entry::ADDRESS, rip >> shift)?;
        if shift > 12 && value & entry::LARGE != 0 {
            break;
        }
    }
    let offset = (1 << shift) - 1;
    let page = view.page_to_read(value & entry::ADDRESS & !offset | rip & offset)?;
    // SAFETY: 8 bytes of a guest page follow the pointer, as checked above, and Word needs no alignment; volatile, for the
    // guest may write them at this moment.
    Some(unsafe { byte_of(page, rip).cast::<Word>().read_volatile() }.0)
}

/// The first 8 bytes of the current instruction; fewer, and zeros, where its page ends before.
///
/// # Errors
/// [`FetchFault`].
pub fn peek<V: Vcpu>(vcpu: &V, memory: &Memory) -> Result<[u8; 8], FetchFault> {
    let mut bytes = [0; MAX_INSTRUCTION];
    let available = fetch(vcpu, memory, &mut bytes)?;
    let mut first = [0; 8];
    let count = available.min(first.len());
    first[..count].copy_from_slice(&bytes[..count]);
    Ok(first)
}

/// Copies code; as many bytes as `bytes` has are in the page.
fn copy_code(pointer: NonNull<u8>, bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: the caller's bytes fit into the guest page; volatile, for the guest may write them at this moment.
        *byte = unsafe { pointer.add(index).read_volatile() };
    }
}

/// Reads the current instruction: the bytes of it that are in its first page, 15 at most. Returns their number. What
/// the next page holds is read by [`fetch_rest`] if the instruction turns out to be longer.
///
/// # Errors
/// [`FetchFault`].
#[inline]
pub fn fetch<V: Vcpu>(vcpu: &V, memory: &Memory, bytes: &mut [u8; MAX_INSTRUCTION]) -> Result<usize, FetchFault> {
    let linear = linear_rip(vcpu);
    let available = left_in_page(linear);
    let pointer = match code_usual(vcpu, memory, linear) {
        Some(pointer) => pointer,
        None => code(vcpu, memory, linear)?,
    };
    if available >= MAX_INSTRUCTION {
        // SAFETY: 15 bytes of a guest page follow the pointer, and Word needs no alignment; volatile, for the guest may
        // write them at this moment.
        let (low, high) =
            unsafe { (pointer.cast::<Word>().read_volatile(), pointer.add(7).cast::<Word>().read_volatile()) };
        bytes[..8].copy_from_slice(&low.0.to_le_bytes());
        bytes[7..].copy_from_slice(&high.0.to_le_bytes());
        return Ok(MAX_INSTRUCTION);
    }
    copy_code(pointer, &mut bytes[..available]);
    Ok(available)
}

/// Reads on in the next page, when `present` bytes were not enough. Returns how many bytes there are now.
///
/// # Errors
/// [`FetchFault`].
#[cold]
pub fn fetch_rest<V: Vcpu>(
    vcpu: &V,
    memory: &Memory,
    bytes: &mut [u8; MAX_INSTRUCTION],
    present: usize,
) -> Result<usize, FetchFault> {
    let Some(rest) = bytes.get_mut(present..).filter(|rest| !rest.is_empty()) else { return Ok(MAX_INSTRUCTION) };
    let mut linear = linear_rip(vcpu).wrapping_add(present as u64);
    if code_size(vcpu) != CodeSize::Bits64 {
        linear &= 0xffff_ffff;
    }
    let pointer = code(vcpu, memory, linear)?;
    // The next page starts here and holds all that is missing.
    copy_code(pointer, rest);
    Ok(MAX_INSTRUCTION)
}
