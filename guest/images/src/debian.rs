//! The `debian` guest: a small Debian 12 on an ext4 disk image.
//!
//! A stock Debian made by debootstrap from this machine's mirror, with systemd, three of Debian's
//! kernels with their own initrds, the agent, and root without a password on the consoles. gcc and
//! make wait in apt's cache, so that `apt-get install` works in the guest without a network.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use covisor_debian::recipe::RECIPE;
use covisor_debian::settings::{self, AGENT, Setting};
use covisor_debian::sources;

use crate::apt::{self, Source};
use crate::command::{Cmd, find_program};
use crate::error::{Error, Result};
use crate::fs;
use crate::kernel::{Kernel, KernelStore};
use crate::progress::{Progress, Step};

/// The release.
const RELEASE: &str = "bookworm";

/// The file system's label, which the guest's fstab names.
pub const LABEL: &str = "covisor-root";

/// The image's size; it is sparse, and what is not used takes no room.
const SIZE: &str = "3G";

/// What this Debian has beyond what every guest of covisor's making has.
const MORE_PACKAGES: &[&str] = &["dropbear-bin"];

/// Packages that the guest can install without a network.
const OFFLINE_PACKAGES: &[&str] = &["gcc", "libc6-dev", "make", "tcc"];

/// Debian 12's kernels: the default one first.
const KERNELS: &[&str] = &[settings::CLOUD_KERNEL, settings::GENERIC_KERNEL];

/// A newer release's kernel: the release and the meta package.
const NEWER_KERNEL: (&str, &str) = ("trixie", settings::CLOUD_KERNEL);

/// The script that does the work, behind [`RECIPE`].
const BUILD_SCRIPT: &str = include_str!("debian/build.sh");

/// The files that make a plain Debian ours.
const FILES: &[Setting] = &[
    ("etc/fstab", include_str!("debian/files/etc/fstab")),
    ("etc/hostname", include_str!("debian/files/etc/hostname")),
    ("etc/hosts", include_str!("debian/files/etc/hosts")),
    settings::SMALL_APT,
    settings::RULES,
    settings::NETWORK,
    settings::AGENT_SERVICE,
    settings::AUTOLOGIN,
];

/// The image and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianImage {
    /// The raw disk image; its whole is the root file system.
    pub image: PathBuf,
    /// Each kernel with its initrd; the default one first.
    pub kernels: Vec<BootFiles>,
}

/// The packages beyond debootstrap's smallest set.
fn packages() -> Vec<&'static str> {
    let mut packages = [settings::PACKAGES, MORE_PACKAGES].concat();
    packages.sort_unstable();
    packages
}

/// A kernel and the initrd that Debian made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// What `uname -r` says.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The initrd.
    pub initrd: PathBuf,
}

/// Builds the image in `dir`, if it is not there yet, and puts `agent` into it.
///
/// # Errors
/// When this is not root, or a step fails.
pub fn build(dir: &Path, kernels: &KernelStore, agent: &Path, progress: Progress) -> Result<DebianImage> {
    let _lock = fs::Lock::take(dir.join("debian.lock"))?;
    let input = Input::find(kernels)?;
    let (image, boot) = (dir.join("debian.img"), dir.join("boot"));
    let stamp = Stamp::new(dir.join("debian.stamp"), &input.summary());
    if !stamp.is_current() || !image.exists() {
        fs::remove(&stamp.path)?;
        make_image(dir, &input, &image, &boot, progress)?;
        stamp.set()?;
    }
    put_agent(dir, &image, agent, &stamp.text, progress)?;
    Ok(DebianImage { kernels: input.boot_files(&boot)?, image })
}

/// What the image is made of.
struct Input {
    sources: Vec<Source>,
    kernels: Vec<Kernel>,
    newer: Kernel,
}

impl Input {
    fn find(store: &KernelStore) -> Result<Self> {
        let sources = apt::machine_sources(RELEASE)?;
        let kernels = KERNELS.iter().map(|meta| store.of_meta_package(RELEASE, meta)).collect::<Result<Vec<_>>>()?;
        let newer = store.of_meta_package(NEWER_KERNEL.0, NEWER_KERNEL.1)?;
        Ok(Self { sources, kernels, newer })
    }

    /// Everything that the image depends on, in one text.
    fn summary(&self) -> String {
        let versions: Vec<&str> = self.all_kernels().map(|kernel| kernel.version.as_str()).collect();
        let packages = packages();
        format!("{RECIPE}{BUILD_SCRIPT}{FILES:?}{packages:?}{OFFLINE_PACKAGES:?}{SIZE}{:?}{versions:?}", self.sources)
    }

    fn all_kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter().chain([&self.newer])
    }

    fn boot_files(&self, boot: &Path) -> Result<Vec<BootFiles>> {
        self.all_kernels()
            .map(|kernel| {
                let version = kernel.version.clone();
                let vmlinuz = boot.join(format!("vmlinuz-{version}"));
                let initrd = boot.join(format!("initrd.img-{version}"));
                for file in [&vmlinuz, &initrd] {
                    file.metadata().map_err(Error::file("find", file))?;
                }
                Ok(BootFiles { version, vmlinuz, initrd })
            })
            .collect()
    }

    /// Lays out what the script reads.
    fn write_to(&self, work: &Path) -> Result<()> {
        for folder in ["sources.list.d", "files", "debs", "newer"] {
            fs::create_dir_all(work.join(folder))?;
        }
        let sources: String = self.sources.iter().map(Source::as_deb822).collect();
        fs::write(work.join("sources.list.d/debian.sources"), sources)?;
        for (name, content) in FILES {
            fs::write(work.join("files").join(name), content)?;
        }
        for (kernels, folder) in [(self.kernels.as_slice(), "debs"), (std::slice::from_ref(&self.newer), "newer")] {
            for kernel in kernels {
                if let Some(deb) = &kernel.deb {
                    fs::copy(deb, work.join(folder).join(format!("{}.deb", kernel.version)))?;
                }
            }
        }
        fs::write(work.join("offline"), OFFLINE_PACKAGES.join(" "))
    }
}

/// A file that says what another was made from.
struct Stamp {
    path: PathBuf,
    text: String,
}

impl Stamp {
    fn new(path: PathBuf, input: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        input.hash(&mut hasher);
        Self { path, text: format!("{:016x}", hasher.finish()) }
    }

    fn is_current(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }

    fn set(&self) -> Result<()> {
        fs::write(&self.path, &self.text)
    }
}

/// Runs the script in namespaces of its own, so that no mount and no process outlives it.
fn make_image(dir: &Path, input: &Input, image: &Path, boot: &Path, progress: Progress) -> Result<()> {
    // SAFETY: geteuid(2) only returns a number.
    if unsafe { libc::geteuid() } != 0 {
        return Err(Error::NotRoot);
    }
    let step = progress.step("building the Debian guest's disk image (a few minutes, once)");
    let work = dir.join("debian.work");
    let result = run_script(&work, input, image, boot, &step);
    // Not kept for a failure either: its last words are in the error.
    fs::remove(&work)?;
    result?;
    step.done();
    Ok(())
}

fn run_script(work: &Path, input: &Input, image: &Path, boot: &Path, step: &Step) -> Result<()> {
    fs::remove(work)?;
    input.write_to(work)?;
    let script = work.join("build.sh");
    fs::write(&script, format!("{RECIPE}{BUILD_SCRIPT}"))?;
    let mirror = input.sources.first().map(|source| source.uri.as_str()).unwrap_or_default();
    let mut cmd = Cmd::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child", "sh"])
        .arg(script)
        .env("WORK", work)
        .env("TREE", work.join("tree"))
        .env("SUITE", RELEASE)
        .env("MIRROR", mirror)
        .env("KEYRING", sources::KEYRING)
        .env("PACKAGES", packages().join(","))
        .env("IMAGE", image)
        .env("SIZE", SIZE)
        .env("LABEL", LABEL)
        .env("BOOT", boot);
    cmd = match apt::http_proxy() {
        Some(proxy) => cmd.env("PROXY", &proxy).env("http_proxy", &proxy),
        None => cmd.env("PROXY", ""),
    };
    cmd.run(step)
}

/// Puts the agent into the image, where it is not this one already. Whoever uses the image now
/// goes on with the old one.
fn put_agent(dir: &Path, image: &Path, agent: &Path, image_stamp: &str, progress: Progress) -> Result<()> {
    let content = fs::read(agent)?;
    let stamp = Stamp::new(dir.join("debian.agent-stamp"), &(image_stamp, content));
    if stamp.is_current() {
        return Ok(());
    }
    let new = dir.join("debian.img.new");
    let step = progress.step("putting the agent into the Debian image");
    Cmd::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(image).arg(&new).run(&step)?;
    let debugfs = find_program("debugfs").unwrap_or_else(|| "debugfs".into());
    let commands = dir.join("debian.debugfs");
    // "rm" of what is not there only says so.
    let script = format!(
        "rm {AGENT}\nwrite {} {AGENT}\nset_inode_field {AGENT} mode 0100755\nset_inode_field {AGENT} uid 0\nset_inode_field {AGENT} gid 0\n",
        agent.display()
    );
    fs::write(&commands, script)?;
    Cmd::new(debugfs).args(["-w", "-f"]).arg(&commands).arg(&new).run(&step)?;
    fs::remove(&commands)?;
    fs::rename(&new, image)?;
    stamp.set()?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_name_what_the_rest_of_the_project_has() {
        let content = |name: &str| FILES.iter().find(|(file, _)| *file == name).unwrap().1;
        assert!(content("etc/fstab").contains(&format!("LABEL={LABEL} ")));
    }

    #[test]
    fn a_stamp_is_current_only_for_the_same_input() {
        let dir = std::env::temp_dir().join(format!("covisor-stamp-{}", std::process::id()));
        let path = dir.join("stamp");
        let stamp = Stamp::new(path.clone(), &"one");
        assert!(!stamp.is_current());
        stamp.set().unwrap();
        assert!(stamp.is_current());
        assert!(!Stamp::new(path, &"two").is_current());
        fs::remove(dir).unwrap();
    }
}
