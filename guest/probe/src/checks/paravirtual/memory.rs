//! What the guest is told of its memory: the memory map, and the table of frames by machine frames.

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::exception::vector;
use crate::report::Report;
use crate::xen;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::errno;
use crate::xen::abi::memory;
use crate::xen::frames;
use crate::xen::frames::PAGE;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::hypercall::machphys_mapping;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-memory-map", run: memory_map },
    Check { name: "xen-m2p", run: machine_to_physical },
    Check { name: "xen-memory-op", run: memory_op },
];

/// `XENMEM_memory_map`: of covisor one range of RAM, from 0 on. (Linux would move what lies beyond a hole; Xen gives its first guest
/// none at all.)
fn memory_map(report: &mut Report) {
    /// `e820entry`: address, size, type, 20 bytes; this many.
    const WORDS: usize = 15;
    const RAM: u32 = 1;
    if !xen::is_covisor() {
        return report.skip(format_args!("needs covisor"));
    }
    let mut entries = [u32::MAX; WORDS];
    let mut map = [3, at(entries.as_mut_ptr())];
    expect(report, "memory_map", hypercall(call::MEMORY_OP, [memory::MEMORY_MAP, at(map.as_mut_ptr())]), 0);
    report.expect(map[0] & 0xffff_ffff == 1, format_args!("{} entries", map[0]));
    let [low, high, size, size_high, kind, behind, ..] = entries;
    let bytes = u64::from(size_high) << 32 | u64::from(size);
    report.expect(
        low | high == 0 && bytes == frames::count() * PAGE && kind == RAM,
        format_args!("the entry is {entries:x?}, the guest has {} frames", frames::count()),
    );
    report.expect(behind == u32::MAX, format_args!("something was written behind the entry: {behind:#x}"));
    map[0] = 0;
    let result = hypercall(call::MEMORY_OP, [memory::MEMORY_MAP, at(map.as_mut_ptr())]);
    report.expect(result == errno::EINVAL, format_args!("a buffer for no entry: {result}"));
    let mut map = [3_u64, 0x1234_5678_9000];
    let result = hypercall(call::MEMORY_OP, [memory::MEMORY_MAP, at(map.as_mut_ptr())]);
    report.expect(result == errno::EFAULT, format_args!("a buffer that is not there: {result}"));
}

/// The table has an entry for each of the guest's frames, cannot be written, and what lies behind it is a page fault of the guest's,
/// which Linux is ready for.
fn machine_to_physical(report: &mut Report) {
    let Ok([start, end, last]) = machphys_mapping() else { return report.fail(format_args!("there is none")) };
    report.expect(start == HYPERVISOR_START && end > start, format_args!("the table is at {start:#x} to {end:#x}"));
    report.expect((end - start) / 8 > last, format_args!("the last frame is {last:#x}, the table ends at {end:#x}"));
    report.expect_of_covisor(last + 1 == frames::count(), format_args!("the last frame is {last:#x}"));
    for frame in 0..frames::count() {
        let found = frames::physical(frames::machine(frame * PAGE));
        report.expect(found == Some(frame * PAGE), format_args!("frame {frame:#x} is found as {found:x?}"));
    }
    for (name, raised) in [
        ("a store to it", catch!(["mov qword ptr [{0}], 1"], in(reg) start)),
        ("a load from behind it", catch!(["mov {1}, [{0}]"], in(reg) start + (1 << 38), out(reg) _)),
        ("a load from far behind it", catch!(["mov {1}, [{0}]"], in(reg) start + (1 << 39) - 8, out(reg) _)),
    ] {
        let right = raised.is_some_and(|fault| fault.vector == vector::PF);
        report.expect(right, format_args!("{name}: {raised:?}"));
    }
}

/// What would change how much memory the guest has does not exist here; Linux does without.
fn memory_op(report: &mut Report) {
    expect_error(report, "memory_op 100", hypercall(call::MEMORY_OP, [100, 0]), errno::ENOSYS);
    if !xen::is_covisor() {
        return;
    }
    let words = [0_u64; 8];
    let none = [memory::INCREASE_RESERVATION, memory::DECREASE_RESERVATION, memory::POPULATE_PHYSMAP, memory::EXCHANGE];
    for operation in none {
        let result = hypercall(call::MEMORY_OP, [operation, at(words.as_ptr())]);
        report.expect(result == errno::ENOSYS, format_args!("memory_op {operation}: {result}"));
    }
}
