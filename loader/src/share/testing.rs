//! A guest's side of the protocol, for tests.

use std::path::Path;
use std::sync::Arc;

use fuse_abi::linux as fuse;
use fuse_abi::linux::fuse_opcode as code;
use tempfile::TempDir;
use zerocopy::FromBytes;
use zerocopy::FromZeros;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use super::HandleId;
use super::Mapping;
use super::NodeId;
use super::Server;
use crate::sys::share;

/// Flags of open(2).
pub(crate) const O_RDONLY: u32 = 0;
pub(crate) const O_RDWR: u32 = 2;
pub(crate) const O_EXCL: u32 = 0o200;
pub(crate) const O_TRUNC: u32 = 0o1000;

/// A message as the guest's kernel makes it.
pub(crate) fn message(opcode: u32, unique: u64, node: NodeId, arguments: &[&[u8]]) -> Vec<u8> {
    let mut header = fuse::fuse_in_header::new_zeroed();
    (header.opcode, header.unique, header.nodeid) = (opcode, unique, node);
    header.len = u32::try_from(size_of_val(&header) + arguments.concat().len()).unwrap();
    [header.as_bytes(), &arguments.concat()].concat()
}

/// A guest that has mounted a temporary folder.
pub(crate) struct Guest {
    pub(crate) server: Server,
    /// Of who made it, unless another folder is shared.
    pub(crate) folder: Arc<TempDir>,
    unique: u64,
}

/// An entry that the guest got.
pub(crate) type Got = fuse::fuse_entry_out;

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(false, Mapping::default())
    }

    pub(crate) fn with(read_only: bool, mapping: Mapping) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::in_folder(Arc::clone(&folder), folder.path(), read_only, mapping)
    }

    /// One that has this folder.
    #[cfg(target_os = "linux")]
    pub(crate) fn of(path: &Path, read_only: bool, mapping: Mapping) -> Self {
        Self::in_folder(Arc::new(tempfile::tempdir().unwrap()), path, read_only, mapping)
    }

    /// One that has the same folder, by another share.
    #[cfg(target_os = "linux")]
    pub(crate) fn beside(other: &Self) -> Self {
        Self::in_folder(Arc::clone(&other.folder), other.folder.path(), false, Mapping::default())
    }

    fn in_folder(folder: Arc<TempDir>, path: &Path, read_only: bool, mapping: Mapping) -> Self {
        let files = share::open(path, read_only, mapping).unwrap();
        let mut guest = Self { server: Server::new(files, read_only), folder, unique: 0 };
        guest.begin();
        guest
    }

    pub(crate) fn begin(&mut self) {
        let mut init = fuse::fuse_init_in::new_zeroed();
        (init.major, init.minor, init.flags) = (7, 38, u32::MAX);
        let out: fuse::fuse_init_out = self.ask(code::FUSE_INIT, 0, &[init.as_bytes()]).unwrap();
        assert_eq!((out.major, out.max_pages), (7, super::MOST_PAGES));
    }

    /// A file of the folder's, as the host sees it.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Sends a message; the answer without its header, or the error.
    pub(crate) fn send(&mut self, opcode: code, node: NodeId, arguments: &[&[u8]]) -> Result<Vec<u8>, u16> {
        self.send_raw(opcode as u32, node, arguments)
    }

    pub(crate) fn send_raw(&mut self, opcode: u32, node: NodeId, arguments: &[&[u8]]) -> Result<Vec<u8>, u16> {
        self.unique += 1;
        let mut answer = Vec::new();
        let message = message(opcode, self.unique, node, arguments);
        self.server.serve(&message, super::MOST_REPLY, &mut answer).unwrap();
        let (header, rest) = fuse::fuse_out_header::read_from_prefix(&answer).unwrap();
        assert_eq!((header.len as usize, header.unique), (answer.len(), self.unique));
        if header.error == 0 {
            return Ok(rest.to_vec());
        }
        assert!(rest.is_empty());
        Err(u16::try_from(-header.error).unwrap())
    }

    pub(crate) fn ask<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        opcode: code,
        node: NodeId,
        arguments: &[&[u8]],
    ) -> Result<T, u16> {
        self.send(opcode, node, arguments).map(|answer| T::read_from_bytes(&answer).unwrap())
    }

    pub(crate) fn lookup(&mut self, parent: NodeId, name: &[u8]) -> Result<Got, u16> {
        self.ask(code::FUSE_LOOKUP, parent, &[name, b"\0"])
    }

    /// A way down from the folder itself.
    pub(crate) fn walk(&mut self, path: &str) -> Result<NodeId, u16> {
        let mut node = super::ROOT;
        for name in Path::new(path) {
            node = self.lookup(node, name.as_encoded_bytes())?.nodeid;
        }
        Ok(node)
    }

    pub(crate) fn make_directory(&mut self, parent: NodeId, name: &[u8], mode: u32) -> Result<Got, u16> {
        let make = fuse::fuse_mkdir_in { mode, umask: 0 };
        self.ask(code::FUSE_MKDIR, parent, &[make.as_bytes(), name, b"\0"])
    }

    pub(crate) fn make_node(&mut self, parent: NodeId, name: &[u8], mode: u32) -> Result<Got, u16> {
        let make = fuse::fuse_mknod_in { mode, rdev: 0x103, umask: 0, padding: 0 };
        self.ask(code::FUSE_MKNOD, parent, &[make.as_bytes(), name, b"\0"])
    }

    pub(crate) fn symlink(&mut self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Got, u16> {
        self.ask(code::FUSE_SYMLINK, parent, &[name, b"\0", target, b"\0"])
    }

    pub(crate) fn create(
        &mut self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<(NodeId, HandleId), u16> {
        let create = fuse::fuse_create_in { flags, mode, umask: 0, open_flags: 0 };
        let answer = self.send(code::FUSE_CREATE, parent, &[create.as_bytes(), name, b"\0"])?;
        let (entry, rest) = Got::read_from_prefix(&answer).unwrap();
        Ok((entry.nodeid, fuse::fuse_open_out::read_from_bytes(rest).unwrap().fh))
    }

    pub(crate) fn open(&mut self, node: NodeId, flags: u32) -> Result<HandleId, u16> {
        let open = fuse::fuse_open_in { flags, open_flags: 0 };
        self.ask(code::FUSE_OPEN, node, &[open.as_bytes()]).map(|out: fuse::fuse_open_out| out.fh)
    }

    pub(crate) fn release(&mut self, opcode: code, node: NodeId, handle: HandleId) -> Result<Vec<u8>, u16> {
        let mut release = fuse::fuse_release_in::new_zeroed();
        release.fh = handle;
        self.send(opcode, node, &[release.as_bytes()])
    }

    pub(crate) fn write(&mut self, node: NodeId, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize, u16> {
        let mut write = fuse::fuse_write_in::new_zeroed();
        (write.fh, write.offset, write.size) = (handle, offset, u32::try_from(data.len()).unwrap());
        let out: fuse::fuse_write_out = self.ask(code::FUSE_WRITE, node, &[write.as_bytes(), data])?;
        Ok(out.size as usize)
    }

    pub(crate) fn read(&mut self, node: NodeId, handle: HandleId, offset: u64, size: u32) -> Result<Vec<u8>, u16> {
        self.read_by(code::FUSE_READ, node, handle, offset, size)
    }

    pub(crate) fn read_by(
        &mut self,
        opcode: code,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, u16> {
        let mut read = fuse::fuse_read_in::new_zeroed();
        (read.fh, read.offset, read.size) = (handle, offset, size);
        self.send(opcode, node, &[read.as_bytes()])
    }

    pub(crate) fn attributes(&mut self, node: NodeId) -> Result<fuse::fuse_attr, u16> {
        let get = fuse::fuse_getattr_in::new_zeroed();
        self.ask(code::FUSE_GETATTR, node, &[get.as_bytes()]).map(|out: fuse::fuse_attr_out| out.attr)
    }

    pub(crate) fn change(
        &mut self,
        node: NodeId,
        valid: u32,
        set: impl FnOnce(&mut fuse::fuse_setattr_in),
    ) -> Result<fuse::fuse_attr, u16> {
        let mut change = fuse::fuse_setattr_in::new_zeroed();
        change.valid = valid;
        set(&mut change);
        self.ask(code::FUSE_SETATTR, node, &[change.as_bytes()]).map(|out: fuse::fuse_attr_out| out.attr)
    }

    pub(crate) fn rename(
        &mut self,
        (parent, name): (NodeId, &[u8]),
        (to, new_name): (NodeId, &[u8]),
        flags: u32,
    ) -> Result<Vec<u8>, u16> {
        let rename = fuse::fuse_rename2_in { newdir: to, flags, padding: 0 };
        self.send(code::FUSE_RENAME2, parent, &[rename.as_bytes(), name, b"\0", new_name, b"\0"])
    }

    pub(crate) fn link(&mut self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Got, u16> {
        let link = fuse::fuse_link_in { oldnodeid: node };
        self.ask(code::FUSE_LINK, parent, &[link.as_bytes(), name, b"\0"])
    }

    pub(crate) fn unlink(&mut self, parent: NodeId, name: &[u8]) -> Result<Vec<u8>, u16> {
        self.send(code::FUSE_UNLINK, parent, &[name, b"\0"])
    }

    /// The names in a folder, in reads of `size` bytes.
    pub(crate) fn list(&mut self, node: NodeId, size: u32, plus: bool) -> Result<Vec<(String, NodeId)>, u16> {
        let open = fuse::fuse_open_in::new_zeroed();
        let opened: fuse::fuse_open_out = self.ask(code::FUSE_OPENDIR, node, &[open.as_bytes()])?;
        let opcode = if plus { code::FUSE_READDIRPLUS } else { code::FUSE_READDIR };
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let bytes = self.read_by(opcode, node, opened.fh, offset, size)?;
            assert!(bytes.len() <= size as usize);
            if bytes.is_empty() {
                break;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let start = rest;
                let mut known = 0;
                if plus {
                    let (entry, after) = Got::read_from_prefix(rest).unwrap();
                    (known, rest) = (entry.nodeid, after);
                }
                let ([_inode, next], after) = <[u64; 2]>::read_from_prefix(rest).unwrap();
                let ([length, _kind], after) = <[u32; 2]>::read_from_prefix(after).unwrap();
                let name = String::from_utf8(after[..length as usize].to_vec()).unwrap();
                let taken = (start.len() - after.len() + name.len()).next_multiple_of(8);
                names.push((name, known));
                (rest, offset) = (&start[taken..], next);
            }
        }
        self.release(code::FUSE_RELEASEDIR, node, opened.fh)?;
        Ok(names)
    }
}
