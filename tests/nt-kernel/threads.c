// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads, processes, CPUs and clocks.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/timekeeping.h>

#include "nt.h"

/* KeQueryPerformanceCounter counts so often a second here. */
#define FREQUENCY 10000000
/* Seconds from 1601 to 1970. */
#define EPOCH 11644473600ULL

static NT void *PsGetCurrentThread(void)
{
	return current;
}

/* Whether the driver is to come to an end with what it does for this thread: a signal's the reason here. */
static NT u8 PsIsThreadTerminating(struct task_struct *thread)
{
	return signal_pending(thread);
}

/* What a process is known by; stays as long as one of its threads is. */
static NT void *IoGetCurrentProcess(void)
{
	return current->signal;
}

static NT void KeStackAttachProcess(void *process, void *state)
{
}

static NT void KeUnstackDetachProcess(void *state)
{
}

static NT void KeEnterCriticalRegion(void)
{
}

static NT void KeLeaveCriticalRegion(void)
{
}

static NT u64 KeQueryActiveProcessors(void)
{
	return cpumask_bits(cpu_online_mask)[0];
}

static NT u32 KeQueryActiveProcessorCountEx(u16 group)
{
	return num_online_cpus();
}

static NT void KeSetSystemAffinityThread(u64 cpus)
{
	struct cpumask mask;

	cpumask_clear(&mask);
	cpumask_bits(&mask)[0] = cpus;
	set_cpus_allowed_ptr(current, &mask);
}

static NT void KeRevertToUserAffinityThread(void)
{
	set_cpus_allowed_ptr(current, cpu_possible_mask);
}

static NT u32 KeShouldYieldProcessor(void)
{
	return need_resched();
}

static NT ntstatus KeDelayExecutionThread(s8 mode, u8 alertable, const s64 *interval)
{
	/* In units of 100 ns, negative from now. */
	fsleep(-*interval / 10);
	return STATUS_SUCCESS;
}

static NT s64 KeQueryPerformanceCounter(s64 *frequency)
{
	if (frequency)
		*frequency = FREQUENCY;
	return ktime_get_ns() / (NSEC_PER_SEC / FREQUENCY);
}

u64 nt_time(void)
{
	return ktime_get_real_ns() / 100 + EPOCH * FREQUENCY;
}

static NT void KeQuerySystemTimePrecise(s64 *time)
{
	*time = nt_time();
}

const struct nt_export nt_threads[] = {
	NT_EXPORT(IoGetCurrentProcess),
	NT_EXPORT(KeDelayExecutionThread),
	NT_EXPORT(KeEnterCriticalRegion),
	NT_EXPORT(KeLeaveCriticalRegion),
	NT_EXPORT(KeQueryActiveProcessors),
	NT_EXPORT(KeQueryPerformanceCounter),
	NT_EXPORT(KeRevertToUserAffinityThread),
	NT_EXPORT(KeSetSystemAffinityThread),
	NT_EXPORT(KeStackAttachProcess),
	NT_EXPORT(KeUnstackDetachProcess),
	NT_EXPORT(PsGetCurrentThread),
	NT_EXPORT(PsIsThreadTerminating),
	{},
};

const struct nt_export nt_newer[] = {
	{ "KeQueryActiveProcessorCountEx", KeQueryActiveProcessorCountEx, 601 },
	{ "KeQuerySystemTimePrecise", KeQuerySystemTimePrecise, 602 },
	{ "KeShouldYieldProcessor", KeShouldYieldProcessor, 600 },
	{},
};
