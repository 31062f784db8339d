//! Which compiler builds ring-0 code.

use std::path::{Path, PathBuf};
use std::process::Command;

use covisor_guest_images::command::Cmd;

use crate::error::{Error, Result};

/// Debian's compiler with the matching library source (packages rustc-web, cargo-web,
/// rust-web-src).
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

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
        let mut path = self.cargo.parent().map_or_else(Default::default, Path::to_path_buf).into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        Cmd::new(&self.cargo)
            .args([subcommand, "--target", "x86_64-unknown-none"])
            .args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"])
            .env("RUSTC", &self.rustc)
            // -Z options on a stable compiler: both toolchains pair the compiler with exactly its
            // own library source, which is what build-std needs.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", path)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
    }
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
    cargo.exists().then_some(BareMetal { cargo, rustc })
}
