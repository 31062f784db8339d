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
/// DR7 after reset, and after the guest was left: nothing enabled.
pub const DR7_RESET: u64 = 0x400;
/// The enable bits of DR7.
pub const DR7_ENABLES: u64 = 0xff;

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
