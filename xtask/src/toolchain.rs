//! Which compiler builds ring-0 code.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use covisor_guest_images::command::Cmd;

use crate::error::{Error, Result};

/// The oldest compiler that has everything that ring-0 code needs: its options that keep the CPU from speculating past
/// returns and indirect branches, with which Linux is compiled, too.
const OLDEST: (u32, u32) = (1, 95);

/// Debian's compiler with the matching library source (packages rustc-web, cargo-web,
/// rust-web-src).
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The target of ring-0 code.
const BARE_METAL: &str = "x86_64-unknown-none";

/// A compiler that can build `core` and `alloc` from source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareMetal {
    /// The cargo to run.
    pub cargo: PathBuf,
    /// The rustc that goes with it.
    pub rustc: PathBuf,
}

/// Finds a compiler for bare metal: the active rustup toolchain when it has `rust-src`, else
/// Debian's own.
///
/// # Errors
/// When there is neither.
pub fn bare_metal() -> Result<BareMetal> {
    find_rustup().or_else(find_debian).ok_or(Error::NoBareMetalToolchain)
}

impl BareMetal {
    /// Whether it has this subcommand of cargo's. (cargo itself would take another toolchain's.)
    #[must_use]
    pub fn has(&self, subcommand: &str) -> bool {
        self.cargo.with_file_name(format!("cargo-{subcommand}")).exists()
    }

    /// Whether it is Debian's, without the part that is a package of its own.
    #[must_use]
    pub fn is_debians_without_clippy(&self) -> bool {
        self.cargo == Path::new(DEBIAN_CARGO) && !self.has("clippy")
    }

    /// The search path, with this toolchain's programs first. Cargo's own folder is last: cargo looks there first where it is missing.
    fn path(&self) -> OsString {
        let mut path = self.cargo.parent().map_or_else(Default::default, Path::to_path_buf).into_os_string();
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        for part in std::env::var_os("PATH").into_iter().chain(home.map(|home| home.join("bin").into_os_string())) {
            path.push(":");
            path.push(part);
        }
        path
    }

    /// `cargo build` for `x86_64-unknown-none` with `core` and `alloc` built from source, to which
    /// the caller adds package, profile, target folder and the like.
    ///
    /// `rustflags` replace whatever flags the environment has: the code runs in ring 0, and its
    /// code model must not depend on the user's settings.
    #[must_use]
    pub fn cargo_build(&self, rustflags: &[&str]) -> Cmd {
        self.cargo("build", rustflags)
    }

    /// The same with another subcommand than `build`: `rustc` can choose the crate type.
    #[must_use]
    pub fn cargo(&self, subcommand: &str, rustflags: &[&str]) -> Cmd {
        self.cargo_for(BARE_METAL, subcommand, rustflags)
    }

    /// The same for another target, whose `core` and `alloc` are built from source, too.
    #[must_use]
    pub fn cargo_for(&self, target: &str, subcommand: &str, rustflags: &[&str]) -> Cmd {
        self.cargo_with("core,alloc", target, subcommand, rustflags).arg("-Zbuild-std-features=compiler-builtins-mem")
    }

    /// The same with other crates of the library than `core` and `alloc`, for a target that has memcpy and its kin from elsewhere.
    #[must_use]
    pub fn cargo_with(&self, library: &str, target: &str, subcommand: &str, rustflags: &[&str]) -> Cmd {
        Cmd::new(&self.cargo)
            .args([subcommand, "--target", target])
            .arg(format!("-Zbuild-std={library}"))
            .env("RUSTC", &self.rustc)
            // -Z options on a stable compiler: both toolchains pair the compiler with exactly its
            // own library source, which is what build-std needs.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", self.path())
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
    }
}

/// Whether a version such as `1.96.0+dfsg1-1` is new enough.
#[must_use]
pub fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

/// Whether the compiler is new enough: `rustc 1.96.0 (…)`.
fn has_new_version(rustc: &Path) -> bool {
    let output = Command::new(rustc).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).split(' ').nth(1).is_some_and(is_new_enough))
}

/// Whether the compiler's sysroot holds the library source.
fn has_library_source(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists().then_some(sysroot)
}

/// The active rustup toolchain, by the paths inside of its sysroot rather than rustup's proxies.
fn find_rustup() -> Option<BareMetal> {
    let sysroot = has_library_source(Path::new("rustc"))?;
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    (cargo.exists() && rustc.exists()).then_some(BareMetal { cargo, rustc })
}

fn find_debian() -> Option<BareMetal> {
    let (cargo, rustc) = (PathBuf::from(DEBIAN_CARGO), PathBuf::from(DEBIAN_RUSTC));
    has_library_source(&rustc)?;
    (cargo.exists() && has_new_version(&rustc)).then_some(BareMetal { cargo, rustc })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        assert!(is_new_enough("1.95.0"));
        assert!(is_new_enough("1.100.0+dfsg1-1~deb12u2"));
        assert!(is_new_enough("2.0.0"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("unknown"));
    }
}
