// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events (KEVENT): the driver's own, and those of programs, which are file descriptors here as for the Linux driver.
 */
#include <linux/eventfd.h>
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "nt.h"

/* EVENT_TYPE, and what is none of NT's. */
enum kind { NOTIFICATION, SYNCHRONIZATION, OF_A_PROGRAM = 0x7067 };

/* What is in a KEVENT. */
struct event {
	u32 kind;
	u32 is_set;
};

static_assert(sizeof(struct event) <= 24);

/* One of a program's. */
struct program_event {
	struct event event;
	struct eventfd_ctx *descriptor;
	struct list_head entry;
};

static LIST_HEAD(program_events);

/* All wait in one place: they are few. */
static DECLARE_WAIT_QUEUE_HEAD(waiting);
static DEFINE_SPINLOCK(lock);

static NT void KeInitializeEvent(struct event *event, int kind, u8 is_set)
{
	event->kind = kind;
	event->is_set = is_set;
}

static NT s32 KeSetEvent(struct event *event, s32 boost, u8 waits)
{
	unsigned long irqs;
	s32 before;

	if (event->kind == OF_A_PROGRAM) {
		eventfd_signal(container_of(event, struct program_event, event)->descriptor, 1);
		return 0;
	}
	spin_lock_irqsave(&lock, irqs);
	before = event->is_set;
	event->is_set = 1;
	spin_unlock_irqrestore(&lock, irqs);
	wake_up_all(&waiting);
	return before;
}

static NT void KeClearEvent(struct event *event)
{
	unsigned long irqs;

	spin_lock_irqsave(&lock, irqs);
	event->is_set = 0;
	spin_unlock_irqrestore(&lock, irqs);
}

static bool passes(struct event *event)
{
	unsigned long irqs;
	bool is_set;

	spin_lock_irqsave(&lock, irqs);
	is_set = event->is_set;
	if (event->kind == SYNCHRONIZATION)
		event->is_set = 0;
	spin_unlock_irqrestore(&lock, irqs);
	return is_set;
}

static NT ntstatus KeWaitForSingleObject(struct event *event, int reason, s8 mode, u8 alertable, s64 *timeout)
{
	if (!alertable)
		wait_event(waiting, passes(event));
	else if (wait_event_interruptible(waiting, passes(event)))
		return STATUS_ALERTED;
	return STATUS_SUCCESS;
}

void *nt_event_of_program(int number)
{
	struct eventfd_ctx *descriptor = eventfd_ctx_fdget(number);
	struct program_event *new;
	unsigned long irqs;

	if (IS_ERR(descriptor))
		return NULL;
	new = kmalloc(sizeof(*new), GFP_KERNEL);
	if (!new) {
		eventfd_ctx_put(descriptor);
		return NULL;
	}
	*new = (struct program_event){ .event.kind = OF_A_PROGRAM, .descriptor = descriptor };
	spin_lock_irqsave(&lock, irqs);
	list_add(&new->entry, &program_events);
	spin_unlock_irqrestore(&lock, irqs);
	return &new->event;
}

void nt_event_put(void *object)
{
	struct program_event *event, *found = NULL;
	unsigned long irqs;

	spin_lock_irqsave(&lock, irqs);
	list_for_each_entry(event, &program_events, entry)
		if (&event->event == object)
			found = event;
	if (found)
		list_del(&found->entry);
	spin_unlock_irqrestore(&lock, irqs);
	if (found) {
		eventfd_ctx_put(found->descriptor);
		kfree(found);
	}
}

const struct nt_export nt_events[] = {
	NT_EXPORT(KeClearEvent),
	NT_EXPORT(KeInitializeEvent),
	NT_EXPORT(KeSetEvent),
	NT_EXPORT(KeWaitForSingleObject),
	{},
};
