//! Takes in the monitor's image, which `cargo xtask` builds before the driver. Elsewhere there is none, and the engine says so.

use std::path::Path;

/// Names the image's file.
const IMAGE: &str = "COVISOR_MONITOR_IMAGE";

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-env-changed={IMAGE}");
    let image = match std::env::var_os(IMAGE) {
        Some(file) => {
            println!("cargo:rerun-if-changed={}", file.display());
            std::fs::read(file)?
        }
        None => Vec::new(),
    };
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    std::fs::write(Path::new(&out).join("monitor.bin"), image)
}
