/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The seam between the C shim and the Rust driver. Its Rust side: src/lib.rs (what C calls), src/ffi.rs (what Rust
 * calls).
 */
#ifndef COVISOR_H
#define COVISOR_H

#include <linux/rcuwait.h>
#include <linux/types.h>

struct eventfd_ctx;
struct covisor_timer;

/* No call's structure is larger; checked against covisor_abi when the Rust side is compiled. */
#define COVISOR_CALL_WORDS 64
/* Words of the structure of RUN. */
#define COVISOR_RUN_WORDS 6
/* The letter of the ioctl numbers. */
#define COVISOR_CALL_TYPE 'V'
/* What covisor_ram_page() returns where there is no guest RAM, and covisor_host_physical_address() where there is nothing. */
#define COVISOR_NO_PAGE (~0ULL)

/* Rust, called by C. Functions with an int return 0 or a negative errno. */
int covisor_module_init(void);
void covisor_module_exit(void);
void covisor_power_down(void);
void covisor_power_down_here(void);	/* interrupts off */
int covisor_open(void **handle);
void covisor_release(void *handle);
int covisor_ioctl(void *handle, u32 number, u64 *buffer);
u64 covisor_ram_page(void *handle, u64 offset);
void covisor_call_on_cpu(const void *call);
void covisor_timer_expired(const void *function, const void *argument);

/* covisor_power.c */
int covisor_power_start(void);
void covisor_power_stop(void);

/* C, called by Rust. Thread context if not said otherwise. */
void *covisor_host_allocate(size_t size, bool zeroed);
void covisor_host_deallocate(void *memory);
void *covisor_host_pages_alloc(unsigned int order, u64 *phys);
void covisor_host_pages_free(void *pages, unsigned int order);
u64 covisor_host_physical_address(const void *address);	/* COVISOR_NO_PAGE where there is none */
void covisor_host_page_hold(u64 phys);
u64 covisor_host_memory_available(void);

void covisor_host_on_each_cpu(const void *call);
void covisor_host_on_cpu(u32 cpu, const void *call);
u32 covisor_host_cpu_limit(void);
u32 covisor_host_cpu(void);
u32 covisor_host_preempt_off(void);	/* the CPU's number */
void covisor_host_preempt_on(void);
void covisor_host_task_segment_cut(void);	/* interrupts off */
void covisor_host_set_vmx_enable(bool on);	/* interrupts off */
bool covisor_host_must_yield(void);		/* any context */
bool covisor_host_yield(void);
void covisor_host_kick(u32 cpu);		/* any context */

u64 covisor_host_wall_clock_ns(void);		/* any context */
u32 covisor_host_tsc_khz(void);

struct eventfd_ctx *covisor_host_event_open(int fd);
void covisor_host_event_close(struct eventfd_ctx *event);
void covisor_host_event_signal(struct eventfd_ctx *event);	/* any context */

struct rcuwait *covisor_host_waker_new(void);
void covisor_host_waker_free(struct rcuwait *waker);
void covisor_host_wait_begin(struct rcuwait *waker);
bool covisor_host_wait_sleep(void);
void covisor_host_wait_end(struct rcuwait *waker);
void covisor_host_wake(struct rcuwait *waker);	/* any context */

struct covisor_timer *covisor_host_timer_new(const void *function, const void *argument);
void covisor_host_timer_free(struct covisor_timer *timer);
void covisor_host_timer_set(struct covisor_timer *timer, u64 delay_ns);	/* any context */
void covisor_host_timer_cancel(struct covisor_timer *timer);		/* any context */

void covisor_host_print(u32 level, const char *text, size_t length);
void __noreturn covisor_host_bug(const char *text, size_t length);

#endif
