//! Descriptors, bases of segments and debug registers.

use core::arch::asm;

use super::broke_through;
use super::check;
use super::in_user_mode;
use crate::cmdline::CommandLine;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::exception::selector;
use crate::xen::abi::HYPERVISOR_SLOTS;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::mmuext;
use crate::xen::abi::segment_base;
use crate::xen::abi::uvmf;
use crate::xen::frames;
use crate::xen::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::segments;
use crate::xen::tables;

/// Bases that are not canonical (which would be a fault of the hypervisor's own) or the monitor's, by call and by MSR, in both modes.
pub(super) fn bases(_: &CommandLine) {
    let addresses = HYPERVISOR_SLOTS.map(|slot| HYPERVISOR_START + ((slot - HYPERVISOR_SLOTS.start) << 39)).chain([
        0x8000_0000_0000,
        0xffff_7fff_ffff_ffff,
        1 << 63,
        u64::MAX,
        HYPERVISOR_START + (1 << 39) + 0x10_0000,
    ]);
    for address in addresses {
        for which in 0..6 {
            segments::set_base(which, address);
        }
        for index in [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE] {
            let _ = cpu::try_wrmsr(index, address);
        }
        // MOV RAX, FS:[0] and GS:[0], of the kernel and of a program.
        for raised in [
            catch!(["mov {0}, fs:[0]"], out(reg) _),
            catch!(["mov {0}, gs:[0]"], out(reg) _),
            in_user_mode(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]),
            in_user_mode(&[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]),
        ] {
            // The table of frames by frames can be read; the kernel's, not the program's.
            if raised.is_none() && address != HYPERVISOR_START && address != 0 {
                broke_through(format_args!("segment-bases: {address:#x} can be read"));
            }
        }
    }
    for which in [segment_base::FS, segment_base::GS_USER, segment_base::GS_KERNEL] {
        segments::set_base(which, 0);
    }
}

/// Descriptor: present.
const PRESENT: u64 = 1 << 47;

/// A gate of a type and a privilege level, or a task, to the monitor's code at one of its addresses: low and high half.
fn gate(kind: u64, privilege: u64, target: u64) -> [u64; 2] {
    let low = target & 0xffff | 0xe008 << 16 | kind << 40 | privilege << 45 | PRESENT | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// Whether a far call, a task or a table by this selector is carried out.
fn try_selector(name: &str, selector: u16) {
    let selector_word = u64::from(selector);
    let call = exception::guarded(|| {
        // SAFETY: a far call that faults.
        unsafe {
            asm!(
                "sub rsp, 16", "mov qword ptr [rsp], 0", "mov [rsp + 4], {0:x}", "call fword ptr [rsp]", "add rsp, 16",
                in(reg) selector_word, clobber_abi("C"),
            );
        }
    });
    let others = [catch!(["lldt {0:x}"], in(reg) selector_word), catch!(["ltr {0:x}"], in(reg) selector_word)];
    let [a, b] = selector.to_le_bytes();
    // MOV WORD PTR [RSP - 4], selector; CALL FAR [RSP - 8], of a program.
    let user = in_user_mode(&[0x66, 0xc7, 0x44, 0x24, 0xfc, a, b, 0xff, 0x5c, 0x24, 0xf8]);
    for (index, raised) in [call, user].into_iter().chain(others).enumerate() {
        if raised.is_none() {
            broke_through(format_args!("{name}: way {index} by selector {selector:#x} is carried out"));
        }
    }
}

/// Gates and tasks of every type and privilege level, in the GDT and in the LDT, by hypercall and in the table from the start.
pub(super) fn gates(_: &CommandLine) {
    let page = frames::take();
    for kind in 0..16_u64 {
        for privilege in 0..4_u64 {
            let [low, high] = gate(kind, privilege, HYPERVISOR_START + (1 << 39) + 0x1000);
            let _ = segments::set_spare(low);
            try_selector("gates", selector::SPARE | 3);
            let _ = segments::set_spare(0);
            hypercall::update_va_mapping(page, frames::machine(page) | tables::RW, uvmf::INVLPG);
            for index in (0..16).step_by(2) {
                frames::write(page + index * 8, low);
                frames::write(page + index * 8 + 8, high);
            }
            hypercall::update_va_mapping(page, frames::machine(page) | tables::RO, uvmf::INVLPG);
            if segments::set_gdt(&[tables::frame(page)], 512) == 0 {
                try_selector("gates", 0x10 | 3);
            }
            segments::load();
            if mmuext(mmuext::SET_LDT, page, 16) == 0 {
                try_selector("gates", 0x10 | 4 | 3);
            }
            mmuext(mmuext::SET_LDT, 0, 0);
        }
        check();
    }
}

/// A table that was handed over and is changed behind the hypervisor's back: by a writable mapping, in all of its entries.
pub(super) fn changed_behind(_: &CommandLine) {
    let window = crate::xen::window::Window::new();
    let page = frames::take();
    for index in 0..512 {
        frames::write(page + index * 8, 0x00cf_f300_0000_ffff);
    }
    tables::make(page);
    println!("probe: gates-behind: {}", segments::set_gdt(&[tables::frame(page)], 512));
    println!("probe: gates-behind: the table: {}", mmuext(mmuext::SET_LDT, page, 512));
    println!("probe: gates-behind: writable: {}", window.map(3, page, tables::RW));
    for kind in 0..16 {
        let [low, high] = gate(kind, 3, HYPERVISOR_START + (1 << 39) + 0x1000);
        for index in (0..512).step_by(2) {
            let _ = super::store(crate::xen::window::Window::page(3) + index * 8, low);
            let _ = super::store(crate::xen::window::Window::page(3) + index * 8 + 8, high);
        }
        try_selector("gates-behind", 0x10 | 3);
        try_selector("gates-behind", 0x10 | 4 | 3);
        check();
    }
    mmuext(mmuext::SET_LDT, 0, 0);
    segments::load();
    window.set(3, 0);
}

/// Breakpoints at the monitor's addresses: whatever it executes or stores would be #DB in it.
pub(super) fn debug_at_monitor(_: &CommandLine) {
    /// All four on, for code, stores and loads.
    const ALL: [u64; 4] = [0x0000_04ff, 0x1111_04ff, 0xffff_04ff, 0xbbbb_04ff];
    let base = HYPERVISOR_START + (1 << 39);
    let steps =
        [0, 0x1000, 0x10_0000, 0x10_0008, 0x12_0004, 0x13_0000, 0x14_e008, 1 << 30, 2 << 30, (2 << 30) + 0x20_7ff8];
    for step in steps {
        let mut taken = 0;
        for set in [cpu::try_set_dr0, cpu::try_set_dr1, cpu::try_set_dr2, cpu::try_set_dr3] {
            taken += u32::from(set(base + step).is_ok());
        }
        if taken != 0 {
            broke_through(format_args!("debug-at-monitor: {taken} breakpoints at {:#x}", base + step));
        }
        for value in ALL {
            let _ = cpu::try_set_dr7(value);
            let _ = exception::guarded(|| {
                let _ = cpu::cpuid(0, 0);
                let _ = in_user_mode(&[0x0f, 0x05]);
            });
        }
        let _ = cpu::try_set_dr7(1 << 10);
    }
    // At the guest's entries to the monitor: SYSCALL, and what follows it.
    cpu::clear_dr6();
}
