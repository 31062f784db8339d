//! Test programs of others, from the registry of crates: built as static files, which run in any guest.

use std::path::PathBuf;

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;

use crate::build::TARGET;
use crate::env::Env;
use crate::error::Result;
use crate::setup;

/// A program from the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The crate's name, and the program's.
    name: &'static str,
    /// Its version.
    version: &'static str,
}

/// Changes a file at random and compares it with what it should be: "file system exerciser".
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };

/// Tries what POSIX says of each system call about files, and its errors.
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };

/// Builds a program, once for each version.
///
/// # Errors
/// When it cannot be fetched, or does not compile.
pub fn build(env: &Env, tool: Tool) -> Result<PathBuf> {
    setup::ensure_for_tools(env)?;
    let Tool { name, version } = tool;
    let folder = env.out.join("tools");
    let root = folder.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    let _lock = fs::Lock::take(folder.join("lock"))?;
    if program.exists() {
        return Ok(program);
    }
    let step = env.progress.step(format!("building {name} {version}"));
    let built = folder.join("built");
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // What it does is wait for the guest, so that not much is lost without the optimizer.
        .args([
            "install",
            "--quiet",
            "--debug",
            "--locked",
            "--no-track",
            "--target",
            TARGET,
            "--version",
            version,
            name,
        ])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(&built)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .dir(&env.root)
        .run(&step)?;
    fs::remove(&built)?;
    step.done();
    Ok(program)
}
