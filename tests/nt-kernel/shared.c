// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page that NT maps at the same address everywhere (KUSER_SHARED_DATA), of which the driver reads the time, on an NT without
 * KeQuerySystemTimePrecise.
 *
 * The address is one that Linux maps nothing at, unless it chooses its addresses by chance. The page's tables are put into the kernel's own
 * top-level table, which those of new processes are copies of, and into those of all that there are.
 */
#define pr_fmt(fmt) "nt_kernel: " fmt

#include <linux/hrtimer.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/timekeeping.h>

#include "nt.h"

#define ADDRESS 0xfffff78000000000UL
/* SystemTime, in words: low half, high half, high half again. */
#define SYSTEM_TIME (0x14 / 4)
/* How often it is written, as NT's clock ticks at its quickest. */
#define TICK_NS 1000000

/* The page, and tables of entries, pages and directories for it. */
static struct page *pages[4];
static struct hrtimer tick;
static pgd_t *kernel_table;

static enum hrtimer_restart ticked(struct hrtimer *timer)
{
	u32 *words = (u32 *)page_address(pages[0]) + SYSTEM_TIME;
	u64 time = nt_time();

	WRITE_ONCE(words[2], time >> 32);
	WRITE_ONCE(words[0], (u32)time);
	WRITE_ONCE(words[1], time >> 32);
	hrtimer_forward_now(timer, TICK_NS);
	return HRTIMER_RESTART;
}

/* The kernel's top-level table, whose name is not for modules. */
static pgd_t *find_kernel_table(void)
{
	unsigned long (*find)(const char *name);
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };

	if (register_kprobe(&probe))
		return NULL;
	find = (void *)probe.addr;
	unregister_kprobe(&probe);
	return (pgd_t *)find("init_top_pgt");
}

/* Writes the entry for the page into all top-level tables. */
static void set_everywhere(pgd_t entry)
{
	struct task_struct *process;

	WRITE_ONCE(kernel_table[pgd_index(ADDRESS)], entry);
	rcu_read_lock();
	for_each_process(process) {
		struct mm_struct *memory = process->mm;

		if (memory)
			WRITE_ONCE(memory->pgd[pgd_index(ADDRESS)], entry);
	}
	rcu_read_unlock();
}

static u64 entry_for(struct page *page)
{
	return ((u64)page_to_pfn(page) << PAGE_SHIFT) | _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY;
}

int nt_shared_start(void)
{
	size_t i;

	kernel_table = find_kernel_table();
	if (!kernel_table || pgtable_l5_enabled() || pgd_val(kernel_table[pgd_index(ADDRESS)])) {
		pr_err("there is no room for NT's shared page: boot with nokaslr\n");
		return -EBUSY;
	}
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!pages[i]) {
			while (i--)
				__free_page(pages[i]);
			return -ENOMEM;
		}
	}
	hrtimer_init(&tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	tick.function = ticked;
	ticked(&tick);
	hrtimer_start(&tick, TICK_NS, HRTIMER_MODE_REL);
	((u64 *)page_address(pages[1]))[pte_index(ADDRESS)] = entry_for(pages[0]);
	((u64 *)page_address(pages[2]))[pmd_index(ADDRESS)] = entry_for(pages[1]);
	((u64 *)page_address(pages[3]))[pud_index(ADDRESS)] = entry_for(pages[2]);
	set_everywhere(__pgd(entry_for(pages[3])));
	return 0;
}

static void forget(void *unused)
{
	asm volatile("invlpg (%0)" : : "r"(ADDRESS) : "memory");
}

void nt_shared_stop(void)
{
	size_t i;

	if (!kernel_table)
		return;
	hrtimer_cancel(&tick);
	set_everywhere(__pgd(0));
	on_each_cpu(forget, NULL, 1);
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		__free_page(pages[i]);
}
