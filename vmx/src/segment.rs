//! Segments between core's form and the VMCS's (SDM vol. 3, 25.4.1).

use covisor_core::registers::SegmentName;
use covisor_core::registers::attributes;

/// Access rights: the segment cannot be used, its selector was null.
const UNUSABLE: u64 = 1 << 16;
/// Access rights: bits 0 to 7, as in [`attributes`].
const LOW: u64 = 0x00ff;
/// Access rights: bits 12 to 15, which core has as bits 8 to 11.
const HIGH: u64 = 0xf000;
/// Type bit of code and data segments: accessed.
const ACCESSED: u64 = 1 << 0;
/// Code or data segment, else a system segment.
const CODE_OR_DATA: u64 = 1 << 4;
/// Bits of the descriptor privilege level.
const DPL: u64 = 3 << attributes::DPL_SHIFT;

/// Access rights from core's attributes. A segment that is not present is unusable. SS keeps its privilege level then, for it is
/// the guest's. The CPU sets the accessed bit when it loads a segment and an entry demands it (27.3.1.2); a loader may have
/// forgotten it.
pub(crate) fn to_access_rights(name: SegmentName, value: u16) -> u64 {
    let value = u64::from(value);
    let rights = value & LOW | (value << 4) & HIGH;
    if value & u64::from(attributes::PRESENT) == 0 {
        return if name == SegmentName::Ss { UNUSABLE | rights & DPL } else { UNUSABLE };
    }
    let accessed = if rights & CODE_OR_DATA != 0 { ACCESSED } else { 0 };
    rights | accessed
}

/// Core's attributes from access rights.
pub(crate) fn from_access_rights(rights: u64) -> u16 {
    let value = rights & LOW | (rights & HIGH) >> 4;
    let value = if rights & UNUSABLE != 0 { value & !u64::from(attributes::PRESENT) } else { value };
    let [low, high, ..] = value.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The privilege level in SS's access rights; it is there when SS is unusable too (25.4.1).
pub(crate) fn privilege(ss_rights: u64) -> u8 {
    ((ss_rights & DPL) >> attributes::DPL_SHIFT).to_le_bytes()[0]
}

/// SS's access rights with the privilege level of those of CS; nothing where SS can be used, or has it.
pub(crate) fn with_level_of(ss_rights: u64, cs_rights: u64) -> Option<u64> {
    let mended = ss_rights & !DPL | cs_rights & DPL;
    (ss_rights & UNUSABLE != 0 && mended != ss_rights).then_some(mended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_null_ss_gets_the_level_of_its_code_and_another_keeps_its_own() {
        assert_eq!(with_level_of(UNUSABLE, 0xa0bb), Some(UNUSABLE | 0x20));
        assert_eq!(with_level_of(UNUSABLE | 0x20, 0xa0bb), None);
        assert_eq!(with_level_of(0xc093, 0xa0bb), None);
    }

    #[test]
    fn test_attributes_come_back() {
        for value in [0x0a9b, 0x0c93, 0x008b, 0x0082, 0x0cfb] {
            let rights = to_access_rights(SegmentName::Cs, value);
            assert_eq!(from_access_rights(rights), value);
        }
        assert_eq!(to_access_rights(SegmentName::Cs, 0x0a9b), 0xa09b);
    }

    #[test]
    fn test_null_segments_are_unusable_and_ss_keeps_its_level() {
        assert_eq!(to_access_rights(SegmentName::Ds, 0), UNUSABLE);
        let rights = to_access_rights(SegmentName::Ss, 3 << 5);
        assert_eq!((rights, privilege(rights)), (UNUSABLE | 0x60, 3));
        assert_eq!(from_access_rights(UNUSABLE | 0xc093) & attributes::PRESENT, 0);
    }

    #[test]
    fn test_attack_segment_without_accessed_bit_fails_no_entry() {
        assert_eq!(to_access_rights(SegmentName::Ds, 0x0c92), 0xc093);
        assert_eq!(to_access_rights(SegmentName::Ldtr, 0x0082), 0x82, "system segments have none");
    }
}
