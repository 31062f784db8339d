//! Debug registers, by hypercall: values that a guest can have, and breakpoints of the guest's own addresses only. (`breakpoints` and
//! `breakpoint-switching` are about what they do.)

use super::super::Check;
use super::expect_error;
use crate::cpu;
use crate::exception;
use crate::exception::vector;
use crate::layout;
use crate::port;
use crate::report::Report;
use crate::user;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::hypercall::hypercall;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-debug-registers", run: values },
    Check { name: "xen-debug-refused", run: refused },
    Check { name: "xen-watchpoints", run: watchpoints },
];

fn set(number: u64, value: u64) -> i64 {
    hypercall(call::SET_DEBUGREG, [number, value])
}

fn get(number: u64) -> u64 {
    hypercall(call::GET_DEBUGREG, [number]).cast_unsigned()
}

/// DR7 with nothing on.
const OFF: u64 = 1 << 10;

/// Addresses are kept over exits, and set back to nothing.
fn values(report: &mut Report) {
    let values = [0x1111_2222_3333, layout::SCRATCH, 0x7fff_ffff_fff0, 0xffff_8880_0000_1000];
    for (number, value) in (0..).zip(values) {
        let result = set(number, value);
        report.expect(result == 0, format_args!("DR{number} = {value:#x}: {result}"));
    }
    let _ = cpu::cpuid(0, 0);
    let _ = port::in8(port::scratch());
    let _ = user::run(&[0x90]);
    let read = [0, 1, 2, 3].map(get);
    report.expect(read == values, format_args!("DR0 to DR3 are {read:x?}, not {values:x?}"));
    for (number, value) in [(0, 0), (1, 0), (2, 0), (3, 0), (6, cpu::DR6_CLEAR), (7, OFF)] {
        let result = set(number, value);
        report.expect(result == 0, format_args!("DR{number} = {value:#x}: {result}"));
    }
    report.expect([0, 1, 2, 3].map(get) == [0; 4], format_args!("DR0 to DR3 are not 0 again"));
}

/// The monitor's addresses, addresses that are not canonical, breakpoints on ports, general detection, and registers that do not exist.
fn refused(report: &mut Report) {
    let addresses = [
        HYPERVISOR_START,
        HYPERVISOR_START + (1 << 39),
        HYPERVISOR_START + (1 << 39) + 0x1000,
        0xffff_8100_0000_0000,
        0xffff_87ff_ffff_ffff,
        0x8000_0000_0000,
        1 << 63,
    ];
    for number in 0..4 {
        for address in addresses {
            let before = get(number);
            let result = set(number, address);
            expect_error(report, "a breakpoint at an address of the monitor's", result, errno::EINVAL);
            report.expect(get(number) == before, format_args!("DR{number} is {:#x} after {address:#x}", get(number)));
        }
    }
    for number in [4, 5, 8, 15, 1 << 32, u64::MAX] {
        let result = set(number, 0);
        // Xen takes DR4 and DR5 for DR6 and DR7.
        report.expect_of_covisor(result < 0, format_args!("DR{number:#x} can be set: {result}"));
    }
    /// General detection.
    const DETECT: u64 = 1 << 13;
    // Breakpoint 0 on a port.
    for value in [OFF | 2 << 16 | 1, OFF | 2 << 28 | 0xc0, OFF | 1 << 32, 1 << 63] {
        let result = set(7, value);
        report.expect(result < 0, format_args!("DR7 = {value:#x}: {result}"));
    }
    let result = set(7, OFF | DETECT);
    report.expect(result < 0 || get(7) & DETECT == 0, format_args!("general detection is on: {:#x}", get(7)));
    let _ = set(7, OFF);
    let _ = set(6, u64::MAX);
    let reserved = get(6) & !0xffff_ffff;
    report.expect(reserved == 0, format_args!("DR6 has {reserved:#x}"));
    cpu::clear_dr6();
}

/// Watchpoints in user mode and in kernel mode, on code and on data.
fn watchpoints(report: &mut Report) {
    /// Breakpoint 0 enabled; for writes of four bytes.
    const ON: u64 = OFF | 3 << 8 | 3;
    const WRITES: u64 = 0b1101 << 16;
    // NOP; INT3.
    let _ = (set(0, layout::USER_PAGE + 1), set(7, ON));
    let raised = user::run(&[0x90, 0x90, 0x90]);
    let status = get(6);
    let _ = set(7, OFF);
    let right = raised.is_some_and(|fault| fault.vector == vector::DB && fault.rip == layout::USER_PAGE + 1);
    report.expect_of_cpu(right && status & 1 != 0, format_args!("code in user mode: {raised:?}, DR6 {status:#x}"));
    cpu::clear_dr6();
    // MOV DWORD PTR [USER_PAGE + 0x800], 5.
    let [a, b, c, d, ..] = (layout::USER_PAGE + 0x800).to_le_bytes();
    let _ = (set(0, layout::USER_PAGE + 0x800), set(7, ON | WRITES));
    let raised = user::run(&[0xc7, 0x04, 0x25, a, b, c, d, 5, 0, 0, 0, 0x90]);
    let status = get(6);
    let _ = set(7, OFF);
    let right = raised.is_some_and(|fault| fault.vector == vector::DB && fault.rip == layout::USER_PAGE + 11);
    report.expect_of_cpu(right && status & 1 != 0, format_args!("data in user mode: {raised:?}, DR6 {status:#x}"));
    cpu::clear_dr6();
    // Off, it does not hit.
    let raised = user::raised(&[0xc7, 0x04, 0x25, a, b, c, d, 5, 0, 0, 0, 0x90]);
    report.expect(raised.is_none(), format_args!("off, in user mode: {raised:?}"));
    // Kernel and user mode share it: a store of the kernel's hits as well.
    let mut word = 0_u32;
    let pointer = &raw mut word;
    let _ = (set(0, pointer.expose_provenance() as u64), set(7, ON | WRITES));
    exception::record_debug(true);
    // SAFETY: a local.
    unsafe { core::arch::asm!("mov dword ptr [{}], 5", "nop", in(reg) pointer) }
    exception::record_debug(false);
    let _ = set(7, OFF);
    report.expect_of_cpu(
        exception::debug_count() == 1,
        format_args!("data in kernel mode: {} hits", exception::debug_count()),
    );
    let _ = set(0, 0);
    cpu::clear_dr6();
}
