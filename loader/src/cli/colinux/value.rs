//! Values in coLinux's words: quotes, lists and paths.

use std::path::PathBuf;

const QUOTE: char = '"';
/// The folder of all devices, as a program names it.
const DEVICES: &str = r"\\.\";
/// What devices are found by that have no name of programs'.
const GLOBAL_ROOT: &str = r"\\.\GLOBALROOT";
/// Length of a drive's root folder, such as `C:\`.
const ROOT_FOLDER: usize = 3;

/// The parts between commas. Quotes hold a part together and are not in it; two of them are one that is.
pub(super) fn list(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut rest = value.chars().peekable();
    while let Some(character) = rest.next() {
        let character = match character {
            QUOTE if rest.next_if_eq(&QUOTE).is_some() => QUOTE,
            QUOTE => {
                quoted = !quoted;
                continue;
            }
            ',' if !quoted => {
                parts.push(String::new());
                continue;
            }
            other => other,
        };
        parts.last_mut().into_iter().for_each(|part| part.push(character));
    }
    parts
}

/// A path that may be in quotes as a whole, as the host's programs name it.
pub(super) fn path(value: &str) -> PathBuf {
    let inner = value.strip_prefix(QUOTE).and_then(|rest| rest.strip_suffix(QUOTE));
    of_nt(inner.unwrap_or(value)).into()
}

/// coLinux's driver opened files, so that its paths could be those of Windows' kernel; covisor is a program.
fn of_nt(path: &str) -> String {
    let under = |folder: &str| path.strip_prefix(folder);
    if under(r"\Device\").is_some() {
        return format!("{GLOBAL_ROOT}{path}");
    }
    if under(r"\Volume{").is_some() {
        return format!("{DEVICES}{}", &path[1..]);
    }
    match under(r"\DosDevices\").or_else(|| under(r"\??\")) {
        Some(file) if is_drives(file) => without_last_backslash(file).to_owned(),
        Some(device) => format!("{DEVICES}{device}"),
        None => without_last_backslash(path).to_owned(),
    }
}

/// Whether it is a file or folder of a drive, as `C:\root_fs`; `C:` alone is the drive itself.
fn is_drives(path: &str) -> bool {
    matches!(path.as_bytes(), [letter, b':', b'\\', ..] if letter.is_ascii_alphabetic())
}

fn without_last_backslash(path: &str) -> &str {
    if path.len() > ROOT_FOLDER && is_drives(path) { path.trim_end_matches('\\') } else { path }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn test_commas_part_and_quotes_hold_together() {
        assert_eq!(list("a,b,,c"), ["a", "b", "", "c"]);
        assert_eq!(list(r#""LAN, the second",02:00:00:00:00:01"#), ["LAN, the second", "02:00:00:00:00:01"]);
        assert_eq!(list(r#"a"b,c"d,e"#), ["ab,cd", "e"]);
        assert_eq!(list(r#"say ""hi"", you"#), [r#"say "hi""#, " you"]);
        assert_eq!(list(r#""one ""quote"",",x"#), [r#"one "quote","#, "x"]);
        assert_eq!(list(r#""no end,"#), ["no end,"]);
        assert_eq!(list(""), [""]);
    }

    #[test]
    fn test_paths_are_as_programs_name_them() {
        for (colinux, ours) in [
            ("root.img", "root.img"),
            (r#""C:\my files\root.img""#, r"C:\my files\root.img"),
            (r#"a"b"#, r#"a"b"#),
            (r"C:\", r"C:\"),
            (r"C:\coLinux\", r"C:\coLinux"),
            (r"\DosDevices\c:\colinux\root_fs", r"c:\colinux\root_fs"),
            (r"\??\C:\a", r"C:\a"),
            (r"\DosDevices\E:", r"\\.\E:"),
            (r"\Device\Harddisk0\Partition1", r"\\.\GLOBALROOT\Device\Harddisk0\Partition1"),
            (r"\Device\Cdrom0", r"\\.\GLOBALROOT\Device\Cdrom0"),
            (r"\Volume{1-2}", r"\\.\Volume{1-2}"),
            (r"\\.\PhysicalDrive1", r"\\.\PhysicalDrive1"),
            ("/srv/root.img", "/srv/root.img"),
        ] {
            assert_eq!(path(colinux), Path::new(ours), "{colinux}");
        }
    }
}
