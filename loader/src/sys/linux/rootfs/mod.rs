//! Makes root file systems of packages and archives, without mounting images and, but for `debootstrap`, without root's rights.
//!
//! What is in an archive comes into a folder as plain files of this process's user; `mke2fs` makes an image of the folder, and
//! `debugfs` then gives each file in the image the owner and the rights that it is to have there ([`tree`]). So nothing that an archive
//! says has a meaning on this host: no owner, no bit that gives a program rights, no device.

mod archive;
mod debian;
mod image;
mod kernel;
mod metered;
#[cfg(test)]
mod tests;
mod tool;
mod tree;

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::MntFlags;
use nix::mount::umount2;

use crate::rootfs::ArchiveError;
use crate::rootfs::Content;
use crate::rootfs::Made;
use crate::rootfs::RootfsError;
use crate::rootfs::Wanted;
use crate::rootfs::Watch;
use tree::Tree;

/// What is made, in the folder.
const TREE: &str = "tree";
const DISK: &str = "disk.raw";

/// A function that makes the error of a file of the host's.
fn at(path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => RootfsError::NoRoom { path, needed: ROOM },
        _ => RootfsError::Host { path, error },
    }
}

/// What a small Debian takes while it is made, in bytes.
const ROOM: u64 = 1 << 30;

/// Makes a disk, and finds the kernel for it.
///
/// # Errors
/// It cannot be made. Nothing is left in the folder that could not be removed as other files are.
pub fn make(wanted: &Wanted<'_>, watch: &mut dyn Watch) -> Result<Made, RootfsError> {
    let made = make_in(wanted, watch);
    if made.is_err() {
        let_go(wanted.folder);
    }
    match made {
        // What a program or an archive says of its sudden end is not what the user is to hear of.
        Err(_) if watch.is_cancelled() => Err(RootfsError::Cancelled),
        made => made,
    }
}

fn make_in(wanted: &Wanted<'_>, watch: &mut dyn Watch) -> Result<Made, RootfsError> {
    // Before what takes long.
    let tools = image::Tools::find()?;
    let root = wanted.folder.join(TREE);
    let mut tree = match wanted.content {
        Content::Debian(debian) => debian::make(debian, wanted, &root, watch)?,
        Content::Archive(path) => {
            watch.step("unpacking the archive");
            let mut tree = Tree::new(&root, wanted.size)?;
            archive::unpack(path, &mut tree, watch)?;
            tree
        }
    };
    if let Some(agent) = wanted.agent {
        debian::put_agent(&mut tree, agent)?;
    }
    let installed = match wanted.with_kernel {
        true => Some(kernel::take(&tree, wanted.folder)?.ok_or(RootfsError::NoKernel)?),
        false => None,
    };
    watch.step("making the disk");
    let disk = wanted.folder.join(DISK);
    tools.make(&tree, &disk, wanted, watch)?;
    fs::remove_dir_all(&root).map_err(at(&root))?;
    let (kernel, initrd) = installed.map_or((None, None), |found| (Some(found.kernel), found.initrd));
    Ok(Made { disk, kernel, initrd })
}

/// The error of an archive.
fn in_archive(path: &Path) -> impl Fn(ArchiveError) -> RootfsError {
    move |error| RootfsError::Archive { path: path.to_owned(), error }
}

/// Takes away what a program that was killed left mounted in the folder: where it has no mounts of its own.
fn let_go(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Those that are in others come later.
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(place).starts_with(folder) {
            // What stays mounted is told by the removal of the folder.
            let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}
