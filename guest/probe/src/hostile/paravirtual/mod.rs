//! What a paravirtual guest must not get away with. Its page tables, descriptors, frames of `iret` and arguments of hypercalls are its
//! own making: each attack puts something into them that a hypervisor must not take as it is. The classes are those of what was found in
//! Xen over the years (Xen Security Advisories; their numbers are with the attacks).

mod checker;
mod entries;
mod frames_of_others;
mod handlers;
mod levels;
mod random;
mod segments;
mod slots;

use core::arch::asm;

use self::checker::check;
pub(super) use self::checker::finish;
use super::End;
use super::Mode;
use super::mode;
use crate::cmdline::CommandLine;
use crate::exception;
use crate::exception::selector;
use crate::user;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::channel;
use crate::xen::abi::memory;
use crate::xen::abi::sched;
use crate::xen::abi::vcpu;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::hypercall;
use crate::xen::hypercall::at;
use crate::xen::info;
use crate::xen::tables;
use crate::xen::timer;
use crate::xen::window::Window;

/// All modes of a paravirtual guest. Those of `super` that are here do the same there.
pub const ALL: &[Mode] = &[
    // Page tables.
    mode("table-writable", End::ComesBack, entries::table_writable),
    mode("superpages", End::ComesBack, entries::superpages),
    mode("self-linear", End::ComesBack, levels::self_linear),
    mode("flag-tricks", End::ComesBack, entries::flag_tricks),
    mode("cache-attributes", End::ComesBack, entries::cache_attributes),
    mode("exotic-table-store", End::Ends, entries::exotic_store),
    mode("stale-tlb", End::ComesBack, entries::stale),
    mode("pinned-update", End::ComesBack, entries::pinned_update),
    mode("frames-not-owned", End::ComesBack, frames_of_others::leaves),
    mode("tables-not-owned", End::ComesBack, frames_of_others::upper_entries),
    mode("roots-not-owned", End::ComesBack, frames_of_others::everywhere_else),
    mode("monitor-slots", End::ComesBack, slots::kernels),
    mode("monitor-slots-user", End::ComesBack, slots::users),
    mode("user-reads-monitor", End::ComesBack, slots::user_reads),
    mode("two-levels", End::ComesBack, levels::two_levels),
    mode("root-as-leaf", End::ComesBack, levels::root_as_leaf),
    mode("deep-loops", End::ComesBack, levels::deep_loops),
    mode("pin-many", End::ComesBack, levels::pin_many),
    mode("unpin-live", End::ComesBack, levels::unpin_live),
    mode("shadow-flood", End::ComesBack, levels::flood),
    // Privilege.
    mode("iret-anything", End::ComesBack, handlers::iret_anything),
    mode("iret-without-user-root", End::Ends, handlers::iret_without_user_root),
    mode("handlers-at-monitor", End::ComesBack, handlers::at_monitor),
    mode("handlers-nowhere", End::Ends, handlers::nowhere),
    mode("failsafe-loop", End::GoesOn, handlers::failsafe_loop),
    mode("failed-return-without-handlers", End::Ends, handlers::failed_return_without_handlers),
    mode("stack-at-monitor", End::Ends, handlers::stack_at_monitor),
    mode("stack-in-table", End::Ends, handlers::stack_in_table),
    mode("kernel-stack-at-monitor", End::Ends, handlers::kernel_stack_at_monitor),
    mode("syscall-without-callback", End::Ends, handlers::syscall_without_callback),
    mode("segment-bases", End::ComesBack, segments::bases),
    mode("gates", End::ComesBack, segments::gates),
    mode("gates-behind", End::ComesBack, segments::changed_behind),
    mode("debug-at-monitor", End::ComesBack, segments::debug_at_monitor),
    mode("db-loop", End::GoesOn, handlers::debug_loop),
    mode("debug-status", End::GoesOn, handlers::debug_status),
    // Arguments.
    mode("endless-counts", End::ComesBack, endless_counts),
    mode("multicall-itself", End::ComesBack, multicall_itself),
    mode("memory-op-overflow", End::ComesBack, memory_op_overflow),
    mode("event-ports", End::ComesBack, event_ports),
    mode("records-anywhere", End::ComesBack, records_anywhere),
    mode("event-storm", End::GoesOn, handlers::event_storm),
    mode("timer-storm", End::GoesOn, timer_storm),
    mode("hypercall-flood", End::GoesOn, hypercall_flood),
    mode("crash", End::Ends, crash),
    // What every machine has.
    mode("triple-fault", End::Ends, super::triple_fault),
    mode("cli-loop", End::GoesOn, super::cli_loop),
    mode("idle", End::GoesOn, idle),
    mode("exit-flood", End::GoesOn, super::exit_flood),
    mode("port-flood", End::GoesOn, super::port_flood),
    mode("mmio-flood", End::GoesOn, super::mmio_flood),
    mode("console-flood", End::GoesOn, super::console_flood),
    mode("random-port", End::GoesOn, super::random_port),
    mode("random-msr", End::GoesOn, super::random_msr),
    mode("random-code", End::GoesOn, super::random_code),
    mode("random-user-code", End::GoesOn, random::user_code),
    mode("random", End::GoesOn, random::everything),
];

/// Says that the guest got what it must not have: whoever looks at the output knows these words. (Xen's first guest has the machine's
/// devices, so that under Xen it is no more than a note.)
fn broke_through(what: core::fmt::Arguments<'_>) {
    if xen::is_covisor() {
        println!("probe: broke through: {what}");
    } else {
        println!("probe: (not covisor) {what}");
    }
}

/// A load, if it does not fault.
fn load(address: u64) -> Option<u64> {
    let mut value = 0;
    let raised = catch!(["mov {1}, [{0}]"], in(reg) address, inout(reg) value);
    raised.is_none().then_some(value)
}

/// A store; whether it does not fault.
fn store(address: u64, value: u64) -> bool {
    catch!(["mov [{0}], {1}"], in(reg) address, in(reg) value).is_none()
}

/// Looks at memory that is none of the guest's: a fault, or the ones of memory that is nobody's, are as it should be.
fn look(name: &str, address: u64) {
    if let Some(value) = load(address).filter(|value| *value != u64::MAX) {
        broke_through(format_args!("{name}: {address:#x} has {value:#x}"));
    }
    // What is stored here must hurt nobody.
    let _ = store(address + 8, 0x6666_6666_6666_6666);
}

/// Frames that are none of the guest's: behind its memory, devices', the monitor's page and its neighbours, far away.
fn foreign_frames() -> impl Iterator<Item = u64> {
    let count = frames::count();
    let near = [count, count + 1, count + 511, count + 512, 0xf_ed01, 0xf_ecff, 0xf_ee00, 0xf_ec00, 0xf_ffff];
    near.into_iter().chain((20..40).map(|bit| 1 << bit)).chain([(1 << 40) - 1])
}

/// Counts as large as they come, of lists that end soon or are not there.
fn endless_counts(_: &CommandLine) {
    let window = Window::new();
    let page = frames::take();
    window.map(0, page, tables::RW);
    // Calls, operations and updates that do not exist.
    for index in 0..512 {
        frames::write(page + index * 8, 1003);
    }
    // The last entries of what is mapped.
    let (list, behind) = (Window::page(1) - 96, Window::page(1));
    for count in [0xffff_ffff, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u64::MAX, 1 << 32 | 5, 1 << 62, 600] {
        for pointer in [list, behind, u64::MAX - 7, 1 << 63] {
            for number in [call::MMU_UPDATE, call::MMUEXT_OP] {
                hypercall::hypercall(number, [pointer, count, 0, 0x7ff0]);
                hypercall::hypercall(number, [pointer, count, pointer, 0x7ff0]);
            }
            for number in [call::MULTICALL, call::SET_GDT] {
                hypercall::hypercall(number, [pointer, count]);
            }
            hypercall::hypercall(call::CONSOLE_IO, [0, count, behind - 4]);
            hypercall::hypercall(call::CONSOLE_IO, [0, count, 1 << 63]);
        }
    }
    crate::xen::segments::load();
    window.set(0, 0);
}

/// Lists of calls that change themselves, hold themselves, or take away the memory that they are in.
fn multicall_itself(_: &CommandLine) {
    let window = Window::new();
    let page = frames::take();
    let list = Window::page(0);
    let write = |entries: &[[u64; 8]]| {
        window.map(0, page, tables::RW);
        for (index, word) in (0..).zip(entries.as_flattened()) {
            frames::write(page + index * 8, *word);
        }
    };
    let entry = |number, arguments: [u64; 4]| [number, 0, arguments[0], arguments[1], arguments[2], arguments[3], 0, 0];
    let version = entry(call::XEN_VERSION, [0; 4]);
    // The list in the list, again and again.
    write(&[entry(call::MULTICALL, [list, 3, 0, 0]), version, entry(call::MULTICALL, [list, u64::MAX, 0, 0])]);
    hypercall::hypercall(call::MULTICALL, [list, 3]);
    // The first call takes the list's page away, the next one would be there.
    write(&[entry(call::UPDATE_VA_MAPPING, [list, 0, 2, 0]), version, version]);
    hypercall::hypercall(call::MULTICALL, [list, 3]);
    // It becomes read-only under the call whose result is to be stored.
    write(&[entry(call::UPDATE_VA_MAPPING, [list, frames::machine(page) | tables::RO, 2, 0]), version]);
    hypercall::hypercall(call::MULTICALL, [list, 2]);
    // Features go over the next entries.
    write(&[entry(call::MEMORY_OP, [memory::MACHPHYS_MAPPING, list + 64, 0, 0]), version, version]);
    hypercall::hypercall(call::MULTICALL, [list, 3]);
    // Long lists of lists of updates.
    let update = entry(call::MMU_UPDATE, [list, 0xffff_ffff, list, 0x7ff0]);
    write(&[update; 64]);
    hypercall::hypercall(call::MULTICALL, [list, 64]);
    check();
    window.set(0, 0);
}

/// `memory_op` with sizes that overflow (XSA-212 and its like).
fn memory_op_overflow(_: &CommandLine) {
    // `xen_memory_reservation`, and `xen_memory_exchange` with two of them: list, count, order, domain.
    for count in [1, u64::MAX, 1 << 32, 1 << 61, 1 << 52] {
        for order in [0_u64, 9, 31, 63, 0xffff_ffff] {
            let list = crate::layout::SCRATCH;
            let reservation = [list, count, order, 0x7ff0, list, count, order, 0x7ff0, u64::MAX - 1, 0];
            for operation in 0..32 {
                // Not the map and the mapping, which are told at the argument.
                if ![memory::MEMORY_MAP, memory::MACHPHYS_MAPPING].contains(&operation) {
                    hypercall::hypercall(call::MEMORY_OP, [operation, at(reservation.as_ptr())]);
                    // The number of entries to begin with.
                    hypercall::hypercall(call::MEMORY_OP, [operation | 1 << 6, at(reservation.as_ptr())]);
                    hypercall::hypercall(call::MEMORY_OP, [operation | u64::MAX << 6, at(reservation.as_ptr())]);
                }
            }
        }
    }
    for (entries, buffer) in [(u64::MAX, crate::layout::SCRATCH), (0xffff_ffff, u64::MAX - 4), (1, 1 << 63), (2, 0)] {
        let map = [entries, buffer];
        hypercall::hypercall(call::MEMORY_OP, [memory::MEMORY_MAP, at(map.as_ptr())]);
    }
}

/// Channels of every number for every operation, and bits for channels that do not exist (`init_control`, whose double free was found in
/// Xen, among them).
fn event_ports(_: &CommandLine) {
    for channel in [0, 1, 2, 255, 256, 1023, 4095, 4096, 0x1_0000, 0x7fff_ffff, u32::MAX] {
        for operation in 0..16 {
            // Not the one that frees all channels.
            if operation != channel::RESET {
                for argument in [[channel; 4], [channel, 0, channel, 0], [0, channel, 0, channel]] {
                    events::operate(operation, &mut argument.clone());
                    events::operate(operation, &mut argument.clone());
                }
            }
        }
    }
    let (shared, vcpu) = (info::shared(), info::vcpu());
    for channel in 0..info::CHANNELS {
        shared.set_pending(channel, true);
        shared.set_masked(channel, channel % 3 == 0);
    }
    for _ in 0..10 {
        vcpu.pending_selector.store(u64::MAX, core::sync::atomic::Ordering::SeqCst);
        vcpu.pending.store(0xff, core::sync::atomic::Ordering::SeqCst);
        vcpu.mask.store(0, core::sync::atomic::Ordering::SeqCst);
        hypercall::hypercall(call::XEN_VERSION, [0]);
        vcpu.mask.store(0xfe, core::sync::atomic::Ordering::SeqCst);
        hypercall::hypercall(call::XEN_VERSION, [0]);
        events::mask();
    }
}

/// Records that the hypervisor writes: where page tables are, where nothing is, at the end of memory, at the monitor's addresses.
fn records_anywhere(_: &CommandLine) {
    let window = Window::new();
    let page = tables::make(frames::take());
    let addresses = [
        0,
        window.table() + 0x800,
        page,
        page + 4090,
        Window::page(2),
        0xffff_8080_0000_0000,
        0xffff_8000_0000_0000,
        0x8000_0000_0000,
        u64::MAX,
        u64::MAX - 40,
    ];
    for address in addresses {
        hypercall::hypercall(call::VCPU_OP, [vcpu::REGISTER_RUNSTATE, 0, at(&raw const address)]);
        timer::after(10_000);
        events::block();
        events::mask();
        check();
    }
    // `vcpu_info` in a page table: what events come to be there are the guest's own entries.
    let own = frames::take();
    for (frame, offset) in [
        (tables::frame(window.table()), 0xc00),
        (tables::frame(tables::kernel()), 0x400),
        (tables::frame(page), 0x100),
        (tables::frame(page), 0xffc1),
        (frames::count(), 0),
        (u64::MAX, u64::MAX),
    ] {
        let argument = [frame, offset];
        let result = hypercall::hypercall(call::VCPU_OP, [vcpu::REGISTER_VCPU_INFO, 0, at(argument.as_ptr())]);
        println!("probe: records-anywhere: vcpu_info at frame {frame:#x}, offset {offset:#x}: {result}");
        hypercall::hypercall(call::SCHED_OP, [sched::YIELD]);
        // The entry that it may be.
        let _ = load(Window::page(0xc00 / 8));
        check();
    }
    let argument = [tables::frame(own), 0];
    if hypercall::hypercall(call::VCPU_OP, [vcpu::REGISTER_VCPU_INFO, 0, at(argument.as_ptr())]) == 0 {
        info::set_vcpu(own);
    }
}

/// The timer for now, and now, and now.
fn timer_storm(_: &CommandLine) {
    let _ = timer::channel();
    events::unmask();
    loop {
        timer::set(timer::now() + 1, 0);
        timer::set(1, 0);
        timer::set(u64::MAX, 0);
        timer::set(i64::MAX.cast_unsigned(), 0);
        timer::set(timer::now() + 1000, 0);
        events::block();
    }
}

/// Calls that do nothing, without end: what runs beside the guest must get its turn.
fn hypercall_flood(_: &CommandLine) {
    let mut list = [[0_u64; 3]; 512];
    for entry in &mut list {
        entry[0] = 6;
    }
    loop {
        hypercall::hypercall(call::MMUEXT_OP, [at(list.as_ptr()), list.len() as u64, 0, 0x7ff0]);
    }
}

/// Waits for nothing, as `super::idle`, whose instruction is none of this guest's.
fn idle(_: &CommandLine) {
    loop {
        events::block();
    }
}

/// Says that it has crashed.
fn crash(_: &CommandLine) {
    hypercall::shutdown(sched::REASON_CRASH)
}

/// Executes code in user mode that ends by an exception.
fn in_user_mode(code: &[u8]) -> Option<exception::Fault> {
    user::run_as(code, selector::USER_CODE, 2)
}

/// UD2, on a stack that is not there.
fn fault_on_stack(stack: u64) {
    // SAFETY: the end, on purpose.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) stack, options(noreturn)) }
}
