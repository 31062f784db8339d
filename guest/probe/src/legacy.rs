//! Out of long mode and back: 32-bit code in protected mode, with the paging that the caller likes (APM vol. 2, 14.4 to
//! 14.6; SDM vol. 3, 10.8.5).
//!
//! The code here and what it calls runs where linear and physical addresses are the same in every mode. All that it works
//! on lies at fixed addresses from [`layout::LEGACY`] on, so that no instruction of 32-bit code refers to a symbol: the
//! library can then be linked for any target.

use core::arch::global_asm;

use crate::cpu;
use crate::exception::Fault;
use crate::exception::selector;
use crate::layout;

/// Fields of the context, from [`layout::LEGACY`] on.
mod context {
    use crate::layout;

    const BASE: u32 = layout::LEGACY;
    /// RSP, eight bytes.
    pub(super) const RSP: u32 = BASE;
    /// CR0 of long mode; each control register has eight bytes.
    pub(super) const CR0: u32 = BASE + 0x08;
    /// CR3 of long mode.
    pub(super) const CR3: u32 = BASE + 0x10;
    /// CR4 of long mode.
    pub(super) const CR4: u32 = BASE + 0x18;
    /// Far pointer to 32-bit code.
    pub(super) const FAR32: u32 = BASE + 0x20;
    /// Far pointer to 64-bit code.
    pub(super) const FAR64: u32 = BASE + 0x28;
    /// CR0 to run with; from here on four bytes each.
    pub(super) const NEW_CR0: u32 = BASE + 0x30;
    /// CR3 to run with.
    pub(super) const NEW_CR3: u32 = BASE + 0x34;
    /// CR4 to run with.
    pub(super) const NEW_CR4: u32 = BASE + 0x38;
    /// The code.
    pub(super) const CODE: u32 = BASE + 0x3c;
    /// What it gets in EAX.
    pub(super) const ARGUMENT: u32 = BASE + 0x40;
    /// What it left in EAX.
    pub(super) const RESULT: u32 = BASE + 0x44;
    /// The vector that ended it, or [`NOTHING`].
    pub(super) const VECTOR: u32 = BASE + 0x48;
    /// Its error code.
    pub(super) const ERROR: u32 = BASE + 0x4c;
    /// Where it came.
    pub(super) const EIP: u32 = BASE + 0x50;
    /// CR2 then.
    pub(super) const CR2: u32 = BASE + 0x54;
    /// IDTR of long mode, ten bytes.
    pub(super) const IDT64: u32 = BASE + 0x60;
    /// IDTR of 32-bit code, likewise.
    pub(super) const IDT32: u32 = BASE + 0x70;
    /// The interrupt table of 32-bit code: 256 entries of eight bytes.
    pub(super) const TABLE: u32 = BASE + 0x1000;
    /// No vector.
    pub(super) const NOTHING: u32 = u32::MAX;
}

/// The top of the stack of 32-bit code.
pub const STACK_TOP: u32 = layout::LEGACY + 0x4000;
/// Where the IDTR of 32-bit code is kept, for code that has another in between.
pub const IDT32: u32 = context::IDT32;
/// Free for tables and data of the code: 64 KiB.
pub const TABLES: u32 = layout::LEGACY + 0x1_0000;

/// Vectors whose exceptions push an error code: 8, 10 to 14, 17, 21, 29, 30.
const WITH_ERROR: u32 = 0x6022_7d00;

global_asm!(
    r#"
    .section .text.probe_legacy, "ax"
    .code64
    .globl probe_legacy, probe_legacy_stubs
    /* void probe_legacy(void): saves what long mode needs again. */
probe_legacy:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %rsp, {rsp}
    movq %cr0, %rax
    movq %rax, {cr0}
    movq %cr3, %rax
    movq %rax, {cr3}
    movq %cr4, %rax
    movq %rax, {cr4}
    sidt {idt64}
    leaq 1f(%rip), %rax
    movl %eax, {far32}
    movw ${code32}, {far32} + 4
    leaq 5f(%rip), %rax
    movl %eax, {far64}
    movw ${code64}, {far64} + 4
    lidt {idt32}
    ljmpl *{far32}

    .code32
1:  movl ${data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ${stack}, %esp
    movl %cr0, %eax             /* out of long mode: paging off, LME off */
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl {new_cr4}, %eax
    movl %eax, %cr4
    movl {new_cr3}, %eax
    movl %eax, %cr3
    movl {new_cr0}, %eax
    movl %eax, %cr0
    jmp 2f
2:  movl {argument}, %eax
    call *{code}
    movl %eax, {result}

3:  cli
    cld
    movl ${data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl ${stack}, %esp
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl {cr4}, %eax
    movl %eax, %cr4
    movl {cr3}, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl {cr0}, %eax
    movl %eax, %cr0
    jmp 4f
4:  ljmp *{far64}

    .code64
5:  movq {rsp}, %rsp
    lidt {idt64}
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    /* Stubs of 16 bytes: whatever comes ends the code. */
    .code32
    .balign 16
probe_legacy_stubs:
    .Lprobe_legacy_i = 0
    .rept 256
    .balign 16
    pushl $.Lprobe_legacy_i
    jmp 6f
    .Lprobe_legacy_i = .Lprobe_legacy_i + 1
    .endr
6:  movl ${data}, %eax
    movl %eax, %ds
    popl {vector}
    movl {vector}, %eax
    cmpl $32, %eax
    jae 7f
    movl ${with_error}, %edx
    btl %eax, %edx
    jnc 7f
    popl {error}
7:  popl {eip}
    movl %cr2, %eax
    movl %eax, {cr2}
    jmp 3b
    .code64
    "#,
    rsp = const context::RSP,
    cr0 = const context::CR0,
    cr3 = const context::CR3,
    cr4 = const context::CR4,
    idt64 = const context::IDT64,
    idt32 = const context::IDT32,
    far32 = const context::FAR32,
    far64 = const context::FAR64,
    new_cr0 = const context::NEW_CR0,
    new_cr3 = const context::NEW_CR3,
    new_cr4 = const context::NEW_CR4,
    code = const context::CODE,
    argument = const context::ARGUMENT,
    result = const context::RESULT,
    vector = const context::VECTOR,
    error = const context::ERROR,
    eip = const context::EIP,
    cr2 = const context::CR2,
    stack = const STACK_TOP,
    with_error = const WITH_ERROR,
    code32 = const selector::CODE32,
    code64 = const selector::KERNEL_CODE,
    data = const selector::KERNEL_DATA,
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_legacy();
    fn probe_legacy_stubs();
}

/// The control registers of 32-bit code. CR0 has PE.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// CR0.
    pub cr0: u32,
    /// CR3.
    pub cr3: u32,
    /// CR4.
    pub cr4: u32,
}

/// Protected mode, with floating-point errors as exceptions as elsewhere.
const PROTECTED: u32 = 0x21;
/// CR0.PG and CR0.WP.
const PAGING: u32 = 0x8001_0000;

impl Mode {
    /// Protected mode without paging.
    pub const FLAT: Self = Self { cr0: PROTECTED, cr3: 0, cr4: 0 };

    /// Protected mode with paging by the tables at `cr3`.
    #[must_use]
    pub const fn paged(cr3: u32, cr4: u32) -> Self {
        Self { cr0: PROTECTED | PAGING, cr3, cr4 }
    }
}

/// What ended 32-bit code other than its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The exception or interrupt.
    pub fault: Fault,
    /// CR2 when it came.
    pub cr2: u32,
}

/// Reads a word below 4 GiB.
#[must_use]
pub fn read(address: u32) -> u32 {
    // SAFETY: the caller's own memory, which nothing else has a reference into.
    unsafe { core::ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() }
}

/// Writes a word below 4 GiB.
pub fn write(address: u32, value: u32) {
    // SAFETY: as in `read`.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address as usize).write_volatile(value) }
}

/// Writes two.
pub fn write_long(address: u32, value: u64) {
    let (low, high) = cpu::halves(value);
    write(address, low);
    write(address + 4, high);
}

/// The address of code or data of the image, which lies below 4 GiB.
#[must_use]
pub fn address_of(symbol: *const ()) -> u32 {
    cpu::halves(symbol.expose_provenance() as u64).0
}

/// Runs 32-bit code in this mode, in ring 0 with flat segments and interrupts off, and comes back to long mode. The code
/// gets `argument` in EAX and may change all general registers; it returns its result in EAX.
///
/// # Errors
/// The exception or interrupt that ended it, on the way into the mode as well.
///
/// # Safety
/// `code` is 32-bit code that keeps to this, and linear addresses up to 16 MiB are physical ones in the mode.
pub unsafe fn run(mode: &Mode, code: unsafe extern "C" fn(), argument: u32) -> Result<u32, Stop> {
    let stubs = address_of(probe_legacy_stubs as *const ());
    for vector in 0..256 {
        let target = stubs + vector * 16;
        write(context::TABLE + vector * 8, u32::from(selector::CODE32) << 16 | target & 0xffff);
        write(context::TABLE + vector * 8 + 4, target & 0xffff_0000 | 0x8e00);
    }
    // The limit, and the base in six bytes.
    write(context::IDT32, context::TABLE << 16 | 0x7ff);
    write(context::IDT32 + 4, context::TABLE >> 16);
    write(context::IDT32 + 8, 0);
    for (field, value) in [
        (context::NEW_CR0, mode.cr0),
        (context::NEW_CR3, mode.cr3),
        (context::NEW_CR4, mode.cr4),
        (context::CODE, address_of(code as *const ())),
        (context::ARGUMENT, argument),
        (context::VECTOR, context::NOTHING),
        (context::ERROR, 0),
    ] {
        write(field, value);
    }
    // SAFETY: by the contract. The task register stays as it is, since no event changes the privilege level.
    unsafe { probe_legacy() };
    match read(context::VECTOR) {
        context::NOTHING => Ok(read(context::RESULT)),
        vector => Err(Stop {
            fault: Fault {
                vector: u8::try_from(vector).unwrap_or(u8::MAX),
                error: u64::from(read(context::ERROR)),
                rip: u64::from(read(context::EIP)),
            },
            cr2: read(context::CR2),
        }),
    }
}
