//! 32-bit protected mode without paging, with paging by two levels, and with PAE paging, whose page-directory-pointer-table
//! entries the CPU keeps in registers of its own (SDM vol. 3, 4.4.1).

use core::arch::global_asm;

use super::Check;
use crate::cpu;
use crate::exception::vector;
use crate::layout;
use crate::legacy;
use crate::legacy::Mode;
use crate::legacy::Stop;
use crate::legacy::TABLES;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "mode-protected", run: protected },
    Check { name: "mode-paging-32-bit", run: paging_32_bit },
    Check { name: "mode-pae", run: pae },
    Check { name: "mode-pae-invalid", run: pae_invalid },
];

/// A linear address that the tables map to one of two pages.
const WINDOW: u32 = 0x4000_0000;
/// The two pages, and what is in them.
const PAGE_A: u32 = TABLES + 0x8000;
const PAGE_B: u32 = TABLES + 0x9000;
const MARK_A: u32 = 0xaaaa_0001;
const MARK_B: u32 = 0xbbbb_0002;
/// Where the code puts its results.
const RESULTS: u32 = TABLES + 0xa000;
/// The page-directory-pointer table.
const POINTERS: u32 = TABLES;
/// Page directory of the lowest GiB: linear is physical.
const IDENTITY: u32 = TABLES + 0x1000;
/// Page directories that lead to the two pages, and their page tables.
const DIRECTORY_A: u32 = TABLES + 0x2000;
const DIRECTORY_B: u32 = TABLES + 0x3000;
const TABLE_A: u32 = TABLES + 0x4000;
const TABLE_B: u32 = TABLES + 0x5000;
/// Entry: present, and writable where there is such a bit.
const PRESENT: u32 = 1;
const MAPPED: u32 = 3;
/// Entry: a large page.
const LARGE: u32 = 1 << 7;

const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
const CR4_PGE: u32 = 1 << 7;
const CR0_CD: u32 = 1 << 30;
const CR0_PG: u32 = 1 << 31;

global_asm!(
    r#"
    .section .text.probe_modes, "ax"
    .code32
    .globl probe_mode_pae, probe_mode_look, probe_mode_exits

    /* What the window shows goes to the next result, from EDI on; an exit before it. */
    .macro probe_look
    xorl %eax, %eax
    cpuid
    invlpg {window}
    movl {window}, %eax
    stosl
    .endm
    /* The entry of the window's GiB in the page-directory-pointer table. */
    .macro probe_point directory
    movl $(\directory + {present}), {pointers} + 8
    .endm
    /* Changes a bit of a control register, and back. */
    .macro probe_toggle register, bit
    movl %\register, %edx
    movl %edx, %eax
    xorl $\bit, %eax
    movl %eax, %\register
    movl %edx, %\register
    .endm

probe_mode_pae:
    movl ${results}, %edi
    probe_look
    probe_point {b}             /* 1: not loaded yet */
    probe_look
    movl %cr3, %eax             /* 2: by MOV to CR3 */
    movl %eax, %cr3
    probe_look
    probe_point {a}             /* 3: by CR4.PGE */
    probe_toggle cr4, {pge}
    probe_look
    probe_point {b}             /* 4: by CR4.PSE */
    probe_toggle cr4, {pse}
    probe_look
    probe_point {a}             /* 5: by CR0.CD */
    probe_toggle cr0, {cd}
    probe_look
    probe_point {b}             /* 6: by CR0.PG */
    probe_toggle cr0, {pg}
    probe_look
    probe_point {a}             /* 7: by MOV to CR3 */
    movl %cr3, %eax
    movl %eax, %cr3
    probe_look
    movl ${mark_b}, {window}
    movl %cr0, %eax
    ret

    /* Gives the word at the address in EAX. */
probe_mode_look:
    movl (%eax), %eax
    ret

    /* Exits of several kinds; gives CR0. */
probe_mode_exits:
    movl $1, %eax
    cpuid
    movl $0x1b, %ecx
    rdmsr
    movw $0x3ff, %dx
    movb $0x77, %al
    outb %al, %dx
    inb %dx, %al
    cmpb $0x77, %al
    jne 1f
    movl %cr0, %eax
    ret
1:  ud2
    .code64
    "#,
    window = const WINDOW,
    pointers = const POINTERS,
    present = const PRESENT,
    results = const RESULTS,
    a = const DIRECTORY_A,
    b = const DIRECTORY_B,
    mark_b = const MARK_B,
    pge = const CR4_PGE,
    pse = const CR4_PSE,
    cd = const CR0_CD,
    pg = const CR0_PG,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_mode_pae();
    fn probe_mode_look();
    fn probe_mode_exits();
}

/// Runs one of the functions above.
fn run(mode: &Mode, code: unsafe extern "C" fn(), argument: u32) -> Result<u32, Stop> {
    // SAFETY: 32-bit code that keeps to the contract; all tables here map the lowest 16 MiB to themselves.
    unsafe { legacy::run(mode, code, argument) }
}

/// Expects a result.
fn expect(report: &mut Report, name: &str, came: Result<u32, Stop>, wanted: u32) {
    match came {
        Ok(value) => report.expect(value == wanted, format_args!("{name}: {value:#x}, not {wanted:#x}")),
        Err(stop) => report.fail(format_args!("{name}: {}, CR2 {:#x}", stop.fault, stop.cr2)),
    }
}

/// Exits in 32-bit code, and memory, without paging; afterwards long mode is as it was.
fn protected(report: &mut Report) {
    let before = (cpu::cr0(), cpu::cr3(), cpu::cr4(), cpu::rdmsr(cpu::msr::EFER));
    legacy::write(PAGE_A, MARK_A);
    for _ in 0..3 {
        expect(report, "CR0", run(&Mode::FLAT, probe_mode_exits, 0), Mode::FLAT.cr0 | 1 << 4);
        expect(report, "memory", run(&Mode::FLAT, probe_mode_look, PAGE_A), MARK_A);
    }
    let after = (cpu::cr0(), cpu::cr3(), cpu::cr4(), cpu::rdmsr(cpu::msr::EFER));
    report.expect(before == after, format_args!("{after:x?}, was {before:x?}"));
}

/// Fills the two pages, and clears the tables.
fn prepare() {
    for address in (TABLES..TABLES + 0x1_0000).step_by(4) {
        legacy::write(address, 0);
    }
    legacy::write(PAGE_A, MARK_A);
    legacy::write(PAGE_B, MARK_B);
}

/// Two levels of tables (APM vol. 2, 5.2.1 and 5.2.2): a directory at [`IDENTITY`] with large pages, and the window.
fn paging_32_bit(report: &mut Report) {
    prepare();
    for index in 0..4 {
        legacy::write(IDENTITY + index * 4, index << 22 | LARGE | MAPPED);
    }
    let mode = Mode::paged(IDENTITY, CR4_PSE);
    for (table, page, mark) in [(TABLE_A, PAGE_A, MARK_A), (TABLE_B, PAGE_B, MARK_B)] {
        legacy::write(table, page | MAPPED);
        legacy::write(IDENTITY + (WINDOW >> 22) * 4, table | MAPPED);
        expect(report, "the window", run(&mode, probe_mode_look, WINDOW), mark);
        expect(report, "CR0", run(&mode, probe_mode_exits, 0), mode.cr0 | 1 << 4);
    }
    expect_fault(report, "a page that is not there", run(&mode, probe_mode_look, WINDOW + 0x1000), WINDOW + 0x1000);
}

/// Expects a page fault by a page that is not present.
fn expect_fault(report: &mut Report, name: &str, came: Result<u32, Stop>, address: u32) {
    match came {
        Err(Stop { fault, cr2 }) => report.expect(
            fault.vector == vector::PF && fault.error == 0 && cr2 == address,
            format_args!("{name}: {fault}, CR2 {cr2:#x}"),
        ),
        Ok(value) => report.fail(format_args!("{name}: reads as {value:#x}")),
    }
}

/// PAE's tables: the lowest GiB is itself, the next one begins with the window.
fn prepare_pae() -> Mode {
    prepare();
    for index in 0..8 {
        legacy::write_long(IDENTITY + index * 8, u64::from(index << 21 | LARGE | MAPPED));
    }
    for (directory, table, page) in [(DIRECTORY_A, TABLE_A, PAGE_A), (DIRECTORY_B, TABLE_B, PAGE_B)] {
        legacy::write_long(directory, u64::from(table | MAPPED));
        legacy::write_long(table, u64::from(page | MAPPED));
    }
    legacy::write_long(POINTERS, u64::from(IDENTITY | PRESENT));
    legacy::write_long(POINTERS + 8, u64::from(DIRECTORY_A | PRESENT));
    Mode::paged(POINTERS, CR4_PAE)
}

/// The entries of the page-directory-pointer table come into effect with MOV to CR3 and with those changes of CR0 and CR4
/// that the manual lists. Intel's CPUs keep them until then, over exits as well; AMD's read them at each walk in a guest
/// (APM vol. 2, 15.25.10). QEMU's CPU sets bit 5 of those that it uses ("accessed" in other tables), which is reserved here
/// (5.2.3): who walks the tables after it, as a hypervisor does for an instruction that it carries out, has to bear with that.
fn pae(report: &mut Report) {
    let mode = prepare_pae();
    expect(report, "CR0", run(&mode, probe_mode_pae, 0), mode.cr0 | 1 << 4);
    let keeps = cpu::is_intel();
    let wanted = [
        ("at first", Some(MARK_A)),
        ("before the entries are loaded", keeps.then_some(MARK_A)),
        ("after MOV to CR3", Some(MARK_B)),
        ("after a change of CR4.PGE", Some(MARK_A)),
        ("after a change of CR4.PSE", Some(MARK_B)),
        ("after a change of CR0.CD", Some(MARK_A)),
        ("after a change of CR0.PG", Some(MARK_B)),
        ("after MOV to CR3 again", Some(MARK_A)),
    ];
    for (index, (name, mark)) in (0..).zip(wanted) {
        let seen = legacy::read(RESULTS + index * 4);
        report.expect(mark.is_none_or(|mark| mark == seen), format_args!("{name}: {seen:#x}, not {mark:x?}"));
    }
    let written = legacy::read(PAGE_A);
    report.expect(written == MARK_B, format_args!("a store through the window: {written:#x}"));
}

/// Entries that are not there, and such with reserved bits: those raise #GP when they are loaded (SDM vol. 3, 4.4.1), which
/// AMD's CPUs do not do in a guest.
fn pae_invalid(report: &mut Report) {
    let mode = prepare_pae();
    expect_fault(report, "no entry", run(&mode, probe_mode_look, 2 * WINDOW), 2 * WINDOW);
    if cpu::is_intel() {
        for bits in [1_u64 << 1, 1 << 5, 1 << 8, 1 << 63] {
            legacy::write_long(POINTERS + 16, u64::from(DIRECTORY_A | PRESENT) | bits);
            match run(&mode, probe_mode_look, layout::LEGACY) {
                Err(Stop { fault, .. }) => report.expect(fault.is_gp0(), format_args!("entry with {bits:#x}: {fault}")),
                Ok(_) => report.fail(format_args!("an entry with {bits:#x} is taken")),
            }
        }
        legacy::write_long(POINTERS + 16, 0);
    }
    // Without the present bit no other one counts.
    legacy::write_long(POINTERS + 16, 1 << 63 | 0x1e6);
    expect(report, "an entry that is not present", run(&mode, probe_mode_look, WINDOW), MARK_A);
}
