//! CPUID: what the machine says about itself.

use super::Check;
use crate::cpu;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[Check { name: "cpuid-hypervisor", run: hypervisor }];

/// A hypervisor says that it is one: leaf 1, ECX bit 31, and a signature at 0x4000_0000 (APM vol. 3, E.3.2 and E.3.7).
fn hypervisor(report: &mut Report) {
    if cpu::cpuid(1, 0).ecx & 1 << 31 == 0 {
        report.fail(format_args!("leaf 1 ECX bit 31 is clear"));
    }
}
