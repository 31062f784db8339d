//! Building the programs.

use std::path::PathBuf;

use covisor_guest_images::command::Cmd;

use crate::env::Env;
use crate::error::Result;

/// The user-space target; named, so that flags for it do not reach build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds a program of the workspace as one static file, which runs in any initramfs.
fn static_program(env: &Env, package: &str, binary: &str) -> Result<PathBuf> {
    let step = env.progress.step(format!("building {binary}"));
    // A folder of its own: other flags than cargo's default would throw out the default's results.
    let target = env.cargo_target.join("static");
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            package,
            "--bin",
            binary,
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .dir(&env.root)
        .run(&step)?;
    step.done();
    Ok(target.join(TARGET).join("release").join(binary))
}

/// Builds the agent.
///
/// # Errors
/// When it does not compile.
pub fn agent(env: &Env) -> Result<PathBuf> {
    static_program(env, "covisor-agent", "covisor-agent")
}

/// Builds covisor itself.
///
/// # Errors
/// When it does not compile.
pub fn loader(env: &Env) -> Result<PathBuf> {
    static_program(env, "covisor", "covisor")
}
