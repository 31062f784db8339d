// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tells the state of the CPU that the reader of /proc/host_state runs on: what a world switch has to leave as it was.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/special_insns.h>

#include "nmis.h"

#define NAME "host_state"

/* In the GDT's descriptor of the task state segment: it is in use. */
#define TSS_BUSY (1ULL << 41)

struct msr_name {
	const char *name;
	u32 index;
};

/* Those that every CPU with long mode has. */
static const struct msr_name msrs[] = {
	{ "STAR", MSR_STAR },
	{ "LSTAR", MSR_LSTAR },
	{ "CSTAR", MSR_CSTAR },
	{ "FMASK", MSR_SYSCALL_MASK },
	{ "SYSENTER_CS", MSR_IA32_SYSENTER_CS },
	{ "SYSENTER_ESP", MSR_IA32_SYSENTER_ESP },
	{ "SYSENTER_EIP", MSR_IA32_SYSENTER_EIP },
	{ "PAT", MSR_IA32_CR_PAT },
	{ "DEBUGCTL", MSR_IA32_DEBUGCTLMSR },
	{ "GS_BASE", MSR_GS_BASE },
	{ "KERNEL_GS_BASE", MSR_KERNEL_GS_BASE },
	{ "APIC_BASE", MSR_IA32_APICBASE },
};

static void show_msr(struct seq_file *file, const char *name, u32 index)
{
	u64 value;

	if (!rdmsrl_safe(index, &value))
		seq_printf(file, "%s %llx\n", name, value);
}

static void show_control_registers(struct seq_file *file)
{
	unsigned long priority;

	asm volatile("mov %%cr8, %0" : "=r"(priority));
	/* CR3 is the reader's. Whether it has a PCID, CR4 tells. */
	seq_printf(file, "CR0 %lx\n", read_cr0());
	/* An engine that uses the CPU's virtualization has it switched on while there are guests: here, and in EFER. */
	seq_printf(file, "CR4 %lx\n", __read_cr4() & ~X86_CR4_VMXE);
	seq_printf(file, "CR8 %lx\n", priority);
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		seq_printf(file, "XCR0 %llx\n", xgetbv(XCR_XFEATURE_ENABLED_MASK));
}

static void show_msrs(struct seq_file *file)
{
	u64 efer;
	size_t i;

	rdmsrl(MSR_EFER, efer);
	seq_printf(file, "EFER %llx\n", efer & ~EFER_SVME);
	for (i = 0; i < ARRAY_SIZE(msrs); i++)
		show_msr(file, msrs[i].name, msrs[i].index);
	if (boot_cpu_has(X86_FEATURE_RDTSCP))
		show_msr(file, "TSC_AUX", MSR_TSC_AUX);
	if (boot_cpu_has(X86_FEATURE_XSAVES))
		show_msr(file, "XSS", MSR_IA32_XSS);
	if (boot_cpu_has(X86_FEATURE_MSR_SPEC_CTRL))
		show_msr(file, "SPEC_CTRL", MSR_IA32_SPEC_CTRL);
}

/* Those that are switched on: the kernel itself leaves old addresses in the others. */
static void show_debug_registers(struct seq_file *file)
{
	unsigned long value, enabled;
	int i;

	get_debugreg(enabled, 7);
	seq_printf(file, "DR7 %lx\n", enabled);
	for (i = 0; i < HBP_NUM; i++) {
		if (!(enabled & (DR_GLOBAL_ENABLE | DR_LOCAL_ENABLE) << i * DR_ENABLE_SIZE))
			continue;
		switch (i) {
		case 0:
			get_debugreg(value, 0);
			break;
		case 1:
			get_debugreg(value, 1);
			break;
		case 2:
			get_debugreg(value, 2);
			break;
		default:
			get_debugreg(value, 3);
		}
		seq_printf(file, "DR%d %lx\n", i, value);
	}
}

static void show_tables(struct seq_file *file)
{
	struct desc_ptr gdt, idt;
	unsigned long selector, local;
	const u64 *entries;
	size_t i;

	native_store_gdt(&gdt);
	store_idt(&idt);
	store_tr(selector);
	store_ldt(local);
	seq_printf(file, "GDTR %lx %x\n", gdt.address, gdt.size);
	seq_printf(file, "IDTR %lx %x\n", idt.address, idt.size);
	seq_printf(file, "TR %lx\n", selector & 0xffff);
	seq_printf(file, "LDTR %lx\n", local & 0xffff);

	entries = (const u64 *)gdt.address;
	for (i = 0; i < GDT_ENTRIES; i++)
		seq_printf(file, "GDT[%zu] %llx\n", i, entries[i]);
	seq_printf(file, "TSS-busy %d\n", !!(entries[GDT_ENTRY_TSS] & TSS_BUSY));
	entries = (const u64 *)idt.address;
	for (i = 0; i < IDT_ENTRIES; i++)
		seq_printf(file, "IDT[%zu] %llx%016llx\n", i, entries[2 * i + 1], entries[2 * i]);
}

/* The stacks, but for SP1 and SP2, where the kernel keeps the current task's; and where the bitmap of ports is. */
static void show_task_state(struct seq_file *file)
{
	const struct tss_struct *tss = &get_cpu_entry_area(smp_processor_id())->tss;
	size_t i;

	seq_printf(file, "TSS.SP0 %llx\n", tss->x86_tss.sp0);
	for (i = 0; i < ARRAY_SIZE(tss->x86_tss.ist); i++)
		seq_printf(file, "TSS.IST%zu %llx\n", i + 1, tss->x86_tss.ist[i]);
	seq_printf(file, "TSS.IOPB %x\n", tss->x86_tss.io_bitmap_base);
}

static int show(struct seq_file *file, void *unused)
{
	unsigned long flags;

	local_irq_save(flags);
	show_control_registers(file);
	show_msrs(file);
	show_debug_registers(file);
	show_tables(file);
	show_task_state(file);
	local_irq_restore(flags);
	return 0;
}

static int __init start(void)
{
	int error = nmis_start();

	if (!error && !proc_create_single(NAME, 0400, NULL, show)) {
		nmis_end();
		error = -ENOMEM;
	}
	return error;
}

static void __exit end(void)
{
	remove_proc_entry(NAME, NULL);
	nmis_end();
}

module_init(start);
module_exit(end);
MODULE_DESCRIPTION("Tells the state of a CPU of the host and counts its NMIs, for covisor's tests");
MODULE_LICENSE("GPL");
