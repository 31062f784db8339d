//! System calls on files that are named by a descriptor, or by one name within a folder that is.
//!
//! Descriptors are `O_PATH`: they hold a file, whatever it is, and open nothing. What is done to the file itself goes by the
//! descriptor's own link in `/proc`, which leads to that file and nowhere else, without a walk; so nothing can be put in the way
//! between the look at a file and its use.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;

use crate::share::Errno;
use crate::share::Opening;
use crate::share::Time;

/// The guest's error for a system's; Linux's numbers are the same.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    u16::try_from(error.raw_os_error()).map_or(Errno::IO, Errno)
}

/// The link in `/proc` of a descriptor.
fn link_of(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A name's file within a folder, whatever it is: a symbolic link is the link.
pub(super) fn find(folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open_at(folder, name, OFlags::PATH, Mode::empty())
}

/// Opens a name within a folder, following no link.
fn open_at(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match fs::openat2(folder, name, flags, mode, resolve) {
        // Before Linux 5.6. A name is one name, neither `.` nor `..`, which leads into the folder only, and a link is not followed.
        Err(rustix::io::Errno::NOSYS) => fs::openat(folder, name, flags, mode),
        result => result,
    }
    .map_err(errno)
}

/// Makes a file that must not be there, and opens it; nobody else may use it before its owner and permissions are set.
pub(super) fn create(folder: BorrowedFd<'_>, name: &CStr, how: Opening) -> Result<OwnedFd, Errno> {
    let access = flags(Opening { truncate: false, ..how });
    open_at(folder, name, access | OFlags::CREATE | OFlags::EXCL, Mode::empty())
}

fn flags(how: Opening) -> OFlags {
    let mut flags = match (how.read, how.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    flags.set(OFlags::TRUNC, how.truncate && how.write);
    flags.set(OFlags::SYNC, how.sync);
    // Waits for nobody: not for one who holds a lease on the file.
    flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// Opens a file that is known to be one.
pub(super) fn open_file(file: BorrowedFd<'_>, how: Opening) -> Result<OwnedFd, Errno> {
    fs::open(link_of(file), flags(how), Mode::empty()).map_err(errno)
}

/// Opens a folder to list it.
pub(super) fn open_folder(folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(folder, c".", flags, Mode::empty()).map_err(errno)
}

pub(super) fn stat(file: BorrowedFd<'_>) -> Result<Stat, Errno> {
    fs::fstat(file).map_err(errno)
}

/// What a name within a folder is.
pub(super) fn stat_name(folder: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Which file it is: device, inode and type.
pub(super) fn identity(stat: &Stat) -> ((u64, u64), FileType) {
    ((stat.st_dev, stat.st_ino), kind(stat))
}

/// Sets permissions; not of symbolic links, which have none.
pub(super) fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fs::chmodat(CWD, link_of(file), Mode::from_raw_mode(mode), AtFlags::empty()).map_err(errno)
}

pub(super) fn set_owner(file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
    fs::chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}

pub(super) fn set_times(file: BorrowedFd<'_>, accessed: Option<Time>, modified: Option<Time>) -> Result<(), Errno> {
    let time = |time: Option<Time>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        Some(Time::Now) => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        Some(Time::At { seconds, nanoseconds }) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    fs::utimensat(file, c"", &times, AtFlags::EMPTY_PATH).map_err(errno)
}

/// Gives a file one more name.
pub(super) fn link(file: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // By the link in /proc, which is followed to the file itself: AT_EMPTY_PATH would take a capability.
    fs::linkat(CWD, link_of(file), folder, name, AtFlags::SYMLINK_FOLLOW).map_err(errno)
}

pub(super) fn read_link(link: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    fs::readlinkat(link, c"", Vec::new()).map(|target| target.into_bytes()).map_err(errno)
}

/// Largest extended attribute, and most bytes of a file's names of them (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST_ATTRIBUTE: usize = 64 << 10;

pub(super) fn attribute(file: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; LARGEST_ATTRIBUTE];
    let length = fs::getxattr(link_of(file), name, value.as_mut_slice()).map_err(errno)?;
    value.truncate(length);
    Ok(value)
}

pub(super) fn attribute_names(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut names = vec![0; LARGEST_ATTRIBUTE];
    let length = fs::listxattr(link_of(file), names.as_mut_slice()).map_err(errno)?;
    names.truncate(length);
    Ok(names)
}

pub(super) fn set_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    let flags = fs::XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    fs::setxattr(link_of(file), name, value, flags).map_err(errno)
}

pub(super) fn remove_attribute(file: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fs::removexattr(link_of(file), name).map_err(errno)
}

/// Whether `/proc` is what it should be: a descriptor's link leads to its file.
pub(super) fn links_work(folder: &OwnedFd) -> bool {
    let there = fs::stat(link_of(folder.as_fd()));
    matches!((there, fs::fstat(folder)), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
