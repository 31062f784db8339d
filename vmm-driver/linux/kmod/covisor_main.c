// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/covisor: the module, its device and its file operations. What a call means is the Rust driver's business; here
 * its structure is copied in and out, and guest RAM is mapped.
 */
#define pr_fmt(fmt) "covisor: " fmt

#include <linux/fs.h>
#include <linux/mem_encrypt.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "covisor.h"

static int device_open(struct inode *inode, struct file *file)
{
	int error = covisor_open(&file->private_data);

	return error ? error : nonseekable_open(inode, file);
}

static int device_release(struct inode *inode, struct file *file)
{
	covisor_release(file->private_data);
	return 0;
}

/*
 * Structures are made of aligned 64-bit words and at most COVISOR_CALL_WORDS of them, and RUN is called often: words are
 * copied one by one, which is the quickest for few.
 */
static __always_inline bool copy_in(u64 *buffer, const u64 __user *user, unsigned int words)
{
	unsigned int i;

	if (!user_access_begin(user, words * sizeof(u64)))
		return false;
#pragma GCC unroll 8
	for (i = 0; i < words; i++)
		unsafe_get_user(buffer[i], &user[i], fault);
	user_access_end();
	return true;
fault:
	user_access_end();
	return false;
}

static __always_inline bool copy_out(u64 __user *user, const u64 *buffer, unsigned int words)
{
	unsigned int i;

	if (!user_access_begin(user, words * sizeof(u64)))
		return false;
#pragma GCC unroll 8
	for (i = 0; i < words; i++)
		unsafe_put_user(buffer[i], &user[i], fault);
	user_access_end();
	return true;
fault:
	user_access_end();
	return false;
}

static __always_inline long call(struct file *file, unsigned int number, u64 __user *user, unsigned int words)
{
	/* Not cleared, for that takes longer than a call: copy_in() fills what the call uses. */
	u64 buffer[COVISOR_CALL_WORDS] __uninitialized;
	int error;

	if (!copy_in(buffer, user, words))
		return -EFAULT;
	/* Accepts a number only if its size is that of the call's structure. */
	error = covisor_ioctl(file->private_data, number, buffer);
	if (error)
		return error;
	return copy_out(user, buffer, words) ? 0 : -EFAULT;
}

static long device_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	u64 __user *user = (u64 __user *)argument;
	unsigned int words = _IOC_SIZE(number) / sizeof(u64);

	if (_IOC_TYPE(number) != COVISOR_CALL_TYPE || words > COVISOR_CALL_WORDS)
		return -ENOTTY;
	/* RUN is the one that comes often: a copy of its own, with the loops unrolled. */
	if (words == COVISOR_RUN_WORDS)
		return call(file, number, user, COVISOR_RUN_WORDS);
	return call(file, number, user, words);
}

/*
 * Gives the page of guest RAM at the offset, with a reference that covisor_ram_page() took: else the page could be discarded
 * meanwhile. The reference lets it live until the last user is gone; the mapping has one
 * to the file too, so the VM stays as long as it is mapped.
 */
static vm_fault_t ram_fault(struct vm_fault *vmf)
{
	u64 offset = (u64)vmf->pgoff << PAGE_SHIFT;
	u64 phys = covisor_ram_page(vmf->vma->vm_file->private_data, offset);

	if (phys == COVISOR_NO_PAGE)
		return VM_FAULT_SIGBUS;
	vmf->page = pfn_to_page(__sme_clr(phys) >> PAGE_SHIFT);
	return 0;
}

static const struct vm_operations_struct ram_operations = {
	.fault = ram_fault,
};

/*
 * Maps guest RAM; the offset is a guest-physical address. Shared only: a private mapping would be a copy. It neither
 * grows nor goes into core dumps, and a child has no part in it.
 */
static int device_mmap(struct file *file, struct vm_area_struct *vma)
{
	const unsigned long flags = VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
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

static int __init module_start(void)
{
	int error;

#ifdef X86_FEATURE_CALL_DEPTH
	/* Returns would then count in per-CPU memory, which the segment base does not reach while it is the guest's. */
	if (boot_cpu_has(X86_FEATURE_CALL_DEPTH) && boot_cpu_has(X86_FEATURE_SVM)) {
		pr_err("AMD-V cannot be used while the kernel runs with retbleed=stuff: boot without that option\n");
		return -ENODEV;
	}
#endif
	error = covisor_module_init();
	if (error)
		return error;
	error = covisor_power_start();
	if (error)
		goto no_power;
	error = misc_register(&device);
	if (error)
		goto no_device;
	return 0;

no_device:
	covisor_power_stop();
no_power:
	covisor_module_exit();
	return error;
}

static void __exit module_end(void)
{
	misc_deregister(&device);
	covisor_power_stop();
	covisor_module_exit();
}

module_init(module_start);
module_exit(module_end);

MODULE_DESCRIPTION("Runs Linux beside Linux");
MODULE_LICENSE("GPL");
