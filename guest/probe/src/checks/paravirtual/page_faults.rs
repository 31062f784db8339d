//! Page faults as a paravirtual kernel gets them: error codes (SDM vol. 3, 4.7) tell of its own page tables, whatever the hypervisor
//! does below, and kernel mode is supervisor mode in them.

use super::super::Check;
use crate::exception;
use crate::exception::Fault;
use crate::exception::vector;
use crate::layout;
use crate::report::Report;
use crate::user;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::frames::Loan;
use crate::xen::tables;
use crate::xen::tables::NO_EXECUTE;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "xen-page-faults", run: kernel }, Check { name: "xen-page-faults-user", run: users }];

/// Error code: the page is there, a store, in user mode, an instruction's fetch.
const PRESENT: u64 = 1;
const STORE: u64 = 2;
const USER: u64 = 4;
const FETCH: u64 = 16;

/// Expects a page fault with this error code at this address.
fn expect(report: &mut Report, name: &str, raised: Option<Fault>, error: u64, address: u64) {
    let cr2 = exception::caught_cr2();
    match raised {
        Some(fault) => report.expect(
            fault.vector == vector::PF && fault.error == error && cr2 == address,
            format_args!("{name}: {fault}, CR2 {cr2:#x}, not error {error:#x} at {address:#x}"),
        ),
        None => report.fail(format_args!("{name}: nothing is raised")),
    }
}

/// Calls an address.
fn call(address: u64) -> Option<Fault> {
    exception::guarded(|| {
        // SAFETY: the fault unwinds.
        unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) }
    })
}

fn kernel(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    let page = loan.take();
    let at = Window::page(3);
    let load = |address: u64| catch!(["mov al, [{0}]"], in(reg) address, out("al") _);
    let store = |address: u64| catch!(["mov byte ptr [{0}], 1"], in(reg) address);
    for round in 0..2 {
        window.set(3, 0);
        expect(report, "a load, nothing there", load(at + 5), 0, at + 5);
        expect(report, "a store, nothing there", store(at + 6), STORE, at + 6);
        let raised = call(at + 7);
        // Only a CPU with NX switched on tells of fetches.
        expect(
            report,
            "a fetch, nothing there",
            raised.map(|fault| Fault { error: fault.error & !FETCH, ..fault }),
            0,
            at + 7,
        );
        window.map(3, page, RO);
        report.expect(load(at).is_none(), format_args!("round {round}: a load of a read-only page faults"));
        expect(report, "a store, read-only", store(at + 8), PRESENT | STORE, at + 8);
        window.map(3, page, RO | NO_EXECUTE);
        expect(report, "a fetch, no code", call(at + 9), PRESENT | FETCH, at + 9);
        window.map(3, page, RW);
        report.expect(store(at).is_none(), format_args!("round {round}: a store to a writable page faults"));
    }
    // Levels above that are not there.
    expect(report, "a load without a table", load(1 << 46), 0, 1 << 46);
    expect(report, "a store without a table", store((1 << 46) + 1), STORE, (1 << 46) + 1);
    // An access over a page's end faults at the page that is not there.
    window.set(4, 0);
    let raised = catch!(["mov qword ptr [{0}], 1"], in(reg) Window::page(4) - 3);
    expect(report, "a store over the end", raised, STORE, Window::page(4));
    // The monitor's part of the address space.
    for address in [HYPERVISOR_START + (1 << 39), HYPERVISOR_START + (1 << 39) + (2 << 30), 0xffff_8100_0000_0000] {
        let raised = load(address);
        report.expect(
            raised.is_some_and(|fault| fault.vector == vector::PF && exception::caught_cr2() == address),
            format_args!("a load from {address:#x}: {raised:?}"),
        );
        let raised = store(address);
        report.expect(
            raised.is_some_and(|fault| fault.vector == vector::PF && exception::caught_cr2() == address),
            format_args!("a store to {address:#x}: {raised:?}"),
        );
    }
    window.set(3, 0);
}

/// In user mode what is not in its own page tables is not there, the kernel and the monitor above all.
fn users(report: &mut Report) {
    let (window, loan) = (Window::new(), Loan::new());
    window.map(3, loan.take(), RW);
    let kernels = [layout::SCRATCH, 0x20_0000, Window::page(3), tables::kernel(), 0];
    for address in kernels {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        // MOV AL from, and to, an absolute address.
        let raised = user::raised(&[0xa0, a, b, c, d, e, f, g, h]);
        expect(report, "a load of user mode's", raised, USER, address);
        let raised = user::raised(&[0xa2, a, b, c, d, e, f, g, h]);
        expect(report, "a store of user mode's", raised, USER | STORE, address);
    }
    for address in [
        HYPERVISOR_START,
        HYPERVISOR_START + (1 << 39),
        HYPERVISOR_START + (1 << 39) + 0x10_0000,
        0xffff_8100_0000_0000,
    ] {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        for code in [0xa0, 0xa2] {
            let raised = user::raised(&[code, a, b, c, d, e, f, g, h]);
            let right = raised.is_some_and(|fault| fault.vector == vector::PF && fault.error & USER != 0);
            report.expect(right, format_args!("{code:#x} at {address:#x} in user mode: {raised:?}"));
        }
    }
    window.set(3, 0);
}
