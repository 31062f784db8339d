// SPDX-License-Identifier: GPL-2.0-only
/*
 * Deferred calls (KDPC) and timers (KTIMER).
 *
 * NT has a CPU run deferred calls by an interrupt that the level DISPATCH_LEVEL holds back. Linux has no interrupt below its own that
 * CR8 would hold back, so it comes at any level, and where that is too high comes again a little later.
 */
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/spinlock.h>

#include "nt.h"

/* When a deferred call is tried again. */
#define AGAIN_NS 20000
/* Timers that there can be. */
#define TIMERS 256

struct dpc;

typedef NT void deferred_routine(struct dpc *dpc, void *context, void *first, void *second);

/* What is in a KDPC. */
struct dpc {
	struct list_head entry;
	deferred_routine *routine;
	void *context;
	int cpu;
	bool is_queued;
};

static_assert(sizeof(struct dpc) <= 64);

struct queue {
	raw_spinlock_t lock;
	struct list_head dpcs;
	struct dpc *running;
	struct irq_work interrupt;
	call_single_data_t from_elsewhere;
	struct tasklet_struct tasklet;
	struct hrtimer again;
};

static DEFINE_PER_CPU(struct queue, queues);

static struct dpc *next(struct queue *queue)
{
	unsigned long irqs;
	struct dpc *dpc;

	raw_spin_lock_irqsave(&queue->lock, irqs);
	dpc = list_first_entry_or_null(&queue->dpcs, struct dpc, entry);
	if (dpc) {
		list_del(&dpc->entry);
		dpc->is_queued = false;
	}
	queue->running = dpc;
	raw_spin_unlock_irqrestore(&queue->lock, irqs);
	return dpc;
}

static void run(struct tasklet_struct *tasklet)
{
	struct queue *queue = this_cpu_ptr(&queues);
	unsigned long before = nt_irql();
	struct dpc *dpc;

	if (before >= DISPATCH_LEVEL) {
		hrtimer_start(&queue->again, ns_to_ktime(AGAIN_NS), HRTIMER_MODE_REL_PINNED);
		return;
	}
	nt_set_irql(DISPATCH_LEVEL);
	while ((dpc = next(queue)))
		dpc->routine(dpc, dpc->context, NULL, NULL);
	nt_set_irql(before);
}

static void interrupted(struct irq_work *work)
{
	tasklet_hi_schedule(&this_cpu_ptr(&queues)->tasklet);
}

static void interrupted_from_elsewhere(void *unused)
{
	tasklet_hi_schedule(&this_cpu_ptr(&queues)->tasklet);
}

static enum hrtimer_restart again(struct hrtimer *timer)
{
	tasklet_hi_schedule(&this_cpu_ptr(&queues)->tasklet);
	return HRTIMER_NORESTART;
}

void nt_deferred_start(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct queue *queue = per_cpu_ptr(&queues, cpu);

		raw_spin_lock_init(&queue->lock);
		INIT_LIST_HEAD(&queue->dpcs);
		init_irq_work(&queue->interrupt, interrupted);
		INIT_CSD(&queue->from_elsewhere, interrupted_from_elsewhere, NULL);
		tasklet_setup(&queue->tasklet, run);
		hrtimer_init(&queue->again, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED);
		queue->again.function = again;
	}
}

void nt_deferred_stop(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct queue *queue = per_cpu_ptr(&queues, cpu);

		irq_work_sync(&queue->interrupt);
		hrtimer_cancel(&queue->again);
		tasklet_kill(&queue->tasklet);
	}
}

static NT void KeInitializeDpc(struct dpc *dpc, void *routine, void *context)
{
	dpc->routine = routine;
	dpc->context = context;
	dpc->cpu = -1;
	dpc->is_queued = false;
}

static NT void KeSetTargetProcessorDpc(struct dpc *dpc, s8 cpu)
{
	dpc->cpu = cpu;
}

static NT void KeSetImportanceDpc(struct dpc *dpc, int importance)
{
}

static NT u8 KeInsertQueueDpc(struct dpc *dpc, void *first, void *second)
{
	unsigned long irqs;
	struct queue *queue;
	bool is_new;
	int cpu;

	local_irq_save(irqs);
	cpu = dpc->cpu < 0 ? smp_processor_id() : dpc->cpu;
	queue = per_cpu_ptr(&queues, cpu);
	raw_spin_lock(&queue->lock);
	is_new = !dpc->is_queued;
	if (is_new) {
		dpc->is_queued = true;
		list_add_tail(&dpc->entry, &queue->dpcs);
	}
	raw_spin_unlock(&queue->lock);
	if (cpu == smp_processor_id())
		irq_work_queue(&queue->interrupt);
	else
		smp_call_function_single_async(cpu, &queue->from_elsewhere);
	local_irq_restore(irqs);
	return is_new;
}

static NT u8 KeRemoveQueueDpc(struct dpc *dpc)
{
	bool was_queued = false;
	int cpu;

	for_each_online_cpu(cpu) {
		struct queue *queue = per_cpu_ptr(&queues, cpu);
		struct dpc *other;
		unsigned long irqs;

		raw_spin_lock_irqsave(&queue->lock, irqs);
		list_for_each_entry(other, &queue->dpcs, entry) {
			if (other == dpc) {
				list_del(&dpc->entry);
				dpc->is_queued = false;
				was_queued = true;
				break;
			}
		}
		raw_spin_unlock_irqrestore(&queue->lock, irqs);
	}
	return was_queued;
}

static bool is_idle(struct queue *queue)
{
	unsigned long irqs;
	bool idle;

	raw_spin_lock_irqsave(&queue->lock, irqs);
	idle = list_empty(&queue->dpcs) && !queue->running;
	raw_spin_unlock_irqrestore(&queue->lock, irqs);
	return idle;
}

static NT void KeFlushQueuedDpcs(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		while (!is_idle(per_cpu_ptr(&queues, cpu)))
			usleep_range(50, 100);
}

/* A timer that the driver has set; a KTIMER has no room for one of Linux. */
struct timer {
	void *of;
	struct dpc *dpc;
	struct hrtimer hrtimer;
};

static struct timer timers[TIMERS];
static DEFINE_RAW_SPINLOCK(timers_lock);

static enum hrtimer_restart expired(struct hrtimer *hrtimer)
{
	KeInsertQueueDpc(container_of(hrtimer, struct timer, hrtimer)->dpc, NULL, NULL);
	return HRTIMER_NORESTART;
}

/* The timer of this KTIMER, or, where there is none, a free one for it if `anew`. */
static struct timer *timer_of(void *of, bool anew)
{
	struct timer *found = NULL;
	unsigned long irqs;
	int i;

	raw_spin_lock_irqsave(&timers_lock, irqs);
	for (i = 0; i < TIMERS && !(found && found->of == of); i++)
		if (timers[i].of == of || (anew && !found && !timers[i].of))
			found = &timers[i];
	if (found && !found->of) {
		found->of = of;
		hrtimer_init(&found->hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
		found->hrtimer.function = expired;
	}
	raw_spin_unlock_irqrestore(&timers_lock, irqs);
	return found;
}

static NT void KeInitializeTimer(void *of)
{
}

static NT u8 KeCancelTimer(void *of)
{
	struct timer *timer = timer_of(of, false);
	bool was_set = timer && hrtimer_cancel(&timer->hrtimer) == 1;

	if (timer)
		WRITE_ONCE(timer->of, NULL);
	return was_set;
}

static NT u8 KeSetTimer(void *of, s64 due, struct dpc *dpc)
{
	struct timer *timer = timer_of(of, true);
	bool was_set;

	if (!timer)
		panic("nt_kernel: the driver has more than %d timers", TIMERS);
	was_set = hrtimer_cancel(&timer->hrtimer) == 1;
	timer->dpc = dpc;
	/* In units of 100 ns; negative from now, which is the only way of the driver's. */
	hrtimer_start(&timer->hrtimer, ns_to_ktime(due < -KTIME_MAX / 100 ? KTIME_MAX / 2 : -due * 100), HRTIMER_MODE_REL);
	return was_set;
}

static NT u32 ExSetTimerResolution(u32 units, u8 on)
{
	return units;
}

const struct nt_export nt_deferred[] = {
	NT_EXPORT(ExSetTimerResolution),
	NT_EXPORT(KeCancelTimer),
	NT_EXPORT(KeFlushQueuedDpcs),
	NT_EXPORT(KeInitializeDpc),
	NT_EXPORT(KeInitializeTimer),
	NT_EXPORT(KeInsertQueueDpc),
	NT_EXPORT(KeRemoveQueueDpc),
	NT_EXPORT(KeSetImportanceDpc),
	NT_EXPORT(KeSetTargetProcessorDpc),
	NT_EXPORT(KeSetTimer),
	{},
};
