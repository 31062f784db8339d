//! The guests' images.

use std::path::{Path, PathBuf};

use covisor_guest_images::debian::{self, DebianImage};
use covisor_guest_images::fs;
use covisor_guest_images::initramfs::{CARRIED_MODULES, GUEST_MODULES, Initramfs};
use covisor_guest_images::kernel::{Kernel, bzimage_version};

use crate::env::Env;
use crate::error::{Error, Result};

/// The release and the meta package of the kernel that guests run when none is named.
const DEFAULT_KERNEL: (&str, &str) = ("bookworm", "linux-image-cloud-amd64");

/// Builds the Debian image, if it is not there yet.
///
/// # Errors
/// When it cannot be built.
pub fn debian(env: &Env) -> Result<DebianImage> {
    let agent = crate::build::agent(env)?;
    Ok(debian::build(&env.out.join("images"), &env.kernels(), &agent, env.progress)?)
}

/// The kernel that guests run when none is named: Debian 12's cloud kernel.
///
/// # Errors
/// When it cannot be fetched.
pub fn default_kernel(env: &Env) -> Result<Kernel> {
    Ok(env.kernels().of_meta_package(DEFAULT_KERNEL.0, DEFAULT_KERNEL.1)?)
}

/// Builds the `mini` guest's initramfs for a kernel and returns its path.
///
/// # Errors
/// When it cannot be built.
pub fn mini(env: &Env, kernel: &Kernel) -> Result<PathBuf> {
    let agent = crate::build::agent(env)?;
    let content = Initramfs {
        kernel,
        load: &GUEST_MODULES,
        carry: &CARRIED_MODULES,
        agent: &agent,
        console_shell: true,
        hostname: "mini",
    }
    .build()?;
    let path = env.out.join("images").join(format!("mini-{}.cpio", kernel.version));
    // Scenarios build it at the same time, in threads of one process.
    let _lock = fs::Lock::take(path.with_extension("lock"))?;
    // Another process may be reading the old one.
    let new = path.with_extension(format!("cpio.{}", std::process::id()));
    fs::write(&new, content)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// What is known of a kernel file that the user names: its version, and its modules when it is a
/// kernel that was fetched.
///
/// # Errors
/// When the file cannot be read.
pub fn kernel_of_file(env: &Env, vmlinuz: &Path) -> Result<Kernel> {
    let image = fs::read(vmlinuz)?;
    let version = bzimage_version(&image).unwrap_or_else(|| "unknown".to_owned());
    let modules = env.kernels().kept(&version).and_then(|kernel| kernel.modules);
    Ok(Kernel { version, vmlinuz: vmlinuz.to_path_buf(), modules, deb: None })
}

/// The initrd that the Debian image has for a kernel of this version.
///
/// # Errors
/// When it has none.
pub fn debian_initrd(image: &DebianImage, version: &str) -> Result<PathBuf> {
    image.kernels.iter().find(|kernel| kernel.version == version).map(|kernel| kernel.initrd.clone()).ok_or_else(|| {
        Error::NoInitrd {
            version: version.to_owned(),
            known: image.kernels.iter().map(|kernel| kernel.version.as_str()).collect::<Vec<_>>().join(", "),
        }
    })
}
