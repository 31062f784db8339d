//! Attacks on the way into the guest: state that a guest can make by ordinary instructions and that the next entry has to
//! carry (SDM vol. 3, 27.3.1 has what VMX demands of it; APM vol. 2, 15.5.1 what SVM does).

use core::arch::asm;
use core::arch::global_asm;

use crate::cmdline::CommandLine;
use crate::cpu;
use crate::cpu::cr4;
use crate::cpu::msr;
use crate::exception;
use crate::exception::GDT;
use crate::exception::TSS;
use crate::exception::selector;
use crate::kernel;
use crate::layout;
use crate::legacy;
use crate::legacy::Mode;
use crate::report::is_cpu_emulated;
use crate::rng::Rng;
use crate::user;

/// VMXON of a region at `[rsp - 64]`, in 64-bit and in 32-bit code.
const VMXON: [u8; 6] = [0xf3, 0x0f, 0xc7, 0x74, 0x24, 0xc0];

global_asm!(
    r#"
    .section .text.probe_hostile_entry, "ax"
    .code32
    .globl probe_vmxon32, probe_vm86
probe_vmxon32:
    movl %cr4, %edx
    orl $0x2000, %edx
    movl %edx, %cr4
    .byte 0xf3, 0x0f, 0xc7, 0x74, 0x24, 0xc0
    ret
    /* Loads ESP from EAX, and returns by what is there. */
probe_vm86:
    movl %eax, %esp
    iretl
    .code64
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_vmxon32();
    fn probe_vm86();
}

/// Tries to get into VMX operation in every way: the firmware's switch, CR4.VMXE, VMXON with and without it, in 64-bit
/// code of rings 0 and 3, in 32-bit code.
pub(super) fn vmx_on(_: &CommandLine) {
    let say = |name: &str, raised: Option<exception::Fault>| match raised {
        Some(fault) => println!("probe: vmx-on: {name}: {fault}"),
        None => println!("probe: vmx-on: {name}: carried out"),
    };
    for value in [0, 1, 5, 7, u64::MAX] {
        say("FEATURE_CONTROL", cpu::try_wrmsr(msr::FEATURE_CONTROL, value).err());
    }
    for bits in [cr4::VMXE, cr4::VMXE | cr4::SMXE] {
        say("CR4.VMXE", cpu::try_set_cr4(cpu::cr4() | bits).err());
        say("VMXON", kernel::raised(&VMXON));
        say("VMXON in ring 3", user::raised(&VMXON));
        say("VMXON in compatibility mode", user::run_as(&VMXON, selector::USER_CODE32, 2));
        // SAFETY: 32-bit code that keeps to the contract.
        let came = unsafe { legacy::run(&Mode::FLAT, probe_vmxon32, 0) };
        say("VMXON in 32-bit mode", came.err().map(|stop| stop.fault));
    }
}

/// The breakpoint is on the word that MOV SS reads, so #DB waits until behind the next instruction (CVE-2018-8897,
/// CVE-2018-1087): one that enters a handler, one that leaves the guest, one that raises #DB itself. In ring 0 and ring 3.
pub(super) fn mov_ss_flood(_: &CommandLine) {
    /// DR7: breakpoint 0 for reads and writes of four bytes.
    const WATCH: u64 = 0b1111 << 16 | 1 << 10 | 1 << 1;
    /// The stack of `user::run`.
    const USER_STACK: u64 = layout::USER_PAGE + 0x1f_fff0;
    /// What comes behind MOV SS: INT n, INT3, INT1, CPUID, SYSCALL, HLT, UD2, PUSHF.
    const BEHIND: [&[u8]; 8] =
        [&[0xcd, 0x55], &[0xcc], &[0xf1], &[0x0f, 0xa2], &[0x0f, 0x05], &[0xf4], &[0x0f, 0x0b], &[0x9c, 0x58]];
    /// Where SYSCALL leads: to an INT3.
    const SYSCALL_TARGET: u64 = 0x7a_1000;
    let word = core::ptr::with_exposed_provenance_mut::<u32>(0x7a_0000);
    let user_word = core::ptr::with_exposed_provenance_mut::<u32>(0x5f_fff0);
    // SAFETY: scratch memory, and the top of ring 3's page.
    unsafe {
        word.write_volatile(u32::from(selector::KERNEL_DATA));
        user_word.write_volatile(u32::from(selector::USER_DATA));
        word.add(0x400).write_volatile(0xcccc_cccc);
    }
    let _ = cpu::try_wrmsr(msr::LSTAR, SYSCALL_TARGET);
    let _ = cpu::try_wrmsr(msr::STAR, u64::from(selector::KERNEL_CODE) << 32);
    loop {
        for behind in BEHIND {
            let mut code = [0x90_u8; 16];
            // HLT in ring 0 waits for ever.
            if behind != [0xf4] {
                // MOV SS from an absolute address.
                let load = [0x8e, 0x14, 0x25, 0x00, 0x00, 0x7a, 0x00];
                let bytes = load.into_iter().chain(behind.iter().copied());
                code.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
                let _ = cpu::try_set_dr0(0x7a_0000);
                let _ = cpu::try_set_dr7(WATCH);
                let _ = kernel::raised(&code);
            }
            // MOV SS from the top of the stack.
            let bytes = [0x8e, 0x14, 0x24].into_iter().chain(behind.iter().copied());
            code = [0x90; 16];
            code.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
            let _ = cpu::try_set_dr0(USER_STACK);
            let _ = cpu::try_set_dr7(WATCH);
            let _ = user::run(&code);
            cpu::clear_dr6();
        }
    }
}

/// A descriptor: of random bits, or of a kind that can be loaded, with random details. Code begins at 0, so that the guest
/// does not run away from itself. QEMU's CPU takes code that is said to be 64-bit and 32-bit, which no other one loads
/// (APM vol. 2, 4.8.1) and no VMRUN enters.
fn descriptor(rng: &mut Rng) -> u64 {
    /// Present.
    const PRESENT: u64 = 1 << 47;
    /// Code or data.
    const SEGMENT: u64 = 1 << 44;
    /// Code, among those.
    const CODE: u64 = SEGMENT | 1 << 43;
    /// The base.
    const BASE: u64 = 0xff << 56 | 0xff_ffff << 16;
    /// Code has 64 bits; 32 bits.
    const LONG: u64 = 1 << 53;
    const BIG: u64 = 1 << 54;
    let random = rng.draw();
    let value = match rng.below(4) {
        0 => random,
        1 => random | PRESENT,
        _ => random | PRESENT | SEGMENT,
    };
    if value & CODE != CODE {
        return value;
    }
    let value = value & !BASE;
    if is_cpu_emulated() && value & LONG != 0 { value & !BIG } else { value }
}

/// Segments of every kind, flags, tasks: by MOV, LLDT, LTR, far returns, IRET to every ring, and virtual-8086 mode, each
/// with an exit in the state that it made.
pub(super) fn entry_state(line: &CommandLine) {
    let mut rng = super::rng(line);
    loop {
        for word in 0..2 {
            let value = descriptor(&mut rng);
            GDT.set(usize::from(selector::SPARE / 8) + word, value);
        }
        match rng.below(6) {
            0 => load_segment(&mut rng),
            1 => load_system_segment(&mut rng),
            2 | 3 => return_to(&mut rng),
            4 => virtual_8086(&mut rng),
            _ => load_tables(&mut rng),
        }
    }
}

/// The made-up descriptor's selector, or one of those that exist, of any ring.
fn pick(rng: &mut Rng) -> u64 {
    let base = if rng.below(2) == 0 { u64::from(selector::SPARE) } else { rng.below(16) * 8 };
    base | rng.below(4)
}

/// Loads data segments, exits, and loads what was there.
fn load_segment(rng: &mut Rng) {
    /// Loads a segment register, exits, and loads the kernel's data segment.
    macro_rules! load {
        ($register:literal, $value:expr) => {
            drop(exception::guarded(|| {
                // SAFETY: data is reached by flat addresses in 64-bit code, whatever the segment.
                unsafe {
                    asm!(
                        concat!("mov ", $register, ", {0:e}"), "mov r15, rbx", "cpuid", "mov rbx, r15",
                        concat!("mov ", $register, ", {1:e}"),
                        in(reg) $value, in(reg) u64::from(selector::KERNEL_DATA), out("r15") _,
                        inout("eax") 0 => _, inout("ecx") 0 => _, out("edx") _,
                    );
                }
            }))
        };
    }
    let value = pick(rng);
    match rng.below(5) {
        0 => load!("ds", value),
        1 => load!("es", value),
        2 => load!("fs", value),
        3 => load!("gs", value),
        _ => load!("ss", value),
    }
    for index in [msr::FS_BASE, msr::GS_BASE] {
        let _ = cpu::try_wrmsr(index, 0);
    }
}

/// LLDT and LTR; the kernel's task comes back afterwards.
fn load_system_segment(rng: &mut Rng) {
    /// The type field of a descriptor.
    const TYPE: u64 = 0x1f << 40;
    /// Types of an LDT and of an available task.
    const LDT: u64 = 2 << 40;
    const TASK: u64 = 9 << 40;
    let kind = if rng.below(2) == 0 { LDT } else { TASK };
    let low = usize::from(selector::SPARE / 8);
    if rng.below(4) != 0 {
        GDT.set(low, GDT.get(low) & !TYPE | kind | 1 << 47);
    }
    if rng.below(2) == 0 {
        GDT.set(low + 1, 0);
    }
    let value = pick(rng);
    let _ =
        if rng.below(2) == 0 { catch!(["lldt {0:x}"], in(reg) value) } else { catch!(["ltr {0:x}"], in(reg) value) };
    let _ = cpu::cpuid(0, 0);
    let _ = catch!(["lldt {0:x}"], in(reg) 0_u64);
    exception::install();
}

/// IRET or a far return to any code segment, stack segment and flags; there an exit and INT3.
fn return_to(rng: &mut Rng) {
    /// Flags that may be anything: all but the reserved ones.
    const FLAGS: u64 = 0x7f_7fd5;
    const CODE: [u8; 3] = [0x0f, 0xa2, 0xcc];
    let page = core::ptr::with_exposed_provenance_mut::<u8>(0x40_0000);
    for (index, byte) in CODE.into_iter().enumerate() {
        // SAFETY: ring 3's page.
        unsafe { page.add(index).write_volatile(byte) }
    }
    let (code, stack, flags) = (pick(rng), pick(rng), rng.draw() & FLAGS | 2);
    let by_iret = rng.below(4) != 0;
    let _ = exception::guarded(|| {
        // SAFETY: the next exception unwinds to `guarded`.
        unsafe {
            if by_iret {
                asm!(
                    "push {ss}", "push {rsp}", "push {flags}", "push {cs}", "push {rip}", "iretq",
                    ss = in(reg) stack, rsp = in(reg) layout::USER_PAGE + 0x1f_fff0, flags = in(reg) flags,
                    cs = in(reg) code, rip = in(reg) layout::USER_PAGE, in("eax") 0, in("ecx") 0,
                );
            } else {
                asm!(
                    "push {cs}", "push {rip}", "retfq",
                    cs = in(reg) code, rip = in(reg) layout::USER_PAGE, in("eax") 0, in("ecx") 0,
                );
            }
        }
    });
    exception::install();
}

/// Virtual-8086 mode with any segments and flags, from 32-bit code; there an exit.
fn virtual_8086(rng: &mut Rng) {
    /// CPUID, HLT.
    const CODE: u32 = 0x00f4_a20f;
    /// Flags: virtual-8086 mode, and the bit that is always set.
    const VM: u32 = 1 << 17 | 2;
    const FLAGS: u32 = 0x3d_7fd5;
    /// EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
    const FRAME: u32 = legacy::TABLES;
    legacy::write(layout::REAL, CODE);
    let (random, more) = cpu::halves(rng.draw());
    let values =
        [0, layout::REAL >> 4, random & FLAGS | VM, more & 0xffff, more >> 16, random >> 16, more, random, more];
    for (index, value) in (0..).zip(values) {
        let value = if index >= 4 { value & 0xffff } else { value };
        legacy::write(FRAME + index * 4, value);
    }
    // What is the upper half of RSP0 in long mode is SS0 here.
    let before = TSS.get(1);
    TSS.set(1, before & !0xffff_ffff | u64::from(selector::KERNEL_DATA));
    // SAFETY: 32-bit code; the fault's stub keeps to the contract.
    let _ = unsafe { legacy::run(&Mode::FLAT, probe_vm86, FRAME) };
    TSS.set(1, before);
}

/// LGDT and LIDT of any limit and base, with an exit, and back.
fn load_tables(rng: &mut Rng) {
    let (limit, base) = (u16::try_from(rng.draw() & 0xffff).unwrap_or(0), rng.draw());
    let wrong = exception::TablePointer { limit, base: if rng.below(2) == 0 { base } else { base >> 17 } };
    let idt = exception::TablePointer { limit: 4095, base: exception::IDT.address() };
    let gdt = exception::TablePointer { limit: 103, base: GDT.address() };
    // Nothing is loaded from the tables, and nothing raised, before they are back.
    let _ = catch!(
        ["lgdt [{0}]", "mov r15, rbx", "cpuid", "mov rbx, r15", "lgdt [{1}]"],
        in(reg) &raw const wrong, in(reg) &raw const gdt, out("r15") _, inout("eax") 0 => _, inout("ecx") 0 => _,
        out("edx") _
    );
    let _ = catch!(
        ["lidt [{0}]", "mov r15, rbx", "cpuid", "mov rbx, r15", "lidt [{1}]"],
        in(reg) &raw const wrong, in(reg) &raw const idt, out("r15") _, inout("eax") 0 => _, inout("ecx") 0 => _,
        out("edx") _
    );
}
