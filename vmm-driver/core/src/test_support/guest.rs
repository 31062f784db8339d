//! A guest for tests: a vCPU, RAM, and page tables to fill.

use crate::memory::Memory;
use crate::paging::entry;
use crate::registers::Cr0;
use crate::registers::Cr4;
use crate::registers::Efer;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::attributes;
use crate::test_support::MockHost;
use crate::test_support::TestVcpu;

/// A vCPU with [`TestGuest::RAM`] bytes of memory from address 0.
#[derive(Debug)]
pub struct TestGuest {
    /// The vCPU.
    pub vcpu: TestVcpu,
    /// Its memory.
    pub memory: Memory,
    next_table: u64,
}

impl Drop for TestGuest {
    fn drop(&mut self) {
        self.memory.free::<MockHost>();
    }
}

impl TestGuest {
    /// Bytes of RAM.
    pub const RAM: u64 = 1 << 18;
    /// Page tables are from here on; the root is the first.
    pub const TABLES: u64 = 0x2_0000;

    fn new() -> Self {
        let memory = Memory::default();
        memory.add::<MockHost>(0, Self::RAM, true).expect("a test has memory");
        let mut vcpu = TestVcpu { rflags: 2, ..TestVcpu::default() };
        for segment in &mut vcpu.segments {
            *segment = Segment { base: 0, limit: 0xffff, selector: 0, attributes: 0x93 };
        }
        Self { vcpu, memory, next_table: Self::TABLES + 0x1000 }
    }

    /// In real mode.
    #[must_use]
    pub fn real_mode() -> Self {
        Self::new()
    }

    /// In protected mode with flat 32-bit segments, without paging.
    #[must_use]
    pub fn protected_mode() -> Self {
        let mut guest = Self::new();
        guest.vcpu.cr0 = (Cr0::CR0_PROTECTED_MODE | Cr0::CR0_WRITE_PROTECT).bits() as u64;
        for segment in &mut guest.vcpu.segments {
            *segment = Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xc93 };
        }
        guest.vcpu.segments[SegmentName::Cs as usize].attributes = 0xc9b;
        guest
    }

    /// The same with 32-bit page tables, with 4 MiB pages allowed.
    #[must_use]
    pub fn paging_32bit() -> Self {
        let mut guest = Self::protected_mode();
        guest.vcpu.cr0 |= Cr0::CR0_ENABLE_PAGING.bits() as u64;
        guest.vcpu.cr4 |= Cr4::CR4_ENABLE_PSE.bits() as u64;
        guest.vcpu.cr3 = Self::TABLES;
        guest
    }

    /// The same with PAE tables, no-execute on.
    #[must_use]
    pub fn paging_pae() -> Self {
        let mut guest = Self::paging_32bit();
        guest.vcpu.cr4 = Cr4::CR4_ENABLE_PAE.bits() as u64;
        guest.vcpu.efer = Efer::NXE.bits();
        guest
    }

    /// In 64-bit mode, no-execute on.
    #[must_use]
    pub fn long_mode() -> Self {
        let mut guest = Self::paging_pae();
        guest.vcpu.efer |= (Efer::LME | Efer::LMA).bits();
        guest.vcpu.segments[SegmentName::Cs as usize].attributes = 0x9b | attributes::LONG;
        guest
    }

    /// Reads 8 bytes of RAM.
    #[must_use]
    pub fn read_u64(&self, gpa: u64) -> u64 {
        self.memory.read_u64(gpa).expect("a test reads RAM")
    }

    /// Writes RAM.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        assert!(self.memory.write(gpa, bytes), "a test writes RAM");
    }

    /// Copies RAM.
    #[must_use]
    pub fn read(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert!(self.memory.read(gpa, &mut bytes), "a test reads RAM");
        bytes
    }

    /// Where the entry for `linear` is in the table that maps 2^`shift` bytes an entry; missing tables are made, with
    /// all rights.
    pub fn entry_place(&mut self, linear: u64, shift: u32) -> u64 {
        let long = self.vcpu.efer & Efer::LMA.bits() != 0;
        let pae = self.vcpu.cr4 & Cr4::CR4_ENABLE_PAE.bits() as u64 != 0;
        let (mut level, bits, size) = match (long, pae) {
            (true, _) => (39, 9, 8),
            (false, true) => (30, 9, 8),
            (false, false) => (22, 10, 4),
        };
        let mut table = Self::TABLES;
        loop {
            let place = table + (linear >> level & ((1 << bits) - 1)) * size;
            if level == shift {
                return place;
            }
            let mut value =
                self.read_u64(place & !7) >> (place % 8 * 8) & if size == 4 { 0xffff_ffff } else { u64::MAX };
            if value & entry::PRESENT == 0 {
                // The entries of a PAE root have no rights.
                let rights = if level == 30 && !long { 0 } else { entry::WRITABLE | entry::USER };
                value = self.next_table | rights | entry::PRESENT;
                self.next_table += 0x1000;
                self.write(place, &value.to_le_bytes()[..if size == 4 { 4 } else { 8 }]);
            }
            table = value & entry::ADDRESS;
            level -= bits;
        }
    }

    /// Maps 2^`shift` bytes at `linear`: the entry becomes `value`.
    pub fn map(&mut self, linear: u64, shift: u32, value: u64) {
        let place = self.entry_place(linear, shift);
        let size = if self.vcpu.cr4 & Cr4::CR4_ENABLE_PAE.bits() as u64 == 0 { 4 } else { 8 };
        self.write(place, &value.to_le_bytes()[..size]);
    }
}
