//! A file's new name, as NT is told it: `FILE_RENAME_INFORMATION` and `FILE_LINK_INFORMATION` ([MS-FSCC] 2.4),
//! which are the same: flags, the folder's handle, the name's length, the name.

/// What of a file that has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) enum Replace {
    /// It stays, and the call fails.
    No,
    /// It goes, if nobody has it open.
    Classic,
    /// It goes as on Linux: who has it open keeps it (`FILE_RENAME_REPLACE_IF_EXISTS`, `…_POSIX_SEMANTICS`,
    /// `…_IGNORE_READONLY_ATTRIBUTE`). For the call's newer form, of Windows 10.
    AsOnLinux,
}

const FLAGS_OF_LINUX: u32 = 0x1 | 0x2 | 0x40;

/// The structure, in whole words: it must be aligned, and NT wants no less than the structure with its padding.
pub(in crate::sys) fn encode(replace: Replace, folder: u64, name: &[u16]) -> Vec<u64> {
    let flags: u32 = match replace {
        Replace::No => 0,
        Replace::Classic => 1,
        Replace::AsOnLinux => FLAGS_OF_LINUX,
    };
    let length = u32::try_from(2 * name.len()).unwrap_or(0);
    let mut bytes = [&u64::from(flags).to_le_bytes()[..], &folder.to_le_bytes(), &length.to_le_bytes()].concat();
    bytes.extend(name.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_form_is_nts() {
        let name: Vec<u16> = "abc".encode_utf16().collect();
        let bytes = |words: Vec<u64>| words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>();
        let expected = b"\x01\0\0\0\0\0\0\0\x34\x12\0\0\0\0\0\0\x06\0\0\0a\0b\0c\0\0\0\0\0\0\0";
        assert_eq!(bytes(encode(Replace::Classic, 0x1234, &name)), expected);
        assert_eq!(encode(Replace::AsOnLinux, 0, &name)[0], 0x43);
        assert_eq!(encode(Replace::No, 0, &name[..1]).len(), 3, "the structure has 24 bytes");
    }
}
