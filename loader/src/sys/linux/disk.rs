//! Disk images and block devices of the host.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::FcntlArg;
use nix::fcntl::fcntl;
use nix::unistd::Whence;
use nix::unistd::lseek;
use vm_memory::VolatileSlice;

use super::scarce;
use crate::disk::Run;
pub use crate::sys::disk_error::OpenError;
use crate::sys::transfer::Direction;

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// `BLKGETSIZE64` of `linux/fs.h`: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;

/// Opens and locks a disk and gives its size: a writable one is for us alone, a read-only one for readers.
///
/// # Errors
///
/// It cannot be used.
pub fn open(path: &Path, read_only: bool) -> Result<(File, u64), OpenError> {
    let kind = std::fs::metadata(path)?.file_type();
    let is_device = kind.is_block_device();
    if !is_device && !kind.is_file() {
        return Err(OpenError::WrongKind);
    }
    // On a block device and without O_CREAT, O_EXCL fails while the device is in use, such as mounted (open(2)).
    let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(exclusive | libc::O_CLOEXEC);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse,
        _ => OpenError::System(error),
    })?;
    lock(&file, read_only)?;
    let size = if is_device { device_size(&file)? } else { file.metadata()?.len() };
    Ok((file, size))
}

/// Makes a file that is not there yet, for us alone.
///
/// # Errors
///
/// The system's.
pub fn create(path: &Path) -> Result<File, OpenError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    lock(&file, false)?;
    Ok(file)
}

/// Bytes that QEMU locks (`block/file-posix.c`): one for each thing that somebody does with an image, and one for each that
/// nobody else may do meanwhile. With the same bytes, no QEMU and no `qemu-img` writes what we use, nor we what they do.
const DOES: i64 = 100;
const FORBIDS: i64 = 200;
/// The bytes' numbers: who reads, writes, or changes the size.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks a file until it is closed. The locks are the open file's, not the process's, which would lose them by closing any
/// other that is open on the same file (fcntl(2), "Open file description locks").
fn lock(file: &File, read_only: bool) -> Result<(), OpenError> {
    let (does, forbids): (&[i64], &[i64]) =
        if read_only { (&[READ], &[WRITE, RESIZE]) } else { (&[READ, WRITE, RESIZE], &[READ, WRITE, RESIZE]) };
    let range = |kind: libc::c_int, start: i64| libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    let system = |error: nix::Error| OpenError::System(error.into());
    for start in does.iter().map(|what| DOES + what).chain(forbids.iter().map(|what| FORBIDS + what)) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, start))) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(OpenError::Locked),
            // A file system without such locks: the whole file is locked among ourselves, at least.
            Err(nix::Error::EINVAL | nix::Error::ENOLCK | nix::Error::EOPNOTSUPP) => {
                return lock_whole(file, read_only);
            }
            Err(error) => return Err(system(error)),
        }
    }
    // Whoever does what we forbid, or forbids what we do, holds the other byte.
    for start in does.iter().map(|what| FORBIDS + what).chain(forbids.iter().map(|what| DOES + what)) {
        let mut found = range(libc::F_WRLCK, start);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(system)?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Err(OpenError::Locked);
        }
    }
    Ok(())
}

/// A constant in the type of `struct flock`'s fields.
fn short(value: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(value).unwrap_or(-1)
}

fn lock_whole(file: &File, read_only: bool) -> Result<(), OpenError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => OpenError::Locked,
        std::fs::TryLockError::Error(error) => OpenError::System(error),
    })
}

/// How far a file has data, or has none and reads zero, from `offset` on, up to `length` bytes.
///
/// # Errors
///
/// The system's.
pub fn run(file: &File, offset: u64, length: u64) -> io::Result<Run> {
    let all = Run { length, zeroes: false };
    let Ok(start) = libc::off_t::try_from(offset) else { return Ok(all) };
    let data = match lseek(file, start, Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(offset),
        // Nothing but a hole to the end.
        Err(nix::Error::ENXIO) => return Ok(Run { length, zeroes: true }),
        // A file system that does not know.
        Err(nix::Error::EINVAL | nix::Error::EOPNOTSUPP) => return Ok(all),
        Err(error) => return Err(error.into()),
    };
    if data > offset {
        return Ok(Run { length: length.min(data - offset), zeroes: true });
    }
    let hole = u64::try_from(lseek(file, start, Whence::SeekHole)?).unwrap_or(u64::MAX);
    Ok(Run { length: length.min(hole.saturating_sub(offset)).max(1.min(length)), zeroes: false })
}

fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to where the pointer says.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
}

/// Moves all of `buffers`, whose data begins at `offset` in the file.
///
/// # Errors
///
/// The system's; the file ends before.
pub fn transfer(file: &File, offset: u64, buffers: &[VolatileSlice<'_>], direction: Direction) -> io::Result<()> {
    /// Most buffers of one call (`UIO_MAXIOV`, readv(2)).
    const MOST: usize = 1024;
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let mut rest = vectors.as_mut_slice();
    let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    while let Some(first) = rest.first() {
        if first.iov_len == 0 {
            rest = &mut rest[1..];
            continue;
        }
        let count = i32::try_from(rest.len().min(MOST)).unwrap_or(i32::MAX);
        let fd = file.as_raw_fd();
        // SAFETY: each of the first `count` vectors is (what is left of) a buffer of guest RAM, which the guards keep
        // mapped. The guest may change it at the same time; the kernel copies bytes and no Rust reference exists to them.
        let moved = unsafe {
            match direction {
                Direction::FromFile => libc::preadv(fd, rest.as_ptr(), count, offset),
                Direction::ToFile => libc::pwritev(fd, rest.as_ptr(), count, offset),
            }
        };
        let Ok(mut moved) = usize::try_from(moved) else {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                // The buffers are guest RAM, so it is not that they are not there.
                error if error.raw_os_error() == Some(libc::EFAULT) => scarce::none_left(),
                error => return Err(error),
            }
        };
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset =
            i64::try_from(moved).ok().and_then(|moved| offset.checked_add(moved)).ok_or(io::ErrorKind::InvalidInput)?;
        // Step over what is done.
        while let Some(first) = rest.first_mut() {
            if moved < first.iov_len {
                first.iov_len -= moved;
                first.iov_base = first.iov_base.cast::<u8>().wrapping_add(moved).cast();
                break;
            }
            moved -= first.iov_len;
            rest = &mut rest[1..];
        }
    }
    Ok(())
}

/// Gives the storage of a range back; it reads zeroes afterwards.
///
/// # Errors
///
/// The system's; [`io::ErrorKind::Unsupported`] where the file system cannot.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    allocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
}

/// Makes a range read zeroes, and keeps its storage.
///
/// # Errors
///
/// The system's; [`io::ErrorKind::Unsupported`] where the file system cannot.
pub fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    allocate(file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
}

fn allocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = libc::off_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: the call takes no pointers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
        if result == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Err(io::ErrorKind::Unsupported.into()),
            error => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::transfer::read_at;
    use crate::sys::transfer::write_at;

    fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn test_a_writable_disk_is_for_one_and_a_read_only_one_for_readers() {
        let image = image(&[0; 512]);
        let reader = open(image.path(), true).unwrap();
        assert_eq!(reader.1, 512);
        assert!(matches!(open(image.path(), false), Err(OpenError::Locked)));
        let second = open(image.path(), true).unwrap();
        drop((reader, second));
        let writer = open(image.path(), false).unwrap();
        assert!(matches!(open(image.path(), true), Err(OpenError::Locked)));
        assert!(matches!(open(image.path(), false), Err(OpenError::Locked)));
        drop(writer);
    }

    #[test]
    fn test_directories_and_devices_of_other_kinds_are_refused() {
        assert!(matches!(open(Path::new("/"), true), Err(OpenError::WrongKind)));
        assert!(matches!(open(Path::new("/dev/null"), true), Err(OpenError::WrongKind)));
        assert!(matches!(open(Path::new("/no/such/file"), true), Err(OpenError::System(_))));
    }

    #[test]
    fn test_data_goes_to_and_from_several_buffers() {
        let image = image(b"0123456789");
        let (file, _) = open(image.path(), false).unwrap();
        let (mut a, mut b) = ([0_u8; 3], [0_u8; 4]);
        let slices = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
        read_at(&file, 2, &slices).unwrap();
        slices[0].copy_from(b"abc");
        write_at(&file, 0, &slices[..1]).unwrap();
        let error = read_at(&file, 6, &slices).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut all = [0; 10];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"abc3456789");
    }

    #[test]
    fn test_holes_and_zeroes_read_zero_or_are_not_supported() {
        let image = image(&[7; 8192]);
        let (file, _) = open(image.path(), false).unwrap();
        for (result, at) in [(punch_hole(&file, 0, 4096), 0), (zero_range(&file, 4096, 4096), 4096)] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            match result {
                Ok(()) => assert_eq!(byte, [0]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            }
        }
    }
}
