/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What covisor.sys takes of NT's kernel, in Linux's, for tests: the driver file is loaded as users get it, its code runs in ring 0,
 * and programs reach it by the calls of the Linux driver.
 *
 * Functions of NT's have the calling convention of Windows. Structures that the driver looks into have NT's form; of those that it
 * only has room for, what is in them is this module's affair.
 */
#ifndef NT_H
#define NT_H

#include <linux/types.h>

#define NT __attribute__((ms_abi))

typedef s32 ntstatus;

#define STATUS_SUCCESS 0
#define STATUS_ALERTED 0x101
#define STATUS_INVALID_DEVICE_REQUEST ((ntstatus)0xc0000010)
#define STATUS_NOT_FOUND ((ntstatus)0xc0000225)

/* Interrupt request levels. */
#define PASSIVE_LEVEL 0
#define DISPATCH_LEVEL 2

/* A function, or variable, of the kernel's. */
struct nt_export {
	const char *name;
	void *address;
	/* The version that has it first; 0 where all have. */
	unsigned int since;
};

#define NT_EXPORT(function) { #function, function }

/* UNICODE_STRING. */
struct nt_string {
	u16 length;
	u16 maximum;
	u16 *text;
};

/* MDL; the frames' numbers are behind it. */
struct nt_mdl {
	struct nt_mdl *next;
	s16 size;
	s16 flags;
	void *process;
	void *mapped;
	void *start;
	u32 bytes;
	u32 offset;
	unsigned long frames[];
};

static inline unsigned long nt_irql(void)
{
	unsigned long level;

	asm volatile("mov %%cr8, %0" : "=r"(level) : : "memory");
	return level;
}

static inline void nt_set_irql(unsigned long level)
{
	asm volatile("mov %0, %%cr8" : : "r"(level) : "memory");
}

/* The parts, each with what it has for the driver; lists end with a name that is NULL. */
extern const struct nt_export nt_memory[];
extern const struct nt_export nt_deferred[];
extern const struct nt_export nt_events[];
extern const struct nt_export nt_threads[];
extern const struct nt_export nt_objects[];
extern const struct nt_export nt_requests[];
/* What is only found by MmGetSystemRoutineAddress. */
extern const struct nt_export nt_newer[];

/* The version that this kernel says it is of: 1000 is 10.0, 502 is 5.2. */
extern unsigned int nt_version;

/* The page that is the same everywhere; asked for the time by drivers on versions that have no better way. */
int nt_shared_start(void);
void nt_shared_stop(void);

/* The time: 100 ns since 1601. */
u64 nt_time(void);

/* The image of a driver. */
void *nt_image_load(const char *path, void **entry);
void nt_image_free(void *image);
/* Whether the address is in the image that was loaded. */
bool nt_image_has(unsigned long address);

/* Slices of time for threads in the driver, from the first to the last. */
void nt_slices_start(void);
void nt_slices_stop(void);

/* Deferred calls, from the first to the last. */
void nt_deferred_start(void);
void nt_deferred_stop(void);

/* The page that is mapped to programs at this address, with a reference. */
struct page *nt_user_page(unsigned long address);

/* The object of an event of a program's; NULL where it has none. */
void *nt_event_of_program(int descriptor);
/* Gives a reference back, if it is the object of an event. */
void nt_event_put(void *object);

/* The driver's start, requests on its device, and its end. A request's status is Linux' number. */
int nt_driver_start(void *entry);
void nt_driver_stop(void);
int nt_open(void **file);
void nt_close(void *file);
int nt_control(void *file, unsigned int code, void *buffer, size_t size);

/* Tells the driver that the machine is about to sleep, or awake. */
int nt_power_changes(bool awake);

#endif
