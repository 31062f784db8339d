//! I/O ports: sizes, strings, and the edges (APM vol. 3, IN, INS, OUT, OUTS; APM vol. 2, 15.10 for the permission map).

use core::arch::asm;

use super::Check;
use crate::exception::vector;
use crate::layout;
use crate::port;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "port-sizes", run: sizes },
    Check { name: "port-strings", run: strings },
    Check { name: "port-string-fault", run: string_fault },
    Check { name: "port-edge", run: edge },
];

/// A port that nothing answers.
const NOBODY: u16 = 0x2f8;

/// The scratch memory as bytes.
fn scratch() -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(0x60_0000)
}

/// Fills scratch memory.
fn fill(bytes: usize, value: impl Fn(usize) -> u8) {
    for index in 0..bytes {
        // SAFETY: inside of the scratch memory.
        unsafe { scratch().add(index).write_volatile(value(index)) }
    }
}

/// A byte of scratch memory.
fn byte(index: usize) -> u8 {
    // SAFETY: inside of the scratch memory.
    unsafe { scratch().add(index).read_volatile() }
}

/// IN changes as much of RAX as it should, and nothing but ones come from where nothing is.
fn sizes(report: &mut Report) {
    let cell = port::scratch();
    for value in [0_u8, 0x5a, 0xff] {
        port::out8(cell, value);
        let read = port::in8(cell);
        report.expect(read == value, format_args!("scratch register: wrote {value:#x}, reads {read:#x}"));
    }
    report.expect(port::in8(NOBODY) == u8::MAX, format_args!("one byte: {:#x}", port::in8(NOBODY)));
    report.expect(port::in16(NOBODY) == u16::MAX, format_args!("two bytes: {:#x}", port::in16(NOBODY)));
    report.expect(port::in32(NOBODY) == u32::MAX, format_args!("four bytes: {:#x}", port::in32(NOBODY)));
    let (mut one, mut two, mut four) =
        (0x1122_3344_5566_7788_u64, 0x1122_3344_5566_7788_u64, 0x1122_3344_5566_7788_u64);
    // SAFETY: reads ports.
    unsafe {
        asm!("in al, dx", inout("rax") one, in("dx") NOBODY, options(nomem, nostack));
        asm!("in ax, dx", inout("rax") two, in("dx") NOBODY, options(nomem, nostack));
        asm!("in eax, dx", inout("rax") four, in("dx") NOBODY, options(nomem, nostack));
    }
    report.expect(one == 0x1122_3344_5566_77ff, format_args!("IN AL gives RAX {one:#x}"));
    report.expect(two == 0x1122_3344_5566_ffff, format_args!("IN AX gives RAX {two:#x}"));
    report.expect(four == 0xffff_ffff, format_args!("IN EAX gives RAX {four:#x}"));
}

/// INS and OUTS in both directions, with and without REP, in three sizes, over the edge of a page.
fn strings(report: &mut Report) {
    const START: usize = 4096 - 5;
    let cell = port::scratch();
    port::out8(cell, 0x77);
    fill(8192, |_| 0);
    let (mut to, mut count) = (layout::SCRATCH + START as u64, 10_u64);
    // SAFETY: stores into scratch memory.
    unsafe { asm!("cld", "rep insb", inout("rdi") to, inout("rcx") count, in("dx") cell) }
    report.expect(
        count == 0 && to == layout::SCRATCH + START as u64 + 10,
        format_args!("REP INSB: RCX {count}, RDI {to:#x}"),
    );
    let right = (0..8192).all(|index| byte(index) == if (START..START + 10).contains(&index) { 0x77 } else { 0 });
    report.expect(right, format_args!("REP INSB stored something else"));

    fill(64, |index| u8::try_from(index).unwrap_or(0));
    let (mut from, mut count) = (layout::SCRATCH + 16, 4_u64);
    // SAFETY: reads scratch memory; sets the direction flag and clears it.
    unsafe { asm!("std", "rep outsb", "cld", inout("rsi") from, inout("rcx") count, in("dx") cell) }
    let last = port::in8(cell);
    report
        .expect(count == 0 && from == layout::SCRATCH + 12, format_args!("REP OUTSB down: RCX {count}, RSI {from:#x}"));
    report.expect(last == 13, format_args!("REP OUTSB down: the last byte is {last}"));

    fill(64, |_| 0);
    let (mut to, mut count) = (layout::SCRATCH, 0_u64);
    // SAFETY: stores nothing.
    unsafe { asm!("rep insd", inout("rdi") to, inout("rcx") count, in("dx") NOBODY) }
    report.expect(
        count == 0 && to == layout::SCRATCH && byte(0) == 0,
        format_args!("REP INSD of nothing does something"),
    );
    // SAFETY: stores into scratch memory.
    unsafe {
        asm!("insw", inout("rdi") to, in("dx") NOBODY);
        asm!("insd", inout("rdi") to, in("dx") NOBODY);
    }
    let right = (0..8).all(|index| byte(index) == if index < 6 { 0xff } else { 0 });
    report.expect(to == layout::SCRATCH + 6 && right, format_args!("INSW, INSD: RDI {to:#x}"));

    // 32-bit addresses, and a segment with a base for the source.
    let mut from = 0x1_0000_0000 + layout::SCRATCH;
    fill(64, |index| if index == 0 { 0x99 } else { 0 });
    // SAFETY: reads scratch memory.
    unsafe { asm!("outs dx, byte ptr [esi]", inout("rsi") from, in("dx") cell) }
    report.expect(port::in8(cell) == 0x99, format_args!("OUTSB with a 32-bit address: {:#x}", port::in8(cell)));
    report.expect(from == layout::SCRATCH + 1, format_args!("OUTSB with a 32-bit address: RSI {from:#x}"));
    let before = crate::cpu::rdmsr(crate::cpu::msr::FS_BASE);
    let _ = crate::cpu::try_wrmsr(crate::cpu::msr::FS_BASE, layout::SCRATCH - 0x1000);
    fill(64, |index| if index == 0 { 0x88 } else { 0 });
    let mut from = 0x1000_u64;
    // SAFETY: reads scratch memory.
    unsafe { asm!("outs dx, byte ptr fs:[rsi]", inout("rsi") from, in("dx") cell) }
    report.expect(port::in8(cell) == 0x88 && from == 0x1001, format_args!("OUTSB by FS: {:#x}", port::in8(cell)));
    let _ = crate::cpu::try_wrmsr(crate::cpu::msr::FS_BASE, before);
}

/// A string that runs into a page that is not there faults at it, with what came before done.
fn string_fault(report: &mut Report) {
    // The last three bytes of the identity map.
    const END: u64 = 1 << 32;
    let cell = port::scratch();
    let mut count: u64 = 10;
    let mut to = END;
    let fault = catch!(["rep insb"], inout("rdi") to, inout("rcx") count, in("dx") cell);
    match fault {
        Some(fault) => {
            report.expect(fault.vector == vector::PF && fault.error == 2, format_args!("REP INSB: {fault}"));
            let address = crate::cpu::cr2();
            report.expect(address == END, format_args!("REP INSB: CR2 {address:#x}"));
        }
        None => report.fail(format_args!("REP INSB into nothing is carried out")),
    }
    report.expect(count == 10 && to == END, format_args!("REP INSB: RCX {count}, RDI {to:#x}"));
    let mut from = 1_u64 << 63;
    match catch!(["outsb"], inout("rsi") from, in("dx") cell) {
        Some(fault) => {
            report.expect(fault.is_gp0(), format_args!("OUTSB from an address that is not canonical: {fault}"))
        }
        None => report.fail(format_args!("OUTSB from {from:#x} is carried out")),
    }
}

/// Accesses over the last port, whose permission bits lie behind the map's 64 Ki (APM vol. 2, 15.10.1), do no harm.
fn edge(report: &mut Report) {
    for number in [0xffff, 0xfffe, 0xfffd] {
        port::out32(number, 0x1234_5678);
        port::out16(number, 0x1234);
        let read = port::in32(number);
        report.expect_of_covisor(read == u32::MAX, format_args!("port {number:#x}: {read:#x}"));
        let read = port::in16(number);
        report.expect_of_covisor(read == u16::MAX, format_args!("port {number:#x}: {read:#x}"));
    }
    let to = layout::SCRATCH;
    // SAFETY: stores into scratch memory.
    unsafe { asm!("cld", "rep insd", inout("rdi") to => _, inout("rcx") 4_u64 => _, in("dx") 0xffff_u16) }
}
