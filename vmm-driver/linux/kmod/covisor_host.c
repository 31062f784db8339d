// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's services for the Rust driver: one short function for each that is a macro, an inline function or of
 * another shape in another kernel version.
 */
#define pr_fmt(fmt) "covisor: " fmt

#include <linux/bug.h>
#include <linux/cpu.h>
#include <linux/eventfd.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/mem_encrypt.h>
#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/version.h>
#include <trace/events/ipi.h>
#include <asm/desc.h>
#include <asm/tlbflush.h>
#include <asm/tsc.h>

#include "covisor.h"

/* Memory. The caller would rather get an error than have another process killed for it. */

void *covisor_host_allocate(size_t size, bool zeroed)
{
	return kvmalloc(size, GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN | (zeroed ? __GFP_ZERO : 0));
}

void covisor_host_deallocate(void *memory)
{
	kvfree(memory);
}

/*
 * A large block is a bonus that is worth one light try. Single pages are worth more. A large block is a compound page, so that
 * whoever pins a part of it in user space keeps all of it.
 */
void *covisor_host_pages_alloc(unsigned int order, u64 *phys)
{
	gfp_t how = order ? __GFP_NORETRY | __GFP_COMP : __GFP_RETRY_MAYFAIL;
	struct page *page;

	cond_resched();
	if (fatal_signal_pending(current))
		return NULL;
	page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN | how, order);
	if (!page)
		return NULL;
	/* The address as page tables and the VMCB need it: where the host encrypts its memory, with that bit. */
	*phys = __sme_set(page_to_phys(page));
	return page_address(page);
}

void covisor_host_pages_free(void *pages, unsigned int order)
{
	__free_pages(virt_to_page(pages), order);
	cond_resched();
}

/* The module's own code and data lie in mapped pages, as a large allocation of the heap's does; the rest in the direct map. */
u64 covisor_host_physical_address(const void *address)
{
	struct page *page;

	if (virt_addr_valid(address))
		return __sme_set(virt_to_phys((void *)address));
	page = vmalloc_to_page(address);
	return page ? __sme_set(page_to_phys(page)) + offset_in_page(address) : COVISOR_NO_PAGE;
}

/* A reference to a page that the caller has one to already. */
void covisor_host_page_hold(u64 phys)
{
	get_page(pfn_to_page(__sme_clr(phys) >> PAGE_SHIFT));
}

u64 covisor_host_memory_available(void)
{
	long pages = si_mem_available();

	return pages > 0 ? (u64)pages << PAGE_SHIFT : 0;
}

/* CPUs and scheduling. */

static void call_on_cpu(void *call)
{
	covisor_call_on_cpu(call);
}

void covisor_host_on_each_cpu(const void *call)
{
	on_each_cpu(call_on_cpu, (void *)call, 1);
}

/* Where the CPU is offline the call is refused, which is what is wanted. */
void covisor_host_on_cpu(u32 cpu, const void *call)
{
	if (cpu < nr_cpu_ids)
		smp_call_function_single(cpu, call_on_cpu, (void *)call, 1);
}

u32 covisor_host_cpu_limit(void)
{
	return nr_cpu_ids;
}

u32 covisor_host_cpu(void)
{
	return raw_smp_processor_id();
}

u32 covisor_host_preempt_off(void)
{
	preempt_disable();
	return smp_processor_id();
}

void covisor_host_preempt_on(void)
{
	preempt_enable();
}

/* The kernel loads the task register again before a task needs the I/O bitmap behind the limit. */
void covisor_host_task_segment_cut(void)
{
	invalidate_tss_limit();
}

/* The kernel has a copy of CR4, which it writes back on other occasions. */
void covisor_host_set_vmx_enable(bool on)
{
	if (on)
		cr4_set_bits(X86_CR4_VMXE);
	else
		cr4_clear_bits(X86_CR4_VMXE);
}

/* Lazy preemption (6.13) has a second flag, which the kernel honours on its way to user space: RUN counts as that. */
static bool wanted_by_another(void)
{
#ifdef TIF_NEED_RESCHED_LAZY
	if (test_thread_flag(TIF_NEED_RESCHED_LAZY))
		return true;
#endif
	return need_resched();
}

bool covisor_host_must_yield(void)
{
	return wanted_by_another() || signal_pending(current);
}

/* Returns whether a signal waits. */
bool covisor_host_yield(void)
{
	if (wanted_by_another())
		schedule();
	return signal_pending(current);
}

/* The rescheduling interrupt does nothing but interrupt, which is what is wanted. */
void covisor_host_kick(u32 cpu)
{
	preempt_disable();
	if (cpu < nr_cpu_ids && cpu_online(cpu))
		smp_send_reschedule(cpu);
	preempt_enable();
}

/* Clocks. */

u64 covisor_host_wall_clock_ns(void)
{
	return ktime_get_real_ns();
}

u32 covisor_host_tsc_khz(void)
{
	return tsc_khz;
}

/* Events. */

struct eventfd_ctx *covisor_host_event_open(int fd)
{
	struct eventfd_ctx *event = eventfd_ctx_fdget(fd);

	return IS_ERR(event) ? NULL : event;
}

void covisor_host_event_close(struct eventfd_ctx *event)
{
	eventfd_ctx_put(event);
}

void covisor_host_event_signal(struct eventfd_ctx *event)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(event);
#else
	eventfd_signal(event, 1);
#endif
}

/* Sleeping. A waker has one sleeper at a time: the thread that runs the vCPU. */

struct rcuwait *covisor_host_waker_new(void)
{
	struct rcuwait *waker = kmalloc(sizeof(*waker), GFP_KERNEL_ACCOUNT);

	if (waker)
		rcuwait_init(waker);
	return waker;
}

void covisor_host_waker_free(struct rcuwait *waker)
{
	kfree(waker);
}

/* From here to covisor_host_wait_end() the caller may look whether it has to sleep, but must not do so otherwise. */
void covisor_host_wait_begin(struct rcuwait *waker)
{
	prepare_to_rcuwait(waker);
	set_current_state(TASK_INTERRUPTIBLE);
}

/* Sleeps until it is woken; returns whether a signal waits. */
bool covisor_host_wait_sleep(void)
{
	if (signal_pending(current))
		return true;
	schedule();
	set_current_state(TASK_INTERRUPTIBLE);
	return false;
}

void covisor_host_wait_end(struct rcuwait *waker)
{
	finish_rcuwait(waker);
}

void covisor_host_wake(struct rcuwait *waker)
{
	rcuwait_wake_up(waker);
}

/* Timers. */

struct covisor_timer {
	struct hrtimer timer;
	const void *function;
	const void *argument;
};

static enum hrtimer_restart timer_expired(struct hrtimer *raw)
{
	struct covisor_timer *timer = container_of(raw, struct covisor_timer, timer);

	covisor_timer_expired(timer->function, timer->argument);
	return HRTIMER_NORESTART;
}

struct covisor_timer *covisor_host_timer_new(const void *function, const void *argument)
{
	struct covisor_timer *timer = kzalloc(sizeof(*timer), GFP_KERNEL_ACCOUNT);

	if (!timer)
		return NULL;
	timer->function = function;
	timer->argument = argument;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&timer->timer, timer_expired, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
#else
	hrtimer_init(&timer->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	timer->timer.function = timer_expired;
#endif
	return timer;
}

void covisor_host_timer_free(struct covisor_timer *timer)
{
	hrtimer_cancel(&timer->timer);
	kfree(timer);
}

void covisor_host_timer_set(struct covisor_timer *timer, u64 delay_ns)
{
	hrtimer_start(&timer->timer, ns_to_ktime(min_t(u64, delay_ns, KTIME_MAX)), HRTIMER_MODE_REL_PINNED_HARD);
}

void covisor_host_timer_cancel(struct covisor_timer *timer)
{
	hrtimer_try_to_cancel(&timer->timer);
}

/* Messages. Limited in rate: what a guest does can be the reason for one. Levels are those of Rust's `log`. */

void covisor_host_print(u32 level, const char *text, size_t length)
{
	int size = min_t(size_t, length, 1000);

	switch (level) {
	case 1:
		pr_err_ratelimited("%.*s\n", size, text);
		break;
	case 2:
		pr_warn_ratelimited("%.*s\n", size, text);
		break;
	default:
		pr_info_ratelimited("%.*s\n", size, text);
		break;
	}
}

/* The end of the calling task; the machine lives on. */
void __noreturn covisor_host_bug(const char *text, size_t length)
{
	pr_emerg("%.*s\n", (int)min_t(size_t, length, 1000), text);
	BUG();
}
