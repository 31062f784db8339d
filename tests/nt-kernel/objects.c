// SPDX-License-Identifier: GPL-2.0-only
/*
 * Objects and their names, callbacks, security, messages: what there is one of, or what nobody here can tell from success.
 */
#define pr_fmt(fmt) "nt_kernel: " fmt

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/string.h>

#include "nt.h"

/* `\Callback\PowerState`: the machine is about to leave its working state, or is back in it. */
#define SYSTEM_STATE_LOCK 3

static NT u32 DbgPrint(const char *format, ...)
{
	const char *text = format;
	__builtin_ms_va_list arguments;

	/* All that the driver uses: a text, or one by "%s". */
	__builtin_ms_va_start(arguments, format);
	if (!strcmp(format, "%s"))
		text = __builtin_va_arg(arguments, const char *);
	__builtin_ms_va_end(arguments);
	pr_info("%.*s\n", (int)strcspn(text, "\n"), text);
	return 0;
}

static NT void KeBugCheckEx(u32 code, u64 first, u64 second, u64 third, u64 fourth)
{
	panic("nt_kernel: bug check %#x (%#llx, %#llx, %#llx, %#llx)", code, first, second, third, fourth);
}

static NT int __C_specific_handler(void)
{
	panic("nt_kernel: an exception, which nothing here raises");
}

/* RTL_OSVERSIONINFOW. */
static NT ntstatus RtlGetVersion(u32 *version)
{
	version[1] = nt_version / 100;
	version[2] = nt_version % 100;
	version[3] = 0;
	return STATUS_SUCCESS;
}

static NT void *MmGetSystemRoutineAddress(const struct nt_string *name)
{
	const struct nt_export *export;

	for (export = nt_newer; export->name; export++) {
		size_t length = name->length / sizeof(u16), i;

		for (i = 0; i < length && export->name[i] == name->text[i]; i++)
			;
		if (i == length && !export->name[i] && export->since <= nt_version)
			return export->address;
	}
	return NULL;
}

/* SystemPerformanceInformation, and where it has AvailablePages, in words. */
#define PERFORMANCE 2
#define AVAILABLE 11

static NT ntstatus ZwQuerySystemInformation(int class, u32 *buffer, u32 bytes, u32 *written)
{
	if (class != PERFORMANCE || bytes <= AVAILABLE * sizeof(u32))
		return STATUS_INVALID_DEVICE_REQUEST;
	buffer[AVAILABLE] = min_t(long, si_mem_available(), U32_MAX);
	*written = bytes;
	return STATUS_SUCCESS;
}

static NT ntstatus ObReferenceObjectByHandle(void *handle, u32 access, void *type, s8 mode, void **object, void *information)
{
	*object = nt_event_of_program((long)handle);
	return *object ? STATUS_SUCCESS : STATUS_NOT_FOUND;
}

/* A reference to a process is none: it is there as long as somebody asks for it. */
static NT long ObfReferenceObject(void *object)
{
	return 1;
}

static NT long ObfDereferenceObject(void *object)
{
	nt_event_put(object);
	return 0;
}

static NT ntstatus ObOpenObjectByPointer(void *object, u32 attributes, void *state, u32 access, void *type, s8 mode, void **handle)
{
	*handle = object;
	return STATUS_SUCCESS;
}

static NT ntstatus ZwClose(void *handle)
{
	return STATUS_SUCCESS;
}

static NT ntstatus ZwSetSecurityObject(void *handle, u32 what, void *descriptor)
{
	return STATUS_SUCCESS;
}

typedef NT void callback(void *context, void *first, void *second);

static char callback_object[64];
static callback *power_callback;
static void *power_context;

static NT ntstatus ExCreateCallback(void **object, void *attributes, u8 create, u8 multiple)
{
	*object = callback_object;
	return STATUS_SUCCESS;
}

static NT void *ExRegisterCallback(void *object, callback *function, void *context)
{
	power_callback = function;
	power_context = context;
	return &power_callback;
}

static NT void ExUnregisterCallback(void *registration)
{
	power_callback = NULL;
}

int nt_power_changes(bool awake)
{
	if (!power_callback)
		return -ENODEV;
	power_callback(power_context, (void *)SYSTEM_STATE_LOCK, (void *)(long)awake);
	return 0;
}

/* The end of a process is no matter here: what is mapped there is the process' own reference. */
static NT ntstatus PsSetCreateProcessNotifyRoutine(void *routine, u8 remove)
{
	return STATUS_SUCCESS;
}

static void *event_type = &event_type;

const struct nt_export nt_objects[] = {
	NT_EXPORT(DbgPrint),
	NT_EXPORT(ExCreateCallback),
	{ "ExEventObjectType", &event_type },
	NT_EXPORT(ExRegisterCallback),
	NT_EXPORT(ExUnregisterCallback),
	NT_EXPORT(KeBugCheckEx),
	NT_EXPORT(MmGetSystemRoutineAddress),
	NT_EXPORT(ObOpenObjectByPointer),
	NT_EXPORT(ObReferenceObjectByHandle),
	NT_EXPORT(ObfDereferenceObject),
	NT_EXPORT(ObfReferenceObject),
	NT_EXPORT(PsSetCreateProcessNotifyRoutine),
	NT_EXPORT(RtlGetVersion),
	NT_EXPORT(ZwClose),
	NT_EXPORT(ZwQuerySystemInformation),
	NT_EXPORT(ZwSetSecurityObject),
	NT_EXPORT(__C_specific_handler),
	{},
};
