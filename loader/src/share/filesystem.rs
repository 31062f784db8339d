//! What the host's file system has to do for a guest.

use std::ffi::CStr;
use std::ffi::CString;

use super::Errno;

/// A file or folder that the guest knows of.
pub type NodeId = u64;
/// A file or folder that the guest has open.
pub type HandleId = u64;

/// The shared folder itself.
pub const ROOT: NodeId = 1;

/// Whose a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What stat(2) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The file's number, different for each file of a share.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that it takes.
    pub blocks: u64,
    /// Seconds and nanoseconds of the last read.
    pub accessed: (i64, u32),
    /// Of the last write.
    pub modified: (i64, u32),
    /// Of the last change of anything.
    pub changed: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Whose it is for the guest.
    pub owner: Owner,
    /// A device's number.
    pub device: u32,
    /// Bytes that are best read at once.
    pub block_size: u32,
}

/// A file that was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What to name it by.
    pub node: NodeId,
    /// What it is.
    pub attributes: Attributes,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The host's.
    Now,
    /// This one.
    At {
        /// Seconds from 1970.
        seconds: i64,
        /// Less than a thousand million.
        nanoseconds: u32,
    },
}

/// What to change of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permissions.
    pub mode: Option<u32>,
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// When it was read.
    pub accessed: Option<Time>,
    /// When it was written.
    pub modified: Option<Time>,
}

/// Files that are made by mknod(2). Devices are not: on the host they would be doors to its hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A file, empty.
    Regular,
    /// A named pipe, with the host's processes not at its other end.
    Fifo,
    /// The name of a socket.
    Socket,
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New<'a> {
    /// A folder.
    Directory {
        /// Permissions.
        mode: u32,
    },
    /// A symbolic link, which nobody follows here.
    Symlink {
        /// What is in it.
        target: &'a CStr,
    },
    /// Another file.
    Node {
        /// Which.
        kind: NodeKind,
        /// Permissions.
        mode: u32,
    },
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Emptied first.
    pub truncate: bool,
    /// Made, so that it must not be there.
    pub exclusive: bool,
    /// What is written lasts when it is told to be.
    pub sync: bool,
}

/// What becomes of a file that has the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It stays, and the renaming fails.
    Keep,
    /// It gets the old name.
    Exchange,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: CString,
    /// The file's number.
    pub inode: u64,
    /// The file's type, as in the upper bits of a mode, shifted down (`DT_…`).
    pub kind: u8,
    /// Where the next entry is.
    pub next: u64,
}

/// What statfs(2) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of a fragment, the unit of the numbers.
    pub fragment_size: u32,
    /// Fragments.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those that are free for users.
    pub available: u64,
    /// Files that there can be.
    pub files: u64,
    /// Files that can still be.
    pub files_free: u64,
    /// Bytes of the longest name.
    pub name_length: u32,
}

/// A place in a file that lseek(2), pread(2) and their like take.
pub(crate) fn position(offset: u64) -> Result<u64, Errno> {
    i64::try_from(offset).map(i64::cast_unsigned).map_err(|_| Errno::INVAL)
}

/// A shared folder of the host's. All names are one name each: not empty, without `/`, neither `.` nor `..`. It reaches nothing
/// outside of the folder, whatever else uses the folder meanwhile; it follows no symbolic link; and it bounds what it keeps.
pub trait FileSystem: Send {
    /// Finds a file; the guest knows it once more.
    ///
    /// # Errors
    /// The host's.
    fn lookup(&mut self, parent: NodeId, name: &CStr) -> Result<Entry, Errno>;

    /// The guest knows the file `count` times less.
    fn forget(&mut self, node: NodeId, count: u64);

    /// The guest knows nothing any more and has nothing open.
    fn forget_all(&mut self);

    /// What a file is; `handle` is one of it, if the guest has it open.
    ///
    /// # Errors
    /// The host's.
    fn attributes(&mut self, node: NodeId, handle: Option<HandleId>) -> Result<Attributes, Errno>;

    /// Changes what a file is.
    ///
    /// # Errors
    /// The host's.
    fn change(&mut self, node: NodeId, handle: Option<HandleId>, changes: &Changes) -> Result<Attributes, Errno>;

    /// What is in a symbolic link.
    ///
    /// # Errors
    /// The host's.
    fn read_link(&mut self, node: NodeId) -> Result<Vec<u8>, Errno>;

    /// Makes what was not there.
    ///
    /// # Errors
    /// The host's.
    fn make(&mut self, parent: NodeId, name: &CStr, new: New<'_>, owner: Owner) -> Result<Entry, Errno>;

    /// Makes a file, or finds it, and opens it.
    ///
    /// # Errors
    /// The host's.
    fn create(
        &mut self,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        how: Opening,
        owner: Owner,
    ) -> Result<(Entry, HandleId), Errno>;

    /// Takes a name away that is no folder's.
    ///
    /// # Errors
    /// The host's.
    fn unlink(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno>;

    /// Takes an empty folder away.
    ///
    /// # Errors
    /// The host's.
    fn remove_directory(&mut self, parent: NodeId, name: &CStr) -> Result<(), Errno>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// The host's.
    fn rename(&mut self, from: (NodeId, &CStr), to: (NodeId, &CStr), mode: RenameMode) -> Result<(), Errno>;

    /// Gives a file one more name.
    ///
    /// # Errors
    /// The host's.
    fn link(&mut self, node: NodeId, parent: NodeId, name: &CStr) -> Result<Entry, Errno>;

    /// Opens a file; nothing but files.
    ///
    /// # Errors
    /// The host's.
    fn open(&mut self, node: NodeId, how: Opening) -> Result<HandleId, Errno>;

    /// Opens a folder.
    ///
    /// # Errors
    /// The host's.
    fn open_directory(&mut self, node: NodeId) -> Result<HandleId, Errno>;

    /// Closes what was opened.
    fn release(&mut self, handle: HandleId);

    /// Reads a file; less than was asked for only at its end.
    ///
    /// # Errors
    /// The host's.
    fn read(&mut self, handle: HandleId, offset: u64, into: &mut [u8]) -> Result<usize, Errno>;

    /// Writes a file.
    ///
    /// # Errors
    /// The host's.
    fn write(&mut self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, Errno>;

    /// Has the storage keep what was written: all of it, or its data only.
    ///
    /// # Errors
    /// The host's.
    fn sync(&mut self, handle: HandleId, data_only: bool) -> Result<(), Errno>;

    /// Has the storage keep all that was written.
    ///
    /// # Errors
    /// The host's.
    fn sync_all(&mut self) -> Result<(), Errno>;

    /// fallocate(2), with its flags.
    ///
    /// # Errors
    /// The host's.
    fn allocate(&mut self, handle: HandleId, flags: u32, offset: u64, length: u64) -> Result<(), Errno>;

    /// Where data or a hole is.
    ///
    /// # Errors
    /// The host's.
    fn seek(&mut self, handle: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno>;

    /// Some entries of a folder, from `offset` on, which is 0 or an entry's [`DirectoryEntry::next`]; none at its end.
    ///
    /// # Errors
    /// The host's.
    fn read_directory(&mut self, handle: HandleId, offset: u64) -> Result<Vec<DirectoryEntry>, Errno>;

    /// What room there is.
    ///
    /// # Errors
    /// The host's.
    fn statistics(&mut self, node: NodeId) -> Result<Statistics, Errno>;

    /// An extended attribute's value.
    ///
    /// # Errors
    /// The host's.
    fn attribute(&mut self, node: NodeId, name: &CStr) -> Result<Vec<u8>, Errno>;

    /// Sets one, with the flags of setxattr(2).
    ///
    /// # Errors
    /// The host's.
    fn set_attribute(&mut self, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno>;

    /// The names of all, each with a NUL behind it.
    ///
    /// # Errors
    /// The host's.
    fn attribute_names(&mut self, node: NodeId) -> Result<Vec<u8>, Errno>;

    /// Takes one away.
    ///
    /// # Errors
    /// The host's.
    fn remove_attribute(&mut self, node: NodeId, name: &CStr) -> Result<(), Errno>;
}
