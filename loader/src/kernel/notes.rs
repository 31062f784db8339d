//! What a kernel says of itself to Xen, in the ELF notes named `Xen` (Xen `public/elfnote.h`).
//!
//! PVH uses one of them; a kernel that can run paravirtually has most of them.

use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use elf::abi::PT_NOTE;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::Note;
use elf::note::NoteIterator;
use elf::segment::ProgramHeader;

use crate::kernel::error::KernelError;

/// Larger notes than any kernel has.
const MAX_SIZE: u64 = 64 << 10;
/// Notes are aligned so in Linux, whatever the segment says.
const ALIGNMENT: usize = 4;
/// The name of Xen's notes; the terminating zero counts as part of it.
const NAME: &[u8] = b"Xen";

/// Types of notes.
mod kind {
    pub(super) const ENTRY: u64 = 1;
    pub(super) const HYPERCALL_PAGE: u64 = 2;
    pub(super) const VIRT_BASE: u64 = 3;
    pub(super) const PADDR_OFFSET: u64 = 4;
    pub(super) const GUEST_OS: u64 = 6;
    pub(super) const LOADER: u64 = 8;
    pub(super) const FEATURES: u64 = 10;
    pub(super) const INIT_P2M: u64 = 15;
    pub(super) const MOD_START_PFN: u64 = 16;
    pub(super) const PHYS32_ENTRY: u64 = 18;
}

/// The notes that matter here, as the kernel gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// Virtual address of the paravirtual entry.
    pub entry: Option<u64>,
    /// Virtual address of a page that is to be filled with calls of Xen.
    pub hypercall_page: Option<u64>,
    /// Where physical address [`XenNotes::paddr_offset`] is to be in virtual memory.
    pub virt_base: Option<u64>,
    /// What to take off the segments' physical addresses.
    pub paddr_offset: Option<u64>,
    /// The operating system.
    pub guest_os: Option<String>,
    /// The form of the other notes.
    pub loader: Option<String>,
    /// What the kernel can do and, with `!` before, must have; names with `|` between.
    pub features: Option<String>,
    /// Virtual address where the list of frames is wanted.
    pub init_p2m: Option<u64>,
    /// Not 0: the initial RAM disk may be told by the number of its first page.
    pub mod_start_pfn: Option<u64>,
    /// The entry of the PVH protocol.
    pub pvh_entry: Option<u64>,
}

impl XenNotes {
    /// Reads the notes of an ELF file of `len` bytes. Of several notes of a kind the first counts.
    pub(super) fn parse<R: Read + Seek>(
        file: &mut R,
        len: u64,
        headers: &[ProgramHeader],
    ) -> Result<Self, KernelError> {
        let mut notes = Self::default();
        for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
            let end = header.p_offset.saturating_add(header.p_filesz);
            if end > len {
                return Err(KernelError::Truncated { part: "a note segment", end, len });
            }
            if header.p_filesz > MAX_SIZE {
                return Err(KernelError::Damaged("it has more notes than any kernel"));
            }
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(header.p_offset))?;
            file.by_ref().take(header.p_filesz).read_to_end(&mut bytes)?;
            for note in NoteIterator::new(LittleEndian, Class::ELF64, ALIGNMENT, &bytes) {
                if let Note::Unknown(note) = note
                    && note.name.strip_suffix(b"\0").unwrap_or(note.name) == NAME
                {
                    notes.add(note.n_type, note.desc)?;
                }
            }
        }
        Ok(notes)
    }

    fn add(&mut self, note: u64, value: &[u8]) -> Result<(), KernelError> {
        match note {
            kind::ENTRY => keep_number(&mut self.entry, value),
            kind::HYPERCALL_PAGE => keep_number(&mut self.hypercall_page, value),
            kind::VIRT_BASE => keep_number(&mut self.virt_base, value),
            kind::PADDR_OFFSET => keep_number(&mut self.paddr_offset, value),
            kind::INIT_P2M => keep_number(&mut self.init_p2m, value),
            kind::MOD_START_PFN => keep_number(&mut self.mod_start_pfn, value),
            kind::PHYS32_ENTRY => keep_number(&mut self.pvh_entry, value),
            kind::GUEST_OS => keep_text(&mut self.guest_os, value),
            kind::LOADER => keep_text(&mut self.loader, value),
            kind::FEATURES => keep_text(&mut self.features, value),
            _ => Ok(()),
        }
    }
}

/// Takes a note's number, of 4 or 8 bytes, unless there was one.
fn keep_number(number: &mut Option<u64>, value: &[u8]) -> Result<(), KernelError> {
    let value = match *value {
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(KernelError::Damaged("one of its notes for Xen has a wrong size")),
    };
    number.get_or_insert(value);
    Ok(())
}

/// Takes a note's text up to its zero, unless there was one.
fn keep_text(text: &mut Option<String>, value: &[u8]) -> Result<(), KernelError> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    text.get_or_insert_with(|| String::from_utf8_lossy(&value[..end]).into_owned());
    Ok(())
}
