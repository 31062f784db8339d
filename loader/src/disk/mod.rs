//! Disks: what a guest's disk is on the host.
//!
//! A device sees a [`BlockBackend`]; [`open`] makes one of a file or device of the host, by its [`Format`]. What an image is
//! made of is a [`Medium`](medium::Medium). Each format's headers and tables are parsed and checked before anything is done by
//! them, and a bad image is a [`DiskError`].
//!
//! | module | concept |
//! |---|---|
//! | `backend` | what the block device asks of where its data is |
//! | `medium` | files and devices of the host |
//! | `open` | from a path to a backend: formats, chains of images |
//! | `raw` | images without a format, and devices |
//! | `qcow2` | QEMU's format: read and written, also over a backing file |
//! | `vhdx`, `vmdk` | the formats of Hyper-V and VMware: read |
//! | `image` | what `covisor image` does |

mod backend;
pub mod buffers;
mod error;
mod format;
pub mod image;
mod layout;
pub mod medium;
mod open;
pub mod qcow2;
mod raw;
pub mod vhdx;
pub mod vmdk;

pub use backend::BlockBackend;
pub use backend::MemoryBackend;
pub use backend::Run;
pub use error::DiskError;
pub use format::Format;
pub use format::FormatError;
pub use open::open;
pub use open::open_medium;
pub use raw::Raw;

/// Bytes of a sector, the unit of a disk's size.
pub const SECTOR: u64 = 512;
