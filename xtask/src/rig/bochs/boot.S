# The boot sector of the Bochs rig's boot disk: loads a Linux kernel and its initramfs as boot_disk.rs lays them out, and
# starts the kernel by its real-mode entry (Documentation/arch/x86/boot.rst). Everything that the kernel is told in its
# header is already there.

.equ CHUNK_SECTORS, 64
.equ BUFFER_SEGMENT, 0x2000
.equ KERNEL_SEGMENT, 0x1000
.equ KERNEL_STACK, 0xe000
# Room for four parts of three 32-bit numbers, before the partition table's place.
.equ PARTS, 446 - 4 * 12

.code16
.globl _start
_start:
    ljmp $0, $main

main:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    # Address line 20 on, by the PS/2 way.
    inb $0x92, %al
    orb $2, %al
    outb %al, $0x92
    # A look into protected mode leaves ES with a limit of 4 GiB.
    lgdt gdt_register
    movl %cr0, %eax
    incw %ax
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %es
    decw %ax
    movl %eax, %cr0
    xorw %ax, %ax
    movw %ax, %es
    sti

    movw $parts, %bx
part:
    movl (%bx), %eax
    movl %eax, packet_sector
    movl 4(%bx), %ebp
    movl 8(%bx), %edi
    testl %ebp, %ebp
    jz start_kernel
chunk:
    # INT 13h, AH=42h: extended read. DL is the disk's number as the BIOS has set it.
    movw $packet, %si
    movb $0x42, %ah
    pushw %bx
    pushw %dx
    int $0x13
    popw %dx
    popw %bx
    jc failed
    movl $(BUFFER_SEGMENT << 4), %esi
    movl $(CHUNK_SECTORS * 512 / 4), %ecx
    cld
    addr32 rep movsl %es:(%esi), %es:(%edi)
    addl $CHUNK_SECTORS, packet_sector
    decl %ebp
    jnz chunk
    addw $12, %bx
    jmp part

start_kernel:
    cli
    movw $KERNEL_SEGMENT, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movw $KERNEL_STACK, %sp
    ljmp $(KERNEL_SEGMENT + 0x20), $0

# The disk cannot be read: nothing more happens, and the rig gives up after a while.
failed:
    hlt
    jmp failed

.balign 4
# The disk address packet: so many sectors to the buffer, from this one on.
packet:
    .byte 16, 0
    .word CHUNK_SECTORS
    .word 0, BUFFER_SEGMENT
packet_sector:
    .long 0, 0

gdt:
    .quad 0
    .quad 0x00cf93000000ffff
gdt_register:
    .word 15
    .long gdt

# What to load: for each part the first sector, the number of chunks, and the address. No chunks: the end.
.org PARTS
parts:
.org 510
    .word 0xaa55
