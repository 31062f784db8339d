//! The paravirtual entry: what the image says of itself to Xen (Xen public headers, `elfnote.h`), and the first instructions, in ring
//! 3 of 64-bit mode with paging. The image's linear addresses are its physical ones.

use core::arch::global_asm;

global_asm!(
    r#"
    .macro probe_xen_note kind
    .section .note.xen, "a", @note
    .balign 4
    .long 4                     /* size of the name */
    .long 2f - 1f               /* size of the value */
    .long \kind
    .asciz "Xen"
1:
    .endm
    .macro probe_xen_note_end
2:
    .balign 4
    .endm
    .macro probe_xen_number kind, value
    probe_xen_note \kind
    .quad \value
    probe_xen_note_end
    .endm
    .macro probe_xen_text kind, value
    probe_xen_note \kind
    .asciz "\value"
    probe_xen_note_end
    .endm

    probe_xen_number 1, probe_xen_entry         /* ENTRY */
    probe_xen_number 3, 0                       /* VIRT_BASE */
    probe_xen_number 4, 0                       /* PADDR_OFFSET */
    probe_xen_text 5, "xen-3.0"                 /* XEN_VERSION */
    probe_xen_text 6, "linux"                   /* GUEST_OS: whose conventions it follows */
    probe_xen_text 7, "1"                       /* GUEST_VERSION */
    probe_xen_text 8, "generic"                 /* LOADER */
    probe_xen_text 9, "yes"                     /* PAE_MODE */
    probe_xen_text 10, "!writable_page_tables|pae_pgdir_above_4gb"   /* FEATURES */
    probe_xen_note 13                           /* L1_MFN_VALID: mask, value */
    .quad 1
    .quad 1
    probe_xen_note_end
    probe_xen_number 15, 0x8000000000           /* INIT_P2M */
    probe_xen_number 16, 1                      /* MOD_START_PFN */

    .section .text.xen_boot, "ax"
    .globl probe_xen_entry
probe_xen_entry:
    rdtsc                       /* before anything else: the time of the entry, for `test=entry` */
    shlq $32, %rdx
    orq %rax, %rdx
    cld
    leaq boot_stack_top(%rip), %rsp
    movq %rsi, %rdi             /* start_info */
    movq %rdx, %rsi
    xorl %ebp, %ebp
    call {start}
    ud2
    "#,
    start = sym super::start,
    options(att_syntax)
);
