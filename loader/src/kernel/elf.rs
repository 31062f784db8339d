//! ELF kernels (`vmlinux`): their segments and how to enter them.

use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use elf::abi::EM_X86_64;
use elf::abi::ET_DYN;
use elf::abi::ET_EXEC;
use elf::abi::PN_XNUM;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::file::FileHeader;
use elf::file::parse_ident;
use elf::segment::ProgramHeader;
use elf::segment::SegmentTable;

use crate::kernel::error::KernelError;
use crate::kernel::notes::XenNotes;
use crate::layout::HIGH_RAM_START;

/// First bytes of every ELF file.
pub(super) const MAGIC: [u8; 4] = elf::abi::ELFMAGIC;
/// Size of `Elf64_Ehdr`.
const HEADER_SIZE: usize = 64;
/// Bytes of it before the class-dependent part.
const IDENT_SIZE: usize = elf::abi::EI_NIDENT;
/// Size of `Elf64_Phdr`.
const PROGRAM_HEADER_SIZE: u16 = 56;
/// More segments than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// How to enter an ELF kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElfEntry {
    /// By the PVH protocol, in 32-bit mode (Xen `misc/pvh.pandoc`).
    Pvh(u64),
    /// By the 64-bit Linux boot protocol.
    Linux64(u64),
}

impl ElfEntry {
    /// Its address.
    #[must_use]
    pub fn address(self) -> u64 {
        match self {
            Self::Pvh(address) | Self::Linux64(address) => address,
        }
    }
}

/// A part of the file and where it belongs in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes in memory, of which those after `file_size` are zero.
    pub memory_size: u64,
}

impl Segment {
    /// End in memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// An ELF kernel whose headers are consistent.
#[derive(Debug, Clone)]
pub struct ElfImage {
    /// Its entry.
    pub entry: ElfEntry,
    /// What to load, by address, none empty, none overlapping.
    pub segments: Vec<Segment>,
    /// What it says of itself to Xen.
    pub notes: XenNotes,
}

impl ElfImage {
    /// Reads and checks the headers.
    pub(super) fn parse<R: Read + Seek>(file: &mut R, len: u64) -> Result<Self, KernelError> {
        let mut head = [0; HEADER_SIZE];
        if len < HEADER_SIZE as u64 {
            return Err(KernelError::Truncated { part: "the ELF header", end: HEADER_SIZE as u64, len });
        }
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut head)?;
        let ident = parse_ident::<LittleEndian>(&head).map_err(|_| KernelError::WrongMachine)?;
        let class = ident.1;
        let header = FileHeader::parse_tail(ident, &head[IDENT_SIZE..])
            .map_err(|_| KernelError::Damaged("its ELF header makes no sense"))?;
        if class == Class::ELF32 {
            return Err(KernelError::Not64Bit);
        }
        if header.e_machine != EM_X86_64 {
            return Err(KernelError::WrongMachine);
        }
        // A relocatable object (kernel module) or a core dump has no segments to boot from.
        if header.e_type != ET_EXEC && header.e_type != ET_DYN {
            return Err(KernelError::Damaged("it is not an executable ELF file"));
        }
        let headers = program_headers(file, len, &header)?;
        let segments = load_segments(&headers, len)?;
        let notes = XenNotes::parse(file, len, &headers)?;
        let entry = match notes.pvh_entry {
            Some(address) if address > u64::from(u32::MAX) => {
                return Err(KernelError::Damaged("its PVH entry lies above 4 GiB"));
            }
            Some(address) => ElfEntry::Pvh(address),
            None => ElfEntry::Linux64(header.e_entry),
        };
        let address = entry.address();
        if !segments.iter().any(|segment| (segment.address..segment.end()).contains(&address)) {
            return Err(KernelError::EntryOutside(address));
        }
        Ok(Self { entry, segments, notes })
    }

    /// End of its highest segment.
    pub(super) fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// Whether all of it fits into RAM that ends at `ram_end`.
    pub(super) fn check_fit(&self, ram_end: u64) -> Result<(), KernelError> {
        match self.segments.iter().find(|segment| segment.end() > ram_end) {
            Some(segment) => Err(KernelError::DoesNotFit { start: segment.address, end: segment.end(), ram_end }),
            None => Ok(()),
        }
    }
}

fn program_headers<R: Read + Seek>(
    file: &mut R,
    len: u64,
    header: &FileHeader<LittleEndian>,
) -> Result<Vec<ProgramHeader>, KernelError> {
    let count = header.e_phnum;
    if count == 0 {
        return Err(KernelError::Damaged("it has no segments to load"));
    }
    if count == PN_XNUM || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::Damaged("it has more program headers than any kernel"));
    }
    if header.e_phentsize != PROGRAM_HEADER_SIZE {
        return Err(KernelError::Damaged("its program headers have a wrong size"));
    }
    let mut table = vec![0; usize::from(count) * usize::from(PROGRAM_HEADER_SIZE)];
    let end = header.e_phoff.saturating_add(table.len() as u64);
    if end > len {
        return Err(KernelError::Truncated { part: "the program headers", end, len });
    }
    file.seek(SeekFrom::Start(header.e_phoff))?;
    file.read_exact(&mut table)?;
    Ok(SegmentTable::new(LittleEndian, Class::ELF64, &table).iter().collect())
}

fn load_segments(headers: &[ProgramHeader], len: u64) -> Result<Vec<Segment>, KernelError> {
    let mut segments = Vec::new();
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz != 0) {
        let segment = Segment {
            offset: header.p_offset,
            file_size: header.p_filesz,
            address: header.p_paddr,
            memory_size: header.p_memsz,
        };
        if segment.file_size > segment.memory_size {
            return Err(KernelError::Damaged("a segment is larger in the file than in memory"));
        }
        let end = segment.offset.saturating_add(segment.file_size);
        if end > len {
            return Err(KernelError::Truncated { part: "a segment", end, len });
        }
        if segment.address.checked_add(segment.memory_size).is_none() {
            return Err(KernelError::Damaged("a segment goes over the end of the address space"));
        }
        if segment.address < HIGH_RAM_START {
            return Err(KernelError::TooLow { start: segment.address });
        }
        segments.push(segment);
    }
    if segments.is_empty() {
        return Err(KernelError::Damaged("it has no segments to load"));
    }
    segments.sort_by_key(|segment| segment.address);
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].address {
            return Err(KernelError::Overlap { first: pair[0].address, second: pair[1].address });
        }
    }
    Ok(segments)
}
