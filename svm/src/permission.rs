//! What the bits of I/O and MSR permission maps mean (APM vol. 2, 15.10 and 15.11).

use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::msr::PASSED_THROUGH;
use covisor_core::permission_maps::PermissionMaps;

/// The I/O map takes 12 KiB: 64 Ki ports at a bit each, and the third page for accesses that run over port 0xffff.
const IO_ORDER: u32 = 2;
/// The MSR map takes 8 KiB: three ranges of 8 Ki MSRs at two bits each, and a reserved quarter.
const MSR_ORDER: u32 = 1;

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

/// Maps by which everything exits but [`PASSED_THROUGH`].
pub(crate) fn maps<H: Host>() -> Result<PermissionMaps, OutOfMemory> {
    PermissionMaps::new::<H>(IO_ORDER, MSR_ORDER, open_msrs)
}

/// Lets [`PASSED_THROUGH`] pass, in a map of ones.
fn open_msrs(map: &mut [u8]) {
    for (byte, bit) in PASSED_THROUGH.into_iter().filter_map(msr_bit) {
        map[byte] &= !(3 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_attack_every_msr_exits_but_those_passed_through() {
        let mut map = vec![0xff; 4096 << MSR_ORDER];
        open_msrs(&mut map);
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
