//! The world switch, the host's half. The monitor's half is `world` of its image.
//!
//! ```text
//! cross()                     covisor_coop_crossing                                      the monitor's half
//! host's root, GDT, IDT, TR ─► H-stack  H-GDT  H-IDT  transition root  CR4 ────────────► landing
//!                                                                                              ⋮
//! host's GDT ◄── host's stack, CS ◄── host's IDT ◄── SS, GS base, CR0, TR, root, CR4  H-GDT ◄── leave
//! ```
//!
//! It lies in the driver's code, at the host's address for it, which the transition root has too. The host's descriptor tables are
//! read, and none is written: the H-GDT is a copy of the host's with the monitor's ring 0 in its last page.
//!
//! What holds at each instruction:
//! * Interrupts are off, and no breakpoint is enabled.
//! * While the H-IDT is loaded, RDI is the crossing's address, RSP is in the H-stack, which ends there, and the code segment is one
//!   that the GDT of the moment has. An NMI or a machine check notes in the crossing that it came, and nothing else; `run` hands
//!   it to the host. Until then no other NMI comes.
//! * While the host's IDT is loaded, so are its root, CR4, CR0, task register (whose stacks its handlers for NMI and the like
//!   use), base of GS, and a GDT that has the host's selectors. So such a handler of the host's finds all that it needs.
//! * Any other exception is an error of covisor's that has no handler anywhere: the H-IDT has no gate for it, and the CPU stops.

use core::arch::asm;
use core::arch::global_asm;
use core::mem::offset_of;

use covisor_monitor::crossing::Crossing;
use covisor_monitor::crossing::PENDING_MACHINE_CHECK;
use covisor_monitor::crossing::PENDING_NMI;
use covisor_monitor::crossing::TablePointer;
use covisor_monitor::layout::selector;

/// Offsets in `covisor_coop_crossing`: where the monitor comes back.
const BACK: u64 = 0x80;
/// As above: the H-IDT's handlers.
const ON_NMI: u64 = 0x140;
/// As above.
const ON_MACHINE_CHECK: u64 = 0x180;
/// As above.
const ON_DEBUG: u64 = 0x1c0;
/// Bytes of it all.
const SIZE: u64 = 0x1d0;
/// `GS_BASE`.
const MSR_GS_BASE: u32 = 0xc000_0101;
/// Byte of a descriptor that has its type, and the bit that makes a TSS busy.
const TSS_TYPE: usize = 5;
/// All bits of a byte but the one that makes a TSS busy.
const NOT_BUSY: u8 = !2;

global_asm!(
    // Windows' object files are told other things than Linux' about a section and a function.
    #[cfg(not(windows))]
    ".pushsection .text.covisor_coop_crossing, \"ax\", @progbits\n\
     .type covisor_coop_crossing, @function\n\
     .type covisor_coop_raise, @function",
    #[cfg(windows)]
    ".section .text$covisor_coop_crossing, \"xr\"\n\
     .def covisor_coop_crossing; .scl 2; .type 32; .endef\n\
     .def covisor_coop_raise; .scl 2; .type 32; .endef",
    ".global covisor_coop_crossing",
    ".balign 64",
    // In. RDI is the crossing; the return address is on the host's stack.
    "covisor_coop_crossing:",
    "endbr64",
    "mov [rdi + {host_rsp}], rsp",
    // The H-stack, then the H-GDT, which has the host's selectors at their places: the host's IDT still works.
    "mov rsp, rdi",
    "lgdt [rdi + {gdt}]",
    // From here on NMIs are noted.
    "lidt [rdi + {idt}]",
    // A null SS, as 64-bit code of ring 0 may have: no GDT that follows can spoil it, and handlers' IRETs load it again.
    "xor eax, eax",
    "mov ss, eax",
    // The transition root has this code, the crossing, the H-stack and the H-GDT where the host has them.
    "mov rax, [rdi + {transition_cr3}]",
    "mov cr3, rax",
    // Changes PGE or PCIDE, where the host has them, and so flushes the host's translations. Not before CR3: a host's CR3 can
    // name a PCID, and code that runs here does so with PCIDE on.
    "mov rax, [rdi + {monitor_cr4}]",
    "mov cr4, rax",
    // To the monitor's half, and into the code segment that its GDT has, too.
    "push {ring0_code}",
    "push qword ptr [rdi + {landing}]",
    "retfq",

    // Out. The monitor's half comes here with the H-IDT and the H-stack, on the transition root; GDT and TR are the monitor's.
    ".org covisor_coop_crossing + {back}",
    "lgdt [rdi + {gdt}]",
    // CR4 first: PCIDE must be on before CR3 can name a PCID, and can be switched on since the transition root's is 0. A change
    // of PGE flushes what the monitor's world left in the TLB; where there is none, the write to CR3 does.
    "mov rax, [rdi + {host_cr4}]",
    "mov cr4, rax",
    "mov rax, [rdi + {host_cr3}]",
    "mov cr3, rax",
    // The host's task register, by the H-GDT's copy of the descriptor, which is made available there: the host's own stays busy.
    "mov rax, [rdi + {host_tss_descriptor}]",
    "and byte ptr [rax + {tss_type}], {not_busy}",
    "ltr word ptr [rdi + {host_tr}]",
    // CR0 differs from the guest's by TS, if at all.
    "mov rax, cr0",
    "mov rcx, [rdi + {host_cr0}]",
    "cmp rax, rcx",
    "je 2f",
    "mov cr0, rcx",
    "2:",
    // The host's base of GS, which its handlers need.
    "mov ecx, {msr_gs_base}",
    "mov eax, [rdi + {host_gs_base}]",
    "mov edx, [rdi + {host_gs_base} + 4]",
    "wrmsr",
    "mov ss, word ptr [rdi + {host_ss}]",
    // From here on the host takes its NMIs.
    "lidt [rdi + {host_idt}]",
    "mov rsp, [rdi + {host_rsp}]",
    // Return into the host's code segment, as the H-GDT has it; the caller loads the host's GDT.
    "pop rax",
    "push qword ptr [rdi + {host_cs}]",
    "push rax",
    "retfq",
    // Not reached: Linux's objtool takes a function that has no return it knows for one that does not come back.
    #[cfg(target_os = "none")]
    "jmp __x86_return_thunk",

    // The H-IDT's handlers. They go back without IRET, which would let the next NMI come: that is to wait until the host's handler is
    // done with this one, since such a handler does not expect it earlier. Flags, stack pointer and instruction pointer are
    // those of the frame; RING0_CODE is as good as the code segment that was interrupted; SS is still what it was.
    ".macro covisor_coop_note what, keep0, keep1",
    "endbr64",
    "mov [rdi + \\keep0], rax",
    "mov [rdi + \\keep1], rcx",
    "or qword ptr [rdi + {pending}], \\what",
    "mov rcx, [rsp]",
    "mov rax, [rsp + 24]",
    "push qword ptr [rsp + 16]",
    "popfq",
    "mov rsp, rax",
    "push {ring0_code}",
    "push rcx",
    "mov rcx, [rdi + \\keep1]",
    "mov rax, [rdi + \\keep0]",
    "retfq",
    ".endm",
    ".org covisor_coop_crossing + {on_nmi}",
    "covisor_coop_note {nmi}, {kept}, {kept} + 8",
    ".org covisor_coop_crossing + {on_machine_check}",
    "covisor_coop_note {machine_check}, {kept} + 16, {kept} + 24",
    // A breakpoint of the host's that was met as it was switched off, for one.
    ".org covisor_coop_crossing + {on_debug}",
    "endbr64",
    "iretq",
    ".org covisor_coop_crossing + {size}",
    #[cfg(not(windows))]
    ".size covisor_coop_crossing, . - covisor_coop_crossing",

    // Raises the interrupt whose vector is in EDI: goes to the INT that has it, and comes back. Jumps to an address in a register
    // would have to be such as the host's kernel wants them against speculation; far returns are not predicted.
    ".global covisor_coop_raise",
    ".balign 64",
    "covisor_coop_raise:",
    "endbr64",
    "mov eax, cs",
    "lea rdx, [rip + 3f]",
    "lea rdx, [rdx + rdi * 8]",
    "push rax",
    "push rdx",
    "retfq",
    ".balign 8",
    "3:",
    ".set vector, 0",
    ".rept 256",
    // INT of that vector.
    ".byte 0xcd, vector",
    "jmp 4f",
    ".balign 8",
    ".set vector, vector + 1",
    ".endr",
    "4:",
    "pop rdx",
    "mov eax, cs",
    "push rax",
    "push rdx",
    "retfq",
    // As above.
    #[cfg(target_os = "none")]
    "jmp __x86_return_thunk",
    #[cfg(not(windows))]
    ".size covisor_coop_raise, . - covisor_coop_raise\n\
     .popsection",
    #[cfg(windows)]
    ".text",

    // Linux's objtool knows no function that switches stacks and code segments, and leaves out those that this section names.
    #[cfg(target_os = "none")]
    ".pushsection .discard.func_stack_frame_non_standard, \"aw\", @progbits\n\
     .quad covisor_coop_crossing\n\
     .quad covisor_coop_raise\n\
     .popsection",

    gdt = const offset_of!(Crossing, gdt) + TablePointer::OPERAND,
    idt = const offset_of!(Crossing, idt) + TablePointer::OPERAND,
    pending = const offset_of!(Crossing, pending),
    kept = const offset_of!(Crossing, kept),
    transition_cr3 = const offset_of!(Crossing, transition_cr3),
    monitor_cr4 = const offset_of!(Crossing, monitor_cr4),
    landing = const offset_of!(Crossing, landing),
    host_rsp = const offset_of!(Crossing, host_rsp),
    host_cr0 = const offset_of!(Crossing, host_cr0),
    host_cr3 = const offset_of!(Crossing, host_cr3),
    host_cr4 = const offset_of!(Crossing, host_cr4),
    host_gs_base = const offset_of!(Crossing, host_gs_base),
    host_idt = const offset_of!(Crossing, host_idt) + TablePointer::OPERAND,
    host_cs = const offset_of!(Crossing, host_cs),
    host_ss = const offset_of!(Crossing, host_ss),
    host_tr = const offset_of!(Crossing, host_tr),
    host_tss_descriptor = const offset_of!(Crossing, host_tss_descriptor),
    ring0_code = const selector::RING0_CODE,
    msr_gs_base = const MSR_GS_BASE,
    tss_type = const TSS_TYPE,
    not_busy = const NOT_BUSY,
    nmi = const PENDING_NMI,
    machine_check = const PENDING_MACHINE_CHECK,
    back = const BACK,
    on_nmi = const ON_NMI,
    on_machine_check = const ON_MACHINE_CHECK,
    on_debug = const ON_DEBUG,
    size = const SIZE,
);

unsafe extern "sysv64" {
    fn covisor_coop_crossing();
    fn covisor_coop_raise(vector: u64);
}

/// Where the host's half lies: its first address, and the first one behind it.
pub(crate) fn code() -> core::ops::Range<u64> {
    let start = (covisor_coop_crossing as *const u8).addr() as u64;
    start..start + SIZE
}

/// Where the monitor comes back.
pub(crate) fn back() -> u64 {
    code().start + BACK
}

/// The H-IDT's handlers, by vector.
pub(crate) fn handlers() -> [(usize, u64); 3] {
    let at = |offset| code().start + offset;
    [(1, at(ON_DEBUG)), (2, at(ON_NMI)), (18, at(ON_MACHINE_CHECK))]
}

/// Crosses into the monitor's world, and comes back when the monitor leaves it.
///
/// # Safety
/// In the host's world, interrupts off, no breakpoint enabled; the crossing is this CPU's, filled, and mapped by its transition root
/// as all that it names, and the area is filled for it.
#[inline(always)]
pub(crate) unsafe fn cross(crossing: *mut Crossing) {
    // SAFETY: by the caller. All general registers are clobbered or restored here, RDI is the same after it; the flags come back by
    // POPFQ, which LGDT does not depend on. Extended state is not used by either half nor by the monitor.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "pushfq",
            "call {crossing}",
            "lgdt [rdi + {host_gdt}]",
            "popfq",
            "pop rbp",
            "pop rbx",
            crossing = sym covisor_coop_crossing,
            host_gdt = const offset_of!(Crossing, host_gdt) + TablePointer::OPERAND,
            inout("rdi") crossing => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
}

/// Raises an interrupt through the host's own IDT: one that the monitor's world took from the interrupt controller. Its handler
/// ends it there.
///
/// # Safety
/// In the host's world, all of it loaded, interrupts off; the vector is one that came.
pub(crate) unsafe fn raise(vector: u8) {
    // SAFETY: by the caller; the host's handler returns.
    unsafe { covisor_coop_raise(u64::from(vector)) };
}
