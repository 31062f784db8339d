//! Kernels made by hand.

/// A bzImage of a few KiB with the headers of a real one.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 512 * 5 + 4096];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]); // setup_sects
    put(0x1f4, &256u32.to_le_bytes()); // syssize
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes()); // version
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &0x3fu16.to_le_bytes()); // xloadflags
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x80_0000u32.to_le_bytes()); // init_size
    put(512 * 5, &[0xf4; 4096]);
    file
}

/// [`bzimage`] with this payload.
pub(crate) fn bzimage_with(payload: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    let kernel = 512 * 5;
    let size = (0x300 + payload.len()).next_multiple_of(16);
    let paragraphs = u32::try_from(size / 16).unwrap();
    file.truncate(kernel + 0x300);
    file.extend_from_slice(payload);
    file.resize(kernel + size, 0);
    file[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0x300u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file
}

/// An ELF kernel with these segments (address, bytes in the file, bytes in memory) and perhaps a PVH note.
pub(crate) fn elf(segments: &[(u64, u64, u64)], entry: u64, pvh: Option<u32>) -> Vec<u8> {
    let notes = pvh.map(|entry| (18, entry.to_le_bytes().to_vec()));
    elf_with_notes(segments, entry, notes.as_slice())
}

/// An ELF kernel with these segments (address, bytes in the file, bytes in memory) and notes for Xen (type, value).
pub(crate) fn elf_with_notes(segments: &[(u64, u64, u64)], entry: u64, notes: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let headers = segments.len() + usize::from(!notes.is_empty());
    let mut file = Vec::new();
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&2u16.to_le_bytes());
    file.extend_from_slice(&62u16.to_le_bytes());
    file.extend_from_slice(&1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64, 56, u16::try_from(headers).unwrap(), 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut note_bytes = Vec::new();
    for (kind, value) in notes {
        for word in [4, u32::try_from(value.len()).unwrap(), *kind, u32::from_le_bytes(*b"Xen\0")] {
            note_bytes.extend_from_slice(&word.to_le_bytes());
        }
        note_bytes.extend_from_slice(value);
        note_bytes.resize(note_bytes.len().next_multiple_of(4), 0);
    }
    let mut offset = 64 + 56 * headers as u64;
    let mut header = |kind: u32, address: u64, size: u64, memory: u64| {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&7u32.to_le_bytes());
        for word in [offset, address, address, size, memory, 4096] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        offset += size;
    };
    for &(address, size, memory) in segments {
        header(1, address, size, memory);
    }
    if !notes.is_empty() {
        let size = note_bytes.len() as u64;
        header(4, 0, size, size);
    }
    for &(_, size, _) in segments {
        file.resize(file.len() + usize::try_from(size).unwrap(), 0xf4);
    }
    file.extend_from_slice(&note_bytes);
    file
}
