//! What the user says of a shared folder: `--share FOLDER,tag=src,ro`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::Errno;

/// Bytes of a tag (virtio 1.2, 5.11.4).
const TAG_SIZE: usize = 36;

/// What the guest calls a shared folder when it mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// The tag of the share of this number, if it has no other.
    #[must_use]
    pub fn numbered(number: usize) -> Self {
        Self(format!("share{number}"))
    }

    /// The tag of coLinux's shared folder of this number.
    #[must_use]
    pub fn colinux(number: usize) -> Self {
        Self(format!("cofs{number}"))
    }

    /// As the device's configuration has it.
    #[must_use]
    pub fn bytes(&self) -> [u8; TAG_SIZE] {
        let mut bytes = [0; TAG_SIZE];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

impl FromStr for Tag {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        // It becomes a word of the guest's mount(8) and fstab(5).
        let good = (1..=TAG_SIZE).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err(ShareError::Tag(text.to_owned())) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whose the files are for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// All files are this user's; without one, whose they are on the host.
    pub uid: Option<u32>,
    /// All files are this group's, likewise.
    pub gid: Option<u32>,
    /// The guest may set the bits that have a program run with its owner's rights.
    pub suid: bool,
}

/// Permissions, and those of them that have a program run with its owner's rights.
const PERMISSIONS: u32 = 0o7777;
const SUID: u32 = 0o6000;

impl Mapping {
    /// Permissions that the guest may set for a file, or a folder: of folders the bits say whose is what is made in them.
    pub(crate) fn permissions(&self, mode: u32, is_folder: bool) -> u32 {
        mode & PERMISSIONS & if self.suid || is_folder { u32::MAX } else { !SUID }
    }

    /// Whose a file shall be, as far as it may become somebody else's.
    pub(crate) fn owners(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>), Errno> {
        let shown = |wanted: Option<u32>, shown: Option<u32>| match (wanted, shown) {
            // All files are this one's, and stay so.
            (Some(wanted), Some(shown)) if wanted == shown => Ok(None),
            (Some(_), Some(_)) => Err(Errno::PERM),
            (wanted, _) => Ok(wanted),
        };
        Ok((shown(uid, self.uid)?, shown(gid, self.gid)?))
    }
}

/// A shared folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The folder.
    pub folder: PathBuf,
    /// What the guest calls it; without one, `share` and its number.
    pub tag: Option<Tag>,
    /// The guest cannot write it.
    pub read_only: bool,
    /// Whose its files are.
    pub mapping: Mapping,
}

/// What is wrong with what the user said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShareError {
    /// No folder.
    #[error("a share needs a folder, as in --share /srv/files,tag=files")]
    NoFolder,
    /// An option that there is none of.
    #[error("`{0}` is no option of a share; there are tag=, ro, uid=, gid= and suid")]
    UnknownOption(String),
    /// An option twice.
    #[error("a share has the option `{0}` once at most")]
    Twice(String),
    /// No tag.
    #[error("`{0}` cannot be a share's tag: it has 1 to {TAG_SIZE} letters, digits and signs, without spaces")]
    Tag(String),
    /// No user or group.
    #[error("`{0}`: users and groups are given by their numbers in the guest, such as 1000")]
    Number(String),
}

impl Share {
    /// A folder as it is, by this tag.
    #[must_use]
    pub fn tagged(tag: Tag, folder: PathBuf) -> Self {
        Self { folder, tag: Some(tag), read_only: false, mapping: Mapping::default() }
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let mut share = Self { folder: PathBuf::new(), tag: None, read_only: false, mapping: Mapping::default() };
        let mut folder = text;
        // Folders' names may have commas, so that options are taken from the end.
        while let Some((front, option)) = folder.rsplit_once(',') {
            let twice = || ShareError::Twice(option.to_owned());
            let number = |value: &str| match value.parse() {
                // The number that chown(2) takes for none.
                Ok(u32::MAX) | Err(_) => Err(ShareError::Number(option.to_owned())),
                Ok(number) => Ok(number),
            };
            let was_there = match option.split_once('=') {
                None if option == "ro" => std::mem::replace(&mut share.read_only, true),
                None if option == "suid" => std::mem::replace(&mut share.mapping.suid, true),
                Some(("tag", tag)) => share.tag.replace(tag.parse()?).is_some(),
                Some(("uid", uid)) => share.mapping.uid.replace(number(uid)?).is_some(),
                Some(("gid", gid)) => share.mapping.gid.replace(number(gid)?).is_some(),
                _ if option.contains(['/', '\\']) => break,
                _ => return Err(ShareError::UnknownOption(option.to_owned())),
            };
            if was_there {
                return Err(twice());
            }
            folder = front;
        }
        if folder.is_empty() {
            return Err(ShareError::NoFolder);
        }
        share.folder = folder.into();
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_share_has_options() {
        let share: Share = "/srv/a,b/c".parse().unwrap();
        assert_eq!((share.folder, share.tag, share.read_only), ("/srv/a,b/c".into(), None, false));
        let share: Share = "/srv,ro,tag=files,uid=1000,gid=100,suid".parse().unwrap();
        assert_eq!(share.folder, PathBuf::from("/srv"));
        assert_eq!(share.tag.map(|tag| tag.to_string()).as_deref(), Some("files"));
        assert!(share.read_only);
        assert_eq!(share.mapping, Mapping { uid: Some(1000), gid: Some(100), suid: true });
    }

    #[test]
    fn test_what_is_wrong_is_said() {
        for (text, says) in [
            ("", "needs a folder"),
            (",ro", "needs a folder"),
            ("/srv,rw", "`rw` is no option"),
            ("/srv,tag=", "cannot be a share's tag"),
            ("/srv,tag=a b", "cannot be a share's tag"),
            ("/srv,tag=0123456789012345678901234567890123456", "36"),
            ("/srv,ro,ro", "once"),
            ("/srv,uid=1,uid=2", "once"),
            ("/srv,uid=root", "numbers"),
            ("/srv,gid=4294967295", "numbers"),
        ] {
            let refusal = text.parse::<Share>().unwrap_err().to_string();
            assert!(refusal.contains(says) && !refusal.contains('\n'), "{text}: {refusal}");
        }
    }

    #[test]
    fn test_a_tag_fills_its_field() {
        let longest: Tag = "012345678901234567890123456789012345".parse().unwrap();
        assert_eq!(longest.bytes().last(), Some(&b'5'));
        assert_eq!(&Tag::numbered(3).bytes()[..8], b"share3\0\0");
    }
}
