//! The memory operands of an instruction: RAM here, devices in the driver, or the loader.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU16;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use covisor_abi::PAGE_SIZE;

use super::Answer;
use super::Cause;
use super::DeviceSpace;
use super::Outcome;
use super::Step;
use super::decode::Decoded;
use super::translation_fault;
use crate::engine::Vcpu;
use crate::memory::Memory;
use crate::paging::Access;
use crate::paging::translate;

/// All bits of a value of `size` bytes.
#[inline]
pub(super) const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// What an instruction reaches outside the registers.
#[derive(Debug)]
pub(super) struct Bus<'a, V, D> {
    pub(super) vcpu: &'a mut V,
    pub(super) decoded: &'a Decoded,
    pub(super) cause: Cause,
    memory: &'a Memory,
    devices: &'a mut D,
    answer: Option<Answer>,
    /// The answer went into the instruction; another value from the loader cannot come in the same run.
    answered: bool,
    /// The instruction has one memory operand only, so that the address of the exit can be taken for it.
    single_operand: bool,
}

/// Where a memory operand is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// In one page of RAM.
    Ram(NonNull<u8>),
    /// In two pages of RAM: `count` bytes at the first pointer, the others at the second.
    Split(NonNull<u8>, NonNull<u8>, u8),
    /// Not in RAM.
    Device(u64),
}

/// A machine word at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

impl<'a, V: Vcpu, D: DeviceSpace> Bus<'a, V, D> {
    pub(super) fn new(
        vcpu: &'a mut V,
        memory: &'a Memory,
        devices: &'a mut D,
        decoded: &'a Decoded,
        cause: Cause,
        answer: Option<Answer>,
    ) -> Self {
        Self { vcpu, decoded, cause, memory, devices, answer, answered: false, single_operand: true }
    }

    /// From here on addresses are translated, because the instruction has more than one memory operand.
    pub(super) const fn has_two_operands(&mut self) {
        self.single_operand = false;
    }

    /// Guest-physical address of `linear`.
    fn translate(&mut self, linear: u64, write: bool) -> Step<u64> {
        if let Cause::Memory(access) = self.cause
            && self.single_operand
            && access.write == write
            && !access.fetch
            && !access.page_walk
            && (access.gpa ^ linear).is_multiple_of(PAGE_SIZE)
        {
            // The CPU has just walked the tables for this access and checked it.
            return Ok(access.gpa);
        }
        let access = Access { write, fetch: false, user: self.vcpu.cpl() == 3 };
        translate(self.vcpu, self.memory, linear, access).map_err(|fault| translation_fault(self.vcpu, linear, fault))
    }

    /// Pointer to the byte of RAM at `gpa`, for writing (be it after reading) or only for reading; `None` where there is no RAM.
    ///
    /// # Errors
    /// [`Outcome::Absent`] where it cannot be written yet.
    fn ram(&self, gpa: u64, write: bool) -> Step<Option<NonNull<u8>>> {
        let page = if write { self.memory.page(gpa) } else { self.memory.page_to_read(gpa) };
        if page.is_none() && self.memory.is_ram(gpa) {
            return Err(Outcome::Absent(gpa));
        }
        let offset = (gpa % PAGE_SIZE) as usize;
        // SAFETY: the page has PAGE_SIZE bytes and offset is below that.
        Ok(page.map(|page| unsafe { page.add(offset) }))
    }

    /// Finds a memory operand of `size` bytes, for writing (be it after reading) or only for reading.
    pub(super) fn locate(&mut self, linear: u64, size: u8, write: bool) -> Step<Place> {
        let in_page = PAGE_SIZE - linear % PAGE_SIZE;
        let gpa = self.translate(linear, write)?;
        if in_page >= u64::from(size) {
            return Ok(self.ram(gpa, write)?.map_or(Place::Device(gpa), Place::Ram));
        }
        self.single_operand = false;
        let next = self.translate(linear.wrapping_add(in_page), write)?;
        match (self.ram(gpa, write)?, self.ram(next, write)?, u8::try_from(in_page)) {
            (Some(first), Some(second), Ok(count)) => Ok(Place::Split(first, second, count)),
            _ => Err(self.decoded.unsupported()),
        }
    }

    /// Reads `size` (1, 2, 4 or 8) bytes of an operand that was located with that size.
    pub(super) fn read(&mut self, place: Place, size: u8) -> Step<u64> {
        match place {
            Place::Ram(pointer) => Ok(read_ram(pointer, size)),
            Place::Split(first, second, count) => {
                let mut bytes = [0; 8];
                for (index, byte) in (0..).zip(&mut bytes[..usize::from(size)]) {
                    // SAFETY: locate() found `count` bytes at the first pointer and the rest at the second; volatile,
                    // for the guest may write them at this moment.
                    *byte = unsafe { split(first, second, count, index).read_volatile() };
                }
                Ok(u64::from_le_bytes(bytes))
            }
            Place::Device(gpa) => {
                if let Some(value) = self.devices.read(gpa, size) {
                    return Ok(value & mask(size));
                }
                match self.answer {
                    Some(Answer::Memory { gpa: at, size: of, value }) if (at, of) == (gpa, size) => {
                        self.answer = None;
                        self.answered = true;
                        Ok(value & mask(size))
                    }
                    _ if self.answered => Err(self.decoded.unsupported()),
                    _ => Err(Outcome::NeedRead { gpa, size }),
                }
            }
        }
    }

    /// Writes an operand that was located for writing with that size. The value of [`Outcome::Write`] is what is left to
    /// do by the loader.
    pub(super) fn write(&mut self, place: Place, size: u8, value: u64) -> Option<Outcome> {
        match place {
            Place::Ram(pointer) => write_ram(pointer, size, value),
            Place::Split(first, second, count) => {
                for (index, byte) in (0..size).zip(value.to_le_bytes()) {
                    // SAFETY: as in read().
                    unsafe { split(first, second, count, index).write_volatile(byte) };
                }
            }
            Place::Device(gpa) => {
                let value = value & mask(size);
                if !self.devices.write(gpa, size, value) {
                    return Some(Outcome::Write { gpa, size, value });
                }
            }
        }
        None
    }

    /// Writes an operand whose value was `old` a moment ago, as one with the read where memory allows it.
    ///
    /// # Errors
    /// [`Outcome::Done`] where it has changed meanwhile: the guest runs its instruction again.
    pub(super) fn replace(&mut self, place: Place, size: u8, old: u64, new: u64) -> Step<Option<Outcome>> {
        if let Place::Ram(pointer) = place
            && pointer.as_ptr().addr().is_multiple_of(size.into())
        {
            return if exchange_ram(pointer, size, old, new) { Ok(None) } else { Err(Outcome::Done) };
        }
        Ok(self.write(place, size, new))
    }

    /// Reads from a port.
    pub(super) fn read_port(&mut self, port: u16, size: u8) -> Step<u64> {
        match self.answer {
            Some(Answer::Port { port: at, size: of, value }) if (at, of) == (port, size) => {
                self.answer = None;
                self.answered = true;
                Ok(value & mask(size))
            }
            _ => Err(Outcome::NeedPortRead { port, size }),
        }
    }
}

/// Pointer to byte `index` of an operand in two pages.
///
/// # Safety
/// `count` bytes are at `first`, and byte `index` is one of them or of those at `second`.
unsafe fn split(first: NonNull<u8>, second: NonNull<u8>, count: u8, index: u8) -> NonNull<u8> {
    if index < count {
        // SAFETY: the caller's.
        unsafe { first.add(usize::from(index)) }
    } else {
        // SAFETY: the caller's.
        unsafe { second.add(usize::from(index - count)) }
    }
}

fn read_ram(pointer: NonNull<u8>, size: u8) -> u64 {
    // SAFETY: locate() found `size` bytes of a guest page here, and the types need no alignment; volatile, for the guest
    // may write them at this moment.
    unsafe {
        match size {
            1 => pointer.read_volatile().into(),
            2 => pointer.cast::<Unaligned<u16>>().read_volatile().0.into(),
            4 => pointer.cast::<Unaligned<u32>>().read_volatile().0.into(),
            _ => pointer.cast::<Unaligned<u64>>().read_volatile().0,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low bytes are what is written")]
fn write_ram(pointer: NonNull<u8>, size: u8, value: u64) {
    // SAFETY: as in read_ram().
    unsafe {
        match size {
            1 => pointer.write_volatile(value as u8),
            2 => pointer.cast::<Unaligned<u16>>().write_volatile(Unaligned(value as u16)),
            4 => pointer.cast::<Unaligned<u32>>().write_volatile(Unaligned(value as u32)),
            _ => pointer.cast::<Unaligned<u64>>().write_volatile(Unaligned(value)),
        }
    }
}

/// Atomically replaces `old` by `new`; the pointer is aligned to `size`.
#[expect(clippy::cast_possible_truncation, reason = "the low bytes are what is compared and written")]
fn exchange_ram(pointer: NonNull<u8>, size: u8, old: u64, new: u64) -> bool {
    const ORDER: Ordering = Ordering::SeqCst;
    // SAFETY: locate() found `size` bytes of a guest page here, the caller says they are aligned, and everybody accesses
    // guest memory by machine words.
    unsafe {
        match size {
            1 => pointer.cast::<AtomicU8>().as_ref().compare_exchange(old as u8, new as u8, ORDER, ORDER).is_ok(),
            2 => pointer.cast::<AtomicU16>().as_ref().compare_exchange(old as u16, new as u16, ORDER, ORDER).is_ok(),
            4 => pointer.cast::<AtomicU32>().as_ref().compare_exchange(old as u32, new as u32, ORDER, ORDER).is_ok(),
            _ => pointer.cast::<AtomicU64>().as_ref().compare_exchange(old, new, ORDER, ORDER).is_ok(),
        }
    }
}
