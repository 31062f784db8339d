// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sleep, reboot and CPU hot-plug. The driver switches a CPU's virtualization extension on when a VM first runs there, and
 * remembers that. A CPU that was reset has forgotten it, and the kernel that kexec starts must find it off.
 */
#include <linux/cpuhotplug.h>
#include <linux/irqflags.h>
#include <linux/reboot.h>
#include <linux/syscore_ops.h>
#include <linux/version.h>

#include "covisor.h"

/*
 * On a CPU that comes up, before any program runs on it, and on one that goes down. It may be switched on once more before
 * it is really down, which is why its coming up counts.
 */
static int cpu_changes(unsigned int cpu)
{
	unsigned long flags;

	local_irq_save(flags);
	covisor_power_down_here();
	local_irq_restore(flags);
	return 0;
}

static int machine_ends(struct notifier_block *block, unsigned long action, void *data)
{
	covisor_power_down();
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = {
	.notifier_call = machine_ends,
};

/* On the last CPU, with interrupts off, when all others are down. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)

static int machine_sleeps(void *data)
{
	covisor_power_down_here();
	return 0;
}

static const struct syscore_ops sleep_operations = {
	.suspend = machine_sleeps,
};

static struct syscore sleep_hook = {
	.ops = &sleep_operations,
};

#else

static int machine_sleeps(void)
{
	covisor_power_down_here();
	return 0;
}

static struct syscore_ops sleep_hook = {
	.suspend = machine_sleeps,
};

#define register_syscore(hook) register_syscore_ops(hook)
#define unregister_syscore(hook) unregister_syscore_ops(hook)

#endif

static enum cpuhp_state hotplug_state;

int covisor_power_start(void)
{
	int error;

	error = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "covisor:online", cpu_changes, cpu_changes);
	if (error < 0)
		return error;
	hotplug_state = error;
	error = register_reboot_notifier(&reboot_notifier);
	if (error) {
		cpuhp_remove_state_nocalls(hotplug_state);
		return error;
	}
	register_syscore(&sleep_hook);
	return 0;
}

void covisor_power_stop(void)
{
	unregister_syscore(&sleep_hook);
	unregister_reboot_notifier(&reboot_notifier);
	cpuhp_remove_state_nocalls(hotplug_state);
}
