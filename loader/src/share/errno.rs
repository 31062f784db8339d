//! Errors as the guest's Linux numbers them, whatever the host is.

use std::fmt;

/// An error of a Linux system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u16);

impl Errno {
    /// The operation is not for this user, or not for anybody.
    pub const PERM: Self = Self(1);
    /// There is no such file.
    pub const NOENT: Self = Self(2);
    /// The storage failed, or the message is none.
    pub const IO: Self = Self(5);
    /// There is nothing behind it.
    pub const NXIO: Self = Self(6);
    /// No such handle.
    pub const BADF: Self = Self(9);
    /// No memory left.
    pub const NOMEM: Self = Self(12);
    /// Not allowed.
    pub const ACCES: Self = Self(13);
    /// Somebody else has it.
    pub const BUSY: Self = Self(16);
    /// There is such a file.
    pub const EXIST: Self = Self(17);
    /// On another file system.
    pub const XDEV: Self = Self(18);
    /// A folder where there must be none.
    pub const ISDIR: Self = Self(21);
    /// No folder where there must be one.
    pub const NOTDIR: Self = Self(20);
    /// An argument that is none.
    pub const INVAL: Self = Self(22);
    /// Too many open files.
    pub const NFILE: Self = Self(23);
    /// A file is too large.
    pub const FBIG: Self = Self(27);
    /// No room left.
    pub const NOSPC: Self = Self(28);
    /// Read-only.
    pub const ROFS: Self = Self(30);
    /// Too many links.
    pub const MLINK: Self = Self(31);
    /// There is not room enough for the answer.
    pub const RANGE: Self = Self(34);
    /// A name is too long.
    pub const NAMETOOLONG: Self = Self(36);
    /// Not an operation that there is.
    pub const NOSYS: Self = Self(38);
    /// The folder is not empty.
    pub const NOTEMPTY: Self = Self(39);
    /// No such attribute.
    pub const NODATA: Self = Self(61);
    /// Another version of the protocol.
    pub const PROTO: Self = Self(71);
    /// Bytes that are no text.
    pub const ILSEQ: Self = Self(84);
    /// Not supported.
    pub const OPNOTSUPP: Self = Self(95);
    /// The file is not where it was any more.
    pub const STALE: Self = Self(116);
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error {}", self.0)
    }
}
