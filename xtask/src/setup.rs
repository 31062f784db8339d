//! `cargo xtask setup`: installs the Debian packages that the rest needs.

use std::sync::{Mutex, PoisonError};

use covisor_guest_images::apt;
use covisor_guest_images::apt::Apt;
use covisor_guest_images::command::{Cmd, is_installed};

use crate::env::Env;
use crate::error::{Error, Result};
use crate::toolchain;
use crate::toolchain::is_new_enough;

/// A Debian package and what it is for.
struct Package {
    name: &'static str,
    reason: &'static str,
}

const fn package(name: &'static str, reason: &'static str) -> Package {
    Package { name, reason }
}

/// What every command needs.
const PACKAGES: &[Package] = &[
    package("gcc", "links programs and builds the driver's C shim"),
    package("make", "builds the driver with the kernel's own build system"),
    package("binutils", "joins the driver's object files"),
    package("libc6-dev", "links static programs"),
    package("libelf-dev", "used by the kernel's build system"),
    package("linux-headers-cloud-amd64", "the kernel that the driver is built for"),
    package("qemu-system-x86", "the emulated machine"),
    package("seabios", "the emulated machine's firmware"),
    package("busybox-static", "the shell and tools of the emulated machine and the small guest"),
    package("debootstrap", "builds the Debian guest"),
    package("debian-archive-keyring", "checks what debootstrap fetches"),
    package("e2fsprogs", "makes the Debian guest's file system"),
    package("kmod", "finds the kernel modules that belong together"),
    package("cpio", "checks the initramfs archives that the tests make"),
    package("xz-utils", "unpacks kernel modules"),
    package("zstd", "unpacks kernel modules"),
    package("util-linux", "keeps the image build's mounts apart"),
];

/// The Debian release whose packages these are.
const RELEASE: &str = "bookworm";

/// The package whose version says whether it is new enough.
const COMPILER: &str = "rustc-web";

/// What builds ring-0 code where rustup's toolchain cannot.
const RING0_PACKAGES: &[Package] = &[
    package(COMPILER, "compiles the driver: a compiler with matching library source"),
    package("cargo-web", "the cargo that goes with it"),
    package("rust-web-src", "the library source that goes with it"),
    package("rust-web-clippy", "its lints, for what is compiled for Windows"),
];

/// What only the fuzz targets need.
const FUZZ_PACKAGES: &[Package] = &[package("g++", "builds libFuzzer")];

/// What only the machine with VT-x needs.
const BOCHS_PACKAGES: &[Package] = &[package("g++", "builds Bochs, the emulated machine with VT-x")];

/// What only builds for a Windows host need.
const WINDOWS_PACKAGES: &[Package] = &[
    package("gcc-mingw-w64-x86-64-win32", "links the program for Windows"),
    package("binutils-mingw-w64-x86-64", "links the driver for Windows"),
    package("mingw-w64-x86-64-dev", "the headers and import libraries of Windows' kernel"),
    package("libclang1-14", "reads those headers"),
    package("libclang-common-14-dev", "the compiler's own headers that go with it"),
];

/// What only tests of what is built for a Windows host need.
const WINE_PACKAGES: &[Package] = &[package("wine64", "runs the driver and the programs for Windows")];

/// What only tests of disk images need.
const IMAGE_PACKAGES: &[Package] = &[
    package("qemu-utils", "makes, compares and checks disk images, as a referee"),
    package("genisoimage", "makes a CD's image"),
    package("fio", "writes to guests' disks and reads them back"),
];

/// What only the measurement of network and disks needs.
const IO_PACKAGES: &[Package] = &[
    package("iperf3", "measures the network, in a guest and in the emulated machine's host"),
    package("fio", "measures disks, in a guest"),
];

/// What only test programs of others need.
const TOOL_PACKAGES: &[Package] = &[package("libacl1-dev", "is linked into the test of file systems, pjdfstest")];

/// Installs what is missing and says what and why.
///
/// # Errors
/// When this is no Debian, apt fails, or packages are missing and this is not root.
pub fn ensure(env: &Env) -> Result<()> {
    ensure_with(env, &[])
}

/// The same for building and running the fuzz targets.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_fuzzing(env: &Env) -> Result<()> {
    ensure_with(env, FUZZ_PACKAGES)
}

/// The same for building the machine with VT-x.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_bochs(env: &Env) -> Result<()> {
    ensure_with(env, BOCHS_PACKAGES)
}

/// The same for building for a Windows host.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_windows(env: &Env) -> Result<()> {
    ensure_with(env, WINDOWS_PACKAGES)
}

/// The same for running what is built for a Windows host.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_wine(env: &Env) -> Result<()> {
    ensure_with(env, WINE_PACKAGES)
}

/// The same for tests of disk images.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_images(env: &Env) -> Result<()> {
    ensure_with(env, IMAGE_PACKAGES)
}

/// The same for measuring network and disks.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_io(env: &Env) -> Result<()> {
    ensure_with(env, IO_PACKAGES)
}

/// The same for building test programs of others.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for_tools(env: &Env) -> Result<()> {
    ensure_with(env, TOOL_PACKAGES)
}

fn ensure_with(env: &Env, more: &'static [Package]) -> Result<()> {
    /// Scenarios run at the same time, and dpkg serves one at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let ring0: &'static [Package] = if lacks_compiler() { RING0_PACKAGES } else { &[] };
    let missing = missing(more)?;
    if missing.is_empty() && ring0.is_empty() {
        return Ok(());
    }
    for package in missing.iter().copied().chain(ring0) {
        env.progress.say(&format!("needs {}: {}", package.name, package.reason));
    }
    let names = names_for_apt(&missing, ring0);
    let install = ["install", "-y", "--no-install-recommends"];
    if !is_root() {
        if names.is_empty() {
            return Err(Error::NoBareMetalToolchain);
        }
        return Err(Error::NeedsPackages {
            command: format!("sudo apt-get update && sudo apt-get {} {}", install.join(" "), names.join(" ")),
        });
    }
    let step = env.progress.step("fetching apt's package lists");
    apt_get().arg("update").run(&step)?;
    step.done();
    // The lists may say something else now.
    let names = names_for_apt(&missing, ring0);
    if !names.is_empty() {
        let step = env.progress.step(format!("installing {}", names.join(" ")));
        apt_get().args(install).args(&names).run(&step)?;
        step.done();
    }
    if lacks_compiler() { install_compiler(env) } else { Ok(()) }
}

/// Whether a compiler for ring-0 code is missing, or, where that can be mended, a part of it.
fn lacks_compiler() -> bool {
    toolchain::bare_metal().map_or(true, |toolchain| is_root() && toolchain.is_debians_without_clippy())
}

fn is_root() -> bool {
    // SAFETY: geteuid(2) only returns a number.
    unsafe { libc::geteuid() == 0 }
}

/// The packages to install from this machine's own sources: those missing, and the compiler for ring-0 code if that is
/// wanted and new enough there.
fn names_for_apt(missing: &[&'static Package], ring0: &'static [Package]) -> Vec<&'static str> {
    let is_new = !ring0.is_empty() && apt::candidate(COMPILER).is_some_and(|version| is_new_enough(&version));
    let ring0 = if is_new { ring0 } else { &[] };
    missing.iter().copied().chain(ring0).map(|package| package.name).collect()
}

/// Installs the compiler for ring-0 code from Debian's security suite, where newer ones come, on a machine whose apt does
/// not have that suite; the machine's sources stay as they are.
fn install_compiler(env: &Env) -> Result<()> {
    let names: Vec<&str> = RING0_PACKAGES.iter().map(|package| package.name).collect();
    let step = env.progress.step(format!("installing {} from the security suite", names.join(" ")));
    let sources = apt::machine_sources_with_security(RELEASE)?;
    let apt = Apt::for_this_machine(&env.out.join("apt-security"), &sources)?;
    apt.update(&step)?;
    apt.install(&names, &step)?;
    step.done();
    Ok(())
}

/// Says that all is there; for `cargo xtask setup`, whose user asked.
///
/// # Errors
/// As [`ensure`].
pub fn run(env: &Env) -> Result<()> {
    ensure(env)?;
    env.progress.say("all that the build and the emulated machine need is installed");
    Ok(())
}

fn apt_get() -> Cmd {
    // Another program of the machine's may be installing something: its own updates, for one.
    Cmd::new("apt-get")
        .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
}

/// The packages that are not installed, of those that every command needs and `more`.
fn missing(more: &'static [Package]) -> Result<Vec<&'static Package>> {
    if !is_installed("dpkg-query") || !is_installed("apt-get") {
        return Err(Error::NotDebian);
    }
    let wanted: Vec<&Package> = PACKAGES.iter().chain(more).collect();
    // It fails for a package that it has never heard of, but lists the others.
    let output = Cmd::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\\n"])
        .args(wanted.iter().map(|package| package.name))
        .into_inner()
        .output()
        .map_err(|source| covisor_guest_images::Error::Start { program: "dpkg-query".to_owned(), source })?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(wanted.into_iter().filter(|package| !has(&list, package.name)).collect())
}

/// Whether dpkg's list has the package as installed.
fn has(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.split_once(' ') == Some((name, "installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_counts() {
        let list = "make installed\ngcc config-files\n";
        assert!(has(list, "make"));
        assert!(!has(list, "gcc"));
        assert!(!has(list, "cpio"));
    }
}
