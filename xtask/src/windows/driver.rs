//! Builds `covisor.sys`: Rust to a static library, and GNU's linker makes a driver of that.

use std::path::{Path, PathBuf};

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;

use super::wdk::Kit;
use super::{WindowsError, out, target, write_if_new};
use crate::env::Env;
use crate::error::Result;
use crate::{monitor, toolchain};

/// The driver's crate, which is not in the workspace: the crates that it needs cannot be built everywhere.
const CRATE: &str = "vmm-driver/nt/sys";

/// mingw-w64's import libraries.
const LIBRARIES: &str = "/usr/x86_64-w64-mingw32/lib";

const RUSTFLAGS: &[&str] = &[
    // Spectre v2; the thunks are the compiler's own.
    "-Zretpoline=yes",
];

/// How the linker makes a driver that every 64-bit NT loads.
const LINK_ARGUMENTS: &[&str] = &[
    "-nostdlib",
    "--entry=DriverEntry",
    "--undefined=DriverEntry",
    // NT 5.2 is the first one for x86-64.
    "--subsystem=native:5.2",
    "--major-os-version=5",
    "--minor-os-version=2",
    "--image-base=0x140000000",
    "--dynamicbase",
    "--nxcompat",
    "--high-entropy-va",
    "--enable-reloc-section",
    "--gc-sections",
    "--strip-all",
    "--exclude-all-symbols",
    // The same file from the same sources.
    "--no-insert-timestamp",
];

/// For whom a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Windows.
    Nt,
    /// Wine, for tests: see `vmm-driver/nt/sys/src/wine`.
    Wine,
}

impl Variant {
    const fn file(self) -> &'static str {
        match self {
            Self::Nt => "covisor.sys",
            Self::Wine => "covisor-wine.sys",
        }
    }

    /// The crate's features.
    const fn features(self) -> &'static str {
        match self {
            Self::Nt => "",
            Self::Wine => "wine",
        }
    }

    const fn step(self) -> &'static str {
        match self {
            Self::Nt => "building the driver for Windows",
            Self::Wine => "building the driver for Wine",
        }
    }
}

/// Builds one and returns the path of the file.
pub(super) fn build(env: &Env, variant: Variant) -> Result<PathBuf> {
    let step = env.progress.step(variant.step());
    let folder = out(env).join("driver");
    let _lock = fs::Lock::take(out(env).join("lock"))?;
    let monitor = monitor::build_image(env, &step)?;
    let toolchain = toolchain::bare_metal()?;
    let source = env.root.join(CRATE);
    let kit = Kit::make(&out(env), &toolchain.cargo, &source.join("Cargo.toml"))?;
    make_package(&source, &folder, &kit)?;
    let description = target::write(&out(env), &toolchain.rustc)?;
    let target = folder.join("target");
    // Not `build`: the crate's own type is for Microsoft's linker.
    let command = toolchain
        .cargo_for(&description.to_string_lossy(), "rustc", RUSTFLAGS)
        .arg("-Zjson-target-spec")
        .args(["--crate-type", "staticlib", "--profile", "kernel", "--locked", "--features", variant.features()])
        .arg("--target-dir")
        .arg(&target)
        .env("COVISOR_MONITOR_IMAGE", monitor)
        .dir(&folder);
    kit.tell(command).run(&step)?;
    let driver = out(env).join(variant.file());
    link(&target.join(target::NAME).join("kernel/libcovisor_nt_sys.a"), &driver, &step)?;
    step.done();
    Ok(driver)
}

/// Makes a package of the crate's sources that has the mended `wdk-build`: a manifest and a lock file. It is a folder of its own because the
/// lock file must be above cargo's target folder, where Microsoft's crates look for it, and the crate's own lock file is to stay.
fn make_package(source: &Path, folder: &Path, kit: &Kit) -> Result<()> {
    let manifest = with_absolute_paths(&fs::read_to_string(source.join("Cargo.toml"))?, source);
    let patch = format!("\n[patch.crates-io]\nwdk-build.path = \"{}\"\n", kit.build_crate.display());
    write_if_new(&folder.join("Cargo.toml"), (manifest + &patch).as_bytes())?;
    let lock = without_source(&fs::read_to_string(source.join("Cargo.lock"))?, "wdk-build")
        .ok_or(WindowsError::NoBuildCrate)?;
    write_if_new(&folder.join("Cargo.lock"), lock.as_bytes())
}

/// The manifest for another folder: paths in it, of which it names all, are made absolute.
fn with_absolute_paths(manifest: &str, source: &Path) -> String {
    let root = source.display();
    manifest.replace("path = \"", &format!("path = \"{root}/")).replace("\nbuild = \"", &format!("\nbuild = \"{root}/"))
}

/// The lock file without the lines that say where a package comes from, as it is when a patch replaces the package.
fn without_source(lock: &str, package: &str) -> Option<String> {
    let mut found = false;
    let name = format!("name = \"{package}\"");
    let packages: Vec<String> = lock
        .split("\n\n")
        .map(|block| {
            let lines: Vec<&str> = block.lines().collect();
            if !lines.contains(&name.as_str()) {
                return block.to_owned();
            }
            let is_source = |line: &str| line.starts_with("source = ") || line.starts_with("checksum = ");
            found |= lines.iter().any(|line| is_source(line));
            lines.into_iter().filter(|line| !is_source(line)).collect::<Vec<_>>().join("\n")
        })
        .collect();
    found.then(|| packages.join("\n\n"))
}

/// Links the library.
fn link(library: &Path, driver: &Path, step: &Step) -> Result<()> {
    let new = driver.with_extension("new");
    Cmd::new("x86_64-w64-mingw32-ld")
        .args(LINK_ARGUMENTS)
        .arg("-o")
        .arg(&new)
        .arg(library)
        // The HAL first: what newer kernels have themselves as well is imported from where older ones have it.
        .args(["-L", LIBRARIES, "-lhal", "-lntoskrnl"])
        .run(step)?;
    fs::rename(&new, driver)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_paths_lead_to_the_sources() {
        let manifest = "[package]\nbuild = \"build.rs\"\n[dependencies]\na = { path = \"..\" }\nwdk-build = \"1\"\n";
        let moved = with_absolute_paths(manifest, Path::new("/sys"));
        let expected =
            "[package]\nbuild = \"/sys/build.rs\"\n[dependencies]\na = { path = \"/sys/..\" }\nwdk-build = \"1\"\n";
        assert_eq!(moved, expected);
    }

    #[test]
    fn test_only_the_patched_package_loses_its_source() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nsource = \"r\"\nchecksum = \"1\"\n\n[[package]]\nname = \"b\"\nsource = \"r\"\n";
        let expected = "version = 4\n\n[[package]]\nname = \"a\"\n\n[[package]]\nname = \"b\"\nsource = \"r\"\n";
        assert_eq!(without_source(lock, "a").as_deref(), Some(expected));
        assert_eq!(without_source(lock, "c"), None);
        assert_eq!(without_source(expected, "a"), None);
    }
}
