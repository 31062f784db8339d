//! What files have here beside their bytes.

use std::fs::DirBuilder;
use std::fs::File;
use std::fs::Metadata;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Who may read, write and run a file; not whose it is when it runs.
const MODE: u32 = 0o777;

/// Makes a folder, and those above it, that only their owner may enter; one that is there stays as it is.
///
/// # Errors
/// What the host says.
pub fn make_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A file's mode.
#[must_use]
pub fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & MODE
}

/// Gives a file a mode.
///
/// # Errors
/// What the host says.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode & MODE))
}
