//! Disk images, partitions and disks of the host.

use std::ffi::c_void;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::Component;
use std::path::Path;
use std::path::Prefix;
use std::ptr;

use vm_memory::VolatileSlice;
use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;
use windows_sys::Win32::Foundation::ERROR_HANDLE_EOF;
use windows_sys::Win32::Foundation::ERROR_INVALID_FUNCTION;
use windows_sys::Win32::Foundation::ERROR_LOCK_VIOLATION;
use windows_sys::Win32::Foundation::ERROR_MORE_DATA;
use windows_sys::Win32::Foundation::ERROR_NOT_SUPPORTED;
use windows_sys::Win32::Foundation::ERROR_SHARING_VIOLATION;
use windows_sys::Win32::Foundation::ERROR_WRITE_PROTECT;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_READ;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_WRITE;
use windows_sys::Win32::Storage::FileSystem::ReadFile;
use windows_sys::Win32::Storage::FileSystem::WriteFile;
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Ioctl::FILE_ALLOCATED_RANGE_BUFFER;
use windows_sys::Win32::System::Ioctl::FILE_ZERO_DATA_INFORMATION;
use windows_sys::Win32::System::Ioctl::FSCTL_DISMOUNT_VOLUME;
use windows_sys::Win32::System::Ioctl::FSCTL_LOCK_VOLUME;
use windows_sys::Win32::System::Ioctl::FSCTL_QUERY_ALLOCATED_RANGES;
use windows_sys::Win32::System::Ioctl::FSCTL_SET_SPARSE;
use windows_sys::Win32::System::Ioctl::FSCTL_SET_ZERO_DATA;
use windows_sys::Win32::System::Ioctl::GET_LENGTH_INFORMATION;
use windows_sys::Win32::System::Ioctl::IOCTL_DISK_GET_LENGTH_INFO;

use super::wide::check;
use crate::disk::Run;
pub use crate::sys::disk_error::OpenError;
use crate::sys::transfer::Direction;

/// Most bytes of one call.
const MOST: usize = 1 << 30;
/// What a disk moves at least.
const SECTOR: usize = 512;

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        let code = error.raw_os_error().map(i32::cast_unsigned);
        match code {
            Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION) => Self::Locked,
            Some(ERROR_WRITE_PROTECT) => Self::System(io::ErrorKind::ReadOnlyFilesystem.into()),
            _ => Self::System(error),
        }
    }
}

/// Whether a path names a device, as `\\.\E:` or `\\.\PhysicalDrive1`.
fn is_device(path: &Path) -> bool {
    matches!(path.components().next(), Some(Component::Prefix(prefix)) if matches!(prefix.kind(), Prefix::DeviceNS(_)))
}

/// Opens a disk for this process alone, and gives its size; a read-only one others may read, too.
///
/// # Errors
///
/// It cannot be used.
pub fn open(path: &Path, read_only: bool) -> Result<(File, u64), OpenError> {
    if is_device(path) {
        return open_device(path, read_only);
    }
    if std::fs::metadata(path)?.is_dir() {
        return Err(OpenError::WrongKind);
    }
    let share = if read_only { FILE_SHARE_READ } else { 0 };
    let file = OpenOptions::new().read(true).write(!read_only).share_mode(share).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Makes a file that is not there yet, for this process alone.
///
/// # Errors
///
/// The system's.
pub fn create(path: &Path) -> Result<File, OpenError> {
    Ok(OpenOptions::new().read(true).write(true).create_new(true).share_mode(0).open(path)?)
}

/// How far a file has data, or has none and reads zero, from `offset` on, up to `length` bytes.
///
/// # Errors
///
/// The system's.
pub fn run(file: &File, offset: u64, length: u64) -> io::Result<Run> {
    let all = Run { length, zeroes: false };
    let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else { return Ok(all) };
    let query = FILE_ALLOCATED_RANGE_BUFFER { FileOffset: start, Length: count };
    // The first range that has storage is all that matters; that there are more is no error.
    let mut first = FILE_ALLOCATED_RANGE_BUFFER::default();
    let size = u32::try_from(mem::size_of_val(&query)).unwrap_or(0);
    let mut got = 0;
    // SAFETY: both pointers and sizes are those of the structures, of which any bytes are a value.
    let result = check(unsafe {
        DeviceIoControl(
            file.as_raw_handle(),
            FSCTL_QUERY_ALLOCATED_RANGES,
            (&raw const query).cast(),
            size,
            (&raw mut first).cast(),
            size,
            &raw mut got,
            ptr::null_mut(),
        )
    });
    match result {
        Ok(()) if got == 0 => return Ok(Run { length, zeroes: true }),
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(ERROR_MORE_DATA.cast_signed()) => {}
        // A file system that does not know.
        Err(_) => return Ok(all),
    }
    let (begin, bytes) = (u64::try_from(first.FileOffset).unwrap_or(0), u64::try_from(first.Length).unwrap_or(0));
    if begin > offset {
        return Ok(Run { length: length.min(begin - offset), zeroes: true });
    }
    let rest = (begin + bytes).saturating_sub(offset);
    Ok(Run { length: if rest == 0 { length } else { length.min(rest) }, zeroes: false })
}

/// Partitions and disks are open somewhere in the system always, so that sharing says nothing; what has a volume on it is
/// locked, which fails while anything of it is in use, and taken off, so that nobody writes it at the same time.
fn open_device(path: &Path, read_only: bool) -> Result<(File, u64), OpenError> {
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    let device = OpenOptions::new().read(true).write(!read_only).share_mode(share).open(path)?;
    let mut length = GET_LENGTH_INFORMATION::default();
    control_out(&device, IOCTL_DISK_GET_LENGTH_INFO, &mut length).map_err(|error| match Unsupported::of(&error) {
        Some(_) => OpenError::WrongKind,
        None => OpenError::System(error),
    })?;
    if !read_only {
        match control(&device, FSCTL_LOCK_VOLUME).and_then(|()| control(&device, FSCTL_DISMOUNT_VOLUME)) {
            Ok(()) => {}
            // A whole disk has no volume of its own.
            Err(error) if Unsupported::of(&error).is_some() => {}
            Err(error) if error.raw_os_error() == Some(ERROR_ACCESS_DENIED.cast_signed()) => {
                return Err(OpenError::InUse);
            }
            Err(error) => return Err(OpenError::System(error)),
        }
    }
    Ok((device, u64::try_from(length.Length).unwrap_or(0)))
}

/// The errors of a device or file system that does not know a request.
struct Unsupported;

impl Unsupported {
    fn of(error: &io::Error) -> Option<Self> {
        let code = error.raw_os_error()?.cast_unsigned();
        matches!(code, ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED).then_some(Self)
    }
}

fn control(file: &File, code: u32) -> io::Result<()> {
    let mut count = 0;
    // SAFETY: the request has no data.
    check(unsafe {
        DeviceIoControl(file.as_raw_handle(), code, ptr::null(), 0, ptr::null_mut(), 0, &raw mut count, ptr::null_mut())
    })
}

/// A request that fills `output`, of which any bytes are a value.
fn control_out(file: &File, code: u32, output: &mut GET_LENGTH_INFORMATION) -> io::Result<()> {
    let mut count = 0;
    let (pointer, size) = (ptr::from_mut(output).cast::<c_void>(), mem::size_of_val(output));
    // SAFETY: the pointer and size are the structure's.
    check(unsafe {
        let size = u32::try_from(size).unwrap_or(0);
        DeviceIoControl(file.as_raw_handle(), code, ptr::null(), 0, pointer, size, &raw mut count, ptr::null_mut())
    })
}

/// Moves all of `buffers`, whose data begins at `offset` in the file.
///
/// # Errors
///
/// The system's; the file ends before.
pub fn transfer(file: &File, mut offset: u64, buffers: &[VolatileSlice<'_>], direction: Direction) -> io::Result<()> {
    // A disk takes whole sectors only, and a guest may cut them up.
    if buffers.len() > 1 && buffers.iter().any(|buffer| buffer.len() % SECTOR != 0) {
        return transfer_together(file, offset, buffers, direction);
    }
    for buffer in buffers {
        let guard = buffer.ptr_guard_mut();
        let mut done = 0;
        while done < guard.len() {
            let count = (guard.len() - done).min(MOST);
            // SAFETY: inside of the buffer of guest RAM, which the guard keeps mapped. The guest may change it at the same
            // time; the system copies bytes and no Rust reference exists to them.
            let moved = unsafe { transfer_part(file, offset, guard.as_ptr().wrapping_add(done), count, direction) }?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += moved;
            offset = offset.checked_add(moved as u64).ok_or(io::ErrorKind::InvalidInput)?;
        }
    }
    Ok(())
}

/// All buffers as one.
fn transfer_together(file: &File, offset: u64, buffers: &[VolatileSlice<'_>], direction: Direction) -> io::Result<()> {
    let mut bytes = vec![0; buffers.iter().map(VolatileSlice::len).sum()];
    match direction {
        Direction::FromFile => {
            transfer(file, offset, &[VolatileSlice::from(bytes.as_mut_slice())], direction)?;
            let mut rest = bytes.as_slice();
            for buffer in buffers {
                let (part, after) = rest.split_at(buffer.len());
                buffer.copy_from(part);
                rest = after;
            }
            Ok(())
        }
        Direction::ToFile => {
            let mut rest = bytes.as_mut_slice();
            for buffer in buffers {
                let (part, after) = rest.split_at_mut(buffer.len());
                buffer.copy_to(part);
                rest = after;
            }
            transfer(file, offset, &[VolatileSlice::from(bytes.as_mut_slice())], direction)
        }
    }
}

/// One call; gives the bytes that it moved, 0 at the end of the file.
///
/// # Safety
/// `count` bytes at `pointer` are mapped during the call.
unsafe fn transfer_part(
    file: &File,
    offset: u64,
    pointer: *mut u8,
    count: usize,
    direction: Direction,
) -> io::Result<usize> {
    let mut at = OVERLAPPED::default();
    at.Anonymous.Anonymous.Offset = u32::try_from(offset & u64::from(u32::MAX)).unwrap_or(0);
    at.Anonymous.Anonymous.OffsetHigh = u32::try_from(offset >> 32).unwrap_or(0);
    let length = u32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut moved = 0;
    // SAFETY: the caller vouches for the bytes. The handle was not opened for overlapped calls, so that the call is over when
    // it returns and `at` is only where it begins.
    let answer = unsafe {
        let handle = file.as_raw_handle();
        match direction {
            Direction::FromFile => ReadFile(handle, pointer, length, &raw mut moved, &raw mut at),
            Direction::ToFile => WriteFile(handle, pointer, length, &raw mut moved, &raw mut at),
        }
    };
    match check(answer) {
        Ok(()) => Ok(moved as usize),
        Err(error) if error.raw_os_error() == Some(ERROR_HANDLE_EOF.cast_signed()) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Gives the storage of a range back; it reads zeroes afterwards.
///
/// # Errors
///
/// The system's; [`io::ErrorKind::Unsupported`] where the file system cannot.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    // Only of a sparse file is storage given back.
    supported(control(file, FSCTL_SET_SPARSE))?;
    zero_range(file, offset, length)
}

/// Makes a range read zeroes.
///
/// # Errors
///
/// The system's; [`io::ErrorKind::Unsupported`] where the file system cannot.
pub fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
    let range = FILE_ZERO_DATA_INFORMATION { FileOffset: signed(offset)?, BeyondFinalZero: signed(end)? };
    let mut count = 0;
    let size = u32::try_from(mem::size_of_val(&range)).unwrap_or(0);
    // SAFETY: the pointer and size are the structure's, and nothing comes back.
    supported(check(unsafe {
        DeviceIoControl(
            file.as_raw_handle(),
            FSCTL_SET_ZERO_DATA,
            (&raw const range).cast(),
            size,
            ptr::null_mut(),
            0,
            &raw mut count,
            ptr::null_mut(),
        )
    }))
}

fn supported(result: io::Result<()>) -> io::Result<()> {
    result.map_err(|error| match Unsupported::of(&error) {
        Some(_) => io::ErrorKind::Unsupported.into(),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::transfer::read_at;
    use crate::sys::transfer::write_at;

    fn image(folder: &tempfile::TempDir, bytes: &[u8]) -> std::path::PathBuf {
        // Spaces and letters of several scripts.
        let path = folder.path().join("a disk, größer (日本).img");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn test_a_writable_disk_is_for_one_and_a_read_only_one_for_readers() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder, &[0; 512]);
        let reader = open(&image, true).unwrap();
        assert_eq!(reader.1, 512);
        assert!(matches!(open(&image, false), Err(OpenError::Locked)));
        let second = open(&image, true).unwrap();
        drop((reader, second));
        let writer = open(&image, false).unwrap();
        assert!(matches!(open(&image, true), Err(OpenError::Locked)));
        assert!(matches!(open(&image, false), Err(OpenError::Locked)));
        drop(writer);
    }

    #[test]
    fn test_folders_are_no_disks() {
        assert!(matches!(open(&std::env::temp_dir(), true), Err(OpenError::WrongKind)));
        assert!(matches!(open(Path::new(r"C:\no\such\file"), true), Err(OpenError::System(_))));
    }

    #[test]
    fn test_devices_are_told_from_files() {
        assert!(is_device(Path::new(r"\\.\E:")));
        assert!(is_device(Path::new(r"\\.\PhysicalDrive1")));
        assert!(!is_device(Path::new(r"C:\disk.img")));
        assert!(!is_device(Path::new(r"\\server\share\disk.img")));
    }

    #[test]
    fn test_data_goes_to_and_from_several_buffers() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(&folder, b"0123456789");
        let (file, _) = open(&path, false).unwrap();
        let (mut a, mut b) = ([0_u8; 3], [0_u8; 4]);
        let slices = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
        read_at(&file, 2, &slices).unwrap();
        slices[0].copy_from(b"abc");
        write_at(&file, 0, &slices).unwrap();
        assert_eq!(read_at(&file, 6, &slices).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"abc5678789");
    }

    #[test]
    fn test_holes_and_zeroes_read_zero_or_are_not_supported() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(&folder, &[7; 8192]);
        let (file, _) = open(&path, false).unwrap();
        for (result, at) in [(punch_hole(&file, 0, 4096), 0), (zero_range(&file, 4096, 4096), 4096)] {
            let mut byte = [9_u8];
            read_at(&file, at, &[VolatileSlice::from(&mut byte[..])]).unwrap();
            match result {
                Ok(()) => assert_eq!(byte, [0]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            }
        }
    }
}
