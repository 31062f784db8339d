//! Bases of FS and GS: by hypercall and by MSR, in kernel and in user mode.

use core::arch::asm;

use super::super::Check;
use super::expect;
use super::expect_error;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::exception::selector;
use crate::layout;
use crate::port;
use crate::report::Report;
use crate::user;
use crate::xen::abi::errno;
use crate::xen::abi::segment_base;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::segments;
use crate::xen::timer;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "xen-segment-bases", run: bases },
    Check { name: "xen-segment-bases-user", run: users },
    Check { name: "xen-user-gs", run: user_selector },
];

/// The word at FS:0 and the one at GS:0.
fn words() -> [u64; 2] {
    let (fs, gs): (u64, u64);
    // SAFETY: the caller has set both bases to memory.
    unsafe { asm!("mov {0}, fs:[0]", "mov {1}, gs:[0]", out(reg) fs, out(reg) gs, options(nostack, readonly)) }
    [fs, gs]
}

/// Exits of every depth.
fn exits() {
    let _ = cpu::cpuid(0, 0);
    let _ = port::in8(port::scratch());
    timer::after(100_000);
    cpu::wait_for_interrupt();
}

/// Each way to set the bases of the kernel: they are used, read back, and outlive exits; what is not canonical is refused.
fn bases(report: &mut Report) {
    let loan = Loan::new();
    let pages = [loan.take(), loan.take(), loan.take()];
    for (page, mark) in pages.into_iter().zip(1..) {
        frames::write(page, mark);
    }
    let set_by_call =
        |fs, gs| [segments::set_base(segment_base::FS, fs), segments::set_base(segment_base::GS_KERNEL, gs)];
    let set_by_msr = |fs, gs| {
        [(msr::FS_BASE, fs), (msr::GS_BASE, gs)].map(|(index, base)| cpu::try_wrmsr(index, base).map_or(-1, |()| 0))
    };
    for round in 0..3 {
        for (name, set) in [("by hypercall", &set_by_call as &dyn Fn(u64, u64) -> [i64; 2]), ("by MSR", &set_by_msr)] {
            let (fs, gs) = (pages[round], pages[(round + 1) % 3]);
            let results = set(fs, gs);
            report.expect(results == [0; 2], format_args!("{name}: {results:?}"));
            let wanted = [frames::read(fs), frames::read(gs)];
            report.expect(words() == wanted, format_args!("{name}: {:?}, not {wanted:?}", words()));
            exits();
            report.expect(words() == wanted, format_args!("{name}, after exits: {:?}, not {wanted:?}", words()));
            let read = [cpu::rdmsr(msr::FS_BASE), cpu::rdmsr(msr::GS_BASE)];
            report.expect(read == [fs, gs], format_args!("{name}: the MSRs are {read:x?}, not {:x?}", [fs, gs]));
        }
    }
    let wanted = words();
    for which in [segment_base::FS, segment_base::GS_USER, segment_base::GS_KERNEL] {
        for base in [0x8000_0000_0000, 0x8000_0000_0000_0000, 0xffff_0000_0000_0000] {
            expect_error(report, "a base that is not canonical", segments::set_base(which, base), errno::EINVAL);
        }
    }
    expect_error(report, "a base of nothing", segments::set_base(100, pages[0]), errno::EINVAL);
    report.expect(words() == wanted, format_args!("after what was refused: {:?}, not {wanted:?}", words()));
    let _ = set_by_call(0, 0);
}

/// User mode has its own base of GS, and the kernel's of FS; the way there and back exchanges them.
fn users(report: &mut Report) {
    // MOV RCX, GS:[0]; MOV RDX, FS:[0]; INT3.
    const LOAD: [u8; 19] = [0x65, 0x48, 0x8b, 0x0c, 0x25, 0, 0, 0, 0, 0x64, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0, 0, 0xcc];
    let loan = Loan::new();
    let kernels = [loan.take(), loan.take()];
    let users = [layout::USER_PAGE + 0x1000, layout::USER_PAGE + 0x2000];
    for (page, mark) in kernels.into_iter().chain(users).zip(0x10..) {
        frames::write(page, mark);
    }
    for round in 0..4 {
        expect(report, "the kernel's GS", segments::set_base(segment_base::GS_KERNEL, kernels[round % 2]), 0);
        expect(report, "user mode's GS", segments::set_base(segment_base::GS_USER, users[round % 2]), 0);
        expect(report, "FS", segments::set_base(segment_base::FS, users[1 - round % 2]), 0);
        let raised = user::raised(&LOAD);
        report.expect(raised.is_none(), format_args!("round {round}: {raised:?}"));
        let frame = exception::caught_frame();
        let seen = [frame.gprs[13], frame.gprs[12]];
        let wanted = [users[round % 2], users[1 - round % 2]].map(frames::read);
        report.expect(seen == wanted, format_args!("round {round}, user mode's GS and FS: {seen:x?}, not {wanted:x?}"));
        let wanted = [frames::read(users[1 - round % 2]), frames::read(kernels[round % 2])];
        report.expect(words() == wanted, format_args!("round {round}, the kernel's FS and GS: {:x?}", words()));
        let other = cpu::rdmsr(msr::KERNEL_GS_BASE);
        report
            .expect_of_covisor(other == users[round % 2], format_args!("round {round}: KERNEL_GS_BASE is {other:#x}"));
    }
    for which in [segment_base::FS, segment_base::GS_USER, segment_base::GS_KERNEL] {
        let _ = segments::set_base(which, 0);
    }
}

/// `SEGBASE_GS_USER_SEL`: the selector that user mode finds in GS; one that cannot be loaded is 0 there.
fn user_selector(report: &mut Report) {
    // MOV ECX, GS; INT3.
    const LOAD: [u8; 3] = [0x8c, 0xe9, 0xcc];
    let selectors = [
        (selector::USER_DATA, selector::USER_DATA),
        (0, 0),
        (selector::USER_DATA & !3, selector::USER_DATA),
        (selector::USER_DATA, selector::USER_DATA),
        (0xfff8, 0),
        (0xe013, 0),
    ];
    for (selector, wanted) in selectors {
        // Xen refuses some of them, and keeps others' privilege levels.
        let result = segments::set_base(segment_base::GS_USER_SELECTOR, selector.into());
        report.expect_of_covisor(result == 0, format_args!("selector {selector:#x}: {result}"));
        let raised = user::raised(&LOAD);
        let seen = exception::caught_frame().gprs[13];
        report.expect(raised.is_none(), format_args!("selector {selector:#x}: {raised:?}"));
        report
            .expect_of_covisor(seen == wanted.into(), format_args!("selector {selector:#x}: user mode has {seen:#x}"));
    }
    let _ = segments::set_base(segment_base::GS_USER_SELECTOR, 0);
}
