//! The guest's memory: which block is where.

use alloc::vec::Vec;

use covisor_core::host::OutOfMemory;

/// A block of RAM.
#[derive(Clone, Copy, Debug)]
struct Piece {
    gpa: u64,
    bytes: u64,
    /// Where it is in the driver.
    address: usize,
}

/// The blocks of a VM, by guest-physical address.
#[derive(Debug, Default)]
pub struct Ram {
    pieces: Vec<Piece>,
}

/// The addresses from this one on, and from 0 behind the last one.
fn from(gpa: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |offset| gpa.wrapping_add(offset))
}

impl Ram {
    /// Puts a block of the host's at `gpa`, where nothing is yet.
    pub(crate) fn add(&mut self, gpa: u64, bytes: u64, address: usize) -> Result<(), OutOfMemory> {
        self.pieces.try_reserve(1).map_err(|_| OutOfMemory)?;
        let index = self.pieces.partition_point(|piece| piece.gpa < gpa);
        self.pieces.insert(index, Piece { gpa, bytes, address });
        Ok(())
    }

    /// Where the byte at `gpa` is; `None` where there is no RAM.
    fn byte(&self, gpa: u64) -> Option<*mut u8> {
        let index = self.pieces.partition_point(|piece| piece.gpa <= gpa).checked_sub(1)?;
        let piece = self.pieces.get(index)?;
        let offset = gpa - piece.gpa;
        #[expect(clippy::cast_possible_truncation, reason = "a block's size, and both have 64 bits")]
        (offset < piece.bytes).then(|| core::ptr::with_exposed_provenance_mut(piece.address + offset as usize))
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// The first address where there is no RAM.
    pub(crate) fn read<const SIZE: usize>(&self, gpa: u64) -> Result<[u8; SIZE], u64> {
        let mut bytes = [0; SIZE];
        for (byte, gpa) in bytes.iter_mut().zip(from(gpa)) {
            let pointer = self.byte(gpa).ok_or(gpa)?;
            // SAFETY: a byte of a block, which is the VM's as long as it lives. The loader may write it at this moment.
            *byte = unsafe { pointer.read_volatile() };
        }
        Ok(bytes)
    }

    /// Writes bytes, all or none.
    ///
    /// # Errors
    /// The first address where there is no RAM.
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), u64> {
        if let Some(gap) = from(gpa).take(bytes.len()).find(|gpa| self.byte(*gpa).is_none()) {
            return Err(gap);
        }
        for (byte, gpa) in bytes.iter().zip(from(gpa)) {
            if let Some(pointer) = self.byte(gpa) {
                // SAFETY: as in read(); the loader may read it.
                unsafe { pointer.write_volatile(*byte) };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_blocks_make_one_memory_and_gaps_are_told() {
        let (mut low, mut high) = ([1_u8, 2], [3_u8, 4]);
        let mut ram = Ram::default();
        let address = |bytes: &mut [u8; 2]| bytes.as_mut_ptr().expose_provenance();
        ram.add(0x12, 2, address(&mut high)).unwrap();
        ram.add(0x10, 2, address(&mut low)).unwrap();
        assert_eq!(ram.read(0x10), Ok([1, 2, 3, 4]));
        assert_eq!(ram.read::<1>(0xf), Err(0xf));
        assert_eq!(ram.read::<2>(0x13), Err(0x14));
        assert_eq!(ram.write(0x11, &[5, 6]), Ok(()));
        assert_eq!(ram.read(0x10), Ok([1, 5, 6, 4]));
        assert_eq!(ram.write(0x13, &[7, 8]), Err(0x14));
        assert_eq!(ram.read(0x13), Ok([4]), "nothing was written");
        assert_eq!(ram.read::<1>(u64::MAX), Err(u64::MAX));
    }
}
