//! Owner and permissions of a guest's files. Windows has neither as Linux means them, so they are kept in extended attributes of
//! the file, by the names and in the form that WSL uses: `$LXUID`, `$LXGID`, `$LXMOD`, each of 4 bytes, the least first. WSL
//! shows them, too, where its drive is mounted with `metadata`.

use super::u16_at;
use super::u32_at;

/// The attributes' names.
const UID: &str = "$LXUID";
const GID: &str = "$LXGID";
const MODE: &str = "$LXMOD";

/// `FILE_FULL_EA_INFORMATION` ([MS-FSCC] 2.4): offset of the next, flags, lengths of name and value; the name, a zero, the
/// value.
const HEADER: usize = 8;
/// `FILE_GET_EA_INFORMATION` (the same): offset of the next, length of the name; the name, a zero.
const GET_HEADER: usize = 5;
/// Each begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// What is kept of a file; what is not there was never set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sys) struct Metadata {
    /// The user.
    pub(in crate::sys) uid: Option<u32>,
    /// The group.
    pub(in crate::sys) gid: Option<u32>,
    /// Type and permissions.
    pub(in crate::sys) mode: Option<u32>,
}

impl Metadata {
    /// Most bytes of what [`Self::decode`] takes.
    pub(in crate::sys) const SIZE: usize = 128;

    /// What is there, as it is handed to NT; empty if nothing is.
    pub(in crate::sys) fn encode(&self) -> Vec<u8> {
        let all = [(UID, self.uid), (GID, self.gid), (MODE, self.mode)];
        chain(all.into_iter().filter_map(|(name, value)| {
            let lengths = [0, u8::try_from(name.len()).ok()?, 4, 0];
            Some([&lengths, name.as_bytes(), &[0], &value?.to_le_bytes()].concat())
        }))
    }

    /// The list of names to ask NT for.
    pub(in crate::sys) fn names() -> Vec<u8> {
        chain([UID, GID, MODE].into_iter().filter_map(|name| {
            let length = [u8::try_from(name.len()).ok()?];
            Some([&length, name.as_bytes(), &[0]].concat())
        }))
    }

    /// What NT says of them. What is no number of 4 bytes is not there.
    pub(in crate::sys) fn decode(bytes: &[u8]) -> Self {
        let (mut found, mut rest) = (Self::default(), bytes);
        while let (Some(next), Some(&name_length), Some(length)) = (u32_at(rest, 0), rest.get(5), u16_at(rest, 6)) {
            let name_end = HEADER + usize::from(name_length);
            let value = u32_at(rest, name_end + 1).filter(|_| length == 4);
            match rest.get(HEADER..name_end) {
                Some(name) if name == UID.as_bytes() => found.uid = value,
                Some(name) if name == GID.as_bytes() => found.gid = value,
                Some(name) if name == MODE.as_bytes() => found.mode = value,
                _ => {}
            }
            match usize::try_from(next).ok().filter(|&next| next >= HEADER).and_then(|next| rest.get(next..)) {
                Some(after) => rest = after,
                None => break,
            }
        }
        found
    }
}

/// Entries one behind the other, each with the offset of the next at its begin, which they come without.
fn chain(entries: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut all, mut last) = (Vec::new(), None);
    for entry in entries {
        all.resize(all.len().next_multiple_of(ALIGNMENT), 0);
        if let Some(last) = last {
            let offset = u32::try_from(all.len() - last).unwrap_or(0);
            all[last..last + 4].copy_from_slice(&offset.to_le_bytes());
        }
        last = Some(all.len());
        all.extend([0; 4]);
        all.extend(entry);
    }
    all
}

const _: () = assert!(Metadata::SIZE >= 3 * (HEADER + 6 + 1 + 4).next_multiple_of(ALIGNMENT) && GET_HEADER == 5);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_the_form_is_nts() {
        let mode = Metadata { mode: Some(0o100_640), ..Metadata::default() };
        assert_eq!(mode.encode(), b"\0\0\0\0\0\x06\x04\0$LXMOD\0\xa0\x81\0\0");
        let both = Metadata { uid: Some(1000), gid: Some(u32::MAX - 1), mode: None };
        let expected =
            [&b"\x14\0\0\0\0\x06\x04\0$LXUID\0\xe8\x03\0\0\0"[..], b"\0\0\0\0\0\x06\x04\0$LXGID\0\xfe\xff\xff\xff"];
        assert_eq!(both.encode(), expected.concat());
        assert_eq!(Metadata::default().encode(), b"");
        let names = [&b"\x0c\0\0\0\x06$LXUID\0"[..], b"\x0c\0\0\0\x06$LXGID\0", b"\0\0\0\0\x06$LXMOD\0"];
        assert_eq!(Metadata::names(), names.concat());
    }

    #[test]
    fn test_what_was_never_set_is_not_there() {
        // NT answers for a name that is not there with an empty value.
        let bytes = [&b"\x10\0\0\0\0\x06\0\0$LXUID\0\0"[..], b"\0\0\0\0\0\x06\x04\0$LXMOD\0\xed\x41\0\0"].concat();
        assert_eq!(Metadata::decode(&bytes), Metadata { mode: Some(0o040_755), ..Metadata::default() });
        for bytes in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\0\x06\x04\0$LXMOD\0\xed", b"\0\0\0\0\0\xff\xff\xff$"] {
            assert_eq!(Metadata::decode(bytes), Metadata::default());
        }
    }

    proptest! {
        #[test]
        fn test_what_is_kept_comes_back(uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) {
            let metadata = Metadata { uid, gid, mode };
            prop_assert!(metadata.encode().len() <= Metadata::SIZE);
            prop_assert_eq!(Metadata::decode(&metadata.encode()), metadata);
        }

        #[test]
        fn test_any_answer_has_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Metadata::decode(&bytes);
        }
    }
}
