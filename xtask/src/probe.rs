//! Builds the probe guest.

use std::path::PathBuf;

use crate::env::Env;
use crate::error::Result;
use crate::toolchain;

/// How the probe is compiled: at a fixed place in the low 2 GiB, by the linker that Debian's binutils have. Its linker
/// script comes from its build script.
const RUSTFLAGS: &[&str] =
    &["-Crelocation-model=static", "-Ccode-model=small", "-Clinker=ld", "-Clinker-flavor=ld", "-Clink-arg=-no-pie"];

/// Builds the probe guest and returns the path of its kernel image.
///
/// # Errors
/// When a build step fails.
pub fn build_probe(env: &Env) -> Result<PathBuf> {
    let step = env.progress.step("building the probe guest");
    toolchain::bare_metal()?
        .cargo("build", RUSTFLAGS)
        .args(["--package", "covisor-probe", "--bin", "covisor-probe", "--release", "--locked"])
        .arg("--target-dir")
        .arg(env.bare_metal_target())
        .dir(&env.root)
        .run(&step)?;
    step.done();
    Ok(env.bare_metal_target().join("x86_64-unknown-none/release/covisor-probe"))
}
