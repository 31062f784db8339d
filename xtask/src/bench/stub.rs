//! A kernel that only tells when it is entered: Debian's bzImage with other code at its entry points. Whatever loads it
//! does exactly what it does with the real one, so the time stamp counter at its entry is the real one's.

use std::path::Path;

use super::BenchError;

/// What the stub's line begins with.
pub(super) const MARK: &str = "covisor-stub:";

/// Offset of the number of sectors of real-mode code (Linux `Documentation/x86/boot.rst`).
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the header's magic, "HdrS".
const MAGIC: usize = 0x202;
/// Offset of the extended load flags; bit 0: the kernel has a 64-bit entry.
const XLOADFLAGS: usize = 0x236;
/// Distance of the 64-bit entry from the 32-bit one.
const ENTRY_64: usize = 0x200;
const SECTOR: usize = 512;

/// The code at both entries, the same bytes in 32-bit and 64-bit mode: reads the counter, prints a mark and the counter
/// as sixteen letters, `A` for 0 to `P` for 15, and stops.
fn code() -> Vec<u8> {
    // rdtsc; mov esi, edx; mov edi, eax; mov dx, 0x3f8
    let mut code = vec![0x0f, 0x31, 0x89, 0xd6, 0x89, 0xc7, 0x66, 0xba, 0xf8, 0x03];
    let print = |text: &str| {
        let mut code = Vec::new();
        for byte in text.bytes() {
            // mov al, byte; out dx, al
            code.extend([0xb0, byte, 0xee]);
        }
        code
    };
    code.extend(print(MARK));
    for rotate in [0xc6, 0xc7] {
        // mov ecx, 8; again: rol esi (edi), 4; mov eax, esi (edi); and al, 15; add al, 'A'; out dx, al; dec ecx; jnz again
        let from = if rotate == 0xc6 { 0xf0 } else { 0xf8 };
        code.extend([0xb9, 8, 0, 0, 0, 0xc1, rotate, 4, 0x89, from, 0x24, 0x0f, 0x04, b'A', 0xee]);
        code.extend([0xff, 0xc9, 0x75, 0xf2]);
    }
    code.extend(print("\n"));
    // The sleep register of covisor's ACPI: off. Elsewhere: mov dx, 0x600; mov al, 0x34; out dx, al; hlt; jmp to it.
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd]);
    code
}

/// Makes a stub of a bzImage.
pub(super) fn of(kernel: &[u8], path: &Path) -> Result<Vec<u8>, BenchError> {
    let wrong = || BenchError::NoBzImage { path: path.display().to_string() };
    let byte = |offset: usize| kernel.get(offset).copied().ok_or_else(wrong);
    if kernel.get(MAGIC..MAGIC + 4) != Some(b"HdrS") || byte(XLOADFLAGS)? & 1 == 0 {
        return Err(wrong());
    }
    // 0 means 4, for very old kernels.
    let sectors = match byte(SETUP_SECTS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let entry = (sectors + 1) * SECTOR;
    let mut stub = kernel.to_vec();
    let code = code();
    for offset in [entry, entry + ENTRY_64] {
        stub.get_mut(offset..offset + code.len()).ok_or_else(wrong)?.copy_from_slice(&code);
    }
    Ok(stub)
}

/// The counter in a stub's line.
pub(super) fn counter(line: &str) -> Option<u64> {
    let letters = line.split_once(MARK)?.1.trim();
    let digit = |letter: u8| letter.checked_sub(b'A').filter(|digit| *digit < 16);
    (letters.len() == 16)
        .then(|| letters.bytes().try_fold(0_u64, |value, letter| Some(value << 4 | u64::from(digit(letter)?))))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_read_from_its_letters() {
        assert_eq!(counter("noise covisor-stub:AAAAAAAAAAAAABCP\r"), Some(0x12f));
        assert_eq!(counter("covisor-stub:AAAA"), None);
        assert_eq!(counter("covisor-stub:AAAAAAAAAAAAABCZ"), None);
    }

    #[test]
    fn a_stub_differs_from_its_kernel_at_the_entries_only() {
        let mut kernel = vec![0x11_u8; 8 * SECTOR];
        kernel[SETUP_SECTS] = 2;
        kernel[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        kernel[XLOADFLAGS] = 1;
        let stub = of(&kernel, Path::new("k")).unwrap();
        let code = code();
        assert!(code.len() <= ENTRY_64);
        for entry in [3 * SECTOR, 3 * SECTOR + ENTRY_64] {
            assert_eq!(stub[entry..entry + code.len()], code);
            kernel[entry..entry + code.len()].copy_from_slice(&code);
        }
        assert_eq!(stub, kernel);
    }

    #[test]
    fn what_is_no_bzimage_is_refused() {
        assert!(of(&[0; 4096], Path::new("k")).is_err());
        assert!(of(b"HdrS", Path::new("k")).is_err());
    }
}
