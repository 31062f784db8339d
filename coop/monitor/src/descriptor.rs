//! Segment descriptors that the guest hands over (SDM vol. 3, 3.4.5), made harmless: only code and data of ring 3.

/// Bits of a descriptor.
mod bits {
    /// Accessed: set beforehand, so that the CPU need not write the table.
    pub(super) const ACCESSED: u64 = 1 << 40;
    /// Code or data, else a system segment or a gate.
    pub(super) const CODE_OR_DATA: u64 = 1 << 44;
    /// Code, else data.
    pub(super) const CODE: u64 = 1 << 43;
    /// Privilege level 3.
    pub(super) const RING3: u64 = 3 << 45;
    /// Present.
    #[cfg(test)]
    pub(super) const PRESENT: u64 = 1 << 47;
    /// 64-bit code.
    pub(super) const LONG: u64 = 1 << 53;
    /// 32-bit operands or stack.
    pub(super) const DEFAULT_BIG: u64 = 1 << 54;
}

/// The descriptor as it goes into a table of the monitor's: what is no segment of ring 3, and cannot be made one, is empty. One that is
/// not present stays so: to load it is #NP, not #GP.
#[must_use]
pub const fn sanitised(descriptor: u64) -> u64 {
    if descriptor & bits::CODE_OR_DATA == 0 {
        return 0;
    }
    let long = descriptor & bits::LONG != 0;
    if long && (descriptor & bits::DEFAULT_BIG != 0 || descriptor & bits::CODE == 0) {
        return 0;
    }
    descriptor | bits::RING3 | bits::ACCESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_linux_segments_become_segments_of_ring_3() {
        for (kernel, expected) in [
            (0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff),
            (0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff),
            (0x00cf_fb00_0000_ffff, 0x00cf_fb00_0000_ffff),
            // Not present: neither does it become that.
            (0x00cf_7300_0000_ffff, 0x00cf_7300_0000_ffff),
        ] {
            assert_eq!(sanitised(kernel), expected);
        }
    }

    #[test]
    fn test_gates_and_system_segments_are_refused() {
        for system in 0..16_u64 {
            for dpl in 0..4_u64 {
                assert_eq!(sanitised(bits::PRESENT | system << 40 | dpl << 45 | 0xffff), 0);
            }
        }
        assert_eq!(sanitised(0x00ef_9b00_0000_ffff), 0);
    }

    proptest::proptest! {
        #[test]
        fn test_nothing_of_another_ring_comes_out(descriptor: u64) {
            let clean = sanitised(descriptor);
            proptest::prop_assert!(clean == 0 || clean & bits::RING3 == bits::RING3 && clean & bits::CODE_OR_DATA != 0);
        }
    }
}
