// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver's file: its sections are put where they belong, addresses in it are mended, and what it imports is looked up ("PE Format" of
 * Microsoft's documentation). The file is the project's own, checked when it was built; that it is whole is all that is looked at.
 */
#define pr_fmt(fmt) "nt_kernel: " fmt

#include <linux/kernel_read_file.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/unaligned/packed_struct.h>
#include <linux/vmalloc.h>

#include "nt.h"

/* Where what is, from the begin of the headers at "PE". */
#define SECTIONS 6
#define OPTIONAL_SIZE 20
#define OPTIONAL 24
#define ENTRY (OPTIONAL + 16)
#define IMAGE_BASE (OPTIONAL + 24)
#define IMAGE_SIZE (OPTIONAL + 56)
#define HEADERS_SIZE (OPTIONAL + 60)
#define IMPORTS (OPTIONAL + 112 + 1 * 8)
#define RELOCATIONS (OPTIONAL + 112 + 5 * 8)

#define SECTION_SIZE 40
#define IMPORT_SIZE 20
/* IMAGE_REL_BASED_DIR64. */
#define RELOCATION_64 10

#define MOST_PAGES 4096

/* Where the image is. */
static unsigned long begin, end;

bool nt_image_has(unsigned long address)
{
	return address >= READ_ONCE(begin) && address < READ_ONCE(end);
}

static u32 at32(const void *from, size_t at)
{
	return __get_unaligned_cpu32(from + at);
}

static void *find(const char *name)
{
	static const struct nt_export *const all[] = {
		nt_memory, nt_deferred, nt_events, nt_threads, nt_objects, nt_requests,
	};
	const struct nt_export *export;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(all); i++)
		for (export = all[i]; export->name; export++)
			if (!strcmp(export->name, name))
				return export->address;
	return NULL;
}

/* Addresses in the image are as if it were at the base that it was linked for. */
static int relocate(void *image, const void *headers, u64 base)
{
	u64 distance = (u64)image - base;
	u32 at = at32(headers, RELOCATIONS), last = at + at32(headers, RELOCATIONS + 4);

	while (at < last) {
		u32 page = at32(image, at), size = at32(image, at + 4), i;

		for (i = 8; i + 2 <= size; i += 2) {
			u16 entry = __get_unaligned_cpu16(image + at + i);
			void *place = image + page + (entry & 0xfff);

			if (entry >> 12 == RELOCATION_64)
				__put_unaligned_cpu64(__get_unaligned_cpu64(place) + distance, place);
			else if (entry >> 12)
				return -ENOEXEC;
		}
		if (size < 8)
			return -ENOEXEC;
		at += size;
	}
	return 0;
}

static int import(void *image, const void *headers)
{
	void *table;
	int error = 0;

	for (table = image + at32(headers, IMPORTS); at32(table, 12); table += IMPORT_SIZE) {
		u64 *slot = image + at32(table, 16);

		for (; *slot; slot++) {
			/* A number of 16 bits, then the name. */
			const char *name = image + *slot + 2;
			void *address = find(name);

			if (!address) {
				pr_err("there is no %s\n", name);
				error = -ENOENT;
			}
			*slot = (u64)address;
		}
	}
	return error;
}

struct mapped {
	void *from;
	unsigned int pages;
};

static void forget(void *argument)
{
	const struct mapped *mapped = argument;
	unsigned int i;

	for (i = 0; i < mapped->pages; i++)
		asm volatile("invlpg (%0)" : : "r"(mapped->from + i * PAGE_SIZE) : "memory");
}

/* Linux maps nothing for modules that can be executed, but modules: so its tables are changed here. */
static void make_executable(void *image, unsigned int pages)
{
	struct mapped mapped = { image, pages };
	unsigned int i, level;

	for (i = 0; i < pages; i++) {
		pte_t *entry = lookup_address((unsigned long)image + i * PAGE_SIZE, &level);

		WRITE_ONCE(*entry, pte_mkexec(*entry));
	}
	on_each_cpu(forget, &mapped, 1);
}

static void *allocate(size_t size)
{
	unsigned int count = DIV_ROUND_UP(size, PAGE_SIZE), i;
	struct page **pages;
	void *image = NULL;

	if (!count || count > MOST_PAGES)
		return NULL;
	pages = kvcalloc(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return NULL;
	for (i = 0; i < count; i++) {
		pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!pages[i])
			goto out;
	}
	/* The mapping has the list from now on, and the pages. */
	image = vmap(pages, count, VM_MAP | VM_MAP_PUT_PAGES, PAGE_KERNEL);
	if (image) {
		make_executable(image, count);
		WRITE_ONCE(begin, (unsigned long)image);
		WRITE_ONCE(end, (unsigned long)image + size);
		return image;
	}
out:
	while (i--)
		__free_page(pages[i]);
	kvfree(pages);
	return NULL;
}

static void *place(const void *file, size_t length, void **entry)
{
	const void *headers = file + at32(file, 0x3c), *section;
	u16 count = __get_unaligned_cpu16(headers + SECTIONS), i;
	void *image = allocate(at32(headers, IMAGE_SIZE));
	int error;

	if (!image)
		return ERR_PTR(-ENOMEM);
	memcpy(image, file, at32(headers, HEADERS_SIZE));
	section = headers + OPTIONAL + __get_unaligned_cpu16(headers + OPTIONAL_SIZE);
	for (i = 0; i < count; i++, section += SECTION_SIZE) {
		u32 size = min(at32(section, 8), at32(section, 16)), from = at32(section, 20);

		if (from > length || size > length - from) {
			error = -ENOEXEC;
			goto bad;
		}
		memcpy(image + at32(section, 12), file + from, size);
	}
	error = relocate(image, headers, __get_unaligned_cpu64(headers + IMAGE_BASE));
	if (!error)
		error = import(image, headers);
	if (error)
		goto bad;
	*entry = image + at32(headers, ENTRY);
	return image;
bad:
	nt_image_free(image);
	return ERR_PTR(error);
}

void *nt_image_load(const char *path, void **entry)
{
	void *file = NULL, *image;
	ssize_t length = kernel_read_file_from_path(path, 0, &file, INT_MAX, NULL, READING_UNKNOWN);

	if (length < 0)
		return ERR_PTR(length);
	image = place(file, length, entry);
	vfree(file);
	return image;
}

void nt_image_free(void *image)
{
	WRITE_ONCE(end, 0);
	vfree(image);
}
