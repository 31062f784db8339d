//! How files are changed, moved, linked and taken away.

use std::ffi::CStr;
use std::fs::File;
use std::os::windows::io::AsRawHandle;

use windows_sys::Wdk::Storage::FileSystem::FILE_DISPOSITION_DELETE;
use windows_sys::Wdk::Storage::FileSystem::FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE;
use windows_sys::Wdk::Storage::FileSystem::FILE_DISPOSITION_POSIX_SEMANTICS;
use windows_sys::Wdk::Storage::FileSystem::FileBasicInformation;
use windows_sys::Wdk::Storage::FileSystem::FileDispositionInformation;
use windows_sys::Wdk::Storage::FileSystem::FileLinkInformation;
use windows_sys::Wdk::Storage::FileSystem::FileRenameInformation;
use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::Storage::FileSystem::DELETE;
use windows_sys::Win32::Storage::FileSystem::FILE_WRITE_ATTRIBUTES;
use windows_sys::Win32::System::SystemInformation::GetSystemTimeAsFileTime;

use super::Folder;
use super::Found;
use super::WRITE;
use super::calls;
use crate::share::Changes;
use crate::share::Errno;
use crate::share::HandleId;
use crate::share::NodeId;
use crate::share::Opening;
use crate::share::Owner;
use crate::share::ROOT;
use crate::share::RenameMode;
use crate::share::Time;
use crate::share::position;
use crate::sys::nt::files::errors::Status;
use crate::sys::nt::files::errors::of_io;
use crate::sys::nt::files::kind;
use crate::sys::nt::files::kind::Kind;
use crate::sys::nt::files::metadata::Metadata;
use crate::sys::nt::files::names;
use crate::sys::nt::files::renaming;
use crate::sys::nt::files::renaming::Replace;
use crate::sys::nt::files::stat::Stat;
use crate::sys::nt::files::times;

/// `FileDispositionInformationEx` and `FileRenameInformationEx`, of Windows 10 1709 ([MS-FSCC] 2.4).
const DISPOSITION_NEW: i32 = 64;
const RENAME_NEW: i32 = 65;

/// What a file is called that was taken away while it is open, until it is closed: this and a number.
const REMOVED: &str = ".covisor-removed-";

/// Bits of permissions that have a program run with its owner's rights.
const SUID: u32 = 0o6000;

/// Sets times, where they are not 0, and attributes, where they are not 0.
fn set_basic(file: &File, accessed: i64, modified: i64, attributes: u32) -> Result<(), Status> {
    // Created, accessed, modified, changed; the attributes.
    let words = [0, accessed.cast_unsigned(), modified.cast_unsigned(), 0, attributes.into()];
    calls::set(file, FileBasicInformation, &words)
}

fn set_attributes(file: &File, attributes: u32) -> Result<(), Status> {
    // None are told by one of their own.
    let attributes = if attributes == 0 { kind::NORMAL } else { attributes };
    set_basic(&calls::reopen(file, FILE_WRITE_ATTRIBUTES, 0)?, 0, 0, attributes)
}

fn now() -> i64 {
    let mut now = FILETIME::default();
    // SAFETY: the pointer is to a variable.
    unsafe { GetSystemTimeAsFileTime(&raw mut now) };
    (i64::from(now.dwHighDateTime) << 32) | i64::from(now.dwLowDateTime)
}

/// As NT takes it; 0 leaves it as it is.
fn time(time: Option<Time>) -> i64 {
    match time {
        None => 0,
        Some(Time::Now) => now(),
        Some(Time::At { seconds, nanoseconds }) => times::to_windows(seconds, nanoseconds),
    }
}

/// Has a file go as soon as nobody has it open any more.
pub(super) fn take_away(file: &File) -> Result<(), Status> {
    calls::set(file, FileDispositionInformation, &[1])
}

/// Has a file lose its name at once, as on Linux, whoever has it open.
fn take_away_now(file: &File) -> Result<(), Status> {
    let flags = FILE_DISPOSITION_DELETE | FILE_DISPOSITION_POSIX_SEMANTICS | FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE;
    calls::set(file, DISPOSITION_NEW, &[flags.into()])
}

/// The handle of a folder as a number in a structure.
fn number(folder: &File) -> u64 {
    folder.as_raw_handle().addr() as u64
}

/// Gives a file the name `name` in a folder.
fn set_name(file: &File, folder: &File, name: &[u16], replace: Replace) -> Result<(), Status> {
    let class = if replace == Replace::AsOnLinux { RENAME_NEW } else { FileRenameInformation };
    calls::set(file, class, &renaming::encode(replace, number(folder), name))
}

/// Gives a file one more name.
pub(super) fn link(file: &File, folder: &File, name: &CStr) -> Result<(), Errno> {
    let name = names::to_windows(name)?;
    let file = calls::reopen(file, FILE_WRITE_ATTRIBUTES, 0)?;
    Ok(calls::set(&file, FileLinkInformation, &renaming::encode(Replace::No, number(folder), &name))?)
}

impl Folder {
    /// What a file is made with.
    pub(super) fn new_file(&self, mode: u32, owner: Owner) -> calls::New {
        let nobody_writes = !self.keeps_metadata && mode & WRITE == 0;
        calls::New {
            attributes: if nobody_writes { kind::READ_ONLY } else { kind::NORMAL },
            metadata: self.metadata_for(Kind::File, mode, owner),
        }
    }

    /// Changes what a file is.
    pub(super) fn apply(&mut self, node: NodeId, handle: Option<HandleId>, changes: &Changes) -> Result<(), Errno> {
        if let Some(size) = changes.size {
            self.set_size(node, handle, position(size)?)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.set_owner(node, changes.uid, changes.gid)?;
        }
        if let Some(mode) = changes.mode {
            self.set_mode(node, mode)?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            self.set_times(node, time(changes.accessed), time(changes.modified))?;
        }
        Ok(())
    }

    fn set_size(&mut self, node: NodeId, handle: Option<HandleId>, size: u64) -> Result<(), Errno> {
        let open = handle.and_then(|handle| self.handles.get(&handle));
        let resized = |file: &File| file.set_len(size).map_err(|error| of_io(&error));
        if let Some(open) = open.filter(|open| open.node == node && open.writes) {
            return resized(&open.file);
        }
        resized(&self.open_file(node, Opening { write: true, ..Opening::default() })?)
    }

    fn set_owner(&mut self, node: NodeId, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (uid, gid) = self.mapping.owners(uid, gid)?;
        let (file, kind) = self.nodes.typed(node)?;
        let (stat, _) = calls::stat(&file)?;
        let shown = self.shown(&file, &stat, kind).owner;
        // Whose it is already it may be without being told.
        let (uid, gid) = (uid.filter(|&uid| uid != shown.uid), gid.filter(|&gid| gid != shown.gid));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        if !self.keeps_metadata || !matches!(kind, Kind::File | Kind::Folder) {
            return Err(Errno::PERM);
        }
        Ok(calls::set_metadata(&file, Metadata { uid, gid, mode: None })?)
    }

    /// Where permissions are not kept, a file can be made one that nobody writes; the rest is as it is.
    fn set_mode(&mut self, node: NodeId, mode: u32) -> Result<(), Errno> {
        let (file, kind) = self.nodes.typed(node)?;
        let mode = self.mapping.permissions(mode, kind == Kind::Folder);
        match kind {
            Kind::Link => return Err(Errno::OPNOTSUPP),
            Kind::File | Kind::Folder if self.keeps_metadata => {
                let mode = Some(kind.mode() | mode);
                calls::set_metadata(&file, Metadata { mode, ..Metadata::default() })?;
            }
            _ => {}
        }
        if kind == Kind::File {
            let attributes = calls::stat(&file)?.0.attributes;
            let is_set = attributes & kind::READ_ONLY != 0;
            let others = attributes & !kind::READ_ONLY;
            if is_set && mode & WRITE != 0 {
                set_attributes(&file, others)?;
            } else if !is_set && !self.keeps_metadata && mode & WRITE == 0 {
                set_attributes(&file, others & !kind::NORMAL | kind::READ_ONLY)?;
            }
        }
        Ok(())
    }

    fn set_times(&mut self, node: NodeId, accessed: i64, modified: i64) -> Result<(), Errno> {
        let (file, _) = self.nodes.typed(node)?;
        set_basic(&calls::reopen(&file, FILE_WRITE_ATTRIBUTES, 0)?, accessed, modified, 0)?;
        // A handle by which a file was written sets the time of that when it is closed, unless it has set one itself.
        for open in self.handles.values().filter(|open| open.node == node && open.writes) {
            set_basic(&open.file, accessed, modified, 0)?;
        }
        Ok(())
    }

    /// Takes from a program that the guest is about to change the right to run with its owner's.
    pub(super) fn disarm(&self, file: &File) -> Result<(), Errno> {
        let (stat, _) = calls::stat(file)?;
        match self.metadata_of(file, &stat, Kind::File).mode {
            Some(mode) if mode & SUID != 0 && !self.mapping.suid => {
                Ok(calls::set_metadata(file, Metadata { mode: Some(mode & !SUID), ..Metadata::default() })?)
            }
            _ => Ok(()),
        }
    }

    /// Takes a name away: a folder's, or another one.
    pub(super) fn remove(&mut self, parent: NodeId, name: &CStr, is_folder: bool) -> Result<(), Errno> {
        self.writable()?;
        let folder = self.folder(parent)?;
        let Found { file, stat, kind } = Found::in_folder(&folder, name, DELETE)?;
        match (kind == Kind::Folder, is_folder) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.nodes.let_go(stat.id);
        self.take_name(&file, &stat, (&folder, &names::to_windows(name)?))
    }

    /// Takes the name away that a file has in a folder. Before Windows 10 it has it as long as somebody has it open, and nobody
    /// else can have it; so a file that the guest has open gets another one first.
    fn take_name(&mut self, file: &File, stat: &Stat, (folder, name): (&File, &[u16])) -> Result<(), Errno> {
        match take_away_now(file) {
            Err(status) if status.is_too_new() => {}
            result => return Ok(result?),
        }
        let is_read_only = stat.attributes & kind::READ_ONLY != 0;
        if is_read_only {
            set_attributes(file, stat.attributes & !kind::READ_ONLY)?;
        }
        let is_aside = self.nodes.is_open(stat.id) && self.move_aside(file).is_ok();
        let result = take_away(file);
        if result.is_err() {
            // As it was, as far as that can be; that it could not be taken away is what the guest hears.
            if is_aside {
                let _ = set_name(file, folder, name, Replace::No);
            }
            if is_read_only {
                let _ = set_attributes(file, stat.attributes);
            }
        }
        Ok(result?)
    }

    /// Gives a file that is about to go a name that nobody looks for, in the shared folder itself.
    fn move_aside(&mut self, file: &File) -> Result<(), Errno> {
        self.removed += 1;
        let name: Vec<u16> = format!("{REMOVED}{}-{}", std::process::id(), self.removed).encode_utf16().collect();
        let root = self.nodes.file(ROOT)?;
        Ok(set_name(file, &root, &name, Replace::No)?)
    }

    /// Gives a file another name.
    pub(super) fn move_file(
        &mut self,
        from: (NodeId, &CStr),
        to: (NodeId, &CStr),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        if mode == RenameMode::Exchange {
            return Err(Errno::INVAL);
        }
        let (old, new) = (self.folder(from.0)?, self.folder(to.0)?);
        let name = names::to_windows(to.1)?;
        let Found { file, stat, kind } = Found::in_folder(&old, from.1, DELETE)?;
        let target = match Found::in_folder(&new, to.1, DELETE) {
            Ok(target) => Some(target),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        let is_folder = kind == Kind::Folder;
        if is_folder && self.nodes.is_within(to.0, stat.id) {
            return Err(Errno::INVAL);
        }
        if let Some(target) = &target {
            match (is_folder, target.kind == Kind::Folder) {
                _ if mode == RenameMode::Keep => return Err(Errno::EXIST),
                // Two names of one file stay (rename(2)).
                _ if target.stat.id == stat.id => return Ok(()),
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        if is_folder {
            // Windows lets no folder be renamed while files in it are open.
            self.nodes.let_all_go();
        }
        self.replace(&file, &new, &name, target)?;
        // It is found by its new name from now on. A handle would do on Windows; Wine looks for its file by the old one.
        self.nodes.let_go(stat.id);
        self.nodes.moved(stat.id, to.0, to.1);
        Ok(())
    }

    /// Renames; what has the name goes.
    fn replace(&mut self, file: &File, folder: &File, name: &[u16], target: Option<Found>) -> Result<(), Errno> {
        // Without one there may be a file whose name differs in small and large letters only. That stays.
        let Some(target) = target else { return Ok(set_name(file, folder, name, Replace::No)?) };
        self.nodes.let_go(target.stat.id);
        match set_name(file, folder, name, Replace::AsOnLinux) {
            Err(status) if status.is_too_new() => {}
            result => return Ok(result?),
        }
        // Before Windows 10 nothing that is open is replaced, and no folder.
        if target.kind == Kind::Folder || self.nodes.is_open(target.stat.id) {
            self.take_name(&target.file, &target.stat, (folder, name))?;
            drop(target);
            return Ok(set_name(file, folder, name, Replace::No)?);
        }
        drop(target);
        Ok(set_name(file, folder, name, Replace::Classic)?)
    }
}
