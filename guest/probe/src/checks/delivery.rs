//! Delivery of events by tables and stacks in pages that nobody has used yet: the CPU reads and writes them itself, and what
//! it meets there interrupts the delivery (APM vol. 2, 5.4.2 and 8.2.9; SDM vol. 3, 4.8, 6.15 and 28.2.4).

use super::Check;
use crate::apic;
use crate::exception;
use crate::exception::Fault;
use crate::exception::IDT;
use crate::exception::TablePointer;
use crate::exception::vector;
use crate::kernel;
use crate::layout;
use crate::paging;
use crate::paging::Window;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "delivery-unused-pages", run: unused_pages },
    Check { name: "delivery-page-fault", run: page_fault },
    Check { name: "delivery-double-fault", run: double_fault },
];

/// The vector of interrupts here.
const INTERRUPT: u8 = 0x83;
/// The page of the window where the interrupt table is.
const TABLE: u64 = 0;
/// The page of the window where the handlers' stack is.
const STACK: u64 = 2;
/// A stack of the interrupt stack table, beside that of #DF.
const STACK_NUMBER: u64 = 2;

/// Where the pages are in physical memory.
const fn physical(number: u64) -> u64 {
    layout::SCRATCH + 0x18_0000 + number * 4096
}

/// Maps the window's pages as nobody has used them.
fn map(window: &Window) {
    for number in [TABLE, STACK] {
        window.set(number, physical(number) | paging::PRESENT | paging::WRITABLE);
    }
}

/// Runs `test` with the interrupt table in the window; #UD, NMI and [`INTERRUPT`] have their stack there too.
fn with_window(test: impl FnOnce(&Window)) {
    let window = Window::new();
    exception::set_interrupt_stack(2, Window::page(STACK + 1));
    for number in [vector::UD, vector::NMI, INTERRUPT] {
        exception::set_gate(number, exception::stub(number), STACK_NUMBER);
    }
    let copy = core::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(physical(TABLE)).unwrap_or(0));
    for index in 0..512 {
        // SAFETY: scratch memory.
        unsafe { copy.add(index).write_volatile(IDT.get(index)) }
    }
    map(&window);
    exception::load_idt(TablePointer { limit: 4095, base: Window::page(TABLE) });
    test(&window);
    exception::load_idt(TablePointer { limit: 4095, base: IDT.address() });
    exception::fill_idt();
}

/// An exception, a software interrupt, an NMI and an interrupt, each by pages whose accessed and dirty bits are clear: each
/// is delivered once, and the bits are set.
fn unused_pages(report: &mut Report) {
    if let Err(fault) = apic::enter_xapic() {
        return report.error(format_args!("xAPIC mode: {fault}"));
    }
    with_window(|window| {
        let send_nmi = || {
            apic::write(apic::register::ICR_HIGH, apic::read(apic::register::ID));
            apic::write(apic::register::ICR, apic::ICR_NMI | apic::ICR_ASSERT);
            let _ = crate::cpu::cpuid(0, 0);
        };
        let interrupt = || {
            apic::send_self(INTERRUPT);
            crate::cpu::take_interrupts();
        };
        let events: [(&str, u8, &dyn Fn()); 4] = [
            ("#UD", vector::UD, &|| _ = kernel::raised(&[0x0f, 0x0b])),
            ("INT n", INTERRUPT, &|| _ = kernel::raised(&[0xcd, INTERRUPT])),
            ("NMI", vector::NMI, &send_nmi),
            ("an interrupt", INTERRUPT, &interrupt),
        ];
        for (name, number, raise) in events {
            exception::forget_interrupts();
            map(window);
            raise();
            let count = exception::count(number);
            report.expect(count == 1, format_args!("{name}: delivered {count} times"));
            let (table, stack) = (window.get(TABLE), window.get(STACK));
            report.expect(table & paging::ACCESSED != 0, format_args!("{name}: the table's entry is {table:#x}"));
            let used = paging::ACCESSED | paging::DIRTY;
            report.expect(stack & used == used, format_args!("{name}: the stack's entry is {stack:#x}"));
        }
    });
}

/// Where a handler's frame begins on the window's stack: the highest word of it.
const TOP_WORD: u64 = Window::page(STACK + 1) - 8;

/// Expects a page fault on the window's stack, at an instruction.
fn expect_page_fault(report: &mut Report, name: &str, came: Option<Fault>) {
    /// Error code: a write to a page that is not present.
    const WRITE: u64 = 2;
    match came {
        Some(fault) => {
            let right = fault.vector == vector::PF && fault.error == WRITE && fault.rip == kernel::CODE;
            report.expect(right, format_args!("{name}: {fault}"));
        }
        None => report.fail(format_args!("{name}: nothing is raised")),
    }
    let cr2 = exception::caught_cr2();
    report.expect(cr2 & !0xfff == TOP_WORD & !0xfff, format_args!("{name}: CR2 is {cr2:#x}, not near {TOP_WORD:#x}"));
}

/// An exception and a software interrupt whose stack is not mapped: the page fault takes their place, at the same
/// instruction.
fn page_fault(report: &mut Report) {
    with_window(|window| {
        window.set(STACK, 0);
        expect_page_fault(report, "#UD", kernel::raised(&[0x0f, 0x0b]));
        expect_page_fault(report, "INT n", kernel::raised(&[0xcd, INTERRUPT]));
    });
}

/// A page fault whose handler's stack is not mapped either: a double fault (APM vol. 2, 8.2.9).
fn double_fault(report: &mut Report) {
    with_window(|window| {
        window.set(STACK, 0);
        // The table in use is the copy.
        let [low, high] = exception::gate(exception::stub(vector::PF), STACK_NUMBER, 0);
        let copy = core::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(physical(TABLE)).unwrap_or(0));
        // SAFETY: scratch memory.
        unsafe {
            copy.add(usize::from(vector::PF) * 2).write_volatile(low);
            copy.add(usize::from(vector::PF) * 2 + 1).write_volatile(high);
        }
        exception::forget_interrupts();
        match kernel::raised(&[0x0f, 0x0b]) {
            Some(fault) => report.expect(fault.vector == vector::DF && fault.error == 0, format_args!("{fault}")),
            None => report.fail(format_args!("nothing is raised")),
        }
        report.expect(exception::count(vector::DF) == 1, format_args!("{} #DF", exception::count(vector::DF)));
    });
}
