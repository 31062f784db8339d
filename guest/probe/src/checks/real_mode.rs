//! Real mode (APM vol. 2, 14.1.4; SDM vol. 3, 21.1): exits, software interrupts, exceptions and interrupts by the vectors
//! in memory, and the way back.

use core::arch::global_asm;

use super::Check;
use crate::apic;
use crate::apic::register;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::exception::selector;
use crate::layout;
use crate::legacy;
use crate::legacy::Mode;
use crate::report::Report;

pub(super) const CHECKS: &[Check] = &[Check { name: "mode-real", run: real }];

/// Where the 16-bit code is; its segment begins there.
const CODE: u32 = layout::REAL;
/// The segment of data and stack.
const DATA: u32 = layout::REAL + 0x1000;
/// The vectors.
const VECTORS: u32 = layout::REAL + 0x2000;

/// Results, from [`DATA`] on.
mod result {
    /// CR0.
    pub(super) const CR0: u32 = 0x20;
    /// What SMSW says.
    pub(super) const STATUS: u32 = 0x24;
    /// CPUID leaf 0, EBX.
    pub(super) const CPUID: u32 = 0x28;
    /// What the port says.
    pub(super) const PORT: u32 = 0x2c;
    /// CS.
    pub(super) const CS: u32 = 0x30;
    /// How often INT 0x60 came.
    pub(super) const SOFTWARE: u32 = 0x34;
    /// By how much it returned behind itself.
    pub(super) const RETURN: u32 = 0x38;
    /// How often the interrupt came.
    pub(super) const HARDWARE: u32 = 0x3c;
    /// How often #UD came.
    pub(super) const UNDEFINED: u32 = 0x40;
    /// How often #DE came.
    pub(super) const DIVIDE: u32 = 0x44;
    /// How often #GP came.
    pub(super) const LIMIT: u32 = 0x48;
    /// Local APIC's base, low half.
    pub(super) const APIC_BASE: u32 = 0x4c;
    /// How often anything else came.
    pub(super) const OTHER: u32 = 0x50;
    /// That the end was reached.
    pub(super) const END: u32 = 0x54;
}

/// Far pointer to the 32-bit code to come back to, in [`DATA`].
const BACK: u32 = 0x10;
/// IDTR of real mode, in [`DATA`].
const IDT: u32 = 0x00;
/// ESP of 32-bit code, in [`DATA`].
const ESP: u32 = 0x18;
/// Far pointer to 16-bit code, in [`DATA`].
const THERE: u32 = 0x08;

/// The vectors of a software interrupt and of the local APIC's.
const SOFTWARE: u32 = 0x60;
const HARDWARE: u32 = 0x61;

global_asm!(
    r#"
    .section .text.probe_real, "ax"
    .code32
    .globl probe_real, probe_real_code, probe_real_end, probe_real_back
    .globl probe_real_software, probe_real_hardware, probe_real_undefined, probe_real_divide, probe_real_limit
    .globl probe_real_other
    /* 32-bit: goes to the 16-bit code, and comes back. */
probe_real:
    movl %esp, {data} + {esp}
    lidt {data} + {idt}
    ljmp *({data} + {there})
probe_real_back:
    movl ${data32}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl {data} + {esp}, %esp
    lidt {idt32}
    movl %cr0, %eax
    ret

    /* Copied to low memory. It begins in 16-bit protected mode. */
    .code16
    .balign 16
probe_real_code:
    movw ${data16}, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmp ${code} >> 4, $(1f - probe_real_code)
1:  movw ${data} >> 4, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x0ff0, %sp
    xorw %ax, %ax
    movw %ax, %es

    movl %cr0, %eax
    movl %eax, {r_cr0}
    smsww {r_status}
    xorl %eax, %eax
    cpuid
    movl %ebx, {r_cpuid}
    movw $0x3ff, %dx
    movb $0x5a, %al
    outb %al, %dx
    xorb %al, %al
    inb %dx, %al
    movb %al, {r_port}
    movw %cs, {r_cs}
    movl $0x1b, %ecx
    rdmsr
    movl %eax, {r_apic_base}

    int ${software}
2:  subl $(2b - probe_real_code), {r_return}
    ud2
    xorb %cl, %cl
    divb %cl
    /* MOV from DS:0x10000, behind the segment's end, by a 32-bit address. */
    .byte 0x67, 0x8a, 0x05, 0x00, 0x00, 0x01, 0x00

    movl ${self_ipi}, %ecx
    movl ${hardware}, %eax
    xorl %edx, %edx
    wrmsr
    sti
    nop
    nop
    cli
    movl $1, {r_end}
3:  movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl *{back}

probe_real_software:
    incl {r_software}
    pushw %bp
    movw %sp, %bp
    pushl %eax
    movzwl 2(%bp), %eax
    movl %eax, {r_return}
    popl %eax
    popw %bp
    iretw
probe_real_hardware:
    incl {r_hardware}
    pushal
    movl ${eoi}, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popal
    iretw
probe_real_undefined:
    incl {r_undefined}
    jmp 4f
probe_real_divide:
    incl {r_divide}
4:  pushw %bp                   /* behind the instruction of two bytes */
    movw %sp, %bp
    addw $2, 2(%bp)
    popw %bp
    iretw
probe_real_limit:
    incl {r_limit}
    pushw %bp
    movw %sp, %bp
    addw $7, 2(%bp)
    popw %bp
    iretw
probe_real_other:
    incl {r_other}
    jmp 3b
probe_real_end:
    .code64
    "#,
    data = const DATA,
    code = const CODE,
    esp = const ESP,
    idt = const IDT,
    there = const THERE,
    back = const BACK,
    idt32 = const legacy::IDT32,
    data32 = const selector::KERNEL_DATA,
    data16 = const selector::DATA16,
    software = const SOFTWARE,
    hardware = const HARDWARE,
    self_ipi = const msr::X2APIC + register::SELF_IPI / 16,
    eoi = const msr::X2APIC + register::EOI / 16,
    r_cr0 = const result::CR0,
    r_status = const result::STATUS,
    r_cpuid = const result::CPUID,
    r_port = const result::PORT,
    r_cs = const result::CS,
    r_apic_base = const result::APIC_BASE,
    r_return = const result::RETURN,
    r_software = const result::SOFTWARE,
    r_hardware = const result::HARDWARE,
    r_undefined = const result::UNDEFINED,
    r_divide = const result::DIVIDE,
    r_limit = const result::LIMIT,
    r_other = const result::OTHER,
    r_end = const result::END,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_real();
    fn probe_real_back();
    fn probe_real_code();
    fn probe_real_end();
    fn probe_real_software();
    fn probe_real_hardware();
    fn probe_real_undefined();
    fn probe_real_divide();
    fn probe_real_limit();
    fn probe_real_other();
}

/// The offset of a symbol in the 16-bit code.
fn offset(symbol: unsafe extern "C" fn()) -> u32 {
    legacy::address_of(symbol as *const ()) - legacy::address_of(probe_real_code as *const ())
}

/// Copies the code and fills vectors and data.
fn prepare() {
    let source = legacy::address_of(probe_real_code as *const ());
    for at in (0..offset(probe_real_end).next_multiple_of(4)).step_by(4) {
        legacy::write(CODE + at, legacy::read(source + at));
    }
    for at in (0..0x1000).step_by(4) {
        legacy::write(DATA + at, 0);
    }
    let segment = CODE >> 4 << 16;
    for vector in 0..256 {
        let handler = match vector {
            0 => probe_real_divide,
            6 => probe_real_undefined,
            13 => probe_real_limit,
            SOFTWARE => probe_real_software,
            HARDWARE => probe_real_hardware,
            _ => probe_real_other,
        };
        legacy::write(VECTORS + vector * 4, segment | offset(handler));
    }
    legacy::write(DATA + IDT, VECTORS << 16 | 0x3ff);
    legacy::write(DATA + IDT + 4, VECTORS >> 16);
    legacy::write(DATA + THERE, CODE);
    legacy::write(DATA + THERE + 4, u32::from(selector::CODE16));
    legacy::write(DATA + BACK, legacy::address_of(probe_real_back as *const ()));
    legacy::write(DATA + BACK + 4, u32::from(selector::CODE32));
}

/// A few instructions in real mode: those that exit, and every kind of event. QEMU's CPU knows no segment limits.
fn real(report: &mut Report) {
    if !apic::has_x2() {
        return report.skip(format_args!("no x2APIC"));
    }
    if let Err(fault) = apic::enter_x2apic() {
        return report.error(format_args!("x2APIC mode: {fault}"));
    }
    let (apic_base, _) = cpu::halves(cpu::rdmsr(msr::APIC_BASE));
    for round in 0..3 {
        prepare();
        // SAFETY: 32-bit code that keeps to the contract; real mode uses memory below 1 MiB only.
        let came = unsafe { legacy::run(&Mode::FLAT, probe_real, 0) };
        match came {
            Ok(cr0) => report.expect(cr0 & 1 == 1, format_args!("round {round}: CR0 is {cr0:#x} behind it")),
            Err(stop) => report.fail(format_args!("round {round}: {}", stop.fault)),
        }
        let cr0 = Mode::FLAT.cr0 & !1 | 1 << 4;
        for (name, at, wanted) in [
            ("CR0", result::CR0, cr0),
            ("SMSW", result::STATUS, cr0 & 0xffff),
            ("CPUID", result::CPUID, cpu::cpuid(0, 0).ebx),
            ("the port", result::PORT, 0x5a),
            ("CS", result::CS, CODE >> 4),
            ("APIC_BASE", result::APIC_BASE, apic_base),
            ("INT 0x60", result::SOFTWARE, 1),
            ("its return behind it", result::RETURN, 0),
            ("interrupts", result::HARDWARE, 1),
            ("#UD", result::UNDEFINED, 1),
            ("#DE", result::DIVIDE, 1),
            ("other events", result::OTHER, 0),
            ("the end", result::END, 1),
        ] {
            let seen = legacy::read(DATA + at);
            report.expect(seen == wanted, format_args!("round {round}: {name}: {seen:#x}, not {wanted:#x}"));
        }
        let limit = legacy::read(DATA + result::LIMIT);
        report.expect_of_cpu(limit == 1, format_args!("round {round}: #GP behind a segment's end: {limit}"));
    }
    exception::forget_interrupts();
    if let Err(fault) = apic::enter_xapic() {
        report.error(format_args!("back to xAPIC mode: {fault}"));
    }
}
