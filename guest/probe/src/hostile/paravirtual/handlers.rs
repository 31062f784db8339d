//! Ways into the kernel and back that lead astray: frames of `iret`, handlers, callbacks, stacks.

use super::in_user_mode;
use crate::cmdline::CommandLine;
use crate::cpu;
use crate::exception;
use crate::exception::selector;
use crate::exception::vector;
use crate::xen::abi::HYPERVISOR_SLOTS;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::callback;
use crate::xen::abi::mmuext;
use crate::xen::events;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::info;
use crate::xen::iret::Context;
use crate::xen::traps;
use crate::xen::window::Window;

/// Frames of every kind: I/O privilege, virtual-8086 mode (CVE-2015-4164 looped for ever), nested tasks, segments and addresses of every
/// kind (CVE-2012-0217 was SYSRET to an address that is not canonical), to kernel and user mode. What they lead to is UD2 or nothing.
pub(super) fn iret_anything(line: &CommandLine) {
    let mut rng = super::super::rng(line);
    let selectors = [
        0, 3, 0x08, 0x10, 0x1b, 0x23, 0x28, 0x33, 0x38, 0x4b, 0x5b, 0xe008, 0xe010, 0xe023, 0xe02b, 0xe033, 0xe040,
        0xe050, 0xfff8, 4, 7,
    ];
    let addresses = [
        0x8000_0000_0000,
        0xffff_7fff_ffff_ffff,
        1 << 63,
        HYPERVISOR_START,
        HYPERVISOR_START + (1 << 39),
        u64::MAX,
        0x1234_5678_9000,
    ];
    let pick = |rng: &mut crate::rng::Rng, list: &[u64]| {
        list.get(usize::try_from(rng.below(list.len() as u64)).unwrap_or(0)).copied().unwrap_or(0)
    };
    for _ in 0..20_000 {
        let mut context = if rng.below(2) == 0 { Context::KERNEL } else { Context::USER };
        let kernel = context.cs & 3 != 3;
        if rng.below(2) == 0 {
            // Without single steps: they would come in the handler of what follows.
            context.rflags = rng.draw() & !(1 << 8);
        }
        let other_code = rng.below(3) == 0;
        if other_code {
            context.cs = pick(&mut rng, &selectors) & !3 | context.cs & 3 | rng.below(2) << 16;
        }
        if rng.below(3) == 0 {
            context.ss = pick(&mut rng, &selectors) ^ rng.below(4);
        }
        // In 32-bit code the lower half of an address counts, and there may be something.
        if !other_code && rng.below(3) == 0 {
            context.rip = pick(&mut rng, &addresses);
        }
        if rng.below(3) == 0 && !kernel {
            context.rsp = pick(&mut rng, &addresses);
        }
        context.flags = rng.few_bits();
        let _ = context.go();
        events::mask();
    }
}

/// To user mode without page tables for it.
pub(super) fn iret_without_user_root(_: &CommandLine) {
    mmuext(mmuext::NEW_USER_BASEPTR, 0, 0);
    let _ = in_user_mode(&[0x90]);
}

/// Addresses all over the monitor's slots, and such that are not canonical.
fn addresses() -> impl Iterator<Item = u64> {
    HYPERVISOR_SLOTS.map(|slot| HYPERVISOR_START + ((slot - HYPERVISOR_SLOTS.start) << 39)).chain([
        HYPERVISOR_START + (1 << 39) + 0x1000,
        HYPERVISOR_START + (1 << 39) + (1 << 30),
        0x8000_0000_0000,
        1 << 63,
    ])
}

/// Handlers and callbacks at the monitor's addresses: refused, or a fault of the guest's when they are gone to.
pub(super) fn at_monitor(_: &CommandLine) {
    for address in addresses() {
        let [first, _] = traps::handler(vector::UD, 0, 0);
        let result = traps::set_table(&[[first, address], [0; 2]]);
        let raised = catch!(["ud2"]);
        println!("probe: handlers-at-monitor: {address:#x}: {result}, UD2 ends as {raised:?}");
        traps::fill();
        for kind in 0..10 {
            let result = traps::register(kind, callback::MASK_EVENTS, address);
            if result == 0 {
                println!("probe: handlers-at-monitor: callback {kind} at {address:#x} is taken");
                events::unmask();
                let _ = in_user_mode(&[0x0f, 0x05]);
                events::mask();
            }
            traps::register_all();
        }
    }
}

/// Handlers where nothing is, also that of the fault that this is: the frames go down the stack until it ends.
pub(super) fn nowhere(_: &CommandLine) {
    const NOWHERE: u64 = 0x1234_5678_9000;
    let mut table = [[0_u64; 2]; 33];
    for (vector, entry) in (0..32).zip(&mut table) {
        *entry = traps::handler(vector, 0, NOWHERE);
    }
    traps::set_table(&table);
    // SAFETY: the end, on purpose.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

/// A return that fails; what tells of it returns to the same place again, without end.
pub(super) fn failsafe_loop(_: &CommandLine) {
    const HANDLER: u64 = crate::layout::SCRATCH + 0x100;
    let context = Context { cs: 0xfff8, ..Context::KERNEL };
    let [a, b, c, d, e, f, g, h] = at(&raw const context).to_le_bytes();
    // MOV RSP, context; MOV EAX, 23; SYSCALL.
    let code = [0x48, 0xbc, a, b, c, d, e, f, g, h, 0xb8, call::IRET.to_le_bytes()[0], 0, 0, 0, 0x0f, 0x05];
    for (address, byte) in (HANDLER..).zip(code) {
        let place = core::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(address).unwrap_or(0));
        // SAFETY: scratch memory.
        unsafe { place.write_volatile(byte) }
    }
    traps::register(callback::FAILSAFE, 0, HANDLER);
    let gate = |vector| traps::handler(vector, 0, HANDLER);
    traps::set_table(&[gate(vector::GP), gate(vector::NP), gate(vector::SS), [0; 2]]);
    let _ = context.go();
}

/// A return that fails where nothing can be told of it: there are no handlers.
pub(super) fn failed_return_without_handlers(_: &CommandLine) {
    hypercall(call::SET_TRAP_TABLE, [0]);
    traps::register(callback::FAILSAFE, 0, 0);
    let _ = Context { cs: 0xfff8, ..Context::KERNEL }.go();
}

/// A stack for the kernel at the monitor's addresses, and a program that faults.
pub(super) fn stack_at_monitor(_: &CommandLine) {
    for address in addresses() {
        println!("probe: stack-at-monitor: {address:#x}: {}", traps::set_stack(address + 0x800));
    }
    traps::set_stack(HYPERVISOR_START + (1 << 39) + 0x10_0800);
    let _ = in_user_mode(&[0x0f, 0x05]);
}

/// A stack for the kernel in a page table, which the guest has read-only: what the hypervisor would store there are entries.
pub(super) fn stack_in_table(_: &CommandLine) {
    let window = Window::new();
    println!("probe: stack-in-table: {}", traps::set_stack(window.table() + 0x800));
    let _ = in_user_mode(&[0x0f, 0x05]);
}

/// The kernel's own stack pointer at the monitor's addresses, and a fault.
pub(super) fn kernel_stack_at_monitor(_: &CommandLine) {
    super::fault_on_stack(HYPERVISOR_START + (1 << 39) + 0x10_0800);
}

/// A program's system call where the kernel has taken its handler away.
pub(super) fn syscall_without_callback(_: &CommandLine) {
    traps::register(callback::SYSCALL, 0, 0);
    let _ = in_user_mode(&[0x0f, 0x05]);
}

/// #DB whose delivery raises #DB, as `super::super::db_loop`: watchpoints on the stack that the handler's frame goes to.
pub(super) fn debug_loop(_: &CommandLine) {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) }
    let frame = (stack - 256) & !15;
    let _ = cpu::try_set_dr0(frame - 8);
    let _ = cpu::try_set_dr1(frame - 16);
    let _ = cpu::try_set_dr2(frame - 24);
    // Writes of eight bytes, three of them.
    let _ = cpu::try_set_dr7(0x0999_0000 | 1 << 10 | 0b11_1111);
    exception::record_debug(true);
    // SAFETY: goes on for ever, on purpose: with the stack where the watchpoints are.
    unsafe {
        core::arch::asm!("mov rsp, {}", "push 0x102", "popfq", "2: push rax", "pop rax", "jmp 2b", in(reg) frame, options(noreturn))
    }
}

/// All causes in DR6, and no breakpoint: left in the CPU they would be the host's at its next debug exception, which ends a program of
/// its by SIGTRAP.
pub(super) fn debug_status(_: &CommandLine) {
    loop {
        let _ = cpu::try_set_dr6(0xffff_efff);
    }
}

/// An event whose handler sends it again before it returns.
pub(super) fn event_storm(_: &CommandLine) {
    let Ok(channel) = events::bind_ipi() else { return };
    // The handler returns to the kernel with the event waiting again: in user mode it would come as well.
    loop {
        info::shared().set_pending(channel, true);
        info::vcpu().pending_selector.store(u64::MAX, core::sync::atomic::Ordering::SeqCst);
        info::vcpu().pending.store(1, core::sync::atomic::Ordering::SeqCst);
        events::send(channel);
        info::vcpu().mask.store(0, core::sync::atomic::Ordering::SeqCst);
        hypercall(call::XEN_VERSION, [0]);
        let _ = crate::user::run_as(&[0xeb, 0xfe], selector::USER_CODE, 1 << 9 | 2);
        events::send(channel);
    }
}
