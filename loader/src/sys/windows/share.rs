//! Shared folders, which this version has on Linux hosts only.

use std::io;
use std::path::Path;

use crate::share::FileSystem;
use crate::share::Mapping;

/// Opens a folder to be shared.
///
/// # Errors
/// It cannot be shared.
pub fn open(_path: &Path, _read_only: bool, _mapping: Mapping) -> io::Result<Box<dyn FileSystem>> {
    Err(io::Error::other(
        "this version of covisor shares folders on Linux hosts only; give the guest a disk, or a network",
    ))
}
