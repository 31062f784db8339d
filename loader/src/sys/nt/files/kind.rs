//! What a file is for the guest.

/// Attributes of files ([MS-FSCC] 2.6).
pub(in crate::sys) const READ_ONLY: u32 = 0x1;
pub(in crate::sys) const DIRECTORY: u32 = 0x10;
pub(in crate::sys) const NORMAL: u32 = 0x80;
pub(in crate::sys) const REPARSE_POINT: u32 = 0x400;

/// Tags of reparse points ([MS-FSCC] 2.1.2.1): a symbolic link, pipe and socket of Linux' as WSL keeps them, links of Windows'
/// own.
pub(in crate::sys) const LX_SYMLINK: u32 = 0xa000_001d;
pub(in crate::sys) const LX_FIFO: u32 = 0x8000_0024;
pub(in crate::sys) const AF_UNIX: u32 = 0x8000_0023;
pub(in crate::sys) const SYMLINK: u32 = 0xa000_000c;
pub(in crate::sys) const MOUNT_POINT: u32 = 0xa000_0003;

/// A type of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data.
    File,
    /// A folder.
    Folder,
    /// A symbolic link: of a guest's, or one of Windows' own, or a junction.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

impl Kind {
    /// The type of what has these attributes and, if it is a reparse point, this tag. `None` for others: devices of WSL's, and
    /// files that something in Windows fills in when they are opened in the ordinary way, which we never do.
    pub(in crate::sys) fn of(attributes: u32, tag: u32) -> Option<Self> {
        if attributes & REPARSE_POINT == 0 {
            return Some(if attributes & DIRECTORY == 0 { Self::File } else { Self::Folder });
        }
        match tag {
            LX_SYMLINK | SYMLINK | MOUNT_POINT => Some(Self::Link),
            LX_FIFO => Some(Self::Fifo),
            AF_UNIX => Some(Self::Socket),
            _ => None,
        }
    }

    /// The type in a mode (inode(7)).
    pub(in crate::sys) const fn mode(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Folder => 0o040_000,
            Self::Link => 0o120_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The same as `DT_…` of getdents(2).
    pub(in crate::sys) const fn directory_type(self) -> u8 {
        (self.mode() >> 12).to_le_bytes()[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_reparse_points_are_links_or_nothing_that_is_opened() {
        for (attributes, tag, kind) in [
            (NORMAL, 0, Some(Kind::File)),
            (0x20 | READ_ONLY, 7, Some(Kind::File)),
            (DIRECTORY, 0, Some(Kind::Folder)),
            (REPARSE_POINT, LX_SYMLINK, Some(Kind::Link)),
            (REPARSE_POINT | DIRECTORY, MOUNT_POINT, Some(Kind::Link)),
            (REPARSE_POINT | DIRECTORY, SYMLINK, Some(Kind::Link)),
            (REPARSE_POINT, LX_FIFO, Some(Kind::Fifo)),
            (REPARSE_POINT, AF_UNIX, Some(Kind::Socket)),
            // LX_CHR, a file of the cloud, deduplicated, unknown, none.
            (REPARSE_POINT, 0x8000_0025, None),
            (REPARSE_POINT | DIRECTORY, 0x9000_001a, None),
            (REPARSE_POINT, 0x8000_0013, None),
            (REPARSE_POINT | DIRECTORY, 0x1234, None),
            (REPARSE_POINT, 0, None),
        ] {
            assert_eq!(Kind::of(attributes, tag), kind, "{attributes:#x} {tag:#x}");
        }
    }

    #[test]
    fn test_types_have_linux_numbers() {
        let all = [Kind::File, Kind::Folder, Kind::Link, Kind::Fifo, Kind::Socket];
        assert_eq!(all.map(Kind::directory_type), [8, 4, 10, 1, 12]);
    }
}
