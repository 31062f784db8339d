//! Carries messages out and answers them.

use std::fmt;
use std::mem::size_of;

use fuse_abi::linux as fuse;
use thiserror::Error;
use zerocopy::FromZeros;

use super::Errno;
use super::FileSystem;
use super::MOST_DATA;
use super::Operation;
use super::Refused;
use super::Request;
use super::reply;
use super::reply::HEADER;

/// Most bytes of an answer.
pub const MOST_REPLY: usize = HEADER + MOST_DATA;
/// Pages of a message's data.
pub const MOST_PAGES: u16 = 128;
const _: () = assert!(MOST_PAGES as usize * 4096 == MOST_DATA);

/// The version that we speak, and the least of its additions: the first kernel with this device (5.4) has them.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// What we do of what the guest may offer: many reads at a time, and beside direct writes; writes of more than a page; data that the
/// host changed is read anew; entries of folders with what they are; look-ups beside each other; messages of [`MOST_PAGES`].
const FLAGS: u32 = fuse::FUSE_ASYNC_READ
    | fuse::FUSE_BIG_WRITES
    | fuse::FUSE_AUTO_INVAL_DATA
    | fuse::FUSE_DO_READDIRPLUS
    | fuse::FUSE_READDIRPLUS_AUTO
    | fuse::FUSE_ASYNC_DIO
    | fuse::FUSE_PARALLEL_DIROPS
    | fuse::FUSE_MAX_PAGES;

/// A guest that leaves no room for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a message has no room for its answer")]
pub struct NoRoom;

/// Answers a guest's messages about a shared folder.
pub struct Server {
    files: Box<dyn FileSystem>,
    read_only: bool,
    /// The guest has begun.
    begun: bool,
}

impl Server {
    /// Serves `files`.
    #[must_use]
    pub fn new(files: Box<dyn FileSystem>, read_only: bool) -> Self {
        Self { files, read_only, begun: false }
    }

    /// Nothing that the guest said counts any more.
    pub fn reset(&mut self) {
        self.files.forget_all();
        self.begun = false;
    }

    /// Does what `message` asks for. The answer, of at most `room` bytes, is in `answer` afterwards; messages without one leave it
    /// empty.
    ///
    /// # Errors
    /// There is no room for any answer; nothing was done.
    pub fn serve(&mut self, message: &[u8], room: usize, answer: &mut Vec<u8>) -> Result<(), NoRoom> {
        answer.clear();
        let (unique, outcome) = match Request::parse(message) {
            Ok(Request { operation: Operation::Forget(files), .. }) => {
                for (node, count) in files.into_iter().filter(|_| self.begun) {
                    self.files.forget(node, count);
                }
                return Ok(());
            }
            Ok(Request { operation: Operation::Interrupt, .. }) => return Ok(()),
            Ok(request) => {
                let room = room.checked_sub(HEADER).ok_or(NoRoom)?.min(MOST_DATA);
                answer.resize(HEADER, 0);
                (request.unique, self.carry_out(&request, room, answer))
            }
            Err(Refused { unique, errno }) => {
                if room < HEADER {
                    return Err(NoRoom);
                }
                (unique, Err(errno))
            }
        };
        let error = outcome.err().map_or(0, |errno| {
            // An error comes alone.
            answer.clear();
            answer.resize(HEADER, 0);
            -i32::from(errno.0)
        });
        reply::finish(answer, unique, error);
        Ok(())
    }

    fn carry_out(&mut self, request: &Request<'_>, room: usize, answer: &mut Vec<u8>) -> Result<(), Errno> {
        // What cannot be answered is not done.
        if fixed_size(&request.operation) > room {
            return Err(Errno::RANGE);
        }
        if let Operation::Init { major, minor, flags, read_ahead } = request.operation {
            reply::put(answer, &self.begin(major, minor, flags, read_ahead)?);
            return Ok(());
        }
        if !self.begun {
            return Err(Errno::IO);
        }
        if self.read_only && request.operation.writes() {
            return Err(Errno::ROFS);
        }
        let (node, owner, files) = (request.node, request.owner, &mut self.files);
        match request.operation {
            Operation::Destroy => self.reset(),
            Operation::Lookup(name) => reply::put(answer, &reply::entry(&files.lookup(node, name)?)),
            Operation::GetAttributes(handle) => {
                reply::put(answer, &reply::attributes(&files.attributes(node, handle)?));
            }
            Operation::SetAttributes(handle, changes) => {
                reply::put(answer, &reply::attributes(&files.change(node, handle, &changes)?));
            }
            Operation::ReadLink => put_all(answer, &files.read_link(node)?, room)?,
            Operation::Make(name, new) => reply::put(answer, &reply::entry(&files.make(node, name, new, owner)?)),
            Operation::MakeDevice => return Err(Errno::PERM),
            Operation::Unlink(name) => files.unlink(node, name)?,
            Operation::RemoveDirectory(name) => files.remove_directory(node, name)?,
            Operation::Rename { name, to, new_name, mode } => files.rename((node, name), (to, new_name), mode)?,
            Operation::Link { node: file, name } => {
                reply::put(answer, &reply::entry(&files.link(file, node, name)?));
            }
            Operation::Open(how) => reply::put(answer, &reply::opened(files.open(node, how)?)),
            Operation::OpenDirectory => reply::put(answer, &reply::opened(files.open_directory(node)?)),
            Operation::Create { name, mode, how } => {
                let (entry, handle) = files.create(node, name, mode, how, owner)?;
                reply::put(answer, &reply::entry(&entry));
                reply::put(answer, &reply::opened(handle));
            }
            Operation::Read { handle, offset, size } => {
                answer.resize(HEADER + size.min(room), 0);
                let count = files.read(handle, offset, &mut answer[HEADER..])?;
                answer.truncate(HEADER + count);
            }
            Operation::Write { handle, offset, data } => {
                let count = files.write(handle, offset, data)?;
                let size = u32::try_from(count).map_err(|_| Errno::IO)?;
                reply::put(answer, &fuse::fuse_write_out { size, padding: 0 });
            }
            Operation::Statistics => reply::put(answer, &reply::statistics(&files.statistics(node)?)),
            Operation::Release(handle) => files.release(handle),
            Operation::Flush => {}
            Operation::Sync { handle, data_only } => files.sync(handle, data_only)?,
            Operation::SyncAll => files.sync_all()?,
            Operation::SetAttribute { name, value, flags } => files.set_attribute(node, name, value, flags)?,
            Operation::GetAttribute { name, size } => {
                put_sized(answer, &files.attribute(node, name)?, size, room)?;
            }
            Operation::ListAttributes { size } => put_sized(answer, &files.attribute_names(node)?, size, room)?,
            Operation::RemoveAttribute(name) => files.remove_attribute(node, name)?,
            Operation::ReadDirectory { handle, offset, size, plus } => {
                self.read_directory((node, handle), offset, size.min(room), plus, answer)?;
            }
            Operation::Allocate { handle, flags, offset, length } => files.allocate(handle, flags, offset, length)?,
            Operation::Seek { handle, offset, to } => {
                reply::put(answer, &fuse::fuse_lseek_out { offset: files.seek(handle, offset, to)? });
            }
            Operation::Init { .. } | Operation::Forget(_) | Operation::Interrupt | Operation::Unknown(_) => {
                return Err(Errno::NOSYS);
            }
        }
        Ok(())
    }

    /// The guest begins, perhaps anew.
    fn begin(&mut self, major: u32, minor: u32, flags: u32, read_ahead: u32) -> Result<fuse::fuse_init_out, Errno> {
        if major != MAJOR || minor < MINOR {
            return Err(Errno::PROTO);
        }
        self.reset();
        self.begun = true;
        let mut out = fuse::fuse_init_out::new_zeroed();
        (out.major, out.minor, out.flags) = (MAJOR, MINOR, flags & FLAGS);
        out.max_readahead = read_ahead;
        out.max_write = u32::try_from(MOST_DATA).map_err(|_| Errno::IO)?;
        out.max_pages = MOST_PAGES;
        // Times are whole nanoseconds.
        out.time_gran = 1;
        Ok(out)
    }

    /// Entries of a folder, as many as there is room for.
    fn read_directory(
        &mut self,
        (node, handle): (u64, u64),
        offset: u64,
        room: usize,
        plus: bool,
        answer: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let entries = self.files.read_directory(handle, offset)?;
        let some = !entries.is_empty();
        for entry in entries {
            if answer.len() - HEADER + reply::directory_entry_size(&entry, plus) > room {
                break;
            }
            let details = plus.then(|| {
                let itself = matches!(entry.name.to_bytes(), b"." | b"..");
                // What is gone again, or cannot be told, is left for a look-up to find out.
                let found = if itself { None } else { self.files.lookup(node, &entry.name).ok() };
                found.map_or_else(fuse::fuse_entry_out::new_zeroed, |found| reply::entry(&found))
            });
            reply::put_directory_entry(answer, &entry, details);
        }
        if some && answer.len() == HEADER { Err(Errno::INVAL) } else { Ok(()) }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// Bytes that an answer has in any case, besides its header.
fn fixed_size(operation: &Operation<'_>) -> usize {
    const ENTRY: usize = size_of::<fuse::fuse_entry_out>();
    const OPENED: usize = size_of::<fuse::fuse_open_out>();
    match operation {
        Operation::Init { .. } => size_of::<fuse::fuse_init_out>(),
        Operation::Lookup(_) | Operation::Make(..) | Operation::Link { .. } => ENTRY,
        Operation::Create { .. } => ENTRY + OPENED,
        Operation::Open(_) | Operation::OpenDirectory => OPENED,
        Operation::GetAttributes(_) | Operation::SetAttributes(..) => size_of::<fuse::fuse_attr_out>(),
        Operation::Write { .. } => size_of::<fuse::fuse_write_out>(),
        Operation::Statistics => size_of::<fuse::fuse_statfs_out>(),
        Operation::Seek { .. } => size_of::<fuse::fuse_lseek_out>(),
        Operation::GetAttribute { size: 0, .. } | Operation::ListAttributes { size: 0 } => {
            size_of::<fuse::fuse_getxattr_out>()
        }
        _ => 0,
    }
}

fn put_all(answer: &mut Vec<u8>, bytes: &[u8], room: usize) -> Result<(), Errno> {
    if bytes.len() > room {
        return Err(Errno::RANGE);
    }
    answer.extend_from_slice(bytes);
    Ok(())
}

/// Attributes: their size if `size` is 0, else themselves, if they are not more.
fn put_sized(answer: &mut Vec<u8>, bytes: &[u8], size: usize, room: usize) -> Result<(), Errno> {
    if size == 0 {
        let size = u32::try_from(bytes.len()).map_err(|_| Errno::IO)?;
        reply::put(answer, &fuse::fuse_getxattr_out { size, padding: 0 });
        return Ok(());
    }
    put_all(answer, bytes, size.min(room))
}
