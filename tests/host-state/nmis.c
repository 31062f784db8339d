// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sends NMIs to a CPU and counts those that the kernel's handler sees there.
 *
 * One is sent only when the one before was seen: a CPU keeps one NMI while it is in another's handler and forgets any
 * further one (SDM vol. 3, 6.7.1), so among several at once a lost one would not be told from those.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <asm/apic.h>
#include <asm/nmi.h>

#include "nmis.h"

#define NAME "host_nmis"

/* At most so long before each, in microseconds: random, so that they come anywhere in what the CPU does. */
#define LONGEST_WAIT_US 1000
/* A CPU takes its NMI at once, but the emulated machine's CPUs may stand still now and then. */
#define BOUND (20 * HZ)
/* The NMIs of a CPU of which it is kept where they came. */
#define PLACES 4096

struct target {
	/* Held by who sends. */
	struct mutex lock;
	/* One is on its way. */
	atomic_t expected;
	unsigned long sent, seen;
	/* What each interrupted. */
	unsigned long places[PLACES];
};

/* By CPU. */
static struct target **targets;

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	struct target *target = targets[smp_processor_id()];

	/* The kernel complains of one that nobody has a use for, so one that came twice is not missed. */
	if (!atomic_read_acquire(&target->expected))
		return NMI_DONE;
	target->places[target->seen++] = regs->ip;
	atomic_set_release(&target->expected, 0);
	return NMI_HANDLED;
}

static int send_one(struct target *target, unsigned int cpu)
{
	unsigned long flags, end;

	/* The APIC's command has two halves on some machines. */
	local_irq_save(flags);
	target->sent++;
	atomic_set_release(&target->expected, 1);
	apic->send_IPI(cpu, NMI_VECTOR);
	local_irq_restore(flags);

	end = jiffies + BOUND;
	while (atomic_read_acquire(&target->expected)) {
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		cond_resched();
		cpu_relax();
	}
	return 0;
}

static int send(unsigned int cpu, unsigned int count)
{
	struct target *target;
	int error;

	if (cpu >= nr_cpu_ids || !cpu_online(cpu))
		return -ENXIO;
	target = targets[cpu];
	error = mutex_lock_interruptible(&target->lock);
	if (error)
		return error;
	if (count > PLACES - target->sent)
		error = -ENOSPC;
	while (!error && count--) {
		unsigned int wait = get_random_u32() % LONGEST_WAIT_US;

		usleep_range(wait, wait + 1);
		error = signal_pending(current) ? -EINTR : send_one(target, cpu);
	}
	mutex_unlock(&target->lock);
	return error;
}

/* "CPU COUNT": sends that CPU so many. */
static ssize_t write(struct file *file, const char __user *from, size_t size, loff_t *position)
{
	unsigned int cpu, count;
	char text[32];
	int error;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, size))
		return -EFAULT;
	text[size] = '\0';
	if (sscanf(text, "%u %u", &cpu, &count) != 2)
		return -EINVAL;
	error = send(cpu, count);
	return error ? error : size;
}

/* For each CPU how many were sent to it and how many its handler saw; and of each of these what it interrupted. */
static int show(struct seq_file *file, void *unused)
{
	unsigned int cpu;
	unsigned long i;

	for_each_online_cpu(cpu) {
		seq_printf(file, "CPU %u: %lu sent, %lu seen\n", cpu, targets[cpu]->sent, targets[cpu]->seen);
		for (i = 0; i < targets[cpu]->seen; i++)
			seq_printf(file, "CPU %u in %ps\n", cpu, (void *)targets[cpu]->places[i]);
	}
	return 0;
}

static int open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static const struct proc_ops operations = {
	.proc_open = open,
	.proc_read = seq_read,
	.proc_write = write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static void free_targets(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		kvfree(targets[cpu]);
	kfree(targets);
}

int nmis_start(void)
{
	unsigned int cpu;
	int error = -ENOMEM;

	targets = kcalloc(nr_cpu_ids, sizeof(*targets), GFP_KERNEL);
	if (!targets)
		return error;
	for_each_possible_cpu(cpu) {
		targets[cpu] = kvzalloc(sizeof(**targets), GFP_KERNEL);
		if (!targets[cpu])
			goto out;
		mutex_init(&targets[cpu]->lock);
	}
	error = register_nmi_handler(NMI_LOCAL, on_nmi, 0, NAME);
	if (error)
		goto out;
	if (proc_create(NAME, 0600, NULL, &operations))
		return 0;
	unregister_nmi_handler(NMI_LOCAL, NAME);
	error = -ENOMEM;
out:
	free_targets();
	return error;
}

void nmis_end(void)
{
	remove_proc_entry(NAME, NULL);
	unregister_nmi_handler(NMI_LOCAL, NAME);
	free_targets();
}
