//! The kernel that is installed in a root file system.

use std::cmp::Ordering;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use super::at;
use super::tree::Tree;
use crate::rootfs::RootfsError;

/// What a kernel's file begins with.
const KERNEL: &str = "vmlinuz";
/// How initial RAM disks are called, by what comes before the version and behind it.
const INITRDS: [(&str, &str); 4] = [("initrd.img", ""), ("initramfs", ".img"), ("initrd", ""), ("initramfs", "")];
/// What they are called beside the guest's disk.
const OWN_KERNEL: &str = "vmlinuz";
const OWN_INITRD: &str = "initrd.img";

/// A kernel and its initial RAM disk.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
}

/// Copies the newest kernel of a tree's `/boot` and what belongs to it into `folder`.
pub(super) fn take(tree: &Tree, folder: &Path) -> Result<Option<Kernel>, RootfsError> {
    let boot = tree.root().join("boot");
    if !boot.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&boot).map_err(at(&boot))? {
        let entry = entry.map_err(at(&boot))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    let Some((kernel, initrd)) = newest(&names) else { return Ok(None) };
    let copy = |name: &str, to: &str| {
        let to = folder.join(to);
        copy(&boot.join(name), &to).map_err(at(&to))?;
        Ok(to)
    };
    let kernel = copy(kernel, OWN_KERNEL)?;
    let initrd = initrd.map(|name| copy(name, OWN_INITRD)).transpose()?;
    Ok(Some(Kernel { kernel, initrd }))
}

/// The newest kernel among files, and its initial RAM disk.
fn newest(names: &[String]) -> Option<(&str, Option<&str>)> {
    let version = |name: &'_ str| name.strip_prefix(KERNEL).map(str::to_owned);
    let kernel = names
        .iter()
        .filter(|name| version(name).is_some_and(|version| version.is_empty() || version.starts_with('-')))
        .max_by(|one, other| compare(one, other))?;
    let version = version(kernel)?;
    let initrd = INITRDS.iter().find_map(|(before, behind)| {
        let wanted = format!("{before}{version}{behind}");
        names.iter().find(|name| **name == wanted)
    });
    Some((kernel, initrd.map(String::as_str)))
}

/// Which of two names is that of the older version: numbers count as such.
fn compare(one: &str, other: &str) -> Ordering {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (mut one, mut other) = (one, other);
    loop {
        let (left, right) = (digits(one), digits(other));
        if left > 0 && right > 0 {
            let number = |text: &str, end: usize| text[..end].trim_start_matches('0').to_owned();
            let (first, second) = (number(one, left), number(other, right));
            let order = first.len().cmp(&second.len()).then_with(|| first.cmp(&second));
            if order != Ordering::Equal {
                return order;
            }
            (one, other) = (&one[left..], &other[right..]);
            continue;
        }
        let (first, second) = (one.chars().next(), other.chars().next());
        match first.cmp(&second) {
            Ordering::Equal => {}
            order => return order,
        }
        let Some(first) = first else { return Ordering::Equal };
        (one, other) = (&one[first.len_utf8()..], &other[first.len_utf8()..]);
    }
}

/// Copies a plain file.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(from)?;
    let mut target = File::create_new(to)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Option<(String, Option<String>)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        newest(&names).map(|(kernel, initrd)| (kernel.to_owned(), initrd.map(str::to_owned)))
    }

    #[test]
    fn test_the_newest_kernel_is_taken_with_its_initrd() {
        let both = |kernel: &str, initrd: &str| Some((kernel.to_owned(), Some(initrd.to_owned())));
        let debian = ["vmlinuz-6.1.0-9-amd64", "initrd.img-6.1.0-9-amd64", "vmlinuz-6.1.0-56-amd64", "config"];
        assert_eq!(found(&debian), Some(("vmlinuz-6.1.0-56-amd64".to_owned(), None)));
        assert_eq!(
            found(&[&debian[..], &["initrd.img-6.1.0-56-amd64"]].concat()),
            both("vmlinuz-6.1.0-56-amd64", "initrd.img-6.1.0-56-amd64")
        );
        assert_eq!(found(&["vmlinuz-virt", "initramfs-virt"]), both("vmlinuz-virt", "initramfs-virt"));
        assert_eq!(found(&["initramfs-linux.img", "vmlinuz-linux"]), both("vmlinuz-linux", "initramfs-linux.img"));
        let fedora = ["vmlinuz-0-rescue-1", "vmlinuz-6.11.4-301.fc41.x86_64", "initramfs-6.11.4-301.fc41.x86_64.img"];
        assert_eq!(found(&fedora), both(fedora[1], fedora[2]));
        assert_eq!(found(&["vmlinuz", "initrd.img"]), both("vmlinuz", "initrd.img"));
        assert_eq!(found(&["vmlinux-6.1", "System.map-6.1", "vmlinuzx"]), None);
    }

    #[test]
    fn test_numbers_count_as_numbers() {
        for (older, newer) in [("6.1.0-9", "6.1.0-10"), ("6.1", "6.1.1"), ("5.19", "6.0"), ("a-007", "a-8")] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(compare("6.1", "6.1"), Ordering::Equal);
    }
}
