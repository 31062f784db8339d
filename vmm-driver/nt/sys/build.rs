//! Tells cargo how Microsoft's linker makes a driver. For another linker there is nothing to tell: `cargo xtask build --host windows`
//! links by itself.

fn main() -> Result<(), wdk_build::ConfigError> {
    match std::env::var("CARGO_CFG_TARGET_ENV").as_deref() {
        Ok("msvc") => wdk_build::configure_wdk_binary_build(),
        _ => Ok(()),
    }
}
