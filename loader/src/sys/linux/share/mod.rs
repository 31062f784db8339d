//! Shared folders. [`calls`] has what the system does.

mod calls;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs;
use rustix::fs::AtFlags;
use rustix::fs::FallocateFlags;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RawDir;
use rustix::fs::RenameFlags;
use rustix::fs::SeekFrom;
use rustix::fs::Stat;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

use self::calls::errno;
use self::calls::identity;
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
use crate::share::RenameMode;
use crate::share::SeekTo;
use crate::share::Statistics;
use crate::share::position;

/// Most files and folders that a guest can have open in a share, and most descriptors for those that it only knows of, as far as
/// the process may have so many.
const MOST_HANDLES: u64 = 8192;
const MOST_HELD: u64 = 16384;
/// Descriptors that are for everything else, and how many shares there may be at that.
const OTHERS: u64 = 512;
const SHARES: u64 = 16;

/// Bytes of a folder's entries that are read at once.
const ENTRIES: usize = 32 << 10;
/// Permissions, and those of them that have a program run with its owner's rights.
const PERMISSIONS: u32 = 0o7777;
const SUID: u32 = 0o6000;
const SGID: u32 = 0o2000;
/// Permissions of a folder that is not yet whose it shall be.
const PRIVATE: Mode = Mode::RWXU;

/// What extended attributes a guest can have: those that mean nothing to the host. Others are capabilities of programs, access
/// lists, labels.
const OWN_ATTRIBUTES: &[u8] = b"user.";

/// Opens a folder to be shared.
///
/// # Errors
/// It cannot be shared.
pub fn open(path: &Path, read_only: bool, mapping: Mapping) -> io::Result<Box<dyn FileSystem>> {
    Ok(Box::new(Folder::new(path, read_only, mapping)?))
}

/// How many descriptors a share may have: for files that are known, and for open ones. The process may have more than it has at
/// first, if it only says so; root may have more than it may have.
fn budget() -> (usize, usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = OTHERS + SHARES * (MOST_HANDLES + MOST_HELD);
    let current = limit.current.unwrap_or(wanted);
    let most = limit.maximum.unwrap_or(wanted);
    let raise = |to: u64| {
        let raised = Rlimit { current: Some(to), maximum: limit.maximum.map(|most| most.max(to)) };
        to > current && setrlimit(Resource::Nofile, raised).is_ok()
    };
    let have = [wanted, wanted.min(most)].into_iter().find(|&to| raise(to)).unwrap_or(current);
    let each = have.saturating_sub(OTHERS) / SHARES;
    let part = |most: u64, of: u64| usize::try_from(of.min(most)).unwrap_or(0).max(8);
    (part(MOST_HELD, each * 2 / 3), part(MOST_HANDLES, each / 3))
}

impl Held for OwnedFd {
    /// Device and inode.
    type Key = (u64, u64);
    type Kind = FileType;

    fn find(&self, name: &CStr) -> Result<(Self, Identity<Self>), Errno> {
        let found = calls::find(self.as_fd(), name)?;
        let stat = calls::stat(found.as_fd())?;
        Ok((found, identity(&stat)))
    }
}

/// What the guest has open.
#[derive(Debug)]
struct Handle {
    node: NodeId,
    file: OwnedFd,
    folder: bool,
}

/// A shared folder.
#[derive(Debug)]
struct Folder {
    nodes: Nodes<OwnedFd>,
    handles: HashMap<HandleId, Handle>,
    next_handle: HandleId,
    most_handles: usize,
    read_only: bool,
    mapping: Mapping,
    /// Whether we may give files away, and to whom those go that are shown as somebody else's.
    privileged: bool,
    owner: Owner,
    /// Devices that the folder's file systems are on, the folder's own first.
    devices: Vec<u64>,
}

impl Folder {
    fn new(path: &Path, read_only: bool, mapping: Mapping) -> io::Result<Self> {
        let root = fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if !calls::links_work(&root) {
            return Err(io::Error::other("sharing a folder takes /proc, which is not mounted"));
        }
        let stat = fs::fstat(&root)?;
        let (most_held, most_handles) = budget();
        let nodes = Nodes::new(root, identity(&stat), most_held);
        Ok(Self {
            nodes,
            handles: HashMap::new(),
            next_handle: 1,
            most_handles,
            read_only,
            mapping,
            privileged: rustix::process::geteuid().is_root(),
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            devices: vec![stat.st_dev],
        })
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Permissions that the guest may set for a file of this type.
    fn permissions(&self, mode: u32, kind: FileType) -> u32 {
        self.mapping.permissions(mode, kind == FileType::Directory)
    }

    /// What the guest sees of a file.
    fn shown(&mut self, stat: &Stat) -> Attributes {
        let device = self.devices.iter().position(|&device| device == stat.st_dev).unwrap_or_else(|| {
            self.devices.push(stat.st_dev);
            self.devices.len() - 1
        });
        Attributes {
            // Inodes of other file systems below the folder must not look the same.
            inode: stat.st_ino ^ ((device as u64) << 48),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            accessed: time(stat.st_atime, stat.st_atime_nsec),
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            owner: Owner { uid: self.mapping.uid.unwrap_or(stat.st_uid), gid: self.mapping.gid.unwrap_or(stat.st_gid) },
            device: 0,
            block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
        }
    }

    /// Tells the guest of a file.
    fn enter(&mut self, parent: NodeId, name: &CStr, file: OwnedFd) -> Result<Entry, Errno> {
        let stat = calls::stat(file.as_fd())?;
        let node = self.nodes.enter(parent, name, file, identity(&stat))?;
        Ok(Entry { node, attributes: self.shown(&stat) })
    }

    /// Makes a new file's owner and permissions what they shall be.
    fn settle(&self, file: BorrowedFd<'_>, parent: &Stat, owner: Owner, mode: u32) -> Result<(), Errno> {
        let made = calls::stat(file)?;
        let kind = calls::kind(&made);
        // A file system without owners has its own; or somebody on the host has put another file in the place of the one that
        // was made. That keeps what it has.
        let ours = made.st_uid == rustix::process::geteuid().as_raw();
        if !ours || (kind != FileType::Directory && made.st_nlink != 1) {
            return Ok(());
        }
        // Not every file system has owners and permissions to be set.
        let may_be_refused = |result| if result == Err(Errno::PERM) { Ok(()) } else { result };
        if self.privileged {
            let uid = if self.mapping.uid.is_some() { self.owner.uid } else { owner.uid };
            let gid = if self.mapping.gid.is_some() { self.owner.gid } else { owner.gid };
            // A folder may say that what is made in it is its group's.
            let inherits = parent.st_mode & SGID != 0;
            may_be_refused(calls::set_owner(file, Some(uid), Some(gid).filter(|_| !inherits)))?;
        }
        if kind == FileType::Symlink {
            return Ok(());
        }
        let inherited = if kind == FileType::Directory { made.st_mode & SGID } else { 0 };
        may_be_refused(calls::set_mode(file, self.permissions(mode, kind) | inherited))
    }

    fn handle(&self, handle: HandleId, folder: bool) -> Result<BorrowedFd<'_>, Errno> {
        let handle = self.handles.get(&handle).filter(|handle| handle.folder == folder).ok_or(Errno::BADF)?;
        Ok(handle.file.as_fd())
    }

    /// A handle of this very file, if the guest has one.
    fn handle_of(&self, node: NodeId, handle: Option<HandleId>) -> Option<BorrowedFd<'_>> {
        let handle = self.handles.get(&handle?).filter(|handle| handle.node == node)?;
        Some(handle.file.as_fd())
    }

    fn has_room(&self) -> Result<(), Errno> {
        if self.handles.len() < self.most_handles { Ok(()) } else { Err(Errno::NFILE) }
    }

    fn keep(&mut self, node: NodeId, file: OwnedFd, folder: bool) -> HandleId {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { node, file, folder });
        self.nodes.opened(node);
        handle
    }

    /// Opens a file of a type that can be, and nothing else: a pipe or a device would do something.
    fn open_file(&mut self, node: NodeId, how: Opening) -> Result<OwnedFd, Errno> {
        if how.write {
            self.writable()?;
        }
        let (file, kind) = self.nodes.typed(node)?;
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::ACCES),
        }
        if how.write {
            self.disarm(file.as_fd())?;
        }
        calls::open_file(file.as_fd(), how)
    }

    /// Takes from a program that the guest is about to change the right to run with its owner's.
    fn disarm(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let mode = calls::stat(file)?.st_mode;
        if mode & SUID == 0 || self.mapping.suid {
            return Ok(());
        }
        calls::set_mode(file, mode & PERMISSIONS & !SUID)
    }

    fn set_size(&mut self, node: NodeId, handle: Option<HandleId>, size: u64) -> Result<(), Errno> {
        if let Some(Ok(())) = self.handle_of(node, handle).map(|file| fs::ftruncate(file, size)) {
            return Ok(());
        }
        let file = self.open_file(node, Opening { write: true, ..Opening::default() })?;
        fs::ftruncate(&file, size).map_err(errno)
    }

    fn set_owner(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let (uid, gid) = self.mapping.owners(uid, gid)?;
        if uid.is_some() || gid.is_some() { calls::set_owner(file, uid, gid) } else { Ok(()) }
    }

    /// A file that has extended attributes which the guest may use.
    fn with_attributes(&mut self, node: NodeId, name: Option<&CStr>) -> Result<std::sync::Arc<OwnedFd>, Errno> {
        if name.is_some_and(|name| !name.to_bytes().starts_with(OWN_ATTRIBUTES)) {
            return Err(Errno::OPNOTSUPP);
        }
        match self.nodes.typed(node)? {
            (file, FileType::RegularFile | FileType::Directory) => Ok(file),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

fn time(seconds: i64, nanoseconds: u64) -> (i64, u32) {
    (seconds, u32::try_from(nanoseconds).unwrap_or(0))
}

impl FileSystem for Folder {
    fn lookup(&mut self, parent: NodeId, name: &CStr) -> Result<Entry, Errno> {
        let folder = self.nodes.file(parent)?;
        let file = calls::find(folder.as_fd(), name)?;
        self.enter(parent, name, file)
    }

    fn forget(&mut self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn forget_all(&mut self) {
        self.handles.clear();
        self.nodes.forget_all();
    }

    fn attributes(&mut self, node: NodeId, handle: Option<HandleId>) -> Result<Attributes, Errno> {
        let stat = match self.handle_of(node, handle) {
            Some(file) => calls::stat(file)?,
            None => calls::stat(self.nodes.file(node)?.as_fd())?,
        };
        Ok(self.shown(&stat))
    }

    fn change(&mut self, node: NodeId, handle: Option<HandleId>, changes: &Changes) -> Result<Attributes, Errno> {
        self.writable()?;
        let (file, kind) = self.nodes.typed(node)?;
        let file = file.as_fd();
        if let Some(size) = changes.size {
            self.set_size(node, handle, position(size)?)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.set_owner(file, changes.uid, changes.gid)?;
        }
        if let Some(mode) = changes.mode {
            if kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            calls::set_mode(file, self.permissions(mode, kind))?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            calls::set_times(file, changes.accessed, changes.modified)?;
        }
        self.attributes(node, handle)
    }

    fn read_link(&mut self, node: NodeId) -> Result<Vec<u8>, Errno> {
        match self.nodes.typed(node)? {
            (file, FileType::Symlink) => calls::read_link(file.as_fd()),
            _ => Err(Errno::INVAL),
        }
    }

    fn make(&mut self, parent: NodeId, name: &CStr, new: New<'_>, owner: Owner) -> Result<Entry, Errno> {
        self.writable()?;
        let folder = self.nodes.file(parent)?;
        let folder = folder.as_fd();
        let above = calls::stat(folder)?;
        let node = |kind| fs::mknodat(folder, name, kind, Mode::empty(), 0).map_err(errno);
        let mode = match new {
            New::Directory { mode } => {
                fs::mkdirat(folder, name, PRIVATE).map_err(errno)?;
                mode
            }
            New::Symlink { target } => {
                fs::symlinkat(target, folder, name).map_err(errno)?;
                0
            }
            New::Node { kind: NodeKind::Regular, mode } => {
                // An open file is the one that was made, whatever has its name by now.
                let how = Opening { write: true, exclusive: true, ..Opening::default() };
                let file = calls::create(folder, name, how)?;
                self.settle(file.as_fd(), &above, owner, mode)?;
                return self.lookup(parent, name);
            }
            New::Node { kind: NodeKind::Fifo, mode } => node(FileType::Fifo).map(|()| mode)?,
            New::Node { kind: NodeKind::Socket, mode } => node(FileType::Socket).map(|()| mode)?,
        };
        let file = calls::find(folder, name)?;
        let found = calls::stat(file.as_fd())?;
        // Made without any permission: what has some is another file, put in its place by somebody on the host.
        let replaced = matches!(new, New::Node { .. }) && found.st_mode & PERMISSIONS != 0;
        if !replaced {
            self.settle(file.as_fd(), &above, owner, mode)?;
        }
        self.enter(parent, name, file)
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
        let folder = self.nodes.file(parent)?;
        match calls::create(folder.as_fd(), name, how) {
            Ok(file) => {
                self.settle(file.as_fd(), &calls::stat(folder.as_fd())?, owner, mode)?;
                // What has the name now may be another file, if the host is busy with it: then it is that one.
                let entry = self.lookup(parent, name)?;
                let known = calls::stat(self.nodes.file(entry.node)?.as_fd())?;
                if identity(&known) == identity(&calls::stat(file.as_fd())?) {
                    return Ok((entry, self.keep(entry.node, file, false)));
                }
                self.forget(entry.node, 1);
                Err(Errno::STALE)
            }
            // The host has made it meanwhile.
            Err(Errno::EXIST) if !how.exclusive => {
                let entry = self.lookup(parent, name)?;
                let opened = self.open_file(entry.node, how);
                let file = opened.inspect_err(|_| self.nodes.forget(entry.node, 1))?;
                let attributes = self.shown(&calls::stat(file.as_fd())?);
                Ok((Entry { attributes, ..entry }, self.keep(entry.node, file, false)))
            }
            Err(error) => Err(error),
        }
    }

    fn unlink(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        let folder = self.nodes.file(parent)?;
        fs::unlinkat(&*folder, name, AtFlags::empty()).map_err(errno)
    }

    fn remove_directory(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        let folder = self.nodes.file(parent)?;
        fs::unlinkat(&*folder, name, AtFlags::REMOVEDIR).map_err(errno)
    }

    fn rename(&mut self, from: (NodeId, &CStr), to: (NodeId, &CStr), mode: RenameMode) -> Result<(), Errno> {
        self.writable()?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::Keep => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        let (old, new) = (self.nodes.file(from.0)?, self.nodes.file(to.0)?);
        fs::renameat_with(&*old, from.1, &*new, to.1, flags).map_err(errno)?;
        for (folder, (parent, name)) in [(&new, to), (&old, from)] {
            if let Ok(stat) = calls::stat_name(folder.as_fd(), name) {
                self.nodes.moved(identity(&stat).0, parent, name);
            }
        }
        Ok(())
    }

    fn link(&mut self, node: NodeId, parent: NodeId, name: &CStr) -> Result<Entry, Errno> {
        self.writable()?;
        let (file, folder) = (self.nodes.file(node)?, self.nodes.file(parent)?);
        calls::link(file.as_fd(), folder.as_fd(), name)?;
        self.lookup(parent, name)
    }

    fn open(&mut self, node: NodeId, how: Opening) -> Result<HandleId, Errno> {
        self.has_room()?;
        let file = self.open_file(node, how)?;
        Ok(self.keep(node, file, false))
    }

    fn open_directory(&mut self, node: NodeId) -> Result<HandleId, Errno> {
        self.has_room()?;
        let (folder, kind) = self.nodes.typed(node)?;
        if kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let file = calls::open_folder(folder.as_fd())?;
        Ok(self.keep(node, file, true))
    }

    fn release(&mut self, handle: HandleId) {
        if let Some(handle) = self.handles.remove(&handle) {
            self.nodes.closed(handle.node);
        }
    }

    fn read(&mut self, handle: HandleId, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let file = self.handle(handle, false)?;
        let offset = position(offset)?;
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(file, &mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) if done == 0 => return Err(errno(error)),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write(&mut self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.writable()?;
        let file = self.handle(handle, false)?;
        let offset = position(offset)?;
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(file, &bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) if done == 0 => return Err(errno(error)),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn sync(&mut self, handle: HandleId, data_only: bool) -> Result<(), Errno> {
        let file = &self.handles.get(&handle).ok_or(Errno::BADF)?.file;
        if data_only { fs::fdatasync(file) } else { fs::fsync(file) }.map_err(errno)
    }

    fn sync_all(&mut self) -> Result<(), Errno> {
        let folder = calls::open_folder(self.nodes.file(crate::share::ROOT)?.as_fd())?;
        fs::syncfs(&folder).map_err(errno)
    }

    fn allocate(&mut self, handle: HandleId, flags: u32, offset: u64, length: u64) -> Result<(), Errno> {
        self.writable()?;
        let allowed = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let flags = FallocateFlags::from_bits(flags).filter(|&flags| allowed.contains(flags));
        let flags = flags.ok_or(Errno::OPNOTSUPP)?;
        fs::fallocate(self.handle(handle, false)?, flags, position(offset)?, position(length)?).map_err(errno)
    }

    fn seek(&mut self, handle: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let offset = position(offset)?;
        let to = match to {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        };
        fs::seek(self.handle(handle, false)?, to).map_err(errno)
    }

    fn read_directory(&mut self, handle: HandleId, offset: u64) -> Result<Vec<DirectoryEntry>, Errno> {
        let of_root = self.handles.get(&handle).is_some_and(|handle| handle.node == crate::share::ROOT);
        let folder = self.handle(handle, true)?;
        fs::seek(folder, SeekFrom::Start(position(offset)?)).map_err(errno)?;
        let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
        let mut raw = RawDir::new(folder, &mut buffer);
        let mut entries = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(errno)?;
            let name = entry.file_name().to_owned();
            // What is above the folder is not the guest's to know.
            let above = of_root && name.to_bytes() == b"..";
            entries.push(DirectoryEntry {
                inode: if above { crate::share::ROOT } else { entry.ino() },
                kind: kind_number(entry.file_type()),
                next: entry.next_entry_cookie(),
                name,
            });
            if raw.is_buffer_empty() {
                break;
            }
        }
        Ok(entries)
    }

    fn statistics(&mut self, node: NodeId) -> Result<Statistics, Errno> {
        let of = fs::fstatvfs(&*self.nodes.file(node)?).map_err(errno)?;
        Ok(Statistics {
            block_size: u32::try_from(of.f_bsize).unwrap_or(4096),
            fragment_size: u32::try_from(of.f_frsize).unwrap_or(4096),
            blocks: of.f_blocks,
            free: of.f_bfree,
            available: of.f_bavail,
            files: of.f_files,
            files_free: of.f_ffree,
            name_length: u32::try_from(of.f_namemax).unwrap_or(255),
        })
    }

    fn attribute(&mut self, node: NodeId, name: &CStr) -> Result<Vec<u8>, Errno> {
        calls::attribute(self.with_attributes(node, Some(name))?.as_fd(), name)
    }

    fn set_attribute(&mut self, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        self.writable()?;
        calls::set_attribute(self.with_attributes(node, Some(name))?.as_fd(), name, value, flags)
    }

    fn attribute_names(&mut self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let names = calls::attribute_names(self.with_attributes(node, None)?.as_fd())?;
        let own = names.split_inclusive(|&byte| byte == 0).filter(|name| name.starts_with(OWN_ATTRIBUTES));
        Ok(own.flatten().copied().collect())
    }

    fn remove_attribute(&mut self, node: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        calls::remove_attribute(self.with_attributes(node, Some(name))?.as_fd(), name)
    }
}

/// `DT_…` of a type: the upper bits of a mode.
fn kind_number(kind: FileType) -> u8 {
    u8::try_from(kind.as_raw_mode() >> 12).unwrap_or(0)
}
