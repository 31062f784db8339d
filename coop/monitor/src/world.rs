//! The world switch, the monitor's half. The host's half (`world` of the crate covisor-coop) jumps to the landing, and gets control
//! back at `Area::host_rip`.
//!
//! ```text
//! host's half          │ landing                          │ monitor      │ leave                            │ host's half
//! H-GDT, H-IDT         │ M-GDT  TR  M-IDT                 │              │                          H-IDT   │ H-GDT …
//! transition root      │                kernel root, stack│              │ transition root, H-stack         │ host's root
//! ```
//!
//! What holds at each instruction of this file:
//! * Interrupts are off; breakpoints are, too, where the guest's could hit.
//! * While the H-IDT is loaded, RDI is the address of the [`Crossing`]: its handlers note there what came.
//! * The code segment is `RING0_CODE`, which both GDTs have at the same place, so gates and returns through either find it.
//! * The H-IDT's gates use the current stack, which is the H-stack as long as it is loaded. The M-IDT's for NMI, machine check,
//!   debug exception and double fault have stacks of their own in the ENTRY region. They need TR, so that is loaded before.
//! * SS is null, which 64-bit code of ring 0 may have, and which no GDT can spoil.

use core::arch::global_asm;
use core::mem::offset_of;

use covisor_monitor::area::Area;
use covisor_monitor::area::DR6_RESET;
use covisor_monitor::area::ExitKind;
use covisor_monitor::area::ExitRecord;
use covisor_monitor::area::Segments;
use covisor_monitor::crossing::Crossing;
use covisor_monitor::crossing::TablePointer;
use covisor_monitor::image::MAGIC;
use covisor_monitor::layout;
use covisor_monitor::layout::AREA;
use covisor_monitor::layout::PAGE;
use covisor_monitor::layout::selector;

/// `FS_BASE`.
const MSR_FS_BASE: u32 = 0xc000_0100;
/// `GS_BASE`.
const MSR_GS_BASE: u32 = 0xc000_0101;
/// `KERNEL_GS_BASE`.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Byte of a descriptor that has its type.
const DESCRIPTOR_TYPE: u64 = 5;
/// That byte of a task state segment that is not in use: present, available.
const TSS_AVAILABLE: u32 = 0x89;
/// DR7: a breakpoint is enabled.
const DR7_ENABLES: u32 = 0xff;
/// DR7 without breakpoints.
const DR7_RESET: u32 = 0x400;

global_asm!(
    // The header: `image::Header`.
    ".pushsection .entry.header, \"a\", @progbits",
    ".quad {magic}",
    ".quad monitor_entry_pages",
    ".quad monitor_text_pages",
    ".quad monitor_constant_pages",
    ".quad monitor_syscall64",
    ".quad monitor_syscall32",
    ".quad monitor_landing",
    ".popsection",

    // Loads an MSR with a value of the area, whose address is in RBX.
    ".macro monitor_load_msr msr, field",
    "mov ecx, \\msr",
    "mov eax, [rbx + \\field]",
    "mov edx, [rbx + \\field + 4]",
    "wrmsr",
    ".endm",
    // Saves an MSR there.
    ".macro monitor_save_msr msr, field",
    "mov ecx, \\msr",
    "rdmsr",
    "mov [rbx + \\field], eax",
    "mov [rbx + \\field + 4], edx",
    ".endm",
    // Loads a selector of the area, if it is not loaded. A fault at the load sets RAX to 0 and tries again: see `entry`.
    ".macro monitor_load_selector register, field",
    "mov ecx, \\register",
    "mov eax, [rbx + \\field]",
    "cmp eax, ecx",
    "je 2f",
    "mov \\register, eax",
    "2:",
    ".endm",
    // Saves one.
    ".macro monitor_save_selector register, field",
    "mov eax, \\register",
    "mov [rbx + \\field], rax",
    ".endm",

    ".pushsection .entry.text, \"ax\", @progbits",

    // In. The transition root is loaded, RSP is the H-stack, RDI the crossing.
    ".global monitor_landing",
    "monitor_landing:",
    "movabs rbx, {area}",
    // The monitor's GDT. The code segment stays valid, the H-IDT's gates too.
    "lgdt [rip + 8f]",
    // The CPU marks a TSS as busy when it is loaded, and refuses a busy one; so it was left at the last crossing.
    "mov byte ptr [rbx + {tss_type}], {tss_available}",
    "mov eax, {tss_selector}",
    "ltr ax",
    // With TR its stacks are there: the monitor's IDT.
    "lidt [rip + 9f]",
    // What the H-IDT noted is for the host, and at once.
    "mov rax, [rdi + {crossing_pending}]",
    "or [rbx + {pending}], rax",
    "jnz monitor_turn_back",
    // Nothing of the host's stays in the CPU's buffers where guests could see it.
    "cmp qword ptr [rdi + {clear_buffers}], 0",
    "je 2f",
    "verw word ptr [rip + 7f]",
    "2:",
    // The monitor's own root and stack; from here on the H-stack is out of reach.
    "mov rax, [rbx + {kernel_cr3}]",
    "mov cr3, rax",
    "movabs rsp, {stack_top}",
    // CR0 differs from the host's by TS, if at all.
    "mov rax, cr0",
    "mov rcx, [rbx + {cr0}]",
    "cmp rax, rcx",
    "je 2f",
    "mov cr0, rcx",
    "2:",
    // The LDT's descriptor never changes, but the host may have loaded another.
    "mov eax, {ldt_selector}",
    "sldt ecx",
    "cmp eax, ecx",
    "je 2f",
    "lldt ax",
    "2:",
    // The guest's selectors; loading FS and GS changes their bases, so these come after.
    ".global selector_loads_begin",
    "selector_loads_begin:",
    "monitor_load_selector ds, {ds}",
    "monitor_load_selector es, {es}",
    "monitor_load_selector fs, {fs}",
    "monitor_load_selector gs, {gs}",
    ".global selector_loads_end",
    "selector_loads_end:",
    "monitor_load_msr {msr_fs_base}, {fs_base}",
    "monitor_load_msr {msr_gs_base}, {gs_base}",
    "monitor_load_msr {msr_kernel_gs_base}, {other_gs_base}",
    // Breakpoints, where the guest has some; their addresses are loaded already.
    "mov rax, [rbx + {dr7}]",
    "test al, {dr7_enables}",
    "jz 2f",
    "mov ecx, {dr6_reset}",
    "mov dr6, rcx",
    "mov dr7, rax",
    "2:",
    // A frame pointer of 0 ends backtraces.
    "xor ebp, ebp",
    "call monitor_resume",
    "ud2",

    // Out. The kernel root is loaded; does not return.
    ".global monitor_leave",
    "monitor_leave:",
    "movabs rbx, {area}",
    // No breakpoint of the guest's may hit the host.
    "mov rax, [rbx + {dr7}]",
    "test al, {dr7_enables}",
    "jz 2f",
    "mov eax, {dr7_reset}",
    "mov dr7, rax",
    "mov eax, {dr6_reset}",
    "mov dr6, rax",
    "2:",
    // The guest loads selectors and, with them, bases as it likes.
    "monitor_save_selector ds, {ds}",
    "monitor_save_selector es, {es}",
    "monitor_save_selector fs, {fs}",
    "monitor_save_selector gs, {gs}",
    "monitor_save_msr {msr_fs_base}, {fs_base}",
    "monitor_save_msr {msr_gs_base}, {gs_base}",
    "monitor_save_msr {msr_kernel_gs_base}, {other_gs_base}",
    // The transition root; the monitor's stack is out of reach from here on, which only exceptions would need that cannot come.
    "mov rdi, [rbx + {host_rsp}]",
    "mov rax, [rbx + {transition_cr3}]",
    "mov cr3, rax",
    "3:",
    // The H-stack, then the IDT that needs it. TR is still the monitor's, and not used.
    "mov rsp, rdi",
    "lidt [rdi + {crossing_idt}]",
    "jmp qword ptr [rbx + {host_rip}]",

    // Back at once: something for the host came on the way. The guest did not run.
    "monitor_turn_back:",
    "mov qword ptr [rbx + {exit_kind}], {attention}",
    "jmp 3b",

    // A selector for VERW that can be written to, as it wants.
    "7: .word {data_selector}",
    // Operands of LGDT and LIDT: limit and base.
    "8: .word {gdt_limit}",
    ".quad {gdt}",
    "9: .word {idt_limit}",
    ".quad {idt}",
    ".popsection",

    magic = const MAGIC,
    area = const AREA,
    gdt = const layout::GDT,
    gdt_limit = const layout::GDT_PAGES * PAGE - 1,
    idt = const layout::IDT,
    idt_limit = const PAGE - 1,
    tss_type = const tss_descriptor() + DESCRIPTOR_TYPE - AREA,
    tss_available = const TSS_AVAILABLE,
    tss_selector = const selector::TSS,
    ldt_selector = const selector::LDT,
    data_selector = const selector::RING0_DATA,
    stack_top = const layout::STACK_TOP,
    crossing_pending = const offset_of!(Crossing, pending),
    crossing_idt = const offset_of!(Crossing, idt) + TablePointer::OPERAND,
    clear_buffers = const offset_of!(Crossing, clear_buffers),
    pending = const offset_of!(Area, pending_host),
    kernel_cr3 = const offset_of!(Area, kernel_cr3),
    transition_cr3 = const offset_of!(Area, transition_cr3),
    host_rsp = const offset_of!(Area, host_rsp),
    host_rip = const offset_of!(Area, host_rip),
    exit_kind = const offset_of!(Area, exit) + offset_of!(ExitRecord, kind),
    attention = const ExitKind::Attention as u32,
    cr0 = const offset_of!(Area, cr0),
    ds = const offset_of!(Area, segments) + offset_of!(Segments, ds),
    es = const offset_of!(Area, segments) + offset_of!(Segments, es),
    fs = const offset_of!(Area, segments) + offset_of!(Segments, fs),
    gs = const offset_of!(Area, segments) + offset_of!(Segments, gs),
    fs_base = const offset_of!(Area, segments) + offset_of!(Segments, fs_base),
    gs_base = const offset_of!(Area, segments) + offset_of!(Segments, gs_base),
    other_gs_base = const offset_of!(Area, segments) + offset_of!(Segments, other_gs_base),
    msr_fs_base = const MSR_FS_BASE,
    msr_gs_base = const MSR_GS_BASE,
    msr_kernel_gs_base = const MSR_KERNEL_GS_BASE,
    dr7 = const offset_of!(Area, debug) + 5 * size_of::<u64>(),
    dr7_enables = const DR7_ENABLES,
    dr6_reset = const DR6_RESET,
    dr7_reset = const DR7_RESET,
);

/// Address of the descriptor of the monitor's task state segment.
const fn tss_descriptor() -> u64 {
    layout::GDT + (selector::TSS & !selector::RPL) as u64
}

unsafe extern "C" {
    fn monitor_leave() -> !;
    /// Where the landing loads the guest's selectors, which fails where the guest has changed the descriptor since it had one. Then
    /// EAX is to be 0, and the instruction is to be tried again.
    pub(crate) safe static selector_loads_begin: u8;
    /// The end of that.
    pub(crate) safe static selector_loads_end: u8;
}

/// Leaves the guest for the host, for what [`Area::exit`] says; the registers are in [`Area::frame`]. The next entry goes to
/// `monitor_resume`, with a new stack.
pub(crate) extern "sysv64" fn leave_world() -> ! {
    // SAFETY: the code that follows is ours, needs nothing but the area, and comes back by the landing only.
    unsafe { monitor_leave() }
}
