//! Memory of the guest's, by the addresses that its kernel passes. They are translated in software and accessed through the
//! monitor's own window, so no address of a guest's can make the monitor fault.

use crate::decode::MAX_LENGTH;
use crate::errno::Errno;
use crate::layout::PAGE;
use crate::layout::place;
use crate::machine::Machine;
use crate::processor::Processor;

/// The page that was read last in a list: the next entry is mostly in it, and need not be looked up. For one hypercall only, since
/// nobody tells when the guest maps another page there.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// Guest-virtual address of the page; at first none.
    page: u64,
    /// Its guest-physical address.
    gpa: u64,
}

impl Near {
    /// No page.
    pub const NONE: Self = Self { page: 1, gpa: 0 };
}

impl<P: Processor> Machine<'_, P> {
    /// Reads words of a list.
    ///
    /// # Errors
    /// `EFAULT` where they are not all mapped.
    #[inline]
    pub fn read_near<const N: usize>(&self, near: &mut Near, address: u64) -> Result<[u64; N], Errno> {
        if !is_whole(address, N) {
            return self.read_words(address);
        }
        let page = address & !(PAGE - 1);
        if page != near.page {
            *near = Near { page, gpa: self.translate(page, false)? };
        }
        let mut words = [0; N];
        let mut gpa = near.gpa + (address - page);
        for word in &mut words {
            *word = self.space.read_word(gpa).ok_or(Errno::EFAULT)?;
            gpa += 8;
        }
        Ok(words)
    }

    /// The guest-physical address of guest-virtual `address`, in the kernel's address space.
    #[inline]
    fn translate(&self, address: u64, write: bool) -> Result<u64, Errno> {
        self.state.mmu.translate(&self.space, address, write).ok_or(Errno::EFAULT)
    }

    /// Reads words.
    ///
    /// # Errors
    /// `EFAULT` where they are not all mapped.
    #[inline]
    pub fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], Errno> {
        let mut words = [0; N];
        if is_whole(address, N) {
            let mut gpa = self.translate(address, false)?;
            for word in &mut words {
                *word = self.space.read_word(gpa).ok_or(Errno::EFAULT)?;
                gpa += 8;
            }
            return Ok(words);
        }
        for (word, index) in words.iter_mut().zip(0_u64..) {
            let mut bytes = [0; 8];
            self.read_bytes(address.wrapping_add(index * 8), &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    /// Writes words.
    ///
    /// # Errors
    /// `EFAULT` where they cannot all be written; those before may have been.
    #[inline]
    pub fn write_words(&mut self, address: u64, words: &[u64]) -> Result<(), Errno> {
        if is_whole(address, words.len()) {
            let mut gpa = self.translate(address, true)?;
            for word in words {
                self.space.write_word(gpa, *word).ok_or(Errno::EFAULT)?;
                gpa += 8;
            }
            return Ok(());
        }
        for (word, index) in words.iter().zip(0_u64..) {
            self.write_bytes(address.wrapping_add(index * 8), &word.to_le_bytes())?;
        }
        Ok(())
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// `EFAULT` where they are not all mapped.
    pub fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        for (byte, offset) in bytes.iter_mut().zip(0_u64..) {
            let gpa = self.translate(address.wrapping_add(offset), false)?;
            let word = self.space.read_word(gpa & !7).ok_or(Errno::EFAULT)?;
            *byte = word.to_le_bytes()[(gpa & 7) as usize];
        }
        Ok(())
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `EFAULT` where they cannot all be written; those before may have been.
    pub fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        for (byte, offset) in bytes.iter().zip(0_u64..) {
            let gpa = self.translate(address.wrapping_add(offset), true)?;
            let mut word = self.space.read_word(gpa & !7).ok_or(Errno::EFAULT)?.to_le_bytes();
            word[(gpa & 7) as usize] = *byte;
            self.space.write_word(gpa & !7, u64::from_le_bytes(word)).ok_or(Errno::EFAULT)?;
        }
        Ok(())
    }

    /// The bytes of the instruction at RIP, as many as can be read.
    pub(crate) fn code<'a>(&self, room: &'a mut [u8; MAX_LENGTH]) -> &'a [u8] {
        let rip = self.area.frame.rip;
        let mut length = 0;
        while length < MAX_LENGTH {
            let address = rip.wrapping_add(length as u64);
            let Ok(gpa) = self.translate(address, false) else { break };
            // To the end of the page, in words.
            let mut at = gpa;
            loop {
                let Some(word) = self.space.read_word(at & !7) else { return room.get(..length).unwrap_or_default() };
                let bytes = word.to_le_bytes();
                let fresh = bytes.get(place(at & 7)..).unwrap_or_default();
                let count = fresh.len().min(MAX_LENGTH - length);
                if let (Some(to), Some(from)) = (room.get_mut(length..length + count), fresh.get(..count)) {
                    to.copy_from_slice(from);
                }
                length += count;
                at = (at & !7) + 8;
                if length == MAX_LENGTH || at & (PAGE - 1) == 0 {
                    break;
                }
            }
        }
        room.get(..length).unwrap_or_default()
    }
}

/// Whether words at an address are aligned and in one page.
const fn is_whole(address: u64, words: usize) -> bool {
    address & 7 == 0 && (address & (PAGE - 1)) + words as u64 * 8 <= PAGE
}
