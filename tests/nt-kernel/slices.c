// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads lose the CPU to others while they are in the driver, as on NT: below DISPATCH_LEVEL. Linux, as it is built
 * for these tests, lets no thread lose it in the kernel. So a timer's interrupt looks where it came, and has it return to code that lets
 * another thread run first.
 */
#include <linux/hrtimer.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/smp.h>

#include <asm/irq_regs.h>
#include <asm/ptrace.h>

#include "nt.h"

/* How often. */
#define SLICE_NS 500000

static DEFINE_PER_CPU(struct hrtimer, slices);
/* Where the thread goes on. It cannot be on its stack, where the interrupt's own frame begins at once. */
static DEFINE_PER_CPU(unsigned long, next);

void nt_preempted(void);
asmlinkage unsigned long nt_preempt(void);

asmlinkage unsigned long nt_preempt(void)
{
	/* No other thread was here since the interrupt. */
	unsigned long address = this_cpu_read(next);
	/* The engine coop raises an interrupt that came in the guest just before it has them on again: NT would wait for that. */
	bool off = irqs_disabled();

	if (off)
		local_irq_enable();
	cond_resched();
	if (off)
		local_irq_disable();
	return address;
}

/* Whether the interrupt came in the driver's own code, below DISPATCH_LEVEL. */
static bool is_in_driver(struct pt_regs *regs)
{
	return regs && !user_mode(regs) && nt_irql() < DISPATCH_LEVEL && nt_image_has(regs->ip);
}

static void preempt(struct pt_regs *regs)
{
	/* The driver is built without a red zone: nothing of its is below the stack pointer. */
	this_cpu_write(next, regs->ip);
	regs->ip = (unsigned long)nt_preempted;
}

static enum hrtimer_restart looked(struct hrtimer *timer)
{
	struct pt_regs *regs = get_irq_regs();

	if (need_resched() && is_in_driver(regs))
		preempt(regs);
	hrtimer_forward_now(timer, SLICE_NS);
	return HRTIMER_RESTART;
}

static void start(void *unused)
{
	struct hrtimer *timer = this_cpu_ptr(&slices);

	hrtimer_init(timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	timer->function = looked;
	hrtimer_start(timer, SLICE_NS, HRTIMER_MODE_REL_PINNED_HARD);
}

void nt_slices_start(void)
{
	on_each_cpu(start, NULL, 1);
}

void nt_slices_stop(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		hrtimer_cancel(per_cpu_ptr(&slices, cpu));
}
