//! The descriptor ("The Descriptor File"): lines of text, of which the extents' matter.

use std::path::Component;
use std::path::Path;

use super::VmdkError;

/// Most extents of a disk.
const MOST_EXTENTS: usize = 4096;
/// What stands for no parent.
const NO_PARENT: &str = "ffffffff";

/// An extent as it is named.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its size.
    pub(super) sectors: u64,
    /// What it is.
    pub(super) kind: Kind,
}

/// What an extent is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sectors of a file, from this one on.
    Flat {
        /// The file.
        name: String,
        /// The first.
        sector: u64,
    },
    /// A file with tables.
    Sparse {
        /// The file.
        name: String,
    },
    /// Zeroes.
    Zero,
}

/// The extents that a descriptor names; the rest of it is checked.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Named>, VmdkError> {
    // Comments may be in any encoding; what matters is ASCII, but for files' names.
    let text = String::from_utf8_lossy(text);
    let mut extents = Vec::new();
    let mut has_version = false;
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        let wrong = |problem| VmdkError::Descriptor { line, problem };
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let word = text.split_whitespace().next().unwrap_or_default();
        if matches!(word, "RW" | "RDONLY" | "NOACCESS") {
            if extents.len() == MOST_EXTENTS {
                return Err(wrong("these are more extents than any disk has"));
            }
            extents.push(extent(text).map_err(wrong)?);
            continue;
        }
        let Some((key, value)) = text.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "version" => {
                let version = value.parse().map_err(|_| wrong("the version is no number"))?;
                if !(1..=3).contains(&version) {
                    return Err(VmdkError::Version(version));
                }
                has_version = true;
            }
            "parentCID" if !value.eq_ignore_ascii_case(NO_PARENT) => return Err(VmdkError::Parent),
            _ => {}
        }
    }
    if has_version { Ok(extents) } else { Err(VmdkError::Signature) }
}

/// An extent's line: access, size in sectors, type, the file's name in quotes, and for flat ones the first sector.
fn extent(line: &str) -> Result<Named, &'static str> {
    let mut parts = line.splitn(2, '"');
    let mut words = parts.next().unwrap_or_default().split_whitespace().skip(1);
    let sectors = words.next().and_then(|word| word.parse().ok()).ok_or("the extent has no size")?;
    let kind = words.next().ok_or("the extent has no type")?;
    let named = parts.next().and_then(|rest| rest.rsplit_once('"'));
    let name = || {
        let (name, _) = named.ok_or("the extent has no file")?;
        // A name that leads elsewhere could name any file of the host.
        let mut components = Path::new(name).components();
        let is_plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if is_plain && !name.contains(['/', '\\', '\0', ':']) {
            Ok(name.to_owned())
        } else {
            Err("an extent can only be a file beside the descriptor")
        }
    };
    let kind = match kind {
        "ZERO" => Kind::Zero,
        "SPARSE" => Kind::Sparse { name: name()? },
        "FLAT" => {
            let sector = named.map_or("", |(_, sector)| sector.trim());
            let sector = if sector.is_empty() { Ok(0) } else { sector.parse() };
            Kind::Flat { name: name()?, sector: sector.map_err(|_| "the extent's first sector is no number")? }
        }
        "VMFS" => Kind::Flat { name: name()?, sector: 0 },
        _ => return Err("extents of this type are not supported"),
    };
    Ok(Named { sectors, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn test_extents_are_read() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"x\"\n\n# Extent description\n\
                    RW 10 FLAT \"a flat.vmdk\" 5\r\nRDONLY 7 SPARSE \"b.vmdk\"\nRW 3 ZERO\nddb.adapterType = \"ide\"\n";
        assert_eq!(
            parse(text.as_bytes()).unwrap(),
            [
                Named { sectors: 10, kind: Kind::Flat { name: "a flat.vmdk".to_owned(), sector: 5 } },
                Named { sectors: 7, kind: Kind::Sparse { name: "b.vmdk".to_owned() } },
                Named { sectors: 3, kind: Kind::Zero },
            ]
        );
    }

    #[test]
    fn test_what_is_wrong_is_told_with_its_line() {
        assert!(refusal("hello").contains("no VMDK image"));
        assert!(refusal("version=9").contains("version 9"));
        assert!(refusal("version=1\nparentCID=12345678").contains("linked clone"));
        assert!(refusal("version=1\nRW x FLAT \"a\"").contains("line 2 of its descriptor: the extent has no size"));
        assert!(refusal("version=1\nRW 1 FLAT a").contains("no file"));
        for name in ["/etc/shadow", "../x", "a/b", "..", "", r"\\.\PhysicalDrive0", "C:x"] {
            assert!(refusal(&format!("version=1\nRW 1 FLAT \"{name}\" 0")).contains("beside the descriptor"), "{name}");
        }
    }
}
