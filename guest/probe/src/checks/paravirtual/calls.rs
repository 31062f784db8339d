//! Hypercalls as such: what they keep, what does not exist, and those that only tell or are told something.

use core::arch::asm;

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::report::Report;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::callback;
use crate::xen::abi::channel;
use crate::xen::abi::errno;
use crate::xen::abi::physdev;
use crate::xen::abi::sched;
use crate::xen::abi::version;
use crate::xen::console;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::traps;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-registers", run: registers },
    Check { name: "xen-unknown", run: unknown },
    Check { name: "xen-version", run: version },
    Check { name: "xen-absent", run: absent },
    Check { name: "xen-platform", run: platform },
];

/// A call changes RAX, RCX and R11 and no other register, whether it succeeds or not; flags are as before.
fn registers(report: &mut Report) {
    for (number, argument) in [(call::XEN_VERSION, 0_u64), (call::SCHED_OP, 0), (call::MMU_UPDATE, 1), (1000, 5)] {
        let mut after = [0_u64; 13];
        // SAFETY: calls that change nothing: the version, a yield, updates from an address that is not mapped, none. All registers
        // that are changed are named or restored.
        unsafe {
            asm!(
                "push rbx", "push rbp", "push r15",
                "mov rbx, 0x0101010101010101", "mov rbp, 0x0202020202020202", "mov rsi, 0x0303030303030303",
                "mov r8, 0x0505050505050505", "mov r9, 0x0606060606060606", "mov r10, 0x0707070707070707",
                "mov r12, 0x0909090909090909", "mov r13, 0x0a0a0a0a0a0a0a0a", "mov r14, 0x0b0b0b0b0b0b0b0b",
                "mov rdx, 0x0c0c0c0c0c0c0c0c",
                "stc", "syscall",
                "mov r15, [rsp]",
                "mov [r15], rbx", "mov [r15 + 8], rbp", "mov [r15 + 16], rsi", "mov [r15 + 24], rdx",
                "mov [r15 + 32], r8", "mov [r15 + 40], r9", "mov [r15 + 48], r10", "mov [r15 + 56], r12",
                "mov [r15 + 64], r13", "mov [r15 + 72], r14", "mov [r15 + 80], rdi",
                "setc byte ptr [r15 + 88]",
                "pop r15", "pop rbp", "pop rbx",
                inout("r15") &raw mut after => _, inout("rax") number => _, inout("rdi") argument => _,
                out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _,
            );
        }
        let bytes = [1_u8, 2, 3, 12, 5, 6, 7, 9, 10, 11];
        for (value, byte) in after.into_iter().zip(bytes) {
            let wanted = u64::from_le_bytes([byte; 8]);
            report.expect(value == wanted, format_args!("call {number}: register {byte} is {value:#x}"));
        }
        report.expect(after[10] == argument, format_args!("call {number}: RDI is {:#x}", after[10]));
        report.expect(after[11] == 1, format_args!("call {number}: CF is lost"));
    }
}

/// Numbers that mean nothing (`xen.h`), and those that are not a guest's.
fn unknown(report: &mut Report) {
    for number in [11_u64, 64, 100, 0x1000, 0x7fff_ffff] {
        let result = hypercall(number, []);
        report.expect(result == errno::ENOSYS, format_args!("call {number:#x}: {result}"));
    }
    if !xen::is_covisor() {
        return;
    }
    let others = [call::SET_CALLBACKS, call::PLATFORM_OP, call::SET_TIMER_OP, call::XENPMU_OP].into_iter().chain([
        6,
        16,
        19,
        22,
        27,
        28,
        31,
        34,
        35,
        36,
        37,
        38,
        39,
        41,
        48,
        55,
        u64::MAX,
    ]);
    for number in others {
        let result = hypercall(number, []);
        report.expect(result == errno::ENOSYS, format_args!("call {number:#x}: {result}"));
    }
}

/// `xen_version`: a version from 4.0 on; features that Linux insists on (5: updates that keep accessed and dirty bits, 7: bits of
/// grant mappings) and none that contradicts how this guest works (3: its kernel is in ring 0).
fn version(report: &mut Report) {
    const NEEDED: u32 = 1 << 5 | 1 << 7;
    const EXCLUDED: u32 = 1 << 3;
    let number = hypercall(call::XEN_VERSION, [version::VERSION]);
    report.expect((4 << 16..5 << 16).contains(&number), format_args!("version {number:#x}"));
    let mut text = [0xff_u8; 32];
    expect(report, "extra version", hypercall(call::XEN_VERSION, [version::EXTRA_VERSION, at(text.as_mut_ptr())]), 0);
    report.expect(text[..16].contains(&0), format_args!("the extra version does not end: {text:x?}"));
    report.expect(text[16..] == [0xff; 16], format_args!("the extra version is longer than 16 bytes: {text:x?}"));
    for submap in 0..4_u32 {
        let mut features = [submap, 0xffff_ffff];
        let result = hypercall(call::XEN_VERSION, [version::GET_FEATURES, at(features.as_mut_ptr())]);
        let bits = features[1];
        if submap == 0 {
            report.expect(
                result == 0 && bits & NEEDED == NEEDED && bits & EXCLUDED == 0,
                format_args!("features {bits:#x}, result {result}"),
            );
        } else {
            report.expect(result < 0 || bits == 0, format_args!("features of submap {submap}: {bits:#x}"));
        }
    }
    expect(report, "version 1000", hypercall(call::XEN_VERSION, [1000, 0]), errno::ENOSYS);
}

/// What Linux asks for and lives without, if the answer is exactly that it does not exist: any other error of the first three is a
/// BUG in Linux 6.1 (`xenbus_probe.c`, `grant-table.c`, `setup.c`).
fn absent(report: &mut Report) {
    if !xen::is_covisor() {
        return report.skip(format_args!("needs covisor"));
    }
    let mut words = [0_u64; 8];
    let argument = at(words.as_mut_ptr());
    /// `GNTTABOP_setup_table`, `_query_size`, `_set_version`.
    const GRANTS: [u64; 3] = [2, 6, 8];
    for operation in GRANTS {
        let result = hypercall(call::GRANT_TABLE_OP, [operation, argument, 1]);
        report.expect(result == errno::ENOSYS, format_args!("grant_table_op {operation}: {result}"));
    }
    let channels = [
        channel::ALLOC_UNBOUND,
        channel::BIND_INTERDOMAIN,
        channel::STATUS,
        channel::RESET,
        channel::INIT_CONTROL,
        channel::EXPAND_ARRAY,
        channel::SET_PRIORITY,
        100,
    ];
    for operation in channels {
        let result = hypercall(call::EVENT_CHANNEL_OP, [operation, argument]);
        report.expect(result == errno::ENOSYS, format_args!("event_channel_op {operation}: {result}"));
    }
    for operation in [sched::POLL, sched::PIN_OVERRIDE, 100] {
        let result = hypercall(call::SCHED_OP, [operation, argument]);
        report.expect(result == errno::ENOSYS, format_args!("sched_op {operation}: {result}"));
    }
    for operation in [physdev::APIC_READ, physdev::PIRQ_EOI_GMFN_V2, 10, 13, 14, 21, 23, 25, 100] {
        let result = hypercall(call::PHYSDEV_OP, [operation, argument]);
        report.expect(result == errno::ENOSYS, format_args!("physdev_op {operation}: {result}"));
    }
    let result = hypercall(call::XENPMU_OP, [0, argument]);
    report.expect(result == errno::ENOSYS, format_args!("xenpmu_op: {result}"));
    let result = hypercall(call::CONSOLE_IO, [console::READ, 8, argument]);
    report.expect(result == errno::ENOSYS, format_args!("console_io, read: {result}"));
}

/// Modes, ports and consoles: what is asked for is there or does no harm.
fn platform(report: &mut Report) {
    /// `vm_assist`: enable; 4 GiB segments, writable page tables, huge page directories; flags of run states.
    const ENABLE: u64 = 0;
    const PLAIN: [u64; 3] = [0, 2, 3];
    for kind in PLAIN {
        let result = hypercall(call::VM_ASSIST, [ENABLE, kind]);
        report.expect_of_covisor(result == 0, format_args!("vm_assist {kind}: {result}"));
    }
    expect_error(report, "vm_assist 100", hypercall(call::VM_ASSIST, [ENABLE, 100]), errno::EINVAL);
    let result = hypercall(call::VM_ASSIST, [100, 0]);
    report.expect(result < 0, format_args!("vm_assist, operation 100: {result}"));
    expect(report, "yield", hypercall(call::SCHED_OP, [sched::YIELD, 0]), 0);
    let privilege = 1_u32;
    expect(report, "set_iopl", hypercall(call::PHYSDEV_OP, [physdev::SET_IOPL, at(&raw const privilege)]), 0);
    expect(report, "console_io of nothing", hypercall(call::CONSOLE_IO, [console::WRITE, 0, 0]), 0);
    expect(report, "callback", traps::register(callback::FAILSAFE, 0, traps::failsafe()), 0);
    expect_error(report, "callback of no kind", traps::register(100, 0, traps::failsafe()), errno::ENOSYS);
    expect_error(
        report,
        "callback_op 100",
        hypercall(call::CALLBACK_OP, [100, at(&raw const privilege)]),
        errno::ENOSYS,
    );
    expect(report, "callbacks", traps::register_all(), 0);
}
