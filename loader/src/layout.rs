//! Where everything lies in the guest's physical memory and port space.

use covisor_abi::EngineKind;
use covisor_abi::IO_APIC_BASE;
use covisor_abi::paravirtual::RAM_LIMIT;

/// The GDT of the first instruction.
pub const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info` of a PVH start.
pub const PVH_START_INFO: u64 = 0x1000;
/// The memory map of a PVH start.
pub const PVH_MEMORY_MAP: u64 = 0x2000;
/// The module list of a PVH start: the initial RAM disk.
pub const PVH_MODULES: u64 = 0x3000;
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables of the first instruction: PML4, PDPT, page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, with its final NUL.
pub const COMMAND_LINE: u64 = 0x6_0000;
/// Largest size of the command line with its final NUL.
pub const COMMAND_LINE_SIZE: u64 = 0x1_0000;
/// End of the RAM below the area that a PC keeps for firmware and adapters.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, within the area that a PC keeps for its BIOS. The first one is the RSDP.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Where a BIOS begins: `ffff:0000` in real mode.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the area that a PC keeps for its BIOS; RAM goes on here, and the kernel is loaded above.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// End of the RAM below 4 GiB, and start of [`PCI_MEMORY`].
pub const RAM_HOLE_START: u64 = 0xc000_0000;
/// Start of the RAM that does not fit below the hole.
pub const RAM_HOLE_END: u64 = 0x1_0000_0000;

/// Guest-physical window of the PCI devices' memory: start and size.
pub const PCI_MEMORY: (u64, u64) = (RAM_HOLE_START, IO_APIC_BASE - RAM_HOLE_START);
/// Window of the PCI devices' I/O ports on a PC: start and size. ACPI tells the guest of it.
pub const PCI_PORTS: (u16, u16) = (0xc000, 0x3000);
/// The same on a paravirtual machine, where nobody tells the guest: all ports that Linux gives to PCI devices (`PCIBIOS_MIN_IO`). It
/// does so with those of a device that it finds while it runs.
pub const PARAVIRTUAL_PCI_PORTS: (u16, u16) = (0x1000, 0xf000);

/// Interrupt of the generic event device, level-triggered.
pub const EVENT_GSI: u32 = 9;
/// Number of pages for the page directories of the first instruction, hence GiB that it can map.
pub const PAGE_DIRECTORIES: u64 = 64;

/// The kind of machine that a guest is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// A PC with ACPI, for kernels in ring 0.
    Pc,
    /// A machine of the Xen PV ABI. Its only devices are those of PCI and Xen's console.
    Paravirtual,
}

impl Model {
    /// The kind that goes with an engine; before the driver has chosen one, what most machines get.
    #[must_use]
    pub const fn of(engine: EngineKind) -> Self {
        match engine {
            EngineKind::Coop => Self::Paravirtual,
            EngineKind::Svm | EngineKind::Vmx | EngineKind::Auto => Self::Pc,
        }
    }

    /// Window of the PCI devices' I/O ports: start and size.
    #[must_use]
    pub const fn pci_ports(self) -> (u16, u16) {
        match self {
            Self::Pc => PCI_PORTS,
            Self::Paravirtual => PARAVIRTUAL_PCI_PORTS,
        }
    }
}

/// Size of guest RAM and its split around the hole below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ram {
    low: u64,
    high: u64,
}

impl Ram {
    /// RAM of this many bytes.
    #[must_use]
    pub const fn new(size: u64) -> Self {
        if size <= RAM_HOLE_START {
            Self { low: size, high: 0 }
        } else {
            Self { low: RAM_HOLE_START, high: size - RAM_HOLE_START }
        }
    }

    /// All of it, in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.low + self.high
    }

    /// End of the part below the hole.
    #[must_use]
    pub const fn low_end(self) -> u64 {
        self.low
    }

    /// End of the last part.
    #[must_use]
    pub const fn end(self) -> u64 {
        if self.high == 0 { self.low } else { RAM_HOLE_END + self.high }
    }

    /// Its parts: start and size.
    #[must_use]
    pub fn ranges(self) -> Vec<(u64, u64)> {
        let mut ranges = vec![(0, self.low)];
        if self.high != 0 {
            ranges.push((RAM_HOLE_END, self.high));
        }
        ranges
    }

    /// The memory map that the guest is told.
    #[must_use]
    pub fn memory_map(self) -> Vec<MemoryMapEntry> {
        let entry = |start, end, kind| MemoryMapEntry { start, size: end - start, kind };
        let mut map =
            vec![entry(0, LOW_RAM_END, MemoryKind::Ram), entry(LOW_RAM_END, HIGH_RAM_START, MemoryKind::Reserved)];
        if self.low > HIGH_RAM_START {
            map.push(entry(HIGH_RAM_START, self.low, MemoryKind::Ram));
        }
        if self.high != 0 {
            map.push(entry(RAM_HOLE_END, RAM_HOLE_END + self.high, MemoryKind::Ram));
        }
        map
    }
}

/// A range of the memory map that the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it holds.
    pub kind: MemoryKind,
}

/// What a range of the memory map holds (ACPI 6.5, 15.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for the guest's use.
    Ram = 1,
    /// Not for its use.
    Reserved = 2,
}

const _: () = assert!(PAGE_TABLES + (2 + PAGE_DIRECTORIES) * 0x1000 <= COMMAND_LINE);
const _: () = assert!(COMMAND_LINE + COMMAND_LINE_SIZE <= LOW_RAM_END);
// RAM of a paravirtual machine is one range.
const _: () = assert!(RAM_LIMIT <= RAM_HOLE_START);
const _: () = assert!(PCI_PORTS.0 as u32 + PCI_PORTS.1 as u32 <= 0x1_0000);
const _: () = assert!(PARAVIRTUAL_PCI_PORTS.0 as u32 + PARAVIRTUAL_PCI_PORTS.1 as u32 == 0x1_0000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_small_ram_lies_below_the_hole() {
        let ram = Ram::new(512 << 20);
        assert_eq!(ram.ranges(), [(0, 512 << 20)]);
        assert_eq!(ram.end(), 512 << 20);
    }

    #[test]
    fn test_large_ram_goes_on_above_4_gib() {
        let ram = Ram::new(4 << 30);
        assert_eq!(ram.ranges(), [(0, 3 << 30), (4 << 30, 1 << 30)]);
        assert_eq!(ram.end(), 5 << 30);
        assert_eq!(ram.size(), 4 << 30);
    }

    #[test]
    fn test_the_memory_map_has_no_gap_below_the_hole_and_no_overlap() {
        for size in [2 << 20, 3 << 30, (3 << 30) + 4096, 8 << 30] {
            let map = Ram::new(size).memory_map();
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            assert_eq!(map[0].start, 0);
        }
    }
}
