//! What `covisor create --from` can name.

use std::path::PathBuf;
use std::str::FromStr;

/// The word that stands for Debian's packages.
const DEBIAN: &str = "debian";

/// How names of archives end.
const ARCHIVES: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tar.zstd", ".tzst"];

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Debian's packages, of this suite if one is said.
    Debian(Option<String>),
    /// An archive of a root file system.
    Archive(PathBuf),
    /// An image of a disk.
    Image(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == DEBIAN {
            return Ok(Self::Debian(None));
        }
        if let Some(suite) = text.strip_prefix(DEBIAN).and_then(|rest| rest.strip_prefix(':')) {
            // What programs and web servers are given shall be a name and nothing else.
            let begins = suite.starts_with(|first: char| first.is_ascii_lowercase());
            let is_name = begins && suite.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.'));
            return match is_name {
                true => Ok(Self::Debian(Some(suite.to_owned()))),
                false => Err(format!("`{suite}` is no name of a Debian suite, as bookworm is")),
            };
        }
        let lower = text.to_ascii_lowercase();
        match ARCHIVES.iter().any(|end| lower.ends_with(end)) {
            true => Ok(Self::Archive(text.into())),
            false => Ok(Self::Image(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_names_say_what_it_is() {
        let source = |text: &str| text.parse::<Source>();
        assert_eq!(source("debian"), Ok(Source::Debian(None)));
        assert_eq!(source("debian:trixie"), Ok(Source::Debian(Some("trixie".to_owned()))));
        for name in ["a.tar", "./debian.tar.gz", "A.TGZ", "x.tar.xz", "x.txz", "x.tar.zst", "x.tzst"] {
            assert_eq!(source(name), Ok(Source::Archive(name.into())));
        }
        for name in ["debian.img", "./debian", "a.qcow2", "tar", "debian12"] {
            assert_eq!(source(name), Ok(Source::Image(name.into())));
        }
        for name in ["debian:", "debian:../x", "debian:-x", "debian:a b", "debian:Sid"] {
            assert!(source(name).unwrap_err().contains("no name of a Debian suite"), "{name}");
        }
    }
}
