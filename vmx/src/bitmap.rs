//! I/O and MSR bitmaps (SDM vol. 3, 25.6.4 and 25.6.9). One set serves all VMs: the policy is core's.

use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::msr::PASSED_THROUGH;

/// Both I/O bitmaps, a page each, in a row: a bit for each port.
const IO_ORDER: u32 = 1;
/// The MSR bitmap is a page: reads of low MSRs, reads of high ones, writes of low ones, writes of high ones, 1 KiB each.
const MSR_SIZE: usize = 4096;
/// Offset of the writes.
const WRITES: usize = 2048;

/// The bitmaps.
#[derive(Debug)]
pub(crate) struct Bitmaps {
    io: Block,
    msr: Block,
}

/// Byte offset and bit of an MSR's read exit. MSRs out of both ranges exit always.
fn msr_bit(msr: u32) -> Option<(usize, u8)> {
    let (base, number) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (1024, msr - 0xc000_0000),
        _ => return None,
    };
    Some((base + (number / 8) as usize, (number % 8).to_le_bytes()[0]))
}

impl Bitmaps {
    /// Everything exits but [`PASSED_THROUGH`].
    pub(crate) fn new<H: Host>() -> Result<Self, OutOfMemory> {
        let io = H::alloc_block(IO_ORDER).ok_or(OutOfMemory)?;
        let Some(msr) = H::alloc_block(0) else {
            // SAFETY: just allocated, unused.
            unsafe { H::free_block(io) };
            return Err(OutOfMemory);
        };
        // SAFETY: the blocks have these sizes and are ours alone.
        let map = unsafe {
            io.virt.as_ptr().write_bytes(0xff, 4096 << IO_ORDER);
            core::slice::from_raw_parts_mut(msr.virt.as_ptr(), MSR_SIZE)
        };
        fill_msr_map(map);
        Ok(Self { io, msr })
    }

    pub(crate) fn free<H: Host>(self) {
        // SAFETY: allocated in new(), and no VMCS names them any more.
        unsafe {
            H::free_block(self.io);
            H::free_block(self.msr);
        }
    }

    /// Physical addresses of the I/O bitmaps A and B.
    pub(crate) fn io(&self) -> [u64; 2] {
        [self.io.phys, self.io.phys + 4096]
    }

    /// Physical address of the MSR bitmap.
    pub(crate) fn msr(&self) -> u64 {
        self.msr.phys
    }
}

fn fill_msr_map(map: &mut [u8]) {
    map.fill(0xff);
    for (byte, bit) in PASSED_THROUGH.into_iter().filter_map(msr_bit) {
        map[byte] &= !(1 << bit);
        map[byte + WRITES] &= !(1 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_attack_every_msr_exits_but_those_passed_through() {
        let mut map = vec![0; MSR_SIZE];
        fill_msr_map(&mut map);
        for msr in (0..=0x1fff).chain(0xc000_0000..=0xc000_1fff) {
            let (byte, bit) = msr_bit(msr).unwrap();
            let exits = u8::from(!PASSED_THROUGH.contains(&msr));
            assert_eq!(map[byte] >> bit & 1, exits, "reading MSR {msr:#x}");
            assert_eq!(map[byte + WRITES] >> bit & 1, exits, "writing MSR {msr:#x}");
        }
    }

    #[test]
    fn test_msrs_outside_the_map_have_no_bit() {
        for msr in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_0000, u32::MAX] {
            assert_eq!(msr_bit(msr), None);
        }
    }
}
