//! Hands the linker script to the linker where the target is bare metal.

fn main() {
    println!("cargo:rerun-if-changed=monitor.lds");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{folder}/monitor.lds");
    }
}
