//! Requests (virtio 1.2, 5.2.6): parsed from a chain that is already copied and checked, against the disk's size.

use std::fmt;

use thiserror::Error;

use super::ID_SIZE;
use super::LARGEST_SEGMENT;
use super::MOST_SEGMENTS;
use super::MOST_ZEROED;
use super::Status;
use crate::devices::virtio::Chain;
use crate::disk::SECTOR;
use crate::platform::GuestRam;

/// Bytes of a request's header: type, reserved, sector.
const HEADER_SIZE: usize = 16;
/// Bytes of a range to discard or zero: sector, sectors, flags.
const RANGE_SIZE: usize = 16;
/// Most data of a request.
const MOST_DATA: u64 = MOST_SEGMENTS as u64 * LARGEST_SEGMENT as u64;

/// Request types.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// Flag of a range to zero: its storage may be given back.
const FLAG_UNMAP: u32 = 1 << 0;

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Its size.
    pub sectors: u64,
    /// It cannot be written.
    pub read_only: bool,
}

impl Disk {
    /// The bytes that `length` bytes from `sector` on are at, if the disk has them.
    fn range(&self, sector: u64, length: u64) -> Result<u64, RequestError> {
        let out = RequestError::OutOfRange { sector, length };
        let end = sector.checked_add(length / SECTOR);
        if end.is_none_or(|end| end > self.sectors) {
            return Err(out);
        }
        sector.checked_mul(SECTOR).ok_or(out)
    }

    fn check_writable(&self) -> Result<(), RequestError> {
        if self.read_only { Err(RequestError::ReadOnly) } else { Ok(()) }
    }
}

/// What to do, in bytes of the disk, all inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the chain's writable buffers.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, as many as the buffers have.
        length: u32,
    },
    /// Write the chain's readable buffers.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes, as many as the buffers have.
        length: u32,
    },
    /// Make what was written last.
    Flush,
    /// Tell the id.
    GetId,
    /// Forget a range.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Zero a range.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Its storage may be given back.
        unmap: bool,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset, length } => write!(formatter, "reading {length} bytes at {offset}"),
            Self::Write { offset, length } => write!(formatter, "writing {length} bytes at {offset}"),
            Self::Flush => formatter.write_str("a flush"),
            Self::GetId => formatter.write_str("telling the id"),
            Self::Discard { offset, length } => write!(formatter, "discarding {length} bytes at {offset}"),
            Self::WriteZeroes { offset, length, .. } => write!(formatter, "zeroing {length} bytes at {offset}"),
        }
    }
}

/// Why a request is refused; its driver is told by the status byte, and the device goes on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// There is no whole header.
    #[error("the header is cut off")]
    ShortHeader,
    /// No such type.
    #[error("type {0} is not supported")]
    Unsupported(u32),
    /// Data goes the wrong way, or there is none.
    #[error("there is no data buffer in the right direction, or one too many")]
    WrongBuffers,
    /// Data is not whole sectors.
    #[error("{0} bytes of data are not whole sectors")]
    PartialSector(u64),
    /// Data is more than the device said that it takes.
    #[error("{0} bytes of data are more than the device takes")]
    TooLong(u64),
    /// The disk does not have these sectors.
    #[error("{length} bytes from sector {sector} are not all on the disk")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Bytes.
        length: u64,
    },
    /// The disk cannot be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The buffer for the id is too small.
    #[error("the buffer for the id has less than {ID_SIZE} bytes")]
    ShortId,
    /// Not one range of the right form.
    #[error("what is to be discarded or zeroed is not one valid range")]
    BadRange,
    /// Guest memory could not be read.
    #[error("guest memory could not be read")]
    Memory,
}

impl RequestError {
    /// What the status byte says.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Unsupported(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Guest-physical address of the status byte.
    pub status: u64,
    /// What to do, or why not.
    pub operation: Result<Operation, RequestError>,
}

/// Parses the request in `chain`, which has then only the data buffers left. `None` when not even the status byte is
/// there. How a request is cut into buffers does not matter (virtio 1.2, 2.7.4).
pub fn parse(chain: &mut Chain, memory: &GuestRam, disk: &Disk) -> Option<Request> {
    let status = chain.writable.split_last_byte()?;
    Some(Request { status, operation: parse_operation(chain, memory, disk) })
}

fn parse_operation(chain: &mut Chain, memory: &GuestRam, disk: &Disk) -> Result<Operation, RequestError> {
    let mut header = [0; HEADER_SIZE];
    let front = chain.readable.split_front(16);
    if front.read(memory, &mut header).map_err(|_| RequestError::Memory)? != HEADER_SIZE {
        return Err(RequestError::ShortHeader);
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        TYPE_IN => {
            let length = data_length(chain.writable.len(), chain.readable.len())?;
            Ok(Operation::Read { offset: disk.range(sector, length.into())?, length })
        }
        TYPE_OUT => {
            disk.check_writable()?;
            let length = data_length(chain.readable.len(), chain.writable.len())?;
            Ok(Operation::Write { offset: disk.range(sector, length.into())?, length })
        }
        TYPE_FLUSH => Ok(Operation::Flush),
        TYPE_GET_ID if chain.writable.len() < ID_SIZE as u64 => Err(RequestError::ShortId),
        TYPE_GET_ID => Ok(Operation::GetId),
        TYPE_DISCARD => {
            let (offset, length, flags) = parse_range(chain, memory, disk)?;
            // Discard has no flags of its own (virtio 1.2, 5.2.6.1).
            if flags != 0 {
                return Err(RequestError::Unsupported(TYPE_DISCARD));
            }
            Ok(Operation::Discard { offset, length })
        }
        TYPE_WRITE_ZEROES => {
            let (offset, length, flags) = parse_range(chain, memory, disk)?;
            if flags & !FLAG_UNMAP != 0 {
                return Err(RequestError::Unsupported(TYPE_WRITE_ZEROES));
            }
            Ok(Operation::WriteZeroes { offset, length, unmap: flags & FLAG_UNMAP != 0 })
        }
        other => Err(RequestError::Unsupported(other)),
    }
}

/// Checks the length of the data; `other` is what goes the other way.
fn data_length(length: u64, other: u64) -> Result<u32, RequestError> {
    if length == 0 || other != 0 {
        return Err(RequestError::WrongBuffers);
    }
    if !length.is_multiple_of(SECTOR) {
        return Err(RequestError::PartialSector(length));
    }
    u32::try_from(length).ok().filter(|_| length <= MOST_DATA).ok_or(RequestError::TooLong(length))
}

/// The range of a request to discard or zero: offset and length in bytes, and its flags.
fn parse_range(chain: &Chain, memory: &GuestRam, disk: &Disk) -> Result<(u64, u64, u32), RequestError> {
    disk.check_writable()?;
    let mut range = [0; RANGE_SIZE];
    let read = chain.readable.read(memory, &mut range).map_err(|_| RequestError::Memory)?;
    if read != RANGE_SIZE || chain.readable.len() != RANGE_SIZE as u64 || !chain.writable.is_empty() {
        return Err(RequestError::BadRange);
    }
    let [sector @ .., s0, s1, s2, s3, f0, f1, f2, f3] = range;
    let (sector, sectors) = (u64::from_le_bytes(sector), u32::from_le_bytes([s0, s1, s2, s3]));
    if sectors == 0 || sectors > MOST_ZEROED {
        return Err(RequestError::BadRange);
    }
    let length = u64::from(sectors) * SECTOR;
    Ok((disk.range(sector, length)?, length, u32::from_le_bytes([f0, f1, f2, f3])))
}
