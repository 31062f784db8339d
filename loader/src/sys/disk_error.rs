//! Why a disk of the host's cannot be opened, as far as anybody acts on it. Each host says which of its errors is which.

use std::io;

/// Why a file cannot be used as a disk.
#[derive(Debug)]
pub enum OpenError {
    /// The system refused.
    System(io::Error),
    /// It is neither a file nor a disk: a block device, on Windows a partition or disk.
    WrongKind,
    /// The host itself uses the disk: it is mounted, or part of something.
    InUse,
    /// Another process has it.
    Locked,
}
