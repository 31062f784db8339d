//! How a guest's files are kept in a folder of Windows': names, types, owners and permissions, times, links, errors.

pub(in crate::sys) mod entries;
pub(in crate::sys) mod errors;
pub(in crate::sys) mod kind;
pub(in crate::sys) mod links;
pub(in crate::sys) mod metadata;
pub(in crate::sys) mod names;
pub(in crate::sys) mod renaming;
pub(in crate::sys) mod stat;
pub(in crate::sys) mod times;

/// A number at its place in bytes.
fn number<const SIZE: usize>(bytes: &[u8], at: usize) -> Option<[u8; SIZE]> {
    bytes.get(at..at.checked_add(SIZE)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

/// UTF-16 of so many bytes.
fn text_at(bytes: &[u8], at: usize, length: usize) -> Option<Vec<u16>> {
    let text = bytes.get(at..at.checked_add(length)?)?;
    Some(text.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect())
}
