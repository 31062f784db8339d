//! Whether the time stamp counter counts instructions.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;

/// How often the loop is measured: the least of the results is one without an interrupt.
const TRIES: usize = 20;

/// Prints how far the counter goes on over a loop of two instructions (DEC, JNZ) that is done `rounds` times.
pub(crate) fn watch(rounds: u64) {
    let least = (0..TRIES).map(|_| counts(rounds)).min().unwrap_or_default();
    println!("counter: {least} over {rounds} rounds");
}

fn counts(rounds: u64) -> u64 {
    // SAFETY: user space may read the counter on Linux, and the loop changes nothing but its register.
    unsafe {
        let start = _rdtsc();
        asm!("2:", "dec {rounds}", "jnz 2b", rounds = inout(reg) rounds.max(1) => _, options(nomem, nostack));
        _rdtsc() - start
    }
}
