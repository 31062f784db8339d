//! What NT's statuses (`ntstatus.h`) are to the guest.

use std::io;

use crate::share::Errno;

/// A status of NT's that is an error or a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) struct Status(pub(in crate::sys) i32);

impl Status {
    /// Whether the file system, or this NT, does not know what it was asked for: INVALID_INFO_CLASS, NOT_IMPLEMENTED,
    /// NOT_SUPPORTED, INVALID_DEVICE_REQUEST, EAS_NOT_SUPPORTED, VOLUME_NOT_UPGRADED.
    pub(in crate::sys) fn is_unsupported(self) -> bool {
        matches!(
            self.0.cast_unsigned(),
            0xc000_0003 | 0xc000_0002 | 0xc000_00bb | 0xc000_0010 | 0xc000_004f | 0xc000_029c
        )
    }

    /// The same of a newer form of a call, whose flags an older NT takes for wrong: INVALID_PARAMETER, too.
    pub(in crate::sys) fn is_too_new(self) -> bool {
        self.is_unsupported() || self.0.cast_unsigned() == 0xc000_000d
    }
}

impl From<Status> for Errno {
    fn from(status: Status) -> Self {
        of_status(status)
    }
}

fn of_status(status: Status) -> Errno {
    match status.0.cast_unsigned() {
        // OBJECT_NAME_NOT_FOUND, NO_SUCH_FILE, OBJECT_PATH_NOT_FOUND, DELETE_PENDING, FILE_DELETED.
        0xc000_0034 | 0xc000_000f | 0xc000_003a | 0xc000_0056 | 0xc000_0123 => Errno::NOENT,
        // OBJECT_NAME_COLLISION.
        0xc000_0035 => Errno::EXIST,
        // OBJECT_NAME_INVALID, OBJECT_PATH_SYNTAX_BAD, INVALID_PARAMETER.
        0xc000_0033 | 0xc000_003b | 0xc000_000d => Errno::INVAL,
        // NAME_TOO_LONG.
        0xc000_0106 => Errno::NAMETOOLONG,
        // ACCESS_DENIED, FILE_LOCK_CONFLICT.
        0xc000_0022 | 0xc000_0054 => Errno::ACCES,
        // PRIVILEGE_NOT_HELD, CANNOT_DELETE.
        0xc000_0061 | 0xc000_0121 => Errno::PERM,
        // SHARING_VIOLATION, USER_MAPPED_FILE.
        0xc000_0043 | 0xc000_0243 => Errno::BUSY,
        // FILE_IS_A_DIRECTORY.
        0xc000_00ba => Errno::ISDIR,
        // NOT_A_DIRECTORY.
        0xc000_0103 => Errno::NOTDIR,
        // DIRECTORY_NOT_EMPTY.
        0xc000_0101 => Errno::NOTEMPTY,
        // NOT_SAME_DEVICE.
        0xc000_00d4 => Errno::XDEV,
        // TOO_MANY_LINKS.
        0xc000_0265 => Errno::MLINK,
        // DISK_FULL, QUOTA_EXCEEDED, and of a file's own limit FILE_TOO_LARGE.
        0xc000_007f | 0xc000_0044 => Errno::NOSPC,
        0xc000_0904 => Errno::FBIG,
        // MEDIA_WRITE_PROTECTED.
        0xc000_00a2 => Errno::ROFS,
        // NO_MEMORY, INSUFFICIENT_RESOURCES, COMMITMENT_LIMIT.
        0xc000_0017 | 0xc000_009a | 0xc000_012d => Errno::NOMEM,
        // TOO_MANY_OPENED_FILES.
        0xc000_011f => Errno::NFILE,
        _ if status.is_unsupported() => Errno::OPNOTSUPP,
        _ => Errno::IO,
    }
}

/// The guest's error for one of Rust's library.
pub(in crate::sys) fn of_io(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::NotFound => Errno::NOENT,
        io::ErrorKind::PermissionDenied => Errno::ACCES,
        io::ErrorKind::InvalidInput => Errno::INVAL,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::NOSPC,
        io::ErrorKind::FileTooLarge => Errno::FBIG,
        io::ErrorKind::ReadOnlyFilesystem => Errno::ROFS,
        io::ErrorKind::OutOfMemory => Errno::NOMEM,
        io::ErrorKind::ResourceBusy => Errno::BUSY,
        io::ErrorKind::Unsupported => Errno::OPNOTSUPP,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_statuses_have_the_numbers_that_linux_programs_expect() {
        for (status, errno) in [
            (0xc000_0034_u32, Errno::NOENT),
            (0xc000_0056, Errno::NOENT),
            (0xc000_0035, Errno::EXIST),
            (0xc000_0022, Errno::ACCES),
            (0xc000_0101, Errno::NOTEMPTY),
            (0xc000_0103, Errno::NOTDIR),
            (0xc000_00ba, Errno::ISDIR),
            (0xc000_007f, Errno::NOSPC),
            (0xc000_00d4, Errno::XDEV),
            (0xc000_0043, Errno::BUSY),
            (0xc000_0003, Errno::OPNOTSUPP),
            (0xc000_0010, Errno::OPNOTSUPP),
            (0xc000_00e9, Errno::IO),
            (0x8000_0005, Errno::IO),
        ] {
            assert_eq!(Errno::from(Status(status.cast_signed())), errno, "{status:#x}");
        }
    }

    #[test]
    fn test_an_older_nt_is_told_from_one_that_refuses() {
        let of = |status: u32| Status(status.cast_signed());
        assert!(of(0xc000_0003).is_too_new() && of(0xc000_000d).is_too_new() && !of(0xc000_0022).is_too_new());
        assert!(!of(0xc000_000d).is_unsupported());
    }

    #[test]
    fn test_errors_of_the_library_keep_what_they_say() {
        assert_eq!(of_io(&io::ErrorKind::StorageFull.into()), Errno::NOSPC);
        assert_eq!(of_io(&io::ErrorKind::Unsupported.into()), Errno::OPNOTSUPP);
        assert_eq!(of_io(&io::Error::other("?")), Errno::IO);
    }
}
