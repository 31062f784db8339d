//! Loads the probe: an ELF file with a PVH note, entered in 32-bit protected mode (Xen `docs/misc/pvh.pandoc`).

use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use elf::note::Note;

use crate::error::Error;
use crate::memory::Memory;

/// Type of the note that holds the entry point, `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u64 = 18;
/// Where the start info goes.
const START_INFO: u64 = 0x1000;
/// Where the command line goes.
const COMMAND_LINE: u64 = 0x2000;
/// First word of the start info.
const START_INFO_MAGIC: u32 = 0x336e_c578;

/// Where the guest starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// EIP.
    pub(crate) rip: u64,
    /// EBX: the start info.
    pub(crate) start_info: u64,
}

/// Loads image and command line.
pub(crate) fn load(memory: &mut Memory, image: &[u8], command_line: &str) -> Result<Entry, Error> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| Error::Image("it is no ELF file"))?;
    let segments = elf.segments().ok_or(Error::Image("it has no segments"))?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let data = elf.segment_data(&segment).map_err(|_| Error::Image("a segment lies behind its end"))?;
        if !memory.write(segment.p_paddr, data) {
            return Err(Error::Image("a segment does not fit into RAM"));
        }
    }
    let rip = segments
        .iter()
        .filter_map(|segment| elf.segment_data_as_notes(&segment).ok())
        .flatten()
        .find_map(|note| match note {
            Note::Unknown(note) if note.n_type == NOTE_PHYS32_ENTRY => entry_address(note.desc),
            _ => None,
        })
        .ok_or(Error::Image("it has no PVH entry"))?;

    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    let mut info = [0_u8; 40];
    put(&mut info, 0, &START_INFO_MAGIC.to_le_bytes());
    put(&mut info, 24, &COMMAND_LINE.to_le_bytes());
    if memory.write(START_INFO, &info) && memory.write(COMMAND_LINE, &line) {
        Ok(Entry { rip, start_info: START_INFO })
    } else {
        Err(Error::Image("the command line does not fit into RAM"))
    }
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    for (slot, byte) in target.iter_mut().skip(offset).zip(bytes) {
        *slot = *byte;
    }
}

/// The note's content: four or eight bytes.
fn entry_address(content: &[u8]) -> Option<u64> {
    content.first_chunk::<4>().map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
}
