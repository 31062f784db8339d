//! A vCPU's registers and tables at the kernel's first instruction.

use covisor_abi::Segment;
use covisor_abi::Table;
use covisor_abi::VcpuState;

use crate::layout::BOOT_GDT;
use crate::layout::BOOT_PARAMS;
use crate::layout::PAGE_DIRECTORIES;
use crate::layout::PAGE_TABLES;
use crate::layout::PVH_START_INFO;

/// CR0: protection enable.
const CR0_PE: u64 = 1 << 0;
/// CR0: extension type, always 1.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enable and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always 1.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Selectors of the Linux boot protocol (`__BOOT_CS`, `__BOOT_DS`), and the one after them.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// Flat segments (Intel SDM vol. 3, 3.4.5), in the form of [`Segment::attributes`].
const CODE_64: u16 = 0xa9b;
const CODE_32: u16 = 0xc9b;
const DATA: u16 = 0xc93;
const BUSY_TSS: u16 = 0x08b;
/// Limit of a TSS.
const TSS_LIMIT: u32 = 0x67;

/// Indexes of general registers in [`VcpuState::gprs`].
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;

/// Page table entry: present, writable (Intel SDM vol. 3, 4.5.4).
const PRESENT_WRITABLE: u64 = 0b11;
/// Page directory entry: a 2 MiB page.
const LARGE_PAGE: u64 = 1 << 7;
/// Entries of a page table.
const ENTRIES: u64 = 512;
const PAGE: u64 = 0x1000;
const PAGE_SIZE: usize = 0x1000;

/// Registers for the 64-bit Linux boot protocol: long mode, identity-mapped, RSI at `boot_params`.
pub(super) fn linux_64(entry: u64) -> VcpuState {
    let mut state = flat(CODE_64);
    state.rip = entry;
    state.gprs[RSI] = BOOT_PARAMS;
    state.cr0 = CR0_PE | CR0_ET | CR0_PG;
    state.cr3 = PAGE_TABLES;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    state
}

/// Registers for the PVH protocol: 32-bit mode without paging, EBX at `hvm_start_info`.
pub(super) fn pvh(entry: u64) -> VcpuState {
    let mut state = flat(CODE_32);
    state.rip = entry;
    state.gprs[RBX] = PVH_START_INFO;
    state.cr0 = CR0_PE | CR0_ET;
    state
}

/// What a paravirtual start needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paravirtual {
    /// Virtual address of the first instruction.
    pub(super) entry: u64,
    /// Guest-physical address of the page table of the highest level.
    pub(super) page_table: u64,
    /// Virtual address of `start_info`.
    pub(super) start_info: u64,
    /// Virtual address of the stack's end.
    pub(super) stack: u64,
}

/// Registers for the 64-bit Xen PV ABI (Xen `xen.h`, at `struct start_info`): long mode on page tables of its own, RSI at
/// `start_info`. Its segments are those of the engine, which gives it selectors for them.
pub(super) fn paravirtual(start: Paravirtual) -> VcpuState {
    let mut state = linux_64(start.entry);
    state.gprs[RSI] = start.start_info;
    state.gprs[RSP] = start.stack;
    state.cr3 = start.page_table;
    state.gdtr = Table::default();
    state
}

/// Flat segments, all else zero.
fn flat(code: u16) -> VcpuState {
    let segment = |selector, attributes| Segment { base: 0, limit: u32::MAX, selector, attributes };
    let data = segment(DATA_SELECTOR, DATA);
    VcpuState {
        rflags: RFLAGS_FIXED,
        segments: [data, segment(CODE_SELECTOR, code), data, data, data, data],
        tr: Segment { base: 0, limit: TSS_LIMIT, selector: TSS_SELECTOR, attributes: BUSY_TSS },
        gdtr: Table { base: BOOT_GDT, limit: (gdt(code).len() * size_of::<u64>() - 1) as u64 },
        ..VcpuState::default()
    }
}

/// The GDT that belongs to [`linux_64`] or [`pvh`]: its bytes, for [`BOOT_GDT`].
pub(super) fn gdt_bytes(is_64_bit: bool) -> Vec<u8> {
    let code = if is_64_bit { CODE_64 } else { CODE_32 };
    gdt(code).into_iter().flat_map(u64::to_le_bytes).collect()
}

fn gdt(code: u16) -> [u64; 5] {
    [0, 0, descriptor(code, u32::MAX), descriptor(DATA, u32::MAX), descriptor(BUSY_TSS, TSS_LIMIT)]
}

/// A segment descriptor with base 0 (Intel SDM vol. 3, figure 3-8).
fn descriptor(attributes: u16, limit: u32) -> u64 {
    let limit = u64::from(if attributes & 0x800 != 0 { limit >> 12 } else { limit });
    let attributes = u64::from(attributes);
    (limit & 0xffff) | (attributes & 0xff) << 40 | (limit >> 16 & 0xf) << 48 | (attributes >> 8) << 52
}

/// Page tables for [`PAGE_TABLES`] that map the first 4 GiB, and RAM up to `ram_end` as far as they reach, at their own
/// addresses. A kernel needs only what it was loaded with there, then makes its own.
pub(super) fn identity_page_tables(ram_end: u64) -> Vec<u8> {
    let gib = ram_end.div_ceil(1 << 30).clamp(4, PAGE_DIRECTORIES);
    let mut tables = Vec::new();
    let mut page = |entries: &mut dyn Iterator<Item = u64>| {
        let end = tables.len() + PAGE_SIZE;
        tables.extend(entries.flat_map(u64::to_le_bytes));
        tables.resize(end, 0);
    };
    page(&mut std::iter::once((PAGE_TABLES + PAGE) | PRESENT_WRITABLE));
    page(&mut (0..gib).map(|i| (PAGE_TABLES + (2 + i) * PAGE) | PRESENT_WRITABLE));
    for i in 0..gib {
        page(&mut (0..ENTRIES).map(|j| (i << 30 | j << 21) | LARGE_PAGE | PRESENT_WRITABLE));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tables: &[u8], address: u64) -> u64 {
        let offset = usize::try_from(address - PAGE_TABLES).unwrap();
        u64::from_le_bytes(tables[offset..offset + 8].try_into().unwrap())
    }

    /// Translates as the CPU does.
    fn translate(tables: &[u8], address: u64) -> Option<u64> {
        let mut table = PAGE_TABLES;
        for shift in [39, 30, 21] {
            let value = entry(tables, table + (address >> shift & 0x1ff) * 8);
            if value & 1 == 0 {
                return None;
            }
            table = value & 0x000f_ffff_ffff_f000;
        }
        Some(table | address & 0x1f_ffff)
    }

    #[test]
    fn test_page_tables_map_4_gib_and_ram_to_themselves() {
        let tables = identity_page_tables(6 << 30);
        for address in [0, 0x7000, 0xfee0_0000, (4 << 30) + 5, (6 << 30) - 1] {
            assert_eq!(translate(&tables, address), Some(address));
        }
        assert_eq!(translate(&tables, 6 << 30), None);
        assert_eq!(translate(&identity_page_tables(512 << 20), (4 << 30) - 1), Some((4 << 30) - 1));
    }

    #[test]
    fn test_page_tables_stay_within_their_place() {
        assert_eq!(identity_page_tables(u64::MAX).len() as u64, (2 + PAGE_DIRECTORIES) * PAGE);
    }

    #[test]
    fn test_descriptors_have_the_values_of_the_manual() {
        assert_eq!(gdt(CODE_64)[2], 0x00af_9b00_0000_ffff);
        assert_eq!(gdt(CODE_32)[2], 0x00cf_9b00_0000_ffff);
        assert_eq!(gdt(CODE_64)[3], 0x00cf_9300_0000_ffff);
        assert_eq!(gdt(CODE_64)[4], 0x0000_8b00_0000_0067);
    }
}
