//! Names of files. Linux takes all bytes but `/` and NUL in a name; Windows takes fewer characters, and some of them mean
//! something else there: a colon leads to a stream of the file, a backslash into a folder.
//!
//! What Windows does not take is kept as a character of Unicode's private use area, U+F000 and its number, as WSL, Cygwin and
//! Samba do. A name that has such a character of its own, which would come back as another one, is refused.

use std::ffi::CStr;
use std::ffi::CString;

use crate::share::Errno;

/// Where the characters are kept that Windows does not take.
const PRIVATE: u16 = 0xf000;
/// Those that make a pattern, a way into a folder or a stream of a name.
const FORBIDDEN: &[u8] = b"\"*:<>?\\|";
/// Those that Win32 leaves out at the end of a name, so that its programs would not reach it.
const FORBIDDEN_LAST: &[u8] = b". ";
/// Characters before the space control something.
const CONTROLS: std::ops::Range<u16> = 1..0x20;
/// UTF-16 units of a name, on all file systems of Windows'.
const LONGEST: usize = 255;

/// Whether Windows does not take the character of this number.
fn is_forbidden(number: u16, last: bool) -> bool {
    let is_in = |list: &[u8]| u8::try_from(number).is_ok_and(|byte| list.contains(&byte));
    CONTROLS.contains(&number) || is_in(FORBIDDEN) || last && is_in(FORBIDDEN_LAST)
}

/// A name as Windows keeps it: one name, which leads to nothing but a file in the folder that it is looked for in.
pub(in crate::sys) fn to_windows(name: &CStr) -> Result<Vec<u16>, Errno> {
    let text = name.to_str().map_err(|_| Errno::ILSEQ)?;
    if text.is_empty() || text.contains('/') {
        return Err(Errno::INVAL);
    }
    let mut units: Vec<u16> = text.encode_utf16().collect();
    let last = units.len() - 1;
    for (at, unit) in units.iter_mut().enumerate() {
        if is_forbidden(*unit, at == last) {
            *unit |= PRIVATE;
        }
    }
    if units.len() > LONGEST {
        return Err(Errno::NAMETOOLONG);
    }
    if to_linux(&units).as_deref() == Some(name) { Ok(units) } else { Err(Errno::ILSEQ) }
}

/// A name as the guest sees it; `None` for one that is no text (half of a character), which the guest cannot have.
pub(in crate::sys) fn to_linux(name: &[u16]) -> Option<CString> {
    let last = name.len().checked_sub(1)?;
    let unit = |(at, &unit): (usize, &u16)| match unit.checked_sub(PRIVATE) {
        Some(number) if is_forbidden(number, at == last) => number,
        _ => unit,
    };
    let units: Vec<u16> = name.iter().enumerate().map(unit).collect();
    // A slash, which only a broken file system has, would make two names of it.
    CString::new(String::from_utf16(&units).ok()?).ok().filter(|name| !name.to_bytes().contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(units: &[u16]) -> String {
        String::from_utf16(units).unwrap()
    }

    #[test]
    fn test_names_are_kept_as_they_are_where_that_can_be() {
        for name in [
            c"file",
            c"A File.txt",
            c"gr\xc3\xb6\xc3\x9fer",
            c"\xf0\x9f\x90\xa7",
            c".hidden",
            c"con",
            c"nul.txt",
            c"LONGFI~1.TXT",
        ] {
            assert_eq!(text(&to_windows(name).unwrap()), name.to_str().unwrap());
        }
    }

    /// Attack: names that mean something else to Windows.
    #[test]
    fn test_attack_names_that_are_paths_streams_or_patterns() {
        for (name, kept) in [
            (c"a\\..\\b", "a\u{f05c}..\u{f05c}b"),
            (c"f:s", "f\u{f03a}s"),
            (c"f::$DATA", "f\u{f03a}\u{f03a}$DATA"),
            (c"C:", "C\u{f03a}"),
            (c"\\??\\C:", "\u{f05c}\u{f03f}\u{f03f}\u{f05c}C\u{f03a}"),
            (c"*.?", "\u{f02a}.\u{f03f}"),
            (c"<\">|", "\u{f03c}\u{f022}\u{f03e}\u{f07c}"),
            (c"\x01\x1f", "\u{f001}\u{f01f}"),
            (c"dot.", "dot\u{f02e}"),
            (c"space ", "space\u{f020}"),
            (c"...", "..\u{f02e}"),
            (c"..", ".\u{f02e}"),
            (c".", "\u{f02e}"),
        ] {
            let units = to_windows(name).unwrap();
            assert_eq!(text(&units), kept);
            assert_eq!(to_linux(&units).as_deref(), Some(name));
        }
    }

    #[test]
    fn test_names_that_would_come_back_as_others_are_refused() {
        let own = |text: &str| to_windows(&CString::new(text).unwrap());
        for name in ["f\u{f03a}s", "dot\u{f02e}", "\u{f001}"] {
            assert_eq!(own(name), Err(Errno::ILSEQ));
        }
        // Others of the private use area are like any character.
        for name in ["\u{f02e}x", "\u{f041}", "\u{e000}"] {
            assert_eq!(text(&own(name).unwrap()), name);
        }
        assert_eq!(to_windows(c"\xff"), Err(Errno::ILSEQ));
        assert_eq!(to_windows(c"a/b"), Err(Errno::INVAL));
        assert_eq!(to_windows(c""), Err(Errno::INVAL));
        assert_eq!(own(&"x".repeat(256)), Err(Errno::NAMETOOLONG));
        assert!(own(&"x".repeat(255)).is_ok());
        assert_eq!(to_linux(&[0xd800]), None);
        assert_eq!(to_linux(&[0x61, 0x2f]), None);
        assert_eq!(to_linux(&[0x61, 0]), None);
        assert_eq!(to_linux(&[]), None);
    }

    proptest! {
        /// Whatever a guest calls a file: it comes back as that, and Windows sees one plain name.
        #[test]
        fn test_any_name_comes_back_or_is_refused(bytes in prop::collection::vec(1_u8.., 0..300)) {
            let name = CString::new(bytes).unwrap();
            if let Ok(units) = to_windows(&name) {
                prop_assert_eq!(to_linux(&units), Some(name));
                let last = units.len() - 1;
                let bad = units.iter().enumerate().any(|(at, &unit)| is_forbidden(unit, at == last));
                prop_assert!(!bad && !units.contains(&u16::from(b'/')) && units.len() <= LONGEST);
            }
        }

        /// The host's names are found again by what the guest sees of them.
        #[test]
        fn test_any_name_of_the_hosts_is_found_again(
            units in prop::collection::vec(prop_oneof![0xf000_u16..0xf080, 0x61_u16..0x7b], 1..20)
        ) {
            prop_assert_eq!(to_windows(&to_linux(&units).unwrap()), Ok(units));
        }
    }
}
