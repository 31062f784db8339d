// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module, and the device that programs find: /dev/covisor, with the calls of the Linux driver, which become requests of NT's.
 *
 *   driver=PATH      the driver's file
 *   version=NUMBER   the version of NT: 1000 is 10.0 (which it is where nothing is said), 601 is Windows 7, 502 is Windows XP for x64
 *   sleep            written: 1 tells the driver that the machine goes to sleep, 0 that it is awake
 */
#define pr_fmt(fmt) "nt_kernel: " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/uaccess.h>

#include <asm/desc.h>

#include "nt.h"

/* The numbers of the calls on Linux, and the codes on NT (docs/abi.md). */
#define CALL_TYPE 'V'
#define CODE(number) (0xc051c000 | (0x800 + (number)) << 2)
/* Bytes of the largest structure of a call, with some room. */
#define MOST_BYTES 2048

/* Where NT has the CPU's number, by GS; there Linux has nothing, between what is first of a CPU's and the next page. */
#define GS_CPU 0x184

/* The limit of a task segment that has nothing more. */
#define TASK_SEGMENT_LIMIT 0x67

static char *driver = "/covisor/covisor.sys";
module_param(driver, charp, 0444);

unsigned int nt_version = 1000;
module_param_named(version, nt_version, uint, 0444);

static void *image;

static int device_open(struct inode *inode, struct file *file)
{
	return nt_open(&file->private_data);
}

static int device_release(struct inode *inode, struct file *file)
{
	nt_close(file->private_data);
	return 0;
}

static long device_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	size_t size = _IOC_SIZE(number);
	u64 buffer[32], *large = NULL, *bytes = buffer;
	int error;

	if (_IOC_TYPE(number) != CALL_TYPE || _IOC_DIR(number) != (_IOC_READ | _IOC_WRITE) || size > MOST_BYTES)
		return -ENOTTY;
	if (size > sizeof(buffer)) {
		large = kmalloc(size, GFP_KERNEL);
		bytes = large;
		if (!large)
			return -ENOMEM;
	}
	error = copy_from_user(bytes, user, size) ? -EFAULT : nt_control(file->private_data, CODE(_IOC_NR(number)), bytes, size);
	if (!error && copy_to_user(user, bytes, size))
		error = -EFAULT;
	kfree(large);
	return error;
}

static vm_fault_t ram_fault(struct vm_fault *vmf)
{
	vmf->page = nt_user_page(vmf->pgoff << PAGE_SHIFT);
	return vmf->page ? 0 : VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct ram_operations = {
	.fault = ram_fault,
};

static int device_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vma->vm_ops = &ram_operations;
	return 0;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.mmap = device_mmap,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "covisor",
	.mode = 0600,
	.fops = &device_operations,
};

static int set_sleep(const char *text, const struct kernel_param *parameter)
{
	bool sleeps;
	int error = kstrtobool(text, &sleeps);

	return error ? error : nt_power_changes(!sleeps);
}

static const struct kernel_param_ops sleep_operations = {
	.set = set_sleep,
};
module_param_cb(sleep, &sleep_operations, NULL, 0200);

/*
 * NT's task segment has no I/O permission bitmap, so VT-x' exits, which cut it, change nothing there, and the driver wants it so. Linux'
 * has one, which nobody needs here.
 */
static void cut_task_segment(void)
{
	tss_desc *segment = (tss_desc *)&get_cpu_gdt_rw(smp_processor_id())[GDT_ENTRY_TSS];

	segment->limit0 = TASK_SEGMENT_LIMIT;
	segment->limit1 = 0;
	/* Loading it marks it as in use, where it must not be so before. */
	segment->type = DESC_TSS;
	native_load_tr_desc();
}

/* A CPU as NT has it: its number is where the driver reads it, and the level is that of threads. */
static void start_cpu(void *unused)
{
	u8 number = smp_processor_id();

	asm volatile("movb %0, %%gs:%c1" : : "q"(number), "i"(GS_CPU) : "memory");
	nt_set_irql(PASSIVE_LEVEL);
	cut_task_segment();
}

static int __init module_start(void)
{
	void *entry;
	int error;

	on_each_cpu(start_cpu, NULL, 1);
	if (nt_version < 602) {
		error = nt_shared_start();
		if (error)
			return error;
	}
	nt_deferred_start();
	nt_slices_start();
	image = nt_image_load(driver, &entry);
	if (IS_ERR(image)) {
		pr_err("%s cannot be loaded: error %ld\n", driver, PTR_ERR(image));
		error = PTR_ERR(image);
		goto no_driver;
	}
	error = nt_driver_start(entry);
	if (error)
		goto no_driver;
	error = misc_register(&device);
	if (error)
		goto no_device;
	return 0;

no_device:
	nt_driver_stop();
no_driver:
	nt_slices_stop();
	nt_deferred_stop();
	if (!IS_ERR(image))
		nt_image_free(image);
	nt_shared_stop();
	return error;
}

static void __exit module_end(void)
{
	misc_deregister(&device);
	nt_driver_stop();
	nt_slices_stop();
	nt_deferred_stop();
	nt_image_free(image);
	nt_shared_stop();
}

module_init(module_start);
module_exit(module_end);

MODULE_DESCRIPTION("What covisor.sys takes of NT's kernel, for tests");
MODULE_LICENSE("GPL");
