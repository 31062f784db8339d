//! Builds the image of the cooperative engine's monitor, which the driver carries.

use std::path::PathBuf;

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;

use crate::driver::is_newer;
use crate::env::Env;
use crate::error::Result;
use crate::toolchain;

/// How the monitor is compiled: it lies above the top 2 GiB, so it addresses its parts from where it is, and is linked at a fixed
/// place all the same. Its linker script comes from its build script.
const RUSTFLAGS: &[&str] = &[
    "-Crelocation-model=pic",
    "-Ccode-model=small",
    "-Clinker=ld",
    "-Clinker-flavor=ld",
    "-Clink-arg=-no-pie",
    // Spectre v2. The thunks are the compiler's own: nobody else's are there.
    "-Zretpoline=yes",
];

/// Builds the image and returns the path of the flat file.
///
/// # Errors
/// When a build step fails.
pub fn build_image(env: &Env, step: &Step) -> Result<PathBuf> {
    toolchain::bare_metal()?
        .cargo("build", RUSTFLAGS)
        .args(["--package", "covisor-monitor", "--bin", "covisor-monitor-image", "--profile", "kernel", "--locked"])
        .arg("--target-dir")
        .arg(env.bare_metal_target())
        .dir(&env.root)
        .run(step)?;
    let linked = env.bare_metal_target().join("x86_64-unknown-none/kernel/covisor-monitor-image");
    let image = env.out.join("monitor/monitor.bin");
    let _lock = fs::Lock::take(env.out.join("monitor/lock"))?;
    // The driver is built anew whenever the file is.
    if !is_newer(&image, [&linked].into_iter()) {
        let new = image.with_extension("new");
        Cmd::new("objcopy").args(["-O", "binary"]).arg(&linked).arg(&new).run(step)?;
        fs::rename(&new, &image)?;
    }
    Ok(image)
}
