//! `std::fs` with errors that name the file.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Makes a folder and its parents.
///
/// # Errors
/// When it cannot be made.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(Error::file("create the folder", path))
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).map_err(Error::file("read", path))
}

/// Reads a file of text.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Writes a file, and its parent folders where they are missing.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        create_dir_all(parent)?;
    }
    fs::write(path, content).map_err(Error::file("write", path))
}

/// Writes a program: a file with mode 0755.
///
/// # Errors
/// When it cannot be written.
pub fn write_program(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(Error::file("set the mode of", path))
}

/// Copies a file's content and mode, making the parent folders where they are missing.
///
/// # Errors
/// When it cannot be copied.
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    if let Some(parent) = to.parent() {
        create_dir_all(parent)?;
    }
    fs::copy(from, to).map_err(Error::file("copy", from))?;
    Ok(())
}

/// Renames a file or folder.
///
/// # Errors
/// When it cannot be renamed.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::rename(from, to).map_err(Error::file("rename", from))
}

/// Makes a symbolic link, replacing what is there.
///
/// # Errors
/// When it cannot be made.
pub fn symlink(target: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
    let link = link.as_ref();
    if let Some(parent) = link.parent() {
        create_dir_all(parent)?;
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link).map_err(Error::file("replace", link))?;
    }
    std::os::unix::fs::symlink(target.as_ref(), link).map_err(Error::file("link", link))
}

/// Removes a file or a whole folder, if it is there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(Error::file("remove", path)),
        Ok(_) => fs::remove_file(path).map_err(Error::file("remove", path)),
    }
}

/// The entries of a folder, sorted by name.
///
/// # Errors
/// When it cannot be read.
pub fn list(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let path = path.as_ref();
    let read = |source| Error::File { action: "read the folder", path: path.to_path_buf(), source };
    let mut entries = fs::read_dir(path)
        .map_err(read)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(read)?;
    entries.sort();
    Ok(entries)
}

/// A folder that only one process at a time works in; unlocked when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until this process has the lock file at `path`.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn take(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            create_dir_all(parent)?;
        }
        let file = File::create(path).map_err(Error::file("create", path))?;
        file.lock().map_err(Error::file("lock", path))?;
        Ok(Self { _file: file })
    }
}
