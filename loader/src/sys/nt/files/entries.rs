//! Entries of a folder, as NT lists them: `FILE_ID_FULL_DIR_INFORMATION` ([MS-FSCC] 2.4).

use super::kind::Kind;
use super::number;
use super::text_at;
use super::u32_at;

/// Where what is: the offset of the next entry is at its begin.
const ATTRIBUTES: usize = 56;
const NAME_LENGTH: usize = 60;
/// Size of extended attributes; of a reparse point its tag.
const EA_SIZE: usize = 64;
const FILE_ID: usize = 72;
const NAME: usize = 80;

/// A file in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sys) struct Entry {
    /// Its name, as it is kept.
    pub(in crate::sys) name: Vec<u16>,
    /// What tells it from all others of the volume.
    pub(in crate::sys) id: u64,
    /// What it is, if it is something for a guest.
    pub(in crate::sys) kind: Option<Kind>,
}

/// The entries, but for those of the folder itself and the one above.
pub(in crate::sys) fn parse(bytes: &[u8]) -> Vec<Entry> {
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while let Some(entry) = one(rest) {
        let itself = [&[u16::from(b'.')][..], &[u16::from(b'.'); 2]].contains(&entry.name.as_slice());
        if !itself {
            entries.push(entry);
        }
        let next = u32_at(rest, 0).and_then(|next| usize::try_from(next).ok());
        match next.filter(|&next| next >= NAME).and_then(|next| rest.get(next..)) {
            Some(after) => rest = after,
            None => break,
        }
    }
    entries
}

fn one(bytes: &[u8]) -> Option<Entry> {
    let length = usize::try_from(u32_at(bytes, NAME_LENGTH)?).ok()?;
    Some(Entry {
        name: text_at(bytes, NAME, length)?,
        id: number(bytes, FILE_ID).map(u64::from_le_bytes)?,
        kind: Kind::of(u32_at(bytes, ATTRIBUTES)?, u32_at(bytes, EA_SIZE)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kind;
    use super::*;

    fn entry(name: &str, id: u64, attributes: u32, tag: u32, last: bool) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut bytes = vec![0; NAME];
        bytes[ATTRIBUTES..ATTRIBUTES + 4].copy_from_slice(&attributes.to_le_bytes());
        bytes[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
        bytes[EA_SIZE..EA_SIZE + 4].copy_from_slice(&tag.to_le_bytes());
        bytes[FILE_ID..FILE_ID + 8].copy_from_slice(&id.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let next = if last { 0 } else { u32::try_from(bytes.len()).unwrap() };
        bytes[..4].copy_from_slice(&next.to_le_bytes());
        bytes
    }

    #[test]
    fn test_a_folder_is_listed() {
        let bytes = [
            entry(".", 1, kind::DIRECTORY, 0, false),
            entry("..", 2, kind::DIRECTORY, 0, false),
            entry("größe", 3, kind::NORMAL, 0, false),
            entry("link", 4, kind::REPARSE_POINT, kind::LX_SYMLINK, false),
            entry("cloud", 5, kind::REPARSE_POINT, 0x9000_001a, true),
        ];
        let found = parse(&bytes.concat());
        let seen: Vec<_> =
            found.iter().map(|entry| (String::from_utf16(&entry.name).unwrap(), entry.id, entry.kind)).collect();
        let expected = [("größe", 3, Some(Kind::File)), ("link", 4, Some(Kind::Link)), ("cloud", 5, None)];
        assert_eq!(seen, expected.map(|(name, id, kind)| (name.to_owned(), id, kind)));
    }

    #[test]
    fn test_lengths_that_lie_are_no_entries() {
        let mut bytes = entry("file", 1, 0, 0, true);
        bytes[NAME_LENGTH] = 200;
        assert_eq!(parse(&bytes), []);
        let mut bytes = entry("file", 1, 0, 0, true);
        bytes[0] = 8;
        assert_eq!(parse(&bytes).len(), 1);
        assert_eq!(parse(&bytes[..NAME - 1]), []);
    }

    proptest! {
        #[test]
        fn test_any_list_has_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
