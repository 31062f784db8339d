//! Why a guest's request is refused.

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MmuError {
    /// No memory there.
    #[error("the guest has no memory at {0:#x}")]
    NoMemory(u64),
    /// Not the address of an entry.
    #[error("{0:#x} is not the address of a page-table entry")]
    Misaligned(u64),
    /// No such command.
    #[error("there is no page-table update of kind {0}")]
    Command(u64),
    /// No page table for the address.
    #[error("the guest has no page table for address {0:#x}")]
    NotMapped(u64),
    /// No such level.
    #[error("page tables have no level {0}")]
    Level(u8),
    /// The frame is a root in use.
    #[error("guest frame {0:#x} is a root in use and cannot be another table as well")]
    InUse(u64),
    /// The pool is too small for anything.
    #[error("there are too few shadow tables for a guest to run")]
    PoolEmpty,
}
