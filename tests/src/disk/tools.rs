//! A disk for the emulated machine with programs of Debian's that are too large for its memory, fio above all. Its one partition is an
//! ext4 file system that guests have read-only, and change their root to.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use covisor_guest_images::command::{Cmd, find_program};
use covisor_guest_images::fs;
use xtask::rig::{Rig, RigKind};
use xtask::{Env, Error, setup};

use crate::checked::Checked;
use crate::debian::with_libraries;

/// Where the partition begins, in sectors.
const PARTITION: u32 = 2048;
const SECTOR: u64 = 512;
/// The folders that are mounted over.
const EMPTY: [&str; 5] = ["dev", "mnt", "proc", "sys", "tmp"];

/// Brings a guest's script to where the programs are: its root is the partition, the disk `device`; `/dev` is the guest's.
pub(super) fn enter(device: &str) -> String {
    format!(
        "mkdir -p /tools && mount -t ext4 -o ro {device} /tools && mount --bind /dev /tools/dev && \
         mount -t proc proc /tools/proc && mount -t tmpfs tmpfs /tools/tmp"
    )
}

/// Adds the disk to a machine.
pub(super) fn add(env: &Env, kind: RigKind, rig: Rig) -> Checked<Rig> {
    Ok(rig.disk(build(env, kind)?))
}

/// Builds it, once in each run: emulated machines have it as their disk while other scenarios ask for it.
fn build(env: &Env, kind: RigKind) -> Checked<PathBuf> {
    static BUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    setup::ensure_for_images(env)?;
    let image = env.out.join("images").join(format!("tools-{}.img", kind.engine()));
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.contains(&image) {
        return Ok(image);
    }
    let (tree, new) = (image.with_extension("tree"), image.with_extension("new"));
    let copied = copy(&tree);
    let made = copied.and_then(|bytes| make(&new, &tree, bytes));
    fs::remove(&tree).map_err(Error::from)?;
    made?;
    // Machines of another run that have the old one keep it.
    fs::rename(&new, &image).map_err(Error::from)?;
    built.push(image.clone());
    Ok(image)
}

/// Puts the programs and their libraries into a folder, at the places where they are here; says how many bytes they are.
fn copy(tree: &Path) -> Checked<u64> {
    fs::remove(tree).map_err(Error::from)?;
    let mut bytes = 0;
    for from in with_libraries("fio")? {
        let to = tree.join(from.strip_prefix("/").unwrap_or(&from));
        fs::create_dir_all(to.parent().unwrap_or(tree)).map_err(Error::from)?;
        fs::copy(&from, &to).map_err(Error::from)?;
        bytes += to.metadata().map_or(0, |metadata| metadata.len());
    }
    for name in EMPTY {
        fs::create_dir_all(tree.join(name)).map_err(Error::from)?;
    }
    Ok(bytes)
}

/// Makes the disk: a partition table of one entry, and the file system.
fn make(image: &Path, tree: &Path, bytes: u64) -> Checked {
    let size_kib = bytes * 5 / 4 / 1024 + 4096;
    let start = u64::from(PARTITION) * SECTOR;
    fs::write(image, partition_table(u32::try_from(size_kib * 2).unwrap_or(u32::MAX))).map_err(Error::from)?;
    let mkfs = find_program("mkfs.ext4").unwrap_or_else(|| "mkfs.ext4".into());
    Cmd::new(mkfs)
        .args(["-q", "-F", "-O", "^has_journal", "-d"])
        .arg(tree)
        .args(["-E", &format!("offset={start}")])
        .arg(image)
        .arg(format!("{size_kib}k"))
        .output()
        .map_err(Error::from)?;
    // What is free at the end is not in the file yet.
    let file = std::fs::File::options().write(true).open(image);
    let sized = file.and_then(|file| file.set_len(start + size_kib * 1024));
    sized.map_err(|error| crate::checked::Failure::Seen(format!("{}: {error}", image.display())))
}

/// The first sector of a disk with one Linux partition of so many sectors.
fn partition_table(sectors: u32) -> Vec<u8> {
    /// Where the entries are, what kind a Linux partition is, and what the sector ends in.
    const ENTRIES: usize = 446;
    const LINUX: u8 = 0x83;
    const END: [u8; 2] = [0x55, 0xaa];
    let mut table = vec![0; 512];
    table[ENTRIES + 4] = LINUX;
    table[ENTRIES + 8..ENTRIES + 12].copy_from_slice(&PARTITION.to_le_bytes());
    table[ENTRIES + 12..ENTRIES + 16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&END);
    table
}
