//! An ext4 image of a [`Tree`].

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use super::at;
use super::tool;
use super::tree::Tree;
use crate::rootfs::RootfsError;
use crate::rootfs::Wanted;
use crate::rootfs::Watch;

/// The package that has the programs.
const PACKAGE: &str = "e2fsprogs";
/// What the file system takes for itself beside its files: its journal, tables, and some room to work in.
const OVERHEAD: u64 = 96 << 20;
/// What `mke2fs` says where the disk is too small.
const FULL: [&str; 3] = ["Could not allocate", "No free space", "too small"];
/// The line that `debugfs` begins with.
const VERSION: &str = "debugfs ";
/// What begins the lines that it repeats of its script.
const PROMPT: &str = "debugfs: ";

/// The programs.
#[derive(Debug)]
pub(super) struct Tools {
    mke2fs: PathBuf,
    debugfs: PathBuf,
}

impl Tools {
    pub(super) fn find() -> Result<Self, RootfsError> {
        Ok(Self { mke2fs: tool::needed("mke2fs", PACKAGE)?, debugfs: tool::needed("debugfs", PACKAGE)? })
    }

    /// Makes the image.
    pub(super) fn make(
        &self,
        tree: &Tree,
        disk: &Path,
        wanted: &Wanted<'_>,
        watch: &mut dyn Watch,
    ) -> Result<(), RootfsError> {
        let size = wanted.size;
        let needed = least(tree.used());
        if size < needed {
            return Err(RootfsError::TooSmall { size, needed });
        }
        let mut command = Command::new(&self.mke2fs);
        // Tables are written now and not in the guest: as holes, which cost nothing here.
        command
            .args(["-q", "-F", "-t", "ext4", "-m", "1", "-E", "root_owner=0:0,lazy_itable_init=0", "-d"])
            .arg(tree.root())
            .arg(disk)
            .arg(format!("{}k", size / 1024))
            .env("LC_ALL", "C.UTF-8");
        tool::run(&command, watch).map_err(|error| match error {
            RootfsError::Failed { said, .. } if FULL.iter().any(|full| said.contains(full)) => {
                RootfsError::TooSmall { size, needed }
            }
            RootfsError::Failed { said, .. } if said.contains("No space left") => {
                at(disk)(io::ErrorKind::StorageFull.into())
            }
            error => error,
        })?;
        self.apply(&tree.script(), disk, watch)?;
        tree.forget_values()
    }

    /// Has `debugfs` do what a script says.
    fn apply(&self, script: &str, disk: &Path, watch: &mut dyn Watch) -> Result<(), RootfsError> {
        if script.is_empty() {
            return Ok(());
        }
        let path = disk.with_extension("script");
        fs::write(&path, script).map_err(at(&path))?;
        let mut command = Command::new(&self.debugfs);
        command.args(["-w", "-f"]).arg(&path).arg(disk).env("LC_ALL", "C.UTF-8");
        let said = tool::run(&command, watch)?;
        // It goes on after an error, and says that all went well.
        let is_complaint = |line: &&str| {
            let line = line.trim();
            !line.is_empty()
                && !line.starts_with(PROMPT)
                && !line.starts_with(VERSION)
                && !line.starts_with("Allocated inode")
        };
        if let Some(complaint) = said.lines().find(is_complaint) {
            return Err(RootfsError::Run {
                program: "debugfs".to_owned(),
                error: io::Error::other(complaint.to_owned()),
            });
        }
        fs::remove_file(&path).map_err(at(&path))
    }
}

/// Bytes of the least disk for files that take so many.
fn least(used: u64) -> u64 {
    used + used / 16 + OVERHEAD
}

/// The error of a tree that does not fit its disk.
pub(super) fn too_small(tree: &Tree) -> RootfsError {
    RootfsError::TooSmall { size: tree.limit(), needed: least(tree.used()) }
}
