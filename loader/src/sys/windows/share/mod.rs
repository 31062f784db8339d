//! Shared folders. [`calls`] has what NT does, [`changes`] how files are changed, moved and taken away, [`listing`] how a folder
//! is read.

mod calls;
mod changes;
mod listing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::FileExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::sync::Arc;

use windows_sys::Wdk::Storage::FileSystem::FILE_DIRECTORY_FILE;
use windows_sys::Wdk::Storage::FileSystem::FILE_NON_DIRECTORY_FILE;
use windows_sys::Wdk::Storage::FileSystem::FILE_WRITE_THROUGH;
use windows_sys::Win32::Storage::FileSystem::DELETE;
use windows_sys::Win32::Storage::FileSystem::FILE_APPEND_DATA;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_BACKUP_SEMANTICS;
use windows_sys::Win32::Storage::FileSystem::FILE_LIST_DIRECTORY;
use windows_sys::Win32::Storage::FileSystem::FILE_READ_ATTRIBUTES;
use windows_sys::Win32::Storage::FileSystem::FILE_READ_DATA;
use windows_sys::Win32::Storage::FileSystem::FILE_TRAVERSE;
use windows_sys::Win32::Storage::FileSystem::FILE_TYPE_DISK;
use windows_sys::Win32::Storage::FileSystem::FILE_WRITE_ATTRIBUTES;
use windows_sys::Win32::Storage::FileSystem::FILE_WRITE_DATA;
use windows_sys::Win32::Storage::FileSystem::GetFileType;
use windows_sys::Win32::Storage::FileSystem::SYNCHRONIZE;

use self::calls::How;
use self::listing::Listing;
use super::disk;
use crate::share::Attributes;
use crate::share::Changes;
use crate::share::DirectoryEntry;
use crate::share::Entry;
use crate::share::Errno;
use crate::share::FileSystem;
use crate::share::HandleId;
use crate::share::Held;
use crate::share::Identity;
use crate::share::Mapping;
use crate::share::New;
use crate::share::NodeId;
use crate::share::NodeKind;
use crate::share::Nodes;
use crate::share::Opening;
use crate::share::Owner;
use crate::share::ROOT;
use crate::share::RenameMode;
use crate::share::SeekTo;
use crate::share::Statistics;
use crate::share::position;
use crate::sys::nt::files::errors::of_io;
use crate::sys::nt::files::kind;
use crate::sys::nt::files::kind::Kind;
use crate::sys::nt::files::links;
use crate::sys::nt::files::metadata::Metadata;
use crate::sys::nt::files::names;
use crate::sys::nt::files::stat::Stat;

/// Most files and folders that a guest can have open in a share.
const MOST_HANDLES: usize = 8192;
/// Most handles for those that it only knows of. They are few, because Windows lets nobody rename a folder while one of a file
/// below it is open.
const MOST_HELD: usize = 64;

/// Bytes of the longest name that the guest may use (`NAME_MAX`).
const LONGEST_NAME: u32 = 255;
/// Bits of permissions that let somebody write.
const WRITE: u32 = 0o222;

/// Numbers of a folder's own entry and that of the one above, before those of its files.
const ITSELF: u64 = 0;
const ABOVE: u64 = 1;
const FILES: u64 = 2;
/// `DT_DIR` and `DT_UNKNOWN`.
const TYPE_FOLDER: u8 = 4;
const TYPE_UNKNOWN: u8 = 0;

/// Flags of fallocate(2).
const KEEP_SIZE: u32 = 0x1;
const PUNCH_HOLE: u32 = 0x2;
const ZERO_RANGE: u32 = 0x10;

/// Opens a folder to be shared.
///
/// # Errors
/// It cannot be shared.
pub fn open(path: &Path, read_only: bool, mapping: Mapping) -> io::Result<Box<dyn FileSystem>> {
    Ok(Box::new(Folder::new(path, read_only, mapping)?))
}

impl Held for File {
    /// The number that the volume gives it.
    type Key = u64;
    type Kind = Kind;

    fn find(&self, name: &CStr) -> Result<(Self, Identity<Self>), Errno> {
        let found = Found::in_folder(self, name, 0)?;
        Ok((found.file, (found.stat.id, found.kind)))
    }
}

/// A file, and what it is.
#[derive(Debug)]
struct Found {
    file: File,
    stat: Stat,
    kind: Kind,
}

impl Found {
    fn of(file: File) -> Result<Self, Errno> {
        let (stat, tag) = calls::stat(&file)?;
        let kind = Kind::of(stat.attributes, tag).ok_or(Errno::ACCES)?;
        // A file system that does not tell its files apart.
        if stat.id == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self { file, stat, kind })
    }

    /// The file of this name within a folder, whatever it is, with these rights.
    fn in_folder(folder: &File, name: &CStr, access: u32) -> Result<Self, Errno> {
        let name = names::to_windows(name)?;
        let file = calls::open(folder, &name, &How { access, ..How::default() })?;
        // NT finds files whose names differ in small and large letters only, and files by their short names.
        if !calls::has(folder, &name)? {
            return Err(Errno::NOENT);
        }
        Self::of(file)
    }
}

/// What the guest has open.
#[derive(Debug)]
struct Handle {
    node: NodeId,
    file: File,
    reads: bool,
    writes: bool,
    /// A folder's entries.
    listing: Option<Listing>,
}

/// A shared folder.
#[derive(Debug)]
struct Folder {
    nodes: Nodes<File>,
    handles: HashMap<HandleId, Handle>,
    next_handle: HandleId,
    most_handles: usize,
    read_only: bool,
    mapping: Mapping,
    /// Owners and permissions are kept with the files.
    keeps_metadata: bool,
    /// Files that were taken away while they were open.
    removed: u64,
}

impl Folder {
    fn new(path: &Path, read_only: bool, mapping: Mapping) -> io::Result<Self> {
        let root = OpenOptions::new()
            .access_mode(FILE_LIST_DIRECTORY | FILE_TRAVERSE | FILE_READ_ATTRIBUTES | SYNCHRONIZE)
            .custom_flags(FILE_FLAG_BACKUP_SEMANTICS)
            .open(path)?;
        // SAFETY: the handle is open.
        let on_disk = unsafe { GetFileType(root.as_raw_handle()) } == FILE_TYPE_DISK;
        if !on_disk || !root.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let (stat, _) =
            calls::stat(&root).map_err(|status| io::Error::other(format!("NT's status {:#010x}", status.0)))?;
        if stat.id == 0 {
            return Err(io::Error::other("its file system does not number its files"));
        }
        Ok(Self {
            keeps_metadata: calls::keeps_metadata(&root),
            nodes: Nodes::new(root, (stat.id, Kind::Folder), MOST_HELD),
            handles: HashMap::new(),
            next_handle: 1,
            most_handles: MOST_HANDLES,
            read_only,
            mapping,
            removed: 0,
        })
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// A file, if it is a folder.
    fn folder(&mut self, node: NodeId) -> Result<Arc<File>, Errno> {
        match self.nodes.typed(node)? {
            (file, Kind::Folder) => Ok(file),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Owner and permissions that a file of this type is made with. Reparse points and extended attributes do not go together on
    /// all Windows.
    fn metadata_for(&self, kind: Kind, mode: u32, owner: Owner) -> Metadata {
        if !self.keeps_metadata || !matches!(kind, Kind::File | Kind::Folder) {
            return Metadata::default();
        }
        Metadata {
            uid: Some(owner.uid).filter(|_| self.mapping.uid.is_none()),
            gid: Some(owner.gid).filter(|_| self.mapping.gid.is_none()),
            mode: Some(kind.mode() | self.mapping.permissions(mode, kind == Kind::Folder)),
        }
    }

    /// What is kept of a file's owner and permissions.
    fn metadata_of(&self, file: &File, stat: &Stat, kind: Kind) -> Metadata {
        if !self.keeps_metadata || stat.ea_size == 0 || !matches!(kind, Kind::File | Kind::Folder) {
            return Metadata::default();
        }
        // Whoever may not read it does not know it.
        calls::metadata(file).unwrap_or_default()
    }

    /// What the guest sees of a file.
    fn shown(&self, file: &File, stat: &Stat, kind: Kind) -> Attributes {
        stat.shown(kind, self.metadata_of(file, stat, kind), &self.mapping)
    }

    /// Tells the guest of a file.
    fn enter(&mut self, parent: NodeId, name: &CStr, found: Found) -> Result<Entry, Errno> {
        let attributes = self.shown(&found.file, &found.stat, found.kind);
        let node = self.nodes.enter(parent, name, found.file, (found.stat.id, found.kind))?;
        Ok(Entry { node, attributes })
    }

    fn handle(&self, handle: HandleId, is_folder: bool) -> Result<&Handle, Errno> {
        self.handles.get(&handle).filter(|handle| handle.listing.is_some() == is_folder).ok_or(Errno::BADF)
    }

    /// An open file that the guest may write.
    fn written(&self, handle: HandleId) -> Result<&File, Errno> {
        self.writable()?;
        let handle = self.handle(handle, false)?;
        if handle.writes { Ok(&handle.file) } else { Err(Errno::BADF) }
    }

    fn has_room(&self) -> Result<(), Errno> {
        if self.handles.len() < self.most_handles { Ok(()) } else { Err(Errno::NFILE) }
    }

    fn keep(&mut self, node: NodeId, file: File, how: Opening, listing: Option<Listing>) -> HandleId {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { node, file, reads: how.read, writes: how.write, listing });
        self.nodes.opened(node);
        handle
    }

    /// Opens a file that is one, and nothing else.
    fn open_file(&mut self, node: NodeId, how: Opening) -> Result<File, Errno> {
        if how.write {
            self.writable()?;
        }
        let (file, kind) = self.nodes.typed(node)?;
        match kind {
            Kind::File => {}
            Kind::Folder => return Err(Errno::ISDIR),
            _ => return Err(Errno::ACCES),
        }
        if how.write {
            self.disarm(&file)?;
        }
        let opened = calls::reopen(&file, access(how), options(how))?;
        if how.write && how.truncate {
            opened.set_len(0).map_err(|error| of_io(&error))?;
        }
        Ok(opened)
    }

    fn make_node(&mut self, folder: &File, name: &CStr, kind: Kind, target: &[u8]) -> Result<File, Errno> {
        let point = links::encode(kind, target)?;
        let new = calls::New { attributes: kind::NORMAL, metadata: Metadata::default() };
        let how = How { access: FILE_WRITE_ATTRIBUTES | DELETE, options: FILE_NON_DIRECTORY_FILE, new: Some(new) };
        let file = calls::open(folder, &names::to_windows(name)?, &how)?;
        match calls::set_reparse_point(&file, &point) {
            Ok(()) => Ok(file),
            Err(status) => {
                changes::take_away(&file)?;
                // What a file system without links says on Linux (symlink(2), mknod(2)).
                Err(if status.is_unsupported() { Errno::PERM } else { status.into() })
            }
        }
    }
}

/// Rights for what the guest does with a file, and for setting its times by the same handle.
fn access(how: Opening) -> u32 {
    let read = if how.read { FILE_READ_DATA } else { 0 };
    let write = if how.write { FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_WRITE_ATTRIBUTES } else { 0 };
    read | write
}

fn options(how: Opening) -> u32 {
    FILE_NON_DIRECTORY_FILE | if how.sync { FILE_WRITE_THROUGH } else { 0 }
}

impl FileSystem for Folder {
    fn lookup(&mut self, parent: NodeId, name: &CStr) -> Result<Entry, Errno> {
        let folder = self.folder(parent)?;
        let found = Found::in_folder(&folder, name, 0)?;
        self.enter(parent, name, found)
    }

    fn forget(&mut self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn forget_all(&mut self) {
        self.handles.clear();
        self.nodes.forget_all();
    }

    fn attributes(&mut self, node: NodeId, handle: Option<HandleId>) -> Result<Attributes, Errno> {
        let (file, kind) = match handle.and_then(|handle| self.handles.get(&handle)) {
            // A file that has no name any more is still what it was.
            Some(handle) if handle.node == node => {
                let kind = if handle.listing.is_some() { Kind::Folder } else { Kind::File };
                let (stat, _) = calls::stat(&handle.file)?;
                return Ok(self.shown(&handle.file, &stat, kind));
            }
            _ => self.nodes.typed(node)?,
        };
        let (stat, _) = calls::stat(&file)?;
        Ok(self.shown(&file, &stat, kind))
    }

    fn change(&mut self, node: NodeId, handle: Option<HandleId>, changes: &Changes) -> Result<Attributes, Errno> {
        self.writable()?;
        self.apply(node, handle, changes)?;
        self.attributes(node, handle)
    }

    fn read_link(&mut self, node: NodeId) -> Result<Vec<u8>, Errno> {
        match self.nodes.typed(node)? {
            (file, Kind::Link) => links::target(&calls::reparse_point(&file)?),
            _ => Err(Errno::INVAL),
        }
    }

    fn make(&mut self, parent: NodeId, name: &CStr, new: New<'_>, owner: Owner) -> Result<Entry, Errno> {
        self.writable()?;
        let folder = self.folder(parent)?;
        let made = match new {
            New::Directory { mode } => {
                let metadata = self.metadata_for(Kind::Folder, mode, owner);
                let new = Some(calls::New { attributes: kind::NORMAL, metadata });
                let how = How { access: 0, options: FILE_DIRECTORY_FILE, new };
                calls::open(&folder, &names::to_windows(name)?, &how)?
            }
            New::Node { kind: NodeKind::Regular, mode } => {
                let new = Some(self.new_file(mode, owner));
                let how = How { access: 0, options: FILE_NON_DIRECTORY_FILE, new };
                calls::open(&folder, &names::to_windows(name)?, &how)?
            }
            New::Symlink { target } => self.make_node(&folder, name, Kind::Link, target.to_bytes())?,
            New::Node { kind: NodeKind::Fifo, .. } => self.make_node(&folder, name, Kind::Fifo, b"")?,
            New::Node { kind: NodeKind::Socket, .. } => self.make_node(&folder, name, Kind::Socket, b"")?,
        };
        // What holds a file has no rights.
        let found = Found::of(calls::reopen(&made, 0, 0)?)?;
        self.enter(parent, name, found)
    }

    fn create(
        &mut self,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        how: Opening,
        owner: Owner,
    ) -> Result<(Entry, HandleId), Errno> {
        self.writable()?;
        self.has_room()?;
        let folder = self.folder(parent)?;
        let new = Some(self.new_file(mode, owner));
        let making = How { access: access(how), options: options(how), new };
        match calls::open(&folder, &names::to_windows(name)?, &making).map_err(Errno::from) {
            Ok(file) => {
                let found = Found::of(calls::reopen(&file, 0, 0)?)?;
                let entry = self.enter(parent, name, found)?;
                Ok((entry, self.keep(entry.node, file, how, None)))
            }
            // The host has made it meanwhile.
            Err(Errno::EXIST) if !how.exclusive => {
                // If it is not found, there is one whose name differs in small and large letters only.
                let found = self.lookup(parent, name);
                let entry = found.map_err(|error| if error == Errno::NOENT { Errno::EXIST } else { error })?;
                let opened = self.open_file(entry.node, how);
                let file = opened.inspect_err(|_| self.nodes.forget(entry.node, 1))?;
                let handle = self.keep(entry.node, file, how, None);
                Ok((Entry { attributes: self.attributes(entry.node, Some(handle))?, ..entry }, handle))
            }
            Err(error) => Err(error),
        }
    }

    fn unlink(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.remove(parent, name, false)
    }

    fn remove_directory(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.remove(parent, name, true)
    }

    fn rename(&mut self, from: (NodeId, &CStr), to: (NodeId, &CStr), mode: RenameMode) -> Result<(), Errno> {
        self.writable()?;
        self.move_file(from, to, mode)
    }

    fn link(&mut self, node: NodeId, parent: NodeId, name: &CStr) -> Result<Entry, Errno> {
        self.writable()?;
        let (file, kind) = self.nodes.typed(node)?;
        let folder = self.folder(parent)?;
        if kind == Kind::Folder {
            return Err(Errno::PERM);
        }
        changes::link(&file, &folder, name)?;
        self.lookup(parent, name)
    }

    fn open(&mut self, node: NodeId, how: Opening) -> Result<HandleId, Errno> {
        self.has_room()?;
        let file = self.open_file(node, how)?;
        Ok(self.keep(node, file, how, None))
    }

    fn open_directory(&mut self, node: NodeId) -> Result<HandleId, Errno> {
        self.has_room()?;
        let folder = self.folder(node)?;
        let file = calls::reopen(&folder, FILE_LIST_DIRECTORY, FILE_DIRECTORY_FILE)?;
        Ok(self.keep(node, file, Opening::default(), Some(Listing::default())))
    }

    fn release(&mut self, handle: HandleId) {
        if let Some(handle) = self.handles.remove(&handle) {
            self.nodes.closed(handle.node);
        }
    }

    fn read(&mut self, handle: HandleId, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let handle = self.handle(handle, false)?;
        if !handle.reads {
            return Err(Errno::BADF);
        }
        let offset = position(offset)?;
        let mut done = 0;
        while done < into.len() {
            match handle.file.seek_read(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(of_io(&error)),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write(&mut self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let file = self.written(handle)?;
        let offset = position(offset)?;
        let mut done = 0;
        while done < bytes.len() {
            match file.seek_write(&bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(of_io(&error)),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn sync(&mut self, handle: HandleId, _data_only: bool) -> Result<(), Errno> {
        let handle = self.handles.get(&handle).ok_or(Errno::BADF)?;
        let written = |file: &File| file.sync_all().map_err(|error| of_io(&error));
        if handle.writes {
            return written(&handle.file);
        }
        // Folders are in the file system's log; and what the guest cannot write it has not written.
        if self.read_only || handle.listing.is_some() {
            return Ok(());
        }
        // Windows takes it from who may write only.
        written(&calls::reopen(&handle.file, FILE_WRITE_DATA, FILE_NON_DIRECTORY_FILE)?)
    }

    fn sync_all(&mut self) -> Result<(), Errno> {
        let written = self.handles.values().filter(|handle| handle.writes);
        written.map(|handle| handle.file.sync_all().map_err(|error| of_io(&error))).fold(Ok(()), Result::and)
    }

    fn allocate(&mut self, handle: HandleId, flags: u32, offset: u64, length: u64) -> Result<(), Errno> {
        let file = self.written(handle)?;
        let (start, end) = (position(offset)?, position(offset.checked_add(length).ok_or(Errno::FBIG)?)?);
        if length == 0 {
            return Err(Errno::INVAL);
        }
        let io = |result: io::Result<()>| result.map_err(|error| of_io(&error));
        let size = file.metadata().map_err(|error| of_io(&error))?.len();
        // Beyond its end there is nothing to give back, and zeroes are there as soon as it is longer.
        let within = end.min(size).saturating_sub(start);
        let longer = || if end > size { io(file.set_len(end)) } else { Ok(()) };
        match flags {
            0 => longer(),
            _ if flags == KEEP_SIZE | PUNCH_HOLE && within == 0 => Ok(()),
            _ if flags == KEEP_SIZE | PUNCH_HOLE => io(disk::punch_hole(file, start, within)),
            _ if flags & !KEEP_SIZE == ZERO_RANGE => {
                if within > 0 {
                    io(disk::zero_range(file, start, within))?;
                }
                if flags & KEEP_SIZE == 0 { longer() } else { Ok(()) }
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn seek(&mut self, handle: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let file = &self.handle(handle, false)?.file;
        let mut at = position(offset)?;
        let size = file.metadata().map_err(|error| of_io(&error))?.len();
        if at >= size {
            return Err(Errno::NXIO);
        }
        while at < size {
            let run = disk::run(file, at, size - at).map_err(|error| of_io(&error))?;
            if run.zeroes == (to == SeekTo::Hole) {
                return Ok(at);
            }
            at = at.saturating_add(run.length.max(1));
        }
        // Behind the end is a hole.
        if to == SeekTo::Hole { Ok(size) } else { Err(Errno::NXIO) }
    }

    fn read_directory(&mut self, handle: HandleId, offset: u64) -> Result<Vec<DirectoryEntry>, Errno> {
        let number = position(offset)?;
        let open = self.handles.get_mut(&handle).ok_or(Errno::BADF)?;
        let listing = open.listing.as_mut().ok_or(Errno::BADF)?;
        let mut entries = Vec::new();
        // What is above the folder is not the guest's to know; of those below it is what they were found in.
        let above = if open.node == ROOT { ROOT } else { self.nodes.parent_key(open.node).unwrap_or(ROOT) };
        for (entry, name, inode) in [(ITSELF, c".", calls::stat(&open.file)?.0.id), (ABOVE, c"..", above)] {
            if number <= entry {
                entries.push(DirectoryEntry { name: name.to_owned(), inode, kind: TYPE_FOLDER, next: entry + 1 });
            }
        }
        let mut next = number.max(FILES);
        loop {
            let found = listing.from(&open.file, next - FILES)?;
            if found.is_empty() {
                return Ok(entries);
            }
            for entry in found {
                next += 1;
                // Names that are no text are nobody's in the guest.
                let Some(name) = names::to_linux(&entry.name) else { continue };
                let kind = entry.kind.map_or(TYPE_UNKNOWN, Kind::directory_type);
                entries.push(DirectoryEntry { name, inode: entry.id, kind, next });
            }
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    fn statistics(&mut self, node: NodeId) -> Result<Statistics, Errno> {
        let room = calls::room(&*self.nodes.file(node)?)?;
        let [blocks, free, available] = room.units;
        Ok(Statistics {
            block_size: room.unit,
            fragment_size: room.unit,
            blocks,
            free,
            available,
            // Windows counts none.
            files: 0,
            files_free: 0,
            name_length: LONGEST_NAME,
        })
    }

    fn attribute(&mut self, _node: NodeId, _name: &CStr) -> Result<Vec<u8>, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn set_attribute(&mut self, _node: NodeId, _name: &CStr, _value: &[u8], _flags: u32) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn attribute_names(&mut self, _node: NodeId) -> Result<Vec<u8>, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn remove_attribute(&mut self, _node: NodeId, _name: &CStr) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }
}
