//! What the bits of I/O and MSR bitmaps mean (SDM vol. 3, 25.6.4 and 25.6.9).

use covisor_abi::PAGE_SIZE;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::msr::PASSED_THROUGH;
use covisor_core::permission_maps::PermissionMaps;

/// Both I/O bitmaps, a page each, in a row: a bit for each port.
const IO_ORDER: u32 = 1;
/// The MSR bitmap is a page: reads of low MSRs, reads of high ones, writes of low ones, writes of high ones, 1 KiB each.
const MSR_ORDER: u32 = 0;
/// Offset of the writes.
const WRITES: usize = 2048;

/// Byte offset and bit of an MSR's read exit. MSRs out of both ranges exit always.
fn msr_bit(msr: u32) -> Option<(usize, u8)> {
    let (base, number) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (1024, msr - 0xc000_0000),
        _ => return None,
    };
    Some((base + (number / 8) as usize, (number % 8).to_le_bytes()[0]))
}

/// Bitmaps by which everything exits but [`PASSED_THROUGH`].
pub(crate) fn bitmaps<H: Host>() -> Result<PermissionMaps, OutOfMemory> {
    PermissionMaps::new::<H>(IO_ORDER, MSR_ORDER, open_msrs)
}

/// Physical addresses of the I/O bitmaps A and B.
pub(crate) const fn io(bitmaps: &PermissionMaps) -> [u64; 2] {
    [bitmaps.io(), bitmaps.io() + PAGE_SIZE]
}

/// Lets [`PASSED_THROUGH`] pass, in a map of ones.
fn open_msrs(map: &mut [u8]) {
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
        let mut map = vec![0xff; 4096 << MSR_ORDER];
        open_msrs(&mut map);
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
