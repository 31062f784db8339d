//! Debug registers (APM vol. 2, 13.1.1; SDM vol. 3, 18.2).

use crate::instructions::read_dr0;
use crate::instructions::read_dr1;
use crate::instructions::read_dr2;
use crate::instructions::read_dr3;
use crate::instructions::write_dr0;
use crate::instructions::write_dr1;
use crate::instructions::write_dr2;
use crate::instructions::write_dr3;

/// DR6 after reset.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR6, B0 to B3: the breakpoints that were met.
pub const DR6_BREAKPOINTS: u64 = 0xf;
/// DR6, BS: single step.
pub const DR6_SINGLE_STEP: u64 = 1 << 14;
/// All bits of DR6 that tell why a debug exception came; BD and BT besides those above.
pub const DR6_CAUSES: u64 = DR6_BREAKPOINTS | 1 << 13 | DR6_SINGLE_STEP | 1 << 15;
/// DR7 after reset, and after the guest was left: nothing enabled.
pub const DR7_RESET: u64 = 0x400;
/// The enable bits of DR7.
pub const DR7_ENABLES: u64 = 0xff;

/// The breakpoints that DR7 enables, as DR6 has them.
#[must_use]
pub fn enabled_breakpoints(dr7: u64) -> u64 {
    (0..4).filter(|number| dr7 >> (2 * number) & 3 != 0).fold(0, |enabled, number| enabled | 1 << number)
}

/// The addresses of the breakpoints, DR0 to DR3.
///
/// # Safety
/// Ring 0.
#[must_use]
pub unsafe fn read_debug_addresses() -> [u64; 4] {
    // SAFETY: by the caller.
    unsafe { [read_dr0(), read_dr1(), read_dr2(), read_dr3()] }
}

/// Sets DR0 to DR3.
///
/// # Safety
/// Ring 0, no breakpoint is enabled.
pub unsafe fn write_debug_addresses(addresses: &[u64; 4]) {
    // SAFETY: by the caller.
    unsafe {
        write_dr0(addresses[0]);
        write_dr1(addresses[1]);
        write_dr2(addresses[2]);
        write_dr3(addresses[3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_breakpoint_is_enabled_for_the_task_or_for_all() {
        for (dr7, enabled) in [(DR7_RESET, 0), (1, 1), (2, 1), (0x84, 0b1010), (u64::MAX, DR6_BREAKPOINTS)] {
            assert_eq!(enabled_breakpoints(dr7), enabled, "{dr7:#x}");
        }
    }
}
