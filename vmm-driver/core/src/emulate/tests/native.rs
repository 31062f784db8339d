use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use crate::test_support::compare_with_cpu;

#[test]
fn agrees_with_the_cpu() {
    const CASES: u32 = 2_000;
    let compared = AtomicU32::new(0);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) },
        |(bytes in prop::collection::vec(any::<u8>(), 260))| {
            compared.fetch_add(compare_with_cpu(&bytes).into(), Ordering::Relaxed);
        }
    );
    assert!(compared.into_inner() > CASES / 4, "most bytes make an instruction");
}
