//! Symbolic links as reparse points ([MS-FSCC] 2.1.2): tag, length of the data, 2 bytes of nothing; the data.
//!
//! A guest's are kept as WSL keeps Linux': the version 2 in 4 bytes, then the target in UTF-8. Windows follows none of them. Its
//! own (2.1.2.4) and its junctions (2.1.2.5) the guest sees as links, too, with what Windows shows of their target.

use super::kind;
use super::kind::Kind;
use super::text_at;
use super::u16_at;
use super::u32_at;
use crate::share::Errno;

/// Most bytes of a reparse point (`MAXIMUM_REPARSE_DATA_BUFFER_SIZE`).
pub(in crate::sys) const SIZE: usize = 16 << 10;
const HEADER: usize = 8;
/// Version of the data of a link of Linux'.
const VERSION: u32 = 2;
/// `SYMLINK_FLAG_RELATIVE`.
const RELATIVE: u32 = 1;

/// A reparse point of this kind; `target` is a link's.
pub(in crate::sys) fn encode(kind: Kind, target: &[u8]) -> Result<Vec<u8>, Errno> {
    let (tag, data) = match kind {
        Kind::Link => {
            // WSL takes nothing but UTF-8 in it.
            let target = str::from_utf8(target).map_err(|_| Errno::ILSEQ)?;
            (kind::LX_SYMLINK, [&VERSION.to_le_bytes(), target.as_bytes()].concat())
        }
        Kind::Fifo => (kind::LX_FIFO, Vec::new()),
        Kind::Socket => (kind::AF_UNIX, Vec::new()),
        Kind::File | Kind::Folder => return Err(Errno::INVAL),
    };
    let length = u16::try_from(data.len()).ok().filter(|_| data.len() <= SIZE - HEADER).ok_or(Errno::NAMETOOLONG)?;
    Ok([&tag.to_le_bytes()[..], &length.to_le_bytes(), &[0, 0], &data].concat())
}

/// Where a link leads to.
pub(in crate::sys) fn target(point: &[u8]) -> Result<Vec<u8>, Errno> {
    decode(point).ok_or(Errno::INVAL)
}

fn decode(point: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(u16_at(point, 4)?);
    let data = point.get(HEADER..HEADER.checked_add(length)?)?;
    match u32_at(point, 0)? {
        kind::LX_SYMLINK if u32_at(data, 0)? == VERSION => Some(data.get(4..)?.to_vec()),
        kind::SYMLINK => {
            let (shown, flags) = (shown(data, 12)?, u32_at(data, 8)?);
            // Within the share it leads to the same file.
            Some(if flags & RELATIVE == 0 { shown } else { shown.replace('\\', "/") }.into_bytes())
        }
        kind::MOUNT_POINT => Some(shown(data, 8)?.into_bytes()),
        _ => None,
    }
}

/// The target as Windows shows it: after offset and length of the other name, those of this one, of what begins at `begin`.
fn shown(data: &[u8], begin: usize) -> Option<String> {
    let (offset, length) = (usize::from(u16_at(data, 4)?), usize::from(u16_at(data, 6)?));
    String::from_utf16(&text_at(data, begin + offset, length)?).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_a_guests_link_is_as_wsl_has_it() {
        let link = encode(Kind::Link, b"../a/b").unwrap();
        assert_eq!(link, b"\x1d\0\0\xa0\x0a\0\0\0\x02\0\0\0../a/b");
        assert_eq!(target(&link), Ok(b"../a/b".to_vec()));
        assert_eq!(encode(Kind::Fifo, b"").unwrap(), b"\x24\0\0\x80\0\0\0\0");
        assert_eq!(encode(Kind::Socket, b"").unwrap(), b"\x23\0\0\x80\0\0\0\0");
        assert_eq!(encode(Kind::Link, b"\xff"), Err(Errno::ILSEQ));
        assert_eq!(encode(Kind::File, b""), Err(Errno::INVAL));
        assert!(encode(Kind::Link, &[b'x'; SIZE - HEADER - 4]).is_ok());
        assert_eq!(encode(Kind::Link, &[b'x'; SIZE - HEADER - 3]), Err(Errno::NAMETOOLONG));
    }

    /// A link of Windows' own, with the name that it opens and the one that it shows.
    fn windows_link(tag: u32, flags: Option<u32>, opened: &str, shown: &str) -> Vec<u8> {
        let bytes = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        let (opened, shown) = (bytes(opened), bytes(shown));
        let lengths =
            [0, opened.len(), opened.len(), shown.len()].map(|number| u16::try_from(number).unwrap().to_le_bytes());
        let flags = flags.map(u32::to_le_bytes);
        let data =
            [lengths.as_flattened(), flags.as_ref().map_or(&[][..], |flags| &flags[..]), &opened, &shown].concat();
        let length = u16::try_from(data.len()).unwrap();
        [&tag.to_le_bytes()[..], &length.to_le_bytes(), &[0, 0], &data].concat()
    }

    #[test]
    fn test_links_of_windows_are_told_as_windows_shows_them() {
        let link = windows_link(kind::SYMLINK, Some(RELATIVE), r"..\a\b", r"..\a\b");
        assert_eq!(target(&link), Ok(b"../a/b".to_vec()));
        let link = windows_link(kind::SYMLINK, Some(0), r"\??\C:\x", r"C:\x");
        assert_eq!(target(&link), Ok(br"C:\x".to_vec()));
        let junction = windows_link(kind::MOUNT_POINT, None, r"\??\C:\x", r"C:\x");
        assert_eq!(target(&junction), Ok(br"C:\x".to_vec()));
        for length in 0..junction.len() {
            assert_eq!(target(&junction[..length]), Err(Errno::INVAL));
        }
        assert_eq!(target(b"\x24\0\0\x80\0\0\0\0"), Err(Errno::INVAL));
    }

    proptest! {
        #[test]
        fn test_any_point_is_a_link_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in 0_usize..3) {
            let tags = [kind::LX_SYMLINK, kind::SYMLINK, kind::MOUNT_POINT];
            let _ = target(&[&tags[tag].to_le_bytes(), bytes.as_slice()].concat());
        }
    }
}
