//! NT's calls on files that are named by a handle, or by one name within a folder that is.
//!
//! Every file is opened by NtCreateFile, relative to the handle of its folder and by one name, and always the file itself that
//! has the name: not what a reparse point (symbolic link, junction) stands for. So neither links nor what others do to the folder
//! meanwhile lead anywhere else. Names as DOS knows them (devices, drives, `..`) mean nothing to these calls.

use std::ffi::c_void;
use std::fs::File;
use std::mem;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::FromRawHandle;
use std::ptr;

use windows_sys::Wdk::Foundation::OBJECT_ATTRIBUTES;
use windows_sys::Wdk::Storage::FileSystem::FILE_CREATE;
use windows_sys::Wdk::Storage::FileSystem::FILE_OPEN;
use windows_sys::Wdk::Storage::FileSystem::FILE_OPEN_REPARSE_POINT;
use windows_sys::Wdk::Storage::FileSystem::FILE_SYNCHRONOUS_IO_NONALERT;
use windows_sys::Wdk::Storage::FileSystem::FileAllInformation;
use windows_sys::Wdk::Storage::FileSystem::FileAttributeTagInformation;
use windows_sys::Wdk::Storage::FileSystem::FileFsAttributeInformation;
use windows_sys::Wdk::Storage::FileSystem::FileFsFullSizeInformation;
use windows_sys::Wdk::Storage::FileSystem::FileIdFullDirectoryInformation;
use windows_sys::Wdk::Storage::FileSystem::NtCreateFile;
use windows_sys::Wdk::Storage::FileSystem::NtFsControlFile;
use windows_sys::Wdk::Storage::FileSystem::NtQueryDirectoryFile;
use windows_sys::Wdk::Storage::FileSystem::NtQueryEaFile;
use windows_sys::Wdk::Storage::FileSystem::NtQueryInformationFile;
use windows_sys::Wdk::Storage::FileSystem::NtQueryVolumeInformationFile;
use windows_sys::Wdk::Storage::FileSystem::NtSetEaFile;
use windows_sys::Wdk::Storage::FileSystem::NtSetInformationFile;
use windows_sys::Win32::Foundation::NTSTATUS;
use windows_sys::Win32::Foundation::STATUS_BUFFER_OVERFLOW;
use windows_sys::Win32::Foundation::STATUS_INVALID_PARAMETER;
use windows_sys::Win32::Foundation::STATUS_NO_MORE_FILES;
use windows_sys::Win32::Foundation::STATUS_NO_SUCH_FILE;
use windows_sys::Win32::Foundation::UNICODE_STRING;
use windows_sys::Win32::Storage::FileSystem::FILE_LIST_DIRECTORY;
use windows_sys::Win32::Storage::FileSystem::FILE_READ_ATTRIBUTES;
use windows_sys::Win32::Storage::FileSystem::FILE_READ_EA;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_DELETE;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_READ;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_WRITE;
use windows_sys::Win32::Storage::FileSystem::FILE_WRITE_EA;
use windows_sys::Win32::Storage::FileSystem::SYNCHRONIZE;
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;
use windows_sys::Win32::System::Ioctl::FSCTL_GET_REPARSE_POINT;
use windows_sys::Win32::System::Ioctl::FSCTL_SET_REPARSE_POINT;

use crate::sys::nt::files::entries;
use crate::sys::nt::files::entries::Entry;
use crate::sys::nt::files::errors::Status;
use crate::sys::nt::files::kind;
use crate::sys::nt::files::links;
use crate::sys::nt::files::metadata::Metadata;
use crate::sys::nt::files::stat::Stat;

/// Others on the host may do all that they like meanwhile.
const SHARE_ALL: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
/// Bytes of a folder's entries that are read at once, in words: enough for one with the longest name.
const LIST_WORDS: usize = (16 << 10) / 8;

/// `FILE_SUPPORTS_EXTENDED_ATTRIBUTES` ([MS-FSCC] 2.5.1).
const SUPPORTS_EXTENDED_ATTRIBUTES: u64 = 0x0080_0000;

/// How a file is opened.
#[derive(Clone, Debug, Default)]
pub(super) struct How {
    /// Rights (`FILE_WRITE_DATA`, …) besides that to ask for what it is.
    pub(super) access: u32,
    /// Options (`FILE_DIRECTORY_FILE`, …).
    pub(super) options: u32,
    /// What it is made with, if it is to be made; it must not be there then.
    pub(super) new: Option<New>,
}

/// What a file is made with.
#[derive(Clone, Debug)]
pub(super) struct New {
    /// Attributes.
    pub(super) attributes: u32,
    /// Owner and permissions, where the file system keeps them.
    pub(super) metadata: Metadata,
}

fn check(status: NTSTATUS) -> Result<(), Status> {
    if status >= 0 { Ok(()) } else { Err(Status(status)) }
}

/// Bytes of a buffer.
fn size(bytes: usize) -> Result<u32, Status> {
    u32::try_from(bytes).map_err(|_| Status(STATUS_INVALID_PARAMETER))
}

/// The bytes of the words that NT has filled.
fn bytes(words: &[u64], length: usize) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).take(length).collect()
}

/// The name as NT takes it, which is there as long as `name` is.
fn counted(name: &[u16]) -> Result<UNICODE_STRING, Status> {
    let length = u16::try_from(mem::size_of_val(name)).map_err(|_| Status(STATUS_INVALID_PARAMETER))?;
    Ok(UNICODE_STRING { Length: length, MaximumLength: length, Buffer: name.as_ptr().cast_mut() })
}

/// Opens or makes the file `name` in a folder. Without a name it is the file itself that the handle is one of.
pub(super) fn open(folder: &File, name: &[u16], how: &How) -> Result<File, Status> {
    let name = counted(name)?;
    let object = OBJECT_ATTRIBUTES {
        Length: size(mem::size_of::<OBJECT_ATTRIBUTES>())?,
        RootDirectory: folder.as_raw_handle(),
        ObjectName: &raw const name,
        ..OBJECT_ATTRIBUTES::default()
    };
    let metadata = how.new.as_ref().map_or_else(Vec::new, |new| new.metadata.encode());
    let (mut handle, mut status) = (ptr::null_mut(), IO_STATUS_BLOCK::default());
    // SAFETY: all pointers are to what is there during the call: the name, the handle, the metadata of that size.
    check(unsafe {
        NtCreateFile(
            &raw mut handle,
            how.access | FILE_READ_ATTRIBUTES | SYNCHRONIZE,
            &raw const object,
            &raw mut status,
            ptr::null(),
            how.new.as_ref().map_or(0, |new| new.attributes),
            SHARE_ALL,
            if how.new.is_some() { FILE_CREATE } else { FILE_OPEN },
            how.options | FILE_OPEN_REPARSE_POINT | FILE_SYNCHRONOUS_IO_NONALERT,
            if metadata.is_empty() { ptr::null() } else { metadata.as_ptr().cast() },
            size(metadata.len())?,
        )
    })?;
    // SAFETY: it was opened right above, and is nobody else's.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Opens the same file with other rights, whatever its name is by now.
pub(super) fn reopen(file: &File, access: u32, options: u32) -> Result<File, Status> {
    open(file, &[], &How { access, options, new: None })
}

/// Fills words with what NT knows of a file; gives how many bytes it has filled.
fn query(file: &File, class: i32, words: &mut [u64]) -> Result<usize, Status> {
    let mut status = IO_STATUS_BLOCK::default();
    let length = size(mem::size_of_val(words))?;
    // SAFETY: the buffer is there and of this size.
    let result = unsafe {
        NtQueryInformationFile(file.as_raw_handle(), &raw mut status, words.as_mut_ptr().cast(), length, class)
    };
    // What does not fit is the name at the end.
    if result != STATUS_BUFFER_OVERFLOW {
        check(result)?;
    }
    Ok(status.Information.min(mem::size_of_val(words)))
}

/// What a file is, and the tag that it has if it is a reparse point.
pub(super) fn stat(file: &File) -> Result<(Stat, u32), Status> {
    let mut words = [0; Stat::WORDS];
    query(file, FileAllInformation, &mut words)?;
    let stat = Stat::decode(&bytes(&words, mem::size_of_val(&words))).ok_or(Status(STATUS_INVALID_PARAMETER))?;
    if stat.attributes & kind::REPARSE_POINT == 0 {
        return Ok((stat, 0));
    }
    // Attributes and tag.
    let mut words = [0];
    query(file, FileAttributeTagInformation, &mut words)?;
    Ok((stat, u32::try_from(words[0] >> 32).unwrap_or(0)))
}

/// Sets what `class` says to these words.
pub(super) fn set(file: &File, class: i32, words: &[u64]) -> Result<(), Status> {
    let mut status = IO_STATUS_BLOCK::default();
    let length = size(mem::size_of_val(words))?;
    // SAFETY: the buffer is there and of this size.
    check(unsafe { NtSetInformationFile(file.as_raw_handle(), &raw mut status, words.as_ptr().cast(), length, class) })
}

/// Owner and permissions that are kept with a file.
pub(super) fn metadata(file: &File) -> Result<Metadata, Status> {
    let file = reopen(file, FILE_READ_EA, 0)?;
    let (mut words, names) = ([0_u64; Metadata::SIZE / 8], Metadata::names());
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: both buffers are there and of these sizes.
    check(unsafe {
        NtQueryEaFile(
            file.as_raw_handle(),
            &raw mut status,
            words.as_mut_ptr().cast(),
            size(mem::size_of_val(&words))?,
            false,
            names.as_ptr().cast(),
            size(names.len())?,
            ptr::null(),
            true,
        )
    })?;
    Ok(Metadata::decode(&bytes(&words, status.Information)))
}

/// Keeps owner and permissions with a file; what is not there stays.
pub(super) fn set_metadata(file: &File, metadata: Metadata) -> Result<(), Status> {
    let file = reopen(file, FILE_WRITE_EA, 0)?;
    let (bytes, mut status) = (metadata.encode(), IO_STATUS_BLOCK::default());
    // SAFETY: the buffer is there and of this size.
    check(unsafe { NtSetEaFile(file.as_raw_handle(), &raw mut status, bytes.as_ptr().cast(), size(bytes.len())?) })
}

/// The next entries of a folder, those of this name if there is one, from its begin on if that is wanted; `None` at the end. A
/// handle is for one name or for all, always.
pub(super) fn list(folder: &File, name: Option<&[u16]>, restart: bool) -> Result<Option<Vec<Entry>>, Status> {
    let name = name.map(counted).transpose()?;
    let name = name.as_ref().map_or(ptr::null(), ptr::from_ref);
    let (mut words, mut status) = (vec![0_u64; LIST_WORDS], IO_STATUS_BLOCK::default());
    // SAFETY: the buffer is there and of this size, and the name is one or none.
    let result = unsafe {
        NtQueryDirectoryFile(
            folder.as_raw_handle(),
            ptr::null_mut(),
            None,
            ptr::null(),
            &raw mut status,
            words.as_mut_ptr().cast(),
            size(mem::size_of_val(words.as_slice()))?,
            FileIdFullDirectoryInformation,
            false,
            name,
            restart,
        )
    };
    if result == STATUS_NO_MORE_FILES || result == STATUS_NO_SUCH_FILE {
        return Ok(None);
    }
    check(result)?;
    Ok(Some(entries::parse(&bytes(&words, status.Information))))
}

/// Whether a folder has a file of exactly this name: not in other letters, not as its short name.
pub(super) fn has(folder: &File, name: &[u16]) -> Result<bool, Status> {
    let folder = reopen(folder, FILE_LIST_DIRECTORY, 0)?;
    let mut restart = true;
    while let Some(entries) = list(&folder, Some(name), restart)? {
        if entries.iter().any(|entry| entry.name == name) {
            return Ok(true);
        }
        restart = false;
    }
    Ok(false)
}

/// A request of a file system's, with what goes there and what comes back; gives how many bytes came.
fn control(file: &File, code: u32, input: &[u8], output: &mut [u8]) -> Result<usize, Status> {
    let mut status = IO_STATUS_BLOCK::default();
    let (from, to): (*const c_void, *mut c_void) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: both buffers are there and of these sizes.
    check(unsafe {
        NtFsControlFile(
            file.as_raw_handle(),
            ptr::null_mut(),
            None,
            ptr::null(),
            &raw mut status,
            code,
            if input.is_empty() { ptr::null() } else { from },
            size(input.len())?,
            if output.is_empty() { ptr::null_mut() } else { to },
            size(output.len())?,
        )
    })?;
    Ok(status.Information.min(output.len()))
}

/// Makes a reparse point of a new file.
pub(super) fn set_reparse_point(file: &File, point: &[u8]) -> Result<(), Status> {
    control(file, FSCTL_SET_REPARSE_POINT, point, &mut []).map(|_| ())
}

/// What is in a reparse point.
pub(super) fn reparse_point(file: &File) -> Result<Vec<u8>, Status> {
    let mut point = vec![0; links::SIZE];
    let length = control(file, FSCTL_GET_REPARSE_POINT, &[], &mut point)?;
    point.truncate(length);
    Ok(point)
}

/// Fills words with what NT knows of the volume that a file is on.
fn query_volume(file: &File, class: i32, words: &mut [u64]) -> Result<(), Status> {
    let mut status = IO_STATUS_BLOCK::default();
    let length = size(mem::size_of_val(words))?;
    // SAFETY: the buffer is there and of this size.
    let result = unsafe {
        NtQueryVolumeInformationFile(file.as_raw_handle(), &raw mut status, words.as_mut_ptr().cast(), length, class)
    };
    // What does not fit is the file system's name.
    if result == STATUS_BUFFER_OVERFLOW { Ok(()) } else { check(result) }
}

/// Whether files of the volume have extended attributes.
pub(super) fn keeps_metadata(file: &File) -> bool {
    // Attributes, length of the longest name, length of the file system's name, the name.
    let mut words = [0; 8];
    let known = query_volume(file, FileFsAttributeInformation, &mut words).is_ok();
    known && words[0] & SUPPORTS_EXTENDED_ATTRIBUTES != 0
}

/// Room of a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Units, those that are free, and those that are free for this user.
    pub(super) units: [u64; 3],
    /// Bytes of a unit.
    pub(super) unit: u32,
}

/// What room there is.
pub(super) fn room(file: &File) -> Result<Room, Status> {
    // All units, those for the caller, free ones; sectors of a unit and bytes of a sector.
    let mut words = [0; 4];
    query_volume(file, FileFsFullSizeInformation, &mut words)?;
    let [all, for_user, free, sizes] = words;
    let (sectors, bytes) = (sizes & u64::from(u32::MAX), sizes >> 32);
    let unit = sectors.checked_mul(bytes).and_then(|bytes| u32::try_from(bytes).ok());
    Ok(Room { units: [all, free, for_user], unit: unit.filter(|&unit| unit > 0).unwrap_or(4096) })
}
