// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory: the pool, contiguous memory, pages by MDLs and where those are mapped.
 *
 * Mapping to a program only notes the pages by the address that the driver wants them at: the program maps the device with that
 * as the offset, as it does with the Linux driver, and gets them there.
 */
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include <asm/io.h>

#include "nt.h"

/* MM_ALLOCATE_XXX. */
#define DONT_ZERO 1
#define CONTIGUOUS_CHUNKS 0x20

#define USER_MODE 1

static gfp_t flags(void)
{
	return nt_irql() >= DISPATCH_LEVEL || irqs_disabled() ? GFP_ATOMIC | __GFP_NOWARN : GFP_KERNEL | __GFP_NOWARN;
}

static NT void *ExAllocatePoolWithTag(int kind, size_t bytes, u32 tag)
{
	return kmalloc(bytes, flags());
}

static NT void ExFreePoolWithTag(void *block, u32 tag)
{
	kfree(block);
}

static NT void ExFreePool(void *block)
{
	kfree(block);
}

static NT void *MmAllocateContiguousMemorySpecifyCache(size_t bytes, s64 lowest, s64 highest, s64 boundary, int cache)
{
	return (void *)__get_free_pages(GFP_KERNEL | __GFP_NOWARN, get_order(bytes));
}

static NT void MmFreeContiguousMemorySpecifyCache(void *memory, size_t bytes, int cache)
{
	free_pages((unsigned long)memory, get_order(bytes));
}

static NT u64 MmGetPhysicalAddress(void *address)
{
	unsigned long offset = (unsigned long)address & ~PAGE_MASK;

	if (is_vmalloc_addr(address))
		return ((u64)vmalloc_to_pfn(address) << PAGE_SHIFT) + offset;
	return virt_addr_valid(address) ? virt_to_phys(address) : 0;
}

static struct nt_mdl *new_mdl(size_t pages)
{
	struct nt_mdl *mdl = kvzalloc(struct_size(mdl, frames, pages), GFP_KERNEL | __GFP_NOWARN);

	if (mdl) {
		mdl->size = struct_size(mdl, frames, pages);
		mdl->bytes = pages * PAGE_SIZE;
	}
	return mdl;
}

static NT struct nt_mdl *IoAllocateMdl(void *address, u32 bytes, u8 secondary, u8 charge, void *irp)
{
	return new_mdl(DIV_ROUND_UP(bytes, PAGE_SIZE));
}

static NT void IoFreeMdl(struct nt_mdl *mdl)
{
	kvfree(mdl);
}

static size_t pages_of(const struct nt_mdl *mdl)
{
	return mdl->bytes / PAGE_SIZE;
}

static NT void MmFreePagesFromMdl(struct nt_mdl *mdl)
{
	size_t i;

	for (i = 0; i < pages_of(mdl); i++)
		put_page(pfn_to_page(mdl->frames[i]));
	mdl->bytes = 0;
}

static NT struct nt_mdl *MmAllocatePagesForMdlEx(s64 lowest, s64 highest, s64 skip, size_t bytes, int cache, u32 how)
{
	unsigned int order = how & CONTIGUOUS_CHUNKS ? get_order(skip) : 0, i;
	struct nt_mdl *mdl = new_mdl(bytes / PAGE_SIZE);
	size_t done;

	if (!mdl)
		return NULL;
	for (done = 0; done < bytes / PAGE_SIZE; done += 1 << order) {
		gfp_t zero = how & DONT_ZERO ? 0 : __GFP_ZERO;
		struct page *page = alloc_pages(GFP_HIGHUSER | __GFP_NOWARN | __GFP_NORETRY | zero, order);

		if (!page)
			break;
		/* Each has a reference of its own, for programs may have it longer than the driver. */
		if (order)
			split_page(page, order);
		for (i = 0; i < 1 << order; i++)
			mdl->frames[done + i] = page_to_pfn(page + i);
	}
	mdl->bytes = done * PAGE_SIZE;
	if (done == bytes / PAGE_SIZE)
		return mdl;
	MmFreePagesFromMdl(mdl);
	kvfree(mdl);
	return NULL;
}

/* Pages of the driver's at an address of a program's. */
struct user_mapping {
	struct list_head entry;
	unsigned long address;
	struct nt_mdl *mdl;
};

static LIST_HEAD(user_mappings);
static DEFINE_MUTEX(user_lock);

/* Above what programs use of addresses. */
static unsigned long next_room = 1UL << 44;

static NT ntstatus ZwAllocateVirtualMemory(long process, unsigned long *address, size_t zero_bits, size_t *bytes, u32 kind,
					   u32 protection)
{
	mutex_lock(&user_lock);
	*address = next_room;
	/* What is between two shows what goes beyond one. */
	next_room += PAGE_ALIGN(*bytes) + PAGE_SIZE;
	mutex_unlock(&user_lock);
	return STATUS_SUCCESS;
}

static NT ntstatus ZwFreeVirtualMemory(long process, unsigned long *address, size_t *bytes, u32 kind)
{
	return STATUS_SUCCESS;
}

static void *map_to_user(struct nt_mdl *mdl, unsigned long address)
{
	struct user_mapping *mapping = kmalloc(sizeof(*mapping), GFP_KERNEL);

	if (!mapping)
		return NULL;
	mapping->address = address;
	mapping->mdl = mdl;
	mutex_lock(&user_lock);
	list_add(&mapping->entry, &user_mappings);
	mutex_unlock(&user_lock);
	return (void *)address;
}

static void *map_to_kernel(struct nt_mdl *mdl)
{
	size_t count = pages_of(mdl), i;
	struct page **pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	void *address;

	if (!pages)
		return NULL;
	for (i = 0; i < count; i++)
		pages[i] = pfn_to_page(mdl->frames[i]);
	address = vmap(pages, count, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return address;
}

static NT void *MmMapLockedPagesSpecifyCache(struct nt_mdl *mdl, s8 mode, int cache, void *wanted, u32 bug_check, u32 priority)
{
	return mode == USER_MODE ? map_to_user(mdl, (unsigned long)wanted) : map_to_kernel(mdl);
}

static NT void MmUnmapLockedPages(void *address, struct nt_mdl *mdl)
{
	struct user_mapping *mapping;

	if (is_vmalloc_addr(address)) {
		vunmap(address);
		return;
	}
	mutex_lock(&user_lock);
	list_for_each_entry(mapping, &user_mappings, entry) {
		if (mapping->mdl == mdl && mapping->address == (unsigned long)address) {
			list_del(&mapping->entry);
			kfree(mapping);
			break;
		}
	}
	mutex_unlock(&user_lock);
}

struct page *nt_user_page(unsigned long address)
{
	struct user_mapping *mapping;
	struct page *page = NULL;

	mutex_lock(&user_lock);
	list_for_each_entry(mapping, &user_mappings, entry) {
		unsigned long offset = address - mapping->address;

		if (address >= mapping->address && offset < mapping->mdl->bytes) {
			page = pfn_to_page(mapping->mdl->frames[offset / PAGE_SIZE]);
			get_page(page);
			break;
		}
	}
	mutex_unlock(&user_lock);
	return page;
}

const struct nt_export nt_memory[] = {
	NT_EXPORT(ExAllocatePoolWithTag),
	NT_EXPORT(ExFreePool),
	NT_EXPORT(ExFreePoolWithTag),
	NT_EXPORT(IoAllocateMdl),
	NT_EXPORT(IoFreeMdl),
	NT_EXPORT(MmAllocateContiguousMemorySpecifyCache),
	NT_EXPORT(MmAllocatePagesForMdlEx),
	NT_EXPORT(MmFreeContiguousMemorySpecifyCache),
	NT_EXPORT(MmFreePagesFromMdl),
	NT_EXPORT(MmGetPhysicalAddress),
	NT_EXPORT(MmMapLockedPagesSpecifyCache),
	NT_EXPORT(MmUnmapLockedPages),
	NT_EXPORT(ZwAllocateVirtualMemory),
	NT_EXPORT(ZwFreeVirtualMemory),
	{},
};
