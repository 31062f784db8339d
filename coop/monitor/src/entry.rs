//! The ways in from the guest and back to it.
//!
//! ```text
//! stub of a vector ──► trap_common ──► save_and_serve ──► serve_trap() ──► return_to_guest ──► IRETQ
//! stub of an IST vector ─► ist_trap ──────┘   ▲                  │
//! syscall64, syscall32 ───────────────────────┘                  └──► leave_world()
//! ```
//!
//! All of this is in the ENTRY region, which both roots of the guest have; what is called is not, so the kernel's root is loaded before.
//! From ring 3 the CPU pushes right into the area's frame (RSP0), and the code adds the general registers below. NMI, #MC, #DB and #DF
//! come on stacks of their own, since they can come where RSP is nothing of ours: at the first instruction behind a SYSCALL.

use core::arch::global_asm;
use core::mem::offset_of;

use covisor_abi::clear_kept_registers;
use covisor_abi::load_gprs;
use covisor_abi::store_gprs;
use covisor_monitor::area::ATTENTION;
use covisor_monitor::area::Area;
use covisor_monitor::area::DR6_RESET;
use covisor_monitor::area::Frame;
use covisor_monitor::area::MODE_USER;
use covisor_monitor::area::Quick;
use covisor_monitor::area::Registers;
use covisor_monitor::area::SYSCALL;
use covisor_monitor::area::SYSCALL32;
use covisor_monitor::bounce::INTO_HANDLER;
use covisor_monitor::bounce::OF_RETURN;
use covisor_monitor::crossing::PENDING_MACHINE_CHECK;
use covisor_monitor::crossing::PENDING_NMI;
use covisor_monitor::hypercall::IRET;
use covisor_monitor::layout;
use covisor_monitor::layout::selector;
use covisor_monitor::shared_info::UPCALL_MASK;
use covisor_monitor::shared_info::UPCALL_PENDING;

/// Vector of #DB.
const DEBUG: u64 = 1;

/// Offset of a field of the area from its frame, which RSP points to.
const fn from_frame(offset: usize) -> i64 {
    offset as i64 - offset_of!(Area, frame) as i64
}

global_asm!(
    ".pushsection .entry.stubs, \"ax\", @progbits",
    ".globl monitor_stubs",
    "monitor_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign {stub_size}",
    // An error code, where the CPU pushes none (SDM vol. 3, table 6-1).
    ".if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)",
    ".byte 0x6a, 0",         // push 0
    ".endif",
    ".byte 0x68",            // push vector
    ".long vector",
    ".byte 0xe9",            // jmp
    ".if vector == 1 || vector == 2 || vector == 8 || vector == 18",
    ".long monitor_ist_trap - . - 4",
    ".else",
    ".long monitor_trap_common - . - 4",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".popsection",
    stub_size = const layout::STUB_SIZE,
);

global_asm!(
    // In a handler with RAX and RCX pushed: where RIP is in a stretch of code, it goes on elsewhere.
    ".macro monitor_turn_at first, last, target",
    "mov rax, [rsp + 32]",
    "lea rcx, [rip + \\first]",
    "cmp rax, rcx",
    "jb 3f",
    "lea rcx, [rip + \\last]",
    "cmp rax, rcx",
    "ja 3f",
    "lea rcx, [rip + \\target]",
    "mov [rsp + 32], rcx",
    "3:",
    ".endm",

    ".pushsection .entry.text, \"ax\", @progbits",

    // SYSCALL from 64-bit code. RSP is the guest's; RCX and R11 have its RIP and RFLAGS.
    ".globl monitor_syscall64",
    "monitor_syscall64:",
    "mov [rip + monitor_area + {scratch}], rsp",
    // A stack for exceptions.
    "lea rsp, [rip + monitor_area + {frame_end}]",
    "cmp qword ptr [rip + monitor_area + {mode_in_area}], 0",
    "je monitor_kernel_call",

    // A program's system call, the quick way: the bounce frame (see `bounce`) goes right onto the kernel's stack.
    "cmp qword ptr [rip + monitor_area + {quick_handler}], 0",
    "je monitor_slow64",
    "mov [rip + monitor_area + {quick_rax}], rax",
    "mov rax, [rip + monitor_area + {kernel_cr3_in_area}]",
    "mov cr3, rax",
    "mov rax, [rip + monitor_area + {quick_info}]",
    "cmp byte ptr [rax + {upcall_mask}], 0",
    "jne monitor_slow64_rax",
    "mov rax, [rip + monitor_area + {quick_stack}]",
    // An exception from here to monitor_quick_syscall_end has all of it done the slow way.
    "monitor_quick_syscall:",
    "mov qword ptr [rax - 8], {data}",                // SS
    "push qword ptr [rip + monitor_area + {scratch}]",
    "pop qword ptr [rax - 16]",                       // RSP
    "mov [rax - 24], r11",                            // RFLAGS; IF stands for events that are not masked
    "mov qword ptr [rax - 32], {code64}",             // CS
    "mov [rax - 40], rcx",                            // RIP
    "mov [rax - 48], r11",                            // R11
    "mov [rax - 56], rcx",                            // RCX
    "monitor_quick_syscall_end:",
    "swapgs",
    "mov qword ptr [rip + monitor_area + {mode_in_area}], 0",
    "mov rcx, [rip + monitor_area + {quick_info}]",
    "mov byte ptr [rcx + {upcall_mask}], 1",
    "and r11d, {into_handler}",
    "mov rcx, [rip + monitor_area + {quick_handler}]",
    "lea rsp, [rax - 56]",
    "mov rax, [rip + monitor_area + {quick_rax}]",
    // An NMI that comes from here on has its handler go on at monitor_quick_syscall_again.
    "monitor_quick_syscall_last:",
    "cmp qword ptr [rip + monitor_area + {pending_host_in_area}], 0",
    "jne monitor_quick_syscall_again",
    // To RCX with the flags in R11, in the flat segments of every guest's. The handler's address is canonical.
    "monitor_quick_sysret:",
    "sysretq",
    // The host is wanted: as if the kernel had been interrupted at its handler's first instruction.
    "monitor_quick_syscall_again:",
    "mov [rip + monitor_area + {scratch}], rsp",
    "lea rsp, [rip + monitor_area + {frame_end}]",
    "push {data}",
    "push qword ptr [rip + monitor_area + {scratch}]",
    "push r11",
    "push {code64}",
    "push rcx",
    "push 0",
    "push {attention_vector}",
    "jmp monitor_save_and_serve",

    // A hypercall. The return to a program, the quick way: the frame is on the kernel's stack (see `Machine::iret`).
    "monitor_kernel_call:",
    "cmp rax, {iret}",
    "jne monitor_slow64",
    "mov rax, [rip + monitor_area + {scratch}]",
    // The frame is read without a look at the guest's page tables: its own part of the addresses only.
    "movabs rcx, {monitor_end}",
    "cmp rax, rcx",
    "jb monitor_slow_iret",
    "cmp qword ptr [rip + monitor_area + {user_cr3_in_area}], 0",
    "je monitor_slow_iret",
    "mov rcx, [rip + monitor_area + {quick_info}]",
    "cmp byte ptr [rcx + {upcall_pending}], 0",
    "jne monitor_slow_iret",
    // An exception from here to monitor_quick_iret_end has all of it done the slow way.
    "monitor_quick_iret:",
    "mov r11, [rax]",                                 // both ends are there, if the frame lies in two pages
    "movzx r11d, word ptr [rax + 64]",                // SS
    "or r11d, {rpl}",
    "mov [rip + monitor_area + {frame_ss}], r11",
    "movzx r11d, word ptr [rax + 40]",                // CS: a program's
    "lea ecx, [r11 + 1]",
    "test cl, {rpl}",
    "jne monitor_slow_iret",
    "mov [rip + monitor_area + {frame_cs}], r11",
    "mov r11, [rax + 48]",                            // RFLAGS: events not masked
    "test r11d, {if_flag}",
    "jz monitor_slow_iret",
    "and r11d, {of_return}",
    "or r11d, {fixed_flag}",
    "mov [rip + monitor_area + {frame_rflags}], r11",
    "mov r11, [rax + 32]",                            // RIP
    "mov [rip + monitor_area + {frame_rip}], r11",
    "mov r11, [rax + 56]",                            // RSP
    "mov [rip + monitor_area + {frame_rsp}], r11",
    "mov rcx, [rip + monitor_area + {quick_info}]",
    "mov byte ptr [rcx + {upcall_mask}], 0",
    "mov rcx, [rax + 16]",
    "mov r11, [rax + 8]",
    "mov rax, [rax]",
    "monitor_quick_iret_end:",
    "swapgs",
    "mov qword ptr [rip + monitor_area + {mode_in_area}], {user_mode}",
    "mov [rip + monitor_area + {quick_rax}], rax",
    "mov rax, [rip + monitor_area + {user_cr3_in_area}]",
    "mov cr3, rax",
    "mov rax, [rip + monitor_area + {quick_rax}]",
    "lea rsp, [rip + monitor_area + {frame_rip}]",
    // An NMI that comes from here on has its handler go on at monitor_quick_iret_again.
    "monitor_quick_iret_last:",
    "cmp qword ptr [rip + monitor_area + {pending_host_in_area}], 0",
    "jne monitor_quick_iret_again",
    "monitor_quick_iretq:",
    "iretq",
    // The host is wanted: as if the program had been interrupted.
    "monitor_quick_iret_again:",
    "push 0",
    "push {attention_vector}",
    "jmp monitor_save_and_serve",

    // Both the slow way: by way of a frame in the area.
    "monitor_slow_iret:",
    "mov eax, {iret}",
    "jmp monitor_slow64",
    "monitor_slow64_rax:",
    "mov rax, [rip + monitor_area + {quick_rax}]",
    "monitor_slow64:",
    "push {data}",                                    // SS
    "push qword ptr [rip + monitor_area + {scratch}]", // RSP
    "push r11",                                       // RFLAGS
    "push {code64}",                                  // CS
    "push rcx",                                       // RIP
    "push 0",                                         // no error code
    "push {syscall}",                                 // vector
    "jmp monitor_save_and_serve",

    // SYSCALL from 32-bit code, on AMD's CPUs.
    ".globl monitor_syscall32",
    "monitor_syscall32:",
    "mov [rip + monitor_area + {scratch}], rsp",
    "lea rsp, [rip + monitor_area + {frame_end}]",
    "push {data}",
    "push qword ptr [rip + monitor_area + {scratch}]",
    "push r11",
    "push {code32}",
    "push rcx",
    "push 0",
    "push {syscall32}",
    "jmp monitor_save_and_serve",

    // A vector without a stack of its own: vector, error code, RIP, CS, RFLAGS, RSP, SS are at RSP.
    "monitor_trap_common:",
    "test byte ptr [rsp + 24], 3",
    "jz monitor_fault_in_monitor",
    "monitor_save_and_serve:",
    "sub rsp, {registers_size}",
    "mov [rsp + {rax}], rax",
    store_gprs!("rsp"),
    // In the kernel's root all of the monitor is there.
    "cmp qword ptr [rsp + {mode}], 0",
    "je 2f",
    "mov rax, [rsp + {kernel_cr3}]",
    "mov cr3, rax",
    "2:",
    "movabs rsp, {stack_top}",
    "cld",
    clear_kept_registers!(),
    "call {serve_trap}",
    "test eax, eax",
    "jnz monitor_to_host",

    // Back to the guest, as the area's frame says.
    "monitor_return_to_guest:",
    "movabs rsp, {frame}",
    // An NMI that comes from here to the IRETQ has its handler go on at monitor_return_again.
    "cmp qword ptr [rsp + {pending_host}], 0",
    "jne monitor_return_again",
    "cmp qword ptr [rsp + {mode}], 0",
    "je 2f",
    "mov rax, [rsp + {user_cr3}]",
    "mov cr3, rax",
    "2:",
    "mov rax, [rsp + {rax}]",
    load_gprs!("rsp"),
    "lea rsp, [rsp + {rip}]",
    "monitor_iretq:",
    "iretq",

    // The host is wanted after all. The frame is whole; registers hold the guest's values.
    "monitor_return_again:",
    "movabs rsp, {frame}",
    "mov rax, [rsp + {kernel_cr3}]",
    "mov cr3, rax",
    "movabs rsp, {stack_top}",
    "call {attention}",
    "monitor_to_host:",
    "call {leave_world}",
    "ud2",

    // The host was here, and the guest goes on. On the monitor's stack, in the kernel's root.
    ".globl monitor_resume",
    "monitor_resume:",
    "call {go_on}",
    "test eax, eax",
    "jnz monitor_to_host",
    "jmp monitor_return_to_guest",

    // NMI, #MC, #DB, #DF, on stacks of their own.
    "monitor_ist_trap:",
    "test byte ptr [rsp + 24], 3",
    "jz 4f",
    // From the guest: as the others, with a frame where theirs is.
    "push rdi",
    "push rsi",
    "push rcx",
    "lea rsi, [rsp + 24]",
    "lea rdi, [rip + monitor_area + {vector}]",
    "mov ecx, 7",
    "cld",
    "rep movsq",
    "pop rcx",
    "pop rsi",
    "pop rdi",
    "lea rsp, [rip + monitor_area + {vector}]",
    "jmp monitor_save_and_serve",
    // From the monitor: what is the host's is noted; the way back to the guest, or to the host, finds it.
    "4:",
    "cmp qword ptr [rsp], 8",
    "je monitor_fatal",
    "cmp qword ptr [rsp], 1",
    "je 6f",
    "push rax",
    "push rcx",
    "mov eax, {nmi}",
    "mov ecx, {machine_check}",
    "cmp qword ptr [rsp + 16], 2",
    "cmovne eax, ecx",
    "or [rip + monitor_area + {pending_host_in_area}], rax",
    // On a last stretch before the guest, which looks no more, it is turned back.
    "monitor_turn_at monitor_return_to_guest, monitor_iretq, monitor_return_again",
    "monitor_turn_at monitor_quick_syscall_last, monitor_quick_sysret, monitor_quick_syscall_again",
    "monitor_turn_at monitor_quick_iret_last, monitor_quick_iretq, monitor_quick_iret_again",
    // Back to what was interrupted, but not by IRET, which would let the next NMI come: that is to wait until the host's handler is
    // done with this one. The code segment is the same, SS was left alone (SDM vol. 3, 6.14.2 and 6.14.5), and the stack that
    // this came on still has RIP when it is left: none but this vector comes on it.
    ".macro monitor_go_on stack_top",
    "push qword ptr [rsp + 48]",                      // RFLAGS
    "popfq",
    "pop rcx",
    "pop rax",
    "mov rsp, [rsp + 40]",
    "jmp qword ptr [rip + monitor_area + \\stack_top - 40]",
    ".endm",
    "5:",
    "cmp qword ptr [rsp + 16], 2",
    "jne 5f",
    "monitor_go_on {nmi_stack}",
    "5:",
    "monitor_go_on {machine_check_stack}",
    // #DB: a breakpoint of the guest's, on what the monitor did for it. One that came at the first instruction of this very handler
    // has written over the frame of the one before, on the same stack: there is nothing to go back to, and IRET would begin again
    // and again. A CPU that keeps to SDM vol. 3, 6.9 raises one #DB for all causes; QEMU's raises two where a single step meets a
    // watchpoint. What DR6 tells is nothing for the host, which would take it for its own.
    "6:",
    "push rax",
    "mov eax, {dr6_reset}",
    "mov dr6, rax",
    "lea rax, [rip + monitor_stubs + {debug_stub}]",
    "cmp [rsp + 24], rax",
    "pop rax",
    "je 2f",
    "add rsp, 16",
    "iretq",
    "2:",
    "mov rax, [rip + monitor_area + {kernel_cr3_in_area}]",
    "mov cr3, rax",
    "movabs rsp, {stack_top}",
    "call {debug_exception_lost}",
    "jmp monitor_to_host",

    // An exception of the monitor's own: the return to the guest, or a segment that cannot be loaded, or an error.
    "monitor_fault_in_monitor:",
    "push rax",
    "lea rax, [rip + monitor_iretq]",
    "cmp [rsp + 24], rax",
    "je 7f",
    "lea rax, [rip + monitor_quick_iretq]",
    "cmp [rsp + 24], rax",
    "je 7f",
    "push rcx",
    // The quick ways, where the kernel's stack cannot be used as it is.
    "lea rax, [rip + monitor_quick_syscall]",
    "lea rcx, [rip + monitor_quick_syscall_end]",
    "cmp [rsp + 32], rax",
    "jb 2f",
    "cmp [rsp + 32], rcx",
    "jae 2f",
    "pop rcx",
    "lea rsp, [rip + monitor_area + {frame_end}]",
    "jmp monitor_slow64_rax",
    "2:",
    "lea rax, [rip + monitor_quick_iret]",
    "lea rcx, [rip + monitor_quick_iret_end]",
    "cmp [rsp + 32], rax",
    "jb 2f",
    "cmp [rsp + 32], rcx",
    "jae 2f",
    "lea rsp, [rip + monitor_area + {frame_end}]",
    "jmp monitor_slow_iret",
    "2:",
    "lea rax, [rip + monitor_gs_load]",
    "cmp [rsp + 32], rax",
    "je 9f",
    "lea rax, [rip + selector_loads_begin]",
    "lea rcx, [rip + selector_loads_end]",
    "cmp [rsp + 32], rax",
    "jb 8f",
    "cmp [rsp + 32], rcx",
    "jae 8f",
    // A segment register's load that failed has the null selector in EAX tried again.
    "9:",
    "pop rcx",
    "pop rax",
    "xor eax, eax",
    "add rsp, 16",
    "iretq",
    "8:",
    "pop rcx",
    "pop rax",
    "jmp monitor_fatal",
    // The frame's lower part was written over, but for RIP and above, and the registers have the guest's values.
    "7:",
    "mov rax, [rsp + 16]",
    "mov [rip + monitor_area + {scratch}], rax",
    "pop rax",
    "movabs rsp, {frame}",
    "mov [rsp + {rax}], rax",
    store_gprs!("rsp"),
    "mov rax, [rsp + {kernel_cr3}]",
    "mov cr3, rax",
    "mov rdi, [rip + monitor_area + {scratch}]",
    "movabs rsp, {stack_top}",
    "call {return_failed}",
    "test eax, eax",
    "jnz monitor_to_host",
    "jmp monitor_return_to_guest",

    // Loads the selector EDI into the GS of the guest's programs, while that of its kernel is loaded.
    ".globl monitor_load_user_gs",
    "monitor_load_user_gs:",
    "mov eax, edi",
    "swapgs",
    "monitor_gs_load:",
    "mov gs, eax",
    "swapgs",
    "ret",

    // An error in the monitor ends the guest. Vector, error code and RIP are at RSP.
    "monitor_fatal:",
    "mov rdi, [rsp]",
    "mov rsi, [rsp + 16]",
    "mov rax, [rip + monitor_area + {kernel_cr3_in_area}]",
    "mov cr3, rax",
    "movabs rsp, {stack_top}",
    "call {fatal}",
    "jmp monitor_to_host",
    ".popsection",

    scratch = const offset_of!(Area, scratch),
    quick_handler = const offset_of!(Area, quick) + offset_of!(Quick, syscall_handler),
    quick_stack = const offset_of!(Area, quick) + offset_of!(Quick, kernel_stack),
    quick_info = const offset_of!(Area, quick) + offset_of!(Quick, vcpu_info),
    quick_rax = const offset_of!(Area, quick) + offset_of!(Quick, rax),
    upcall_mask = const UPCALL_MASK,
    upcall_pending = const UPCALL_PENDING,
    into_handler = const INTO_HANDLER,
    of_return = const OF_RETURN,
    if_flag = const 1 << 9,
    fixed_flag = const 1 << 1,
    rpl = const selector::RPL,
    iret = const IRET,
    monitor_end = const layout::END,
    user_mode = const MODE_USER,
    attention_vector = const ATTENTION,
    mode_in_area = const offset_of!(Area, mode),
    user_cr3_in_area = const offset_of!(Area, user_cr3),
    frame_rip = const offset_of!(Area, frame) + offset_of!(Frame, rip),
    frame_cs = const offset_of!(Area, frame) + offset_of!(Frame, cs),
    frame_rflags = const offset_of!(Area, frame) + offset_of!(Frame, rflags),
    frame_rsp = const offset_of!(Area, frame) + offset_of!(Frame, rsp),
    frame_ss = const offset_of!(Area, frame) + offset_of!(Frame, ss),
    frame_end = const offset_of!(Area, frame) + size_of::<Frame>(),
    data = const selector::RING3_DATA,
    code64 = const selector::RING3_CODE64,
    code32 = const selector::RING3_CODE32,
    syscall = const SYSCALL,
    syscall32 = const SYSCALL32,
    registers_size = const size_of::<Registers>(),
    rax = const offset_of!(Frame, registers) + offset_of!(Registers, rax),
    rip = const offset_of!(Frame, rip),
    vector = const offset_of!(Area, frame) + offset_of!(Frame, vector),
    mode = const from_frame(offset_of!(Area, mode)),
    kernel_cr3 = const from_frame(offset_of!(Area, kernel_cr3)),
    kernel_cr3_in_area = const offset_of!(Area, kernel_cr3),
    user_cr3 = const from_frame(offset_of!(Area, user_cr3)),
    pending_host = const from_frame(offset_of!(Area, pending_host)),
    nmi = const PENDING_NMI,
    machine_check = const PENDING_MACHINE_CHECK,
    nmi_stack = const layout::IST_STACKS + layout::PAGE - layout::AREA,
    machine_check_stack = const layout::IST_STACKS + 2 * layout::PAGE - layout::AREA,
    pending_host_in_area = const offset_of!(Area, pending_host),
    frame = const layout::AREA as usize + offset_of!(Area, frame),
    stack_top = const layout::STACK_TOP,
    serve_trap = sym crate::serve_trap,
    attention = sym crate::attention,
    go_on = sym crate::go_on,
    return_failed = sym crate::return_failed,
    fatal = sym crate::fatal,
    dr6_reset = const DR6_RESET,
    debug_stub = const DEBUG * layout::STUB_SIZE,
    debug_exception_lost = sym crate::debug_exception_lost,
    leave_world = sym crate::world::leave_world,
);

unsafe extern "C" {
    /// Goes on after the host was there.
    pub(crate) fn monitor_resume() -> !;
    /// Loads a selector into the GS of the guest's programs; one that cannot be loaded is 0.
    pub(crate) fn monitor_load_user_gs(selector: u32);
}
