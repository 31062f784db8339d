/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where an interrupt returns to that has another thread run first: nt_preempt(), with all registers kept. It says where to go on.
 */
#include <linux/linkage.h>

SYM_CODE_START(nt_preempted)
	/* Room for the address, with the flags as they are. */
	lea -8(%rsp), %rsp
	pushfq
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rbp
	and $-16, %rsp
	cld
	call nt_preempt
	mov %rbp, %rsp
	mov %rax, 16 * 8(%rsp)
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	popfq
	RET
SYM_CODE_END(nt_preempted)
