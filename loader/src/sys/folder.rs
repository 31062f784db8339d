//! The folder where machines are found, by a file each.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// The files in a folder that end like this, in the order of their names.
#[must_use]
pub(super) fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == suffix)).collect();
    files.sort();
    files
}
