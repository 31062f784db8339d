//! Debian's kernels, taken out of their packages.

use std::path::{Path, PathBuf};

use crate::apt::{self, Apt};
use crate::command::{Cmd, find_program};
use crate::error::{Error, Result};
use crate::fs;
use crate::progress::Progress;

/// What kernel packages begin with.
const IMAGE_PREFIX: &str = "linux-image-";

/// A kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` says: `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// The kernel's bzImage.
    pub vmlinuz: PathBuf,
    /// The folder `lib/modules/VERSION`; `None` when only the bzImage is known.
    pub modules: Option<PathBuf>,
    /// The package that it came from.
    pub deb: Option<PathBuf>,
}

/// Where kernels are kept and fetched from.
#[derive(Debug)]
pub struct KernelStore {
    dir: PathBuf,
    progress: Progress,
}

impl KernelStore {
    /// The kernels kept in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, progress: Progress) -> Self {
        Self { dir, progress }
    }

    /// The kernel that a meta package such as `linux-image-cloud-amd64` of a suite stands for.
    ///
    /// What was fetched once is used again, without asking the mirror.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn of_meta_package(&self, suite: &str, meta: &str) -> Result<Kernel> {
        let _lock = self.lock()?;
        let record = self.dir.join(format!("{suite}-{meta}"));
        if let Ok(version) = fs::read_to_string(&record)
            && let Some(kernel) = self.kept(version.trim())
        {
            return Ok(kernel);
        }
        let step = self.progress.step(format!("fetching the kernel {meta} of Debian {suite}"));
        let apt = self.apt(suite)?;
        apt.update(&step)?;
        let package = apt.resolve_meta(meta)?;
        let kernel = self.fetch(&apt, &package, &step)?;
        fs::write(&record, &kernel.version)?;
        step.done();
        Ok(kernel)
    }

    /// Debian 12's kernel of exactly this version.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn of_version(&self, version: &str) -> Result<Kernel> {
        let _lock = self.lock()?;
        if let Some(kernel) = self.kept(version) {
            return Ok(kernel);
        }
        let step = self.progress.step(format!("fetching the kernel {version}"));
        let apt = self.apt("bookworm")?;
        apt.update(&step)?;
        let kernel = self.fetch(&apt, &format!("{IMAGE_PREFIX}{version}"), &step)?;
        step.done();
        Ok(kernel)
    }

    /// The kernel of this version if it was fetched before.
    #[must_use]
    pub fn kept(&self, version: &str) -> Option<Kernel> {
        let tree = self.dir.join(version);
        let vmlinuz = tree.join(format!("boot/vmlinuz-{version}"));
        let modules = modules_dir(&tree, version)?;
        (!version.is_empty() && vmlinuz.exists() && modules.join("modules.dep").exists()).then(|| Kernel {
            version: version.to_owned(),
            vmlinuz,
            modules: Some(modules),
            deb: Some(self.dir.join(format!("{IMAGE_PREFIX}{version}.deb"))),
        })
    }

    fn lock(&self) -> Result<fs::Lock> {
        fs::Lock::take(self.dir.join("lock"))
    }

    fn apt(&self, suite: &str) -> Result<Apt> {
        Apt::new(&self.dir.join(format!("apt-{suite}")), &apt::sources_of_any(suite)?)
    }

    fn fetch(&self, apt: &Apt, package: &str, step: &crate::progress::Step) -> Result<Kernel> {
        let version = package
            .strip_prefix(IMAGE_PREFIX)
            .ok_or_else(|| Error::Unexpected(format!("{package} is not a kernel package")))?;
        let deb = apt.download(package, &self.dir, step)?;
        let unpacking = self.dir.join(format!("{version}.unpacking"));
        fs::remove(&unpacking)?;
        fs::create_dir_all(&unpacking)?;
        Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacking).run(step)?;
        // Debian 13's packages have usr/lib; depmod looks in lib.
        if !unpacking.join("lib").exists() {
            fs::symlink("usr/lib", unpacking.join("lib"))?;
        }
        let depmod = find_program("depmod").unwrap_or_else(|| "depmod".into());
        Cmd::new(depmod).arg("-b").arg(&unpacking).arg(version).run(step)?;
        let tree = self.dir.join(version);
        fs::remove(&tree)?;
        fs::rename(&unpacking, &tree)?;
        self.kept(version).ok_or_else(|| {
            Error::Unexpected(format!("Debian's package {package} has no kernel or no modules where they belong"))
        })
    }
}

/// The folder of a kernel's modules in an unpacked package.
fn modules_dir(tree: &Path, version: &str) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"].iter().map(|dir| tree.join(dir).join(version)).find(|dir| dir.is_dir())
}

/// Offset of the magic "HdrS" in a bzImage (`Documentation/arch/x86/boot.rst`).
const MAGIC_OFFSET: usize = 0x202;
/// Offset of the pointer to the version text, which counts from 0x200.
const VERSION_POINTER_OFFSET: usize = 0x20e;

/// The version that a bzImage says it has: the first word of its version text.
#[must_use]
pub fn bzimage_version(image: &[u8]) -> Option<String> {
    if image.get(MAGIC_OFFSET..MAGIC_OFFSET + 4)? != b"HdrS" {
        return None;
    }
    let pointer: [u8; 2] = image.get(VERSION_POINTER_OFFSET..VERSION_POINTER_OFFSET + 2)?.try_into().ok()?;
    let start = usize::from(u16::from_le_bytes(pointer)) + 0x200;
    let text = image.get(start..)?.split(|&byte| byte == 0 || byte == b' ').next()?;
    let version = std::str::from_utf8(text).ok()?;
    // Long enough for any kernel's version, short enough to be one.
    (!version.is_empty() && version.len() < 128).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(pointer: u16, text: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[MAGIC_OFFSET..MAGIC_OFFSET + 4].copy_from_slice(b"HdrS");
        image[VERSION_POINTER_OFFSET..VERSION_POINTER_OFFSET + 2].copy_from_slice(&pointer.to_le_bytes());
        image.extend_from_slice(text);
        image
    }

    #[test]
    fn the_version_is_the_first_word() {
        let image = image(0x200, b"6.1.0-1-cloud-amd64 (builder) #1 SMP\0");
        assert_eq!(bzimage_version(&image).unwrap(), "6.1.0-1-cloud-amd64");
    }

    #[test]
    fn a_pointer_past_the_end_is_no_version() {
        assert_eq!(bzimage_version(&image(0xffff, b"6.1\0")), None);
        assert_eq!(bzimage_version(b"not a kernel"), None);
    }

    proptest! {
        #[test]
        fn no_file_panics(pointer in any::<u16>(), text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = bzimage_version(&image(pointer, &text));
            let _ = bzimage_version(&text);
        }
    }
}
