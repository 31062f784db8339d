//! I/O and MSR permission maps (APM vol. 2, 15.10 and 15.11). One pair serves all VMs: the policy is core's.

use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::msr::PASSED_THROUGH;

/// The I/O map takes 12 KiB: 64 Ki ports at a bit each, and the third page for accesses that run over port 0xffff.
const IO_ORDER: u32 = 2;
/// The MSR map takes 8 KiB: three ranges of 8 Ki MSRs at two bits each, and a reserved quarter.
const MSR_ORDER: u32 = 1;

/// The two maps.
#[derive(Debug)]
pub(crate) struct PermissionMaps {
    io: Block,
    msr: Block,
}

/// Byte offset and bit of an MSR's read permission; the write permission is the next bit.
fn msr_bit(msr: u32) -> Option<(usize, u8)> {
    let (base, range) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, msr - 0xc001_0000),
        _ => return None,
    };
    Some((base + (range / 4) as usize, (range % 4 * 2).to_le_bytes()[0]))
}

impl PermissionMaps {
    /// Everything exits but [`PASSED_THROUGH`].
    pub(crate) fn new<H: Host>() -> Result<Self, OutOfMemory> {
        let io = H::alloc_block(IO_ORDER).ok_or(OutOfMemory)?;
        let Some(msr) = H::alloc_block(MSR_ORDER) else {
            // SAFETY: just allocated, unused.
            unsafe { H::free_block(io) };
            return Err(OutOfMemory);
        };
        // SAFETY: the blocks have these sizes and are ours alone.
        let map = unsafe {
            io.virt.as_ptr().write_bytes(0xff, 4096 << IO_ORDER);
            core::slice::from_raw_parts_mut(msr.virt.as_ptr(), 4096 << MSR_ORDER)
        };
        fill_msr_map(map);
        Ok(Self { io, msr })
    }

    pub(crate) fn free<H: Host>(self) {
        // SAFETY: allocated in new(), and no VMCB names them any more.
        unsafe {
            H::free_block(self.io);
            H::free_block(self.msr);
        }
    }

    /// Physical address of the I/O map.
    pub(crate) fn io(&self) -> u64 {
        self.io.phys
    }

    /// Physical address of the MSR map.
    pub(crate) fn msr(&self) -> u64 {
        self.msr.phys
    }
}

fn fill_msr_map(map: &mut [u8]) {
    map.fill(0xff);
    for (byte, bit) in PASSED_THROUGH.into_iter().filter_map(msr_bit) {
        map[byte] &= !(3 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_attack_every_msr_exits_but_those_passed_through() {
        let mut map = vec![0; 4096 << MSR_ORDER];
        fill_msr_map(&mut map);
        let ranges = [0..=0x1fff, 0xc000_0000..=0xc000_1fff, 0xc001_0000..=0xc001_1fff];
        for msr in ranges.into_iter().flatten() {
            let (byte, bit) = msr_bit(msr).unwrap();
            let expected = if PASSED_THROUGH.contains(&msr) { 0 } else { 3 };
            assert_eq!(map[byte] >> bit & 3, expected, "MSR {msr:#x}");
        }
        assert!(map[0x1800..].iter().all(|byte| *byte == 0xff), "the reserved quarter stays closed");
    }

    #[test]
    fn test_msrs_outside_the_map_have_no_bit() {
        for msr in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(msr_bit(msr), None);
        }
    }
}
