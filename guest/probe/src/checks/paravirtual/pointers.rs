//! Arguments in memory that is not there: every call says so (`-EFAULT`), and does nothing else.

use super::super::Check;
use crate::report::Report;
use crate::xen::abi::DOMID_SELF;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::callback;
use crate::xen::abi::channel;
use crate::xen::abi::errno;
use crate::xen::abi::memory;
use crate::xen::abi::physdev;
use crate::xen::abi::sched;
use crate::xen::abi::vcpu;
use crate::xen::abi::version;
use crate::xen::console;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::frames::PAGE;
use crate::xen::hypercall::hypercall;
use crate::xen::tables;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "xen-bad-pointers", run: bad_pointers }, Check { name: "xen-split-pointers", run: split_pointers }];

/// Calls that read or write memory at an argument: number, operation, whether the pointer is the first argument.
const CALLS: &[(&str, u64, Option<u64>)] = &[
    ("set_trap_table", call::SET_TRAP_TABLE, None),
    ("mmu_update", call::MMU_UPDATE, None),
    ("mmuext_op", call::MMUEXT_OP, None),
    ("set_gdt", call::SET_GDT, None),
    ("multicall", call::MULTICALL, None),
    ("xen_version extraversion", call::XEN_VERSION, Some(version::EXTRA_VERSION)),
    ("xen_version get_features", call::XEN_VERSION, Some(version::GET_FEATURES)),
    ("memory_op machphys_mapping", call::MEMORY_OP, Some(memory::MACHPHYS_MAPPING)),
    ("vcpu_op set_singleshot_timer", call::VCPU_OP, Some(vcpu::SET_SINGLESHOT_TIMER)),
    ("vcpu_op register_vcpu_info", call::VCPU_OP, Some(vcpu::REGISTER_VCPU_INFO)),
    ("vcpu_op register_runstate", call::VCPU_OP, Some(vcpu::REGISTER_RUNSTATE)),
    ("sched_op shutdown", call::SCHED_OP, Some(sched::SHUTDOWN)),
    ("callback_op register", call::CALLBACK_OP, Some(callback::REGISTER)),
    ("event_channel_op bind_virq", call::EVENT_CHANNEL_OP, Some(channel::BIND_VIRQ)),
    ("event_channel_op bind_ipi", call::EVENT_CHANNEL_OP, Some(channel::BIND_IPI)),
    ("event_channel_op send", call::EVENT_CHANNEL_OP, Some(channel::SEND)),
    ("event_channel_op close", call::EVENT_CHANNEL_OP, Some(channel::CLOSE)),
    ("event_channel_op unmask", call::EVENT_CHANNEL_OP, Some(channel::UNMASK)),
    ("physdev_op irq_status_query", call::PHYSDEV_OP, Some(physdev::IRQ_STATUS_QUERY)),
    ("physdev_op eoi", call::PHYSDEV_OP, Some(physdev::EOI)),
];

/// Makes a call with its pointer.
fn make(number: u64, operation: Option<u64>, pointer: u64) -> i64 {
    match (number, operation) {
        // A list of one entry.
        (call::MMU_UPDATE | call::MMUEXT_OP, _) => hypercall(number, [pointer, 1, 0, DOMID_SELF]),
        (call::SET_GDT | call::MULTICALL, _) => hypercall(number, [pointer, 1]),
        // The first vCPU.
        (call::VCPU_OP, Some(operation)) => hypercall(number, [operation, 0, pointer]),
        (_, Some(operation)) => hypercall(number, [operation, pointer]),
        (_, None) => hypercall(number, [pointer]),
    }
}

/// Addresses where nothing is, that are not canonical, the monitor's own, and at the end of the address space.
const NOWHERE: [u64; 7] = [
    0x1234_5678_9000,
    0x7fff_ffff_fff8,
    0x0000_8000_0000_0000,
    0x8000_0000_0000_0000,
    HYPERVISOR_START + (1 << 39) + (2 << 30),
    0xffff_8100_0000_0000,
    0xffff_ffff_ffff_fff8,
];

fn bad_pointers(report: &mut Report) {
    for (name, number, operation) in CALLS {
        for pointer in NOWHERE {
            let result = make(*number, *operation, pointer);
            report.expect(result < 0, format_args!("{name} at {pointer:#x}: {result}"));
            report.expect_of_covisor(result == errno::EFAULT, format_args!("{name} at {pointer:#x}: {result}"));
        }
    }
    for pointer in NOWHERE {
        let result = hypercall(call::CONSOLE_IO, [console::WRITE, 4, pointer]);
        report.expect(result == errno::EFAULT, format_args!("console_io at {pointer:#x}: {result}"));
    }
}

/// Arguments over the end of a page: behind it is memory, or nothing, or memory that can only be read.
fn split_pointers(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let pages = [loan.take(), loan.take()];
    window.map(0, pages[0], tables::RW);
    let over_the_end = Window::page(1) - 12;
    let features = |wanted: i64, name: &str, report: &mut Report| {
        for page in pages {
            frames::clear(page);
        }
        let result = hypercall(call::XEN_VERSION, [version::GET_FEATURES, Window::page(1) - 4]);
        report.expect(result == wanted, format_args!("features over the end, {name}: {result}"));
        let result = hypercall(call::MEMORY_OP, [memory::MACHPHYS_MAPPING, over_the_end]);
        report.expect(result == wanted, format_args!("mapping over the end, {name}: {result}"));
    };
    features(errno::EFAULT, "nothing behind it", report);
    window.map(1, pages[1], tables::RO);
    features(errno::EFAULT, "read-only behind it", report);
    window.map(1, pages[1], tables::RW);
    features(0, "memory behind it", report);
    let split = frames::read(pages[1]) & 0xffff_ffff;
    report.expect(split != 0, format_args!("nothing was written behind the page's end"));
    // The same page twice: the upper half of the argument lies before the lower one.
    window.map(1, pages[0], tables::RW);
    features(0, "the same page behind it", report);
    report.expect(frames::read(pages[0] + PAGE - 8) != 0, format_args!("nothing was written before the page's end"));
    let _ = (window.set(0, 0), window.set(1, 0));
}
