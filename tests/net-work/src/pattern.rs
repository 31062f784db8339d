//! Bytes without a period, of which any place can be told: so that what is lost, doubled or out of order is seen.

/// Bytes that go at once.
pub(crate) const BLOCK: usize = 64 << 10;

/// Fills a block with the bytes from `at` on, a multiple of eight.
pub(crate) fn fill(block: &mut [u8], at: u64) {
    for (word, number) in block.chunks_mut(8).zip(at / 8..) {
        // The finalizer of SplitMix64, an invertible mix of all bits.
        let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes()[..word.len()]);
    }
}
