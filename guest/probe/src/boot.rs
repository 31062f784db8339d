//! The entry: PVH hands over in 32-bit protected mode without paging (Xen `docs/misc/pvh.pandoc`); long mode with an
//! identity map of the first 4 GiB is made here, independent of any loader's page tables.

use core::arch::global_asm;

use crate::layout;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                     /* size of the name */
    .long 8                     /* size of the descriptor */
    .long 18                    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .section .text.boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    rdtsc                       /* before anything else: the time of the entry, for `test=entry` */
    movl %eax, entry_tsc
    movl %edx, entry_tsc + 4
    cli
    cld
    movl $boot_stack_top, %esp

    /* PML4[0] -> PDPT, PDPT[0..4] -> 4 page directories of 512 2 MiB pages each. The upper levels allow ring 3; leaves
       do where layout.rs says so. */
    movl $boot_pdpt + 7, boot_pml4
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $12, %eax
    addl $boot_pd + 7, %eax
    movl %eax, boot_pdpt(,%ecx,8)
    incl %ecx
    cmpl $4, %ecx
    jne 1b

    xorl %ecx, %ecx
2:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax             /* present, writable, 2 MiB */
    cmpl $1536, %ecx
    jb 3f
    orl $0x10, %eax             /* device memory from 3 GiB on: not cached */
3:  movl %eax, boot_pd(,%ecx,8)
    incl %ecx
    cmpl $2048, %ecx
    jne 2b
    movl $({user} >> 21), %ecx
    orl $4, boot_pd(,%ecx,8)    /* the page that ring 3 uses */

    movl $0x620, %eax           /* CR4: PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER: SCE, LME, NXE */
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl $0x80010023, %eax      /* CR0: PG, WP, NE, MP, PE */
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x08, $4f

    .code64
4:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $boot_stack_top, %esp
    movl %ebx, %edi             /* hvm_start_info */
    movq entry_tsc, %rsi
    xorl %ebp, %ebp
    call {start}
    ud2

    .section .data
    .balign 8
entry_tsc: .quad 0
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08: 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x10: data */
boot_gdt_pointer:
    .word 23
    .quad boot_gdt

    .section .bss
    .balign 4096
    .globl boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
    .globl boot_pd
boot_pd:   .skip 4 * 4096
boot_stack: .skip 65536
boot_stack_top:
    "#,
    user = const layout::USER_PAGE,
    start = sym crate::start::start,
    options(att_syntax)
);

unsafe extern "C" {
    /// The ELF entry; not to be called from Rust.
    pub fn pvh_entry() -> !;
}
