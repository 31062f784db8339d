//! Messages of FUSE, from the guest's kernel (`linux/fuse.h`), taken apart and checked as a whole before anything is done.

use std::ffi::CStr;
use std::mem::size_of;

use fuse_abi::linux as fuse;
use fuse_abi::linux::fuse_opcode as code;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::KnownLayout;

use super::Changes;
use super::Errno;
use super::HandleId;
use super::New;
use super::NodeId;
use super::NodeKind;
use super::Opening;
use super::Owner;
use super::RenameMode;
use super::SeekTo;
use super::Time;

/// Most bytes that are written or read at once.
pub const MOST_DATA: usize = 512 << 10;
/// Most bytes of a message: a write, with what comes before its data. The value of an attribute and lists of files to forget
/// are less.
pub const MOST_REQUEST: usize = MOST_DATA + 4096;

/// Longest name of a file (`NAME_MAX`), of what a symbolic link leads to (`PATH_MAX`, its NUL counted), of an attribute and its
/// value (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const LONGEST_NAME: usize = 255;
const LONGEST_TARGET: usize = 4095;
const LONGEST_ATTRIBUTE_NAME: usize = 255;
const LARGEST_ATTRIBUTE: usize = 64 << 10;

/// Types of files in a mode (inode(7)).
const TYPE_MASK: u32 = 0o170_000;
const TYPE_FIFO: u32 = 0o010_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SOCKET: u32 = 0o140_000;
/// The rest of a mode.
const PERMISSIONS: u32 = 0o7777;

/// Flags of open(2), as x86 numbers them.
const ACCESS: u32 = 0o3;
const READ_ONLY: u32 = 0o0;
const WRITE_ONLY: u32 = 0o1;
const READ_WRITE: u32 = 0o2;
const EXCLUSIVE: u32 = 0o200;
const TRUNCATE: u32 = 0o1000;
const DATA_SYNC: u32 = 0o10_000;
const SYNC: u32 = 0o4_000_000;

/// Flags of renameat2(2).
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

/// Flags of setxattr(2): it must not be there, it must be there.
const ATTRIBUTE_FLAGS: u32 = 3;

/// What lseek(2) is asked for.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

const NANOSECONDS: u32 = 1_000_000_000;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its number, which the answer has too.
    pub unique: u64,
    /// The file that it is about.
    pub node: NodeId,
    /// Who asks.
    pub owner: Owner,
    /// What is asked for.
    pub operation: Operation<'a>,
}

/// What is asked for. The file that it is about, if any, is [`Request::node`]: for names the folder that they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The guest begins.
    Init {
        /// The version that it speaks.
        major: u32,
        /// Its additions.
        minor: u32,
        /// What it can do besides.
        flags: u32,
        /// Bytes that it reads ahead.
        read_ahead: u32,
    },
    /// The guest ends.
    Destroy,
    /// Look a name up.
    Lookup(&'a CStr),
    /// The guest knows files less often than before.
    Forget(Vec<(NodeId, u64)>),
    /// What a file is.
    GetAttributes(Option<HandleId>),
    /// Change what a file is.
    SetAttributes(Option<HandleId>, Changes),
    /// What is in a symbolic link.
    ReadLink,
    /// Make something.
    Make(&'a CStr, New<'a>),
    /// Make what we do not make.
    MakeDevice,
    /// Take a name away.
    Unlink(&'a CStr),
    /// Take an empty folder away.
    RemoveDirectory(&'a CStr),
    /// Give a file another name.
    Rename {
        /// The old one.
        name: &'a CStr,
        /// The new one's folder.
        to: NodeId,
        /// The new one.
        new_name: &'a CStr,
        /// What of a file that has it.
        mode: RenameMode,
    },
    /// Give a file one more name, in the folder that the message is about.
    Link {
        /// The file.
        node: NodeId,
        /// The name.
        name: &'a CStr,
    },
    /// Open a file.
    Open(Opening),
    /// Make a file and open it.
    Create {
        /// Its name.
        name: &'a CStr,
        /// Its permissions.
        mode: u32,
        /// How.
        how: Opening,
    },
    /// Read a file.
    Read {
        /// The open file.
        handle: HandleId,
        /// Where.
        offset: u64,
        /// How many bytes.
        size: usize,
    },
    /// Write a file.
    Write {
        /// The open file.
        handle: HandleId,
        /// Where.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// What room there is.
    Statistics,
    /// Close a file or folder.
    Release(HandleId),
    /// A file of the guest's was closed: nothing is left to do for us.
    Flush,
    /// Have the storage keep what was written.
    Sync {
        /// The open file or folder.
        handle: HandleId,
        /// Not what is about the file.
        data_only: bool,
    },
    /// The same for all files.
    SyncAll,
    /// Set an extended attribute.
    SetAttribute {
        /// Its name.
        name: &'a CStr,
        /// Its value.
        value: &'a [u8],
        /// Whether it may or must be there.
        flags: u32,
    },
    /// An extended attribute.
    GetAttribute {
        /// Its name.
        name: &'a CStr,
        /// Room for it; 0 to ask for the size.
        size: usize,
    },
    /// The names of all.
    ListAttributes {
        /// Room for them; 0 to ask for the size.
        size: usize,
    },
    /// Take one away.
    RemoveAttribute(&'a CStr),
    /// Open a folder.
    OpenDirectory,
    /// Entries of a folder.
    ReadDirectory {
        /// The open folder.
        handle: HandleId,
        /// From which on.
        offset: u64,
        /// How many bytes of them.
        size: usize,
        /// With what each of them is.
        plus: bool,
    },
    /// Give a file storage, or take it.
    Allocate {
        /// The open file.
        handle: HandleId,
        /// Flags of fallocate(2).
        flags: u32,
        /// From where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Find data or a hole.
    Seek {
        /// The open file.
        handle: HandleId,
        /// From where.
        offset: u64,
        /// What.
        to: SeekTo,
    },
    /// The guest does not wait for an answer any more; it gets it all the same.
    Interrupt,
    /// What we do not do.
    Unknown(u32),
}

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its number, as far as it has one.
    pub unique: u64,
    /// What the guest hears.
    pub errno: Errno,
}

/// Arguments, taken from the front.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// Text up to a NUL, of at least one byte.
    fn text(&mut self, longest: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[text.count_bytes() + 1..];
        match text.count_bytes() {
            0 => Err(Errno::NOENT),
            length if length > longest => Err(Errno::NAMETOOLONG),
            _ => Ok(text),
        }
    }

    /// One name, which leads nowhere but into the folder that it is looked for in.
    fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text(LONGEST_NAME)?;
        match name.to_bytes() {
            b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }

    /// All that is left, which must be `size` bytes.
    fn rest(&mut self, size: u32) -> Result<&'a [u8], Errno> {
        let rest = std::mem::take(&mut self.0);
        if usize::try_from(size) == Ok(rest.len()) { Ok(rest) } else { Err(Errno::INVAL) }
    }
}

impl<'a> Request<'a> {
    /// Takes a message apart.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(message: &'a [u8]) -> Result<Self, Refused> {
        let Ok((header, arguments)) = fuse::fuse_in_header::read_from_prefix(message) else {
            return Err(Refused { unique: 0, errno: Errno::IO });
        };
        let refused = |errno| Refused { unique: header.unique, errno };
        if usize::try_from(header.len) != Ok(message.len()) || message.len() > MOST_REQUEST || header.total_extlen != 0
        {
            return Err(refused(Errno::IO));
        }
        let mut arguments = Arguments(arguments);
        let operation = operation(header.opcode, header.nodeid, &mut arguments).map_err(refused)?;
        if !arguments.0.is_empty() && !matches!(operation, Operation::Unknown(_)) {
            return Err(refused(Errno::INVAL));
        }
        let owner = Owner { uid: header.uid, gid: header.gid };
        Ok(Self { unique: header.unique, node: header.nodeid, owner, operation })
    }
}

/// What the message of this number asks for.
fn operation<'a>(number: u32, node: NodeId, arguments: &mut Arguments<'a>) -> Result<Operation<'a>, Errno> {
    let is = |opcode: code| number == opcode as u32;
    Ok(if is(code::FUSE_LOOKUP) {
        Operation::Lookup(arguments.name()?)
    } else if is(code::FUSE_GETATTR) {
        let get: fuse::fuse_getattr_in = arguments.take()?;
        Operation::GetAttributes((get.getattr_flags & fuse::FUSE_GETATTR_FH != 0).then_some(get.fh))
    } else if is(code::FUSE_SETATTR) {
        let set: fuse::fuse_setattr_in = arguments.take()?;
        Operation::SetAttributes((set.valid & fuse::FATTR_FH != 0).then_some(set.fh), changes(&set)?)
    } else if is(code::FUSE_READ) {
        let read: fuse::fuse_read_in = arguments.take()?;
        Operation::Read { handle: read.fh, offset: read.offset, size: data_size(read.size) }
    } else if is(code::FUSE_WRITE) {
        let write: fuse::fuse_write_in = arguments.take()?;
        let data = arguments.rest(write.size)?;
        if data.len() > MOST_DATA {
            return Err(Errno::INVAL);
        }
        Operation::Write { handle: write.fh, offset: write.offset, data }
    } else if is(code::FUSE_OPEN) {
        let open: fuse::fuse_open_in = arguments.take()?;
        Operation::Open(opening(open.flags)?)
    } else if is(code::FUSE_CREATE) {
        let create: fuse::fuse_create_in = arguments.take()?;
        Operation::Create {
            name: arguments.name()?,
            mode: create.mode & PERMISSIONS & !create.umask,
            how: opening(create.flags)?,
        }
    } else if is(code::FUSE_RELEASE) || is(code::FUSE_RELEASEDIR) {
        let release: fuse::fuse_release_in = arguments.take()?;
        Operation::Release(release.fh)
    } else if is(code::FUSE_FLUSH) {
        let _: fuse::fuse_flush_in = arguments.take()?;
        Operation::Flush
    } else if is(code::FUSE_READDIR) || is(code::FUSE_READDIRPLUS) {
        let read: fuse::fuse_read_in = arguments.take()?;
        let (size, plus) = (data_size(read.size), is(code::FUSE_READDIRPLUS));
        Operation::ReadDirectory { handle: read.fh, offset: read.offset, size, plus }
    } else if is(code::FUSE_OPENDIR) {
        let _: fuse::fuse_open_in = arguments.take()?;
        Operation::OpenDirectory
    } else if is(code::FUSE_FORGET) {
        let forget: fuse::fuse_forget_in = arguments.take()?;
        Operation::Forget(vec![(node, forget.nlookup)])
    } else if is(code::FUSE_BATCH_FORGET) {
        let batch: fuse::fuse_batch_forget_in = arguments.take()?;
        let mut files = Vec::with_capacity(arguments.0.len() / size_of::<fuse::fuse_forget_one>());
        for _ in 0..batch.count {
            let one: fuse::fuse_forget_one = arguments.take()?;
            files.push((one.nodeid, one.nlookup));
        }
        Operation::Forget(files)
    } else if is(code::FUSE_READLINK) {
        Operation::ReadLink
    } else if is(code::FUSE_SYMLINK) {
        Operation::Make(arguments.name()?, New::Symlink { target: arguments.text(LONGEST_TARGET)? })
    } else if is(code::FUSE_MKNOD) {
        let make: fuse::fuse_mknod_in = arguments.take()?;
        let name = arguments.name()?;
        let mode = make.mode & PERMISSIONS & !make.umask;
        let kind = match make.mode & TYPE_MASK {
            0 | TYPE_REGULAR => NodeKind::Regular,
            TYPE_FIFO => NodeKind::Fifo,
            TYPE_SOCKET => NodeKind::Socket,
            _ => return Ok(Operation::MakeDevice),
        };
        Operation::Make(name, New::Node { kind, mode })
    } else if is(code::FUSE_MKDIR) {
        let make: fuse::fuse_mkdir_in = arguments.take()?;
        Operation::Make(arguments.name()?, New::Directory { mode: make.mode & PERMISSIONS & !make.umask })
    } else if is(code::FUSE_UNLINK) {
        Operation::Unlink(arguments.name()?)
    } else if is(code::FUSE_RMDIR) {
        Operation::RemoveDirectory(arguments.name()?)
    } else if is(code::FUSE_RENAME) {
        let rename: fuse::fuse_rename_in = arguments.take()?;
        let (name, new_name) = (arguments.name()?, arguments.name()?);
        Operation::Rename { name, to: rename.newdir, new_name, mode: RenameMode::Replace }
    } else if is(code::FUSE_RENAME2) {
        let rename: fuse::fuse_rename2_in = arguments.take()?;
        let mode = match rename.flags {
            0 => RenameMode::Replace,
            RENAME_NOREPLACE => RenameMode::Keep,
            RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        let (name, new_name) = (arguments.name()?, arguments.name()?);
        Operation::Rename { name, to: rename.newdir, new_name, mode }
    } else if is(code::FUSE_LINK) {
        let link: fuse::fuse_link_in = arguments.take()?;
        Operation::Link { node: link.oldnodeid, name: arguments.name()? }
    } else if is(code::FUSE_STATFS) {
        Operation::Statistics
    } else if is(code::FUSE_FSYNC) || is(code::FUSE_FSYNCDIR) {
        let sync: fuse::fuse_fsync_in = arguments.take()?;
        Operation::Sync { handle: sync.fh, data_only: sync.fsync_flags & fuse::FUSE_FSYNC_FDATASYNC != 0 }
    } else if is(code::FUSE_SYNCFS) {
        let _: fuse::fuse_syncfs_in = arguments.take()?;
        Operation::SyncAll
    } else if is(code::FUSE_SETXATTR) {
        // The short form: the long one (`FUSE_SETXATTR_EXT`) was not agreed to.
        let [size, flags]: [u32; 2] = arguments.take()?;
        let (name, value) = (arguments.text(LONGEST_ATTRIBUTE_NAME)?, arguments.rest(size)?);
        if value.len() > LARGEST_ATTRIBUTE || flags & !ATTRIBUTE_FLAGS != 0 {
            return Err(Errno::INVAL);
        }
        Operation::SetAttribute { name, value, flags }
    } else if is(code::FUSE_GETXATTR) {
        let get: fuse::fuse_getxattr_in = arguments.take()?;
        Operation::GetAttribute { name: arguments.text(LONGEST_ATTRIBUTE_NAME)?, size: data_size(get.size) }
    } else if is(code::FUSE_LISTXATTR) {
        let list: fuse::fuse_getxattr_in = arguments.take()?;
        Operation::ListAttributes { size: data_size(list.size) }
    } else if is(code::FUSE_REMOVEXATTR) {
        Operation::RemoveAttribute(arguments.text(LONGEST_ATTRIBUTE_NAME)?)
    } else if is(code::FUSE_FALLOCATE) {
        let allocate: fuse::fuse_fallocate_in = arguments.take()?;
        let fuse::fuse_fallocate_in { fh: handle, offset, length, mode: flags, .. } = allocate;
        Operation::Allocate { handle, flags, offset, length }
    } else if is(code::FUSE_LSEEK) {
        let seek: fuse::fuse_lseek_in = arguments.take()?;
        let to = match seek.whence {
            SEEK_DATA => SeekTo::Data,
            SEEK_HOLE => SeekTo::Hole,
            _ => return Err(Errno::INVAL),
        };
        Operation::Seek { handle: seek.fh, offset: seek.offset, to }
    } else if is(code::FUSE_INTERRUPT) {
        let _: fuse::fuse_interrupt_in = arguments.take()?;
        Operation::Interrupt
    } else if is(code::FUSE_INIT) {
        let [major, minor, read_ahead, flags]: [u32; 4] = arguments.take()?;
        // What later versions add to it is for them.
        arguments.0 = &[];
        Operation::Init { major, minor, flags, read_ahead }
    } else if is(code::FUSE_DESTROY) {
        Operation::Destroy
    } else {
        Operation::Unknown(number)
    })
}

/// How many bytes are read at once: a device may give less than there is room for.
fn data_size(size: u32) -> usize {
    usize::try_from(size).unwrap_or(MOST_DATA).min(MOST_DATA)
}

/// How a file is to be opened. The guest itself puts what is appended at the file's end, and waits for nobody.
fn opening(flags: u32) -> Result<Opening, Errno> {
    let (read, write) = match flags & ACCESS {
        READ_ONLY => (true, false),
        WRITE_ONLY => (false, true),
        READ_WRITE => (true, true),
        _ => return Err(Errno::INVAL),
    };
    Ok(Opening {
        read,
        write,
        truncate: flags & TRUNCATE != 0,
        exclusive: flags & EXCLUSIVE != 0,
        sync: flags & (SYNC | DATA_SYNC) != 0,
    })
}

fn changes(set: &fuse::fuse_setattr_in) -> Result<Changes, Errno> {
    let has = |flag: u32| set.valid & flag != 0;
    let time = |at: u32, now: u32, seconds: u64, nanoseconds: u32| {
        if has(now) {
            return Ok(Some(Time::Now));
        }
        if !has(at) {
            return Ok(None);
        }
        if nanoseconds >= NANOSECONDS {
            return Err(Errno::INVAL);
        }
        Ok(Some(Time::At { seconds: seconds.cast_signed(), nanoseconds }))
    };
    let (uid, gid) = (has(fuse::FATTR_UID).then_some(set.uid), has(fuse::FATTR_GID).then_some(set.gid));
    // The number by which chown(2) says that it shall stay.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    Ok(Changes {
        mode: has(fuse::FATTR_MODE).then_some(set.mode & PERMISSIONS),
        uid,
        gid,
        size: has(fuse::FATTR_SIZE).then_some(set.size),
        accessed: time(fuse::FATTR_ATIME, fuse::FATTR_ATIME_NOW, set.atime, set.atimensec)?,
        modified: time(fuse::FATTR_MTIME, fuse::FATTR_MTIME_NOW, set.mtime, set.mtimensec)?,
    })
}

impl Operation<'_> {
    /// Whether a folder that is only read must refuse it.
    #[must_use]
    pub fn writes(&self) -> bool {
        match self {
            Self::SetAttributes(..)
            | Self::Make(..)
            | Self::MakeDevice
            | Self::Unlink(_)
            | Self::RemoveDirectory(_)
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::Create { .. }
            | Self::Write { .. }
            | Self::SetAttribute { .. }
            | Self::RemoveAttribute(_)
            | Self::Allocate { .. } => true,
            Self::Open(how) => how.write || how.truncate,
            _ => false,
        }
    }
}
