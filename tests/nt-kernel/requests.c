// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver, its device, and requests (IRP) on it, which are made and completed in the thread that asks.
 */
#define pr_fmt(fmt) "nt_kernel: " fmt

#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "nt.h"

/* IRP_MJ_XXX. */
#define CREATE 0
#define CLOSE 2
#define DEVICE_CONTROL 14
#define CLEANUP 18
#define FUNCTIONS 28

/* DEVICE_OBJECT, which the driver does not look into. */
struct device {
	u64 words[48];
};

/* FILE_OBJECT. */
struct file_object {
	u64 head[3];
	/* FsContext. */
	void *context;
	u64 tail[23];
};

/* IO_STACK_LOCATION of a device control. */
struct location {
	u8 function;
	u8 others[7];
	u32 output;
	u32 unused_output;
	u32 input;
	u32 unused_input;
	u32 code;
	u32 unused_code;
	void *type3_input;
	struct device *device;
	struct file_object *file;
	u64 completion[2];
};

/* IRP. */
struct irp {
	u64 head[3];
	void *buffer;
	u64 thread_list[2];
	ntstatus status;
	u32 unused_status;
	u64 information;
	u8 modes[4];
	u8 cancel;
	u8 cancel_irql;
	u8 others[2];
	u64 user[4];
	void *cancel_routine;
	void *user_buffer;
	/* Tail.Overlay: what the driver may use comes first. */
	void *driver_context[4];
	u64 overlay[4];
	struct location *location;
	u64 file[2];
};

static_assert(offsetof(struct file_object, context) == 0x18 && sizeof(struct file_object) == 216);
static_assert(offsetof(struct location, file) == 0x30 && sizeof(struct location) == 72);
static_assert(offsetof(struct irp, status) == 0x30 && offsetof(struct irp, cancel) == 0x44);
static_assert(offsetof(struct irp, cancel_routine) == 0x68 && offsetof(struct irp, driver_context) == 0x78);
static_assert(offsetof(struct irp, location) == 0xb8 && sizeof(struct irp) == 208);

struct driver;

typedef NT ntstatus dispatch(struct device *device, struct irp *irp);
typedef NT void unload(struct driver *driver);
typedef NT ntstatus start(struct driver *driver, void *registry);

/* DRIVER_OBJECT. */
static struct driver {
	u64 type;
	struct device *device;
	u64 others[11];
	unload *unload;
	dispatch *dispatch[FUNCTIONS];
} driver;

static_assert(offsetof(struct driver, unload) == 0x68 && sizeof(struct driver) == 336);

static struct device device;

static NT ntstatus IoCreateDevice(struct driver *of, u32 extension, void *name, u32 type, u32 how, u8 exclusive,
				  struct device **made)
{
	of->device = &device;
	*made = &device;
	return STATUS_SUCCESS;
}

static NT void IoDeleteDevice(struct device *gone)
{
	driver.device = NULL;
}

/* Its names are this module's affair. */
static NT ntstatus IoCreateSymbolicLink(void *link, void *name)
{
	return STATUS_SUCCESS;
}

static NT ntstatus IoDeleteSymbolicLink(void *link)
{
	return STATUS_SUCCESS;
}

static NT ntstatus IoRegisterShutdownNotification(struct device *of)
{
	return STATUS_SUCCESS;
}

static NT void IoUnregisterShutdownNotification(struct device *of)
{
}

static DEFINE_RAW_SPINLOCK(cancel_lock);

static NT void IoAcquireCancelSpinLock(u8 *irql)
{
	*irql = nt_irql();
	nt_set_irql(DISPATCH_LEVEL);
	raw_spin_lock(&cancel_lock);
}

static NT void IoReleaseCancelSpinLock(u8 irql)
{
	raw_spin_unlock(&cancel_lock);
	nt_set_irql(irql);
}

static NT void IofCompleteRequest(struct irp *irp, s8 boost)
{
}

const struct nt_export nt_requests[] = {
	NT_EXPORT(IoAcquireCancelSpinLock),
	NT_EXPORT(IoCreateDevice),
	NT_EXPORT(IoCreateSymbolicLink),
	NT_EXPORT(IoDeleteDevice),
	NT_EXPORT(IoDeleteSymbolicLink),
	NT_EXPORT(IoRegisterShutdownNotification),
	NT_EXPORT(IoReleaseCancelSpinLock),
	NT_EXPORT(IoUnregisterShutdownNotification),
	NT_EXPORT(IofCompleteRequest),
	{},
};

/* What a status is for programs of Linux: the table in docs/abi.md. */
static int number_of(ntstatus status)
{
	static const struct {
		u32 status;
		int number;
	} table[] = {
		{ 0x00000000, 0 },	 { 0xc000000d, -EINVAL }, { 0xc0000017, -ENOMEM }, { 0x80000011, -EBUSY },
		{ 0xc0000120, -EINTR },	 { 0xc00000bb, -ENODEV }, { 0xc0000059, -EPROTO }, { 0xc0000225, -ENOENT },
		{ 0xc0000035, -EEXIST }, { 0xc0000010, -ENOTTY }, { 0xc0000004, -ENOTTY }, { 0xc0000022, -EACCES },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(table); i++)
		if (table[i].status == (u32)status)
			return table[i].number;
	pr_err("the driver gives the status %#x\n", status);
	return -EIO;
}

static int request(struct file_object *file, u8 function, u32 code, void *buffer, u32 size)
{
	struct location location = {
		.function = function, .input = size, .output = size, .code = code, .device = &device, .file = file,
	};
	struct irp irp = { .buffer = buffer, .location = &location };

	return number_of(driver.dispatch[function](&device, &irp));
}

int nt_driver_start(void *entry)
{
	start *start = entry;
	ntstatus status = start(&driver, NULL);

	return status < 0 ? number_of(status) : 0;
}

void nt_driver_stop(void)
{
	driver.unload(&driver);
}

int nt_open(void **file)
{
	struct file_object *new = kzalloc(sizeof(*new), GFP_KERNEL);
	int error;

	if (!new)
		return -ENOMEM;
	error = request(new, CREATE, 0, NULL, 0);
	if (error)
		kfree(new);
	else
		*file = new;
	return error;
}

void nt_close(void *file)
{
	request(file, CLEANUP, 0, NULL, 0);
	request(file, CLOSE, 0, NULL, 0);
	kfree(file);
}

int nt_control(void *file, unsigned int code, void *buffer, size_t size)
{
	return request(file, DEVICE_CONTROL, code, buffer, size);
}
