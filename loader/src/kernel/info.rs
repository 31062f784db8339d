//! What the kernel is told: `boot_params` for the Linux boot protocol, `hvm_start_info` for PVH.

use linux_loader::loader::bootparam::boot_e820_entry;
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::start_info::hvm_memmap_table_entry;
use linux_loader::loader::start_info::hvm_modlist_entry;
use linux_loader::loader::start_info::hvm_start_info;
use vm_memory::ByteValued;

use crate::layout::COMMAND_LINE;
use crate::layout::MemoryMapEntry;
use crate::layout::PVH_MEMORY_MAP;
use crate::layout::PVH_MODULES;

/// `type_of_loader` of one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: leave the mode alone.
const VIDEO_NORMAL: u16 = 0xffff;
/// `loadflags`: the kernel proper lies at or above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// Fields of `setup_header` that a kernel without one (an ELF file) still reads.
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
const PROTOCOL_2_15: u16 = 0x020f;
/// `hvm_start_info.magic`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// `hvm_start_info.version`: 1 brought the memory map.
const PVH_VERSION: u32 = 1;

/// What both protocols tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) memory_map: &'a [MemoryMapEntry],
    /// Start and size.
    pub(super) initrd: Option<(u64, u64)>,
    pub(super) rsdp: u64,
}

/// The set-up header for a kernel that brings none.
pub(super) fn default_header() -> setup_header {
    setup_header { boot_flag: BOOT_FLAG, header: HDRS, version: PROTOCOL_2_15, ..setup_header::default() }
}

/// The bytes of `boot_params`.
pub(super) fn linux(mut header: setup_header, facts: Facts<'_>) -> Vec<u8> {
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= LOADED_HIGH;
    header.vid_mode = VIDEO_NORMAL;
    header.cmd_line_ptr = low(COMMAND_LINE);
    if let Some((start, size)) = facts.initrd {
        header.ramdisk_image = low(start);
        header.ramdisk_size = low(size);
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: facts.rsdp, ..boot_params::default() };
    let mut count = 0;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(facts.memory_map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.size, type_: entry.kind as u32 };
        count += 1;
    }
    params.e820_table = table;
    params.e820_entries = count;
    params.as_slice().to_vec()
}

/// The bytes of `hvm_start_info`, of its memory map and of its module list.
pub(super) fn pvh(facts: Facts<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut map = Vec::new();
    let mut entries = 0;
    for entry in facts.memory_map {
        let entry =
            hvm_memmap_table_entry { addr: entry.start, size: entry.size, type_: entry.kind as u32, reserved: 0 };
        map.extend_from_slice(entry.as_slice());
        entries += 1;
    }
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: facts.rsdp,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: entries,
        ..hvm_start_info::default()
    };
    let mut modules = Vec::new();
    if let Some((paddr, size)) = facts.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
        modules.extend_from_slice(hvm_modlist_entry { paddr, size, ..hvm_modlist_entry::default() }.as_slice());
    }
    (info.as_slice().to_vec(), map, modules)
}

/// An address or size below 4 GiB, where the plan puts everything that is told in 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the plan places these below 4 GiB, see the assert")]
fn low(value: u64) -> u32 {
    debug_assert!(u32::try_from(value).is_ok());
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Ram;

    #[test]
    fn test_boot_params_tell_what_the_protocol_documents() {
        let map = Ram::new(4 << 30).memory_map();
        let facts = Facts { memory_map: &map, initrd: Some((0x1234_5000, 0x678)), rsdp: 0xe_0000 };
        let bytes = linux(default_header(), facts);
        let word = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(word(0x070), 0xe_0000, "acpi_rsdp_addr");
        assert_eq!(bytes[0x1e8], 4, "e820_entries");
        assert_eq!(bytes[0x210], 0xff, "type_of_loader");
        assert_eq!(word(0x218), 0x1234_5000, "ramdisk_image");
        assert_eq!(word(0x21c), 0x678, "ramdisk_size");
        assert_eq!(word(0x228), 0x6_0000, "cmd_line_ptr");
        assert_eq!(bytes[0x1ef], 0, "sentinel");
        // The last entry of the memory map: 1 GiB at 4 GiB.
        let last = 0x2d0 + 3 * 20;
        assert_eq!((word(last), word(last + 4)), (0, 1));
        assert_eq!((word(last + 8), word(last + 16)), (1 << 30, 1));
    }

    #[test]
    fn test_pvh_start_info_tells_the_module_only_when_there_is_one() {
        let map = Ram::new(512 << 20).memory_map();
        let facts = Facts { memory_map: &map, initrd: None, rsdp: 0xe_0000 };
        let (info, memory, modules) = pvh(facts);
        assert_eq!(info.len(), 56);
        assert_eq!(memory.len(), 3 * 24);
        assert!(modules.is_empty());
        let (info, _, modules) = pvh(Facts { initrd: Some((1 << 24, 4096)), ..facts });
        assert_eq!(info[12], 1, "nr_modules");
        assert_eq!(modules.len(), 32);
    }
}
