//! What files have on Linux beside their bytes, and not here.

use std::fs::File;
use std::fs::Metadata;
use std::io;
use std::path::Path;

/// What a file of this host's gets in a guest: all may read and run it.
const MODE: u32 = 0o755;

/// Makes a folder, and those above it, with the rights of the one that they are made in.
///
/// # Errors
/// What the host says.
pub fn make_private_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// A file's mode.
#[must_use]
pub fn mode(_metadata: &Metadata) -> u32 {
    MODE
}

/// Does nothing: a guest's file gets the rights of the folder that it comes to.
///
/// # Errors
/// None.
pub fn set_mode(_file: &File, _mode: u32) -> io::Result<()> {
    Ok(())
}
