//! What guests work with in tests: programs that check their own results, and Debian's debugger.

use std::path::PathBuf;

use covisor_guest_images::apt::{self, Apt};
use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use covisor_guest_images::initramfs::overlay;

use crate::build;
use crate::env::Env;
use crate::error::Result;
use crate::toolchain;

/// The 32-bit program's target.
const TARGET_32: &str = "i686-unknown-linux-gnu";

/// How it is compiled: at a fixed place and without a C library, which Debian does not install for this machine, by the linker
/// that Debian's binutils have.
const RUSTFLAGS_32: &[&str] = &[
    "-Crelocation-model=static",
    "-Ctarget-feature=+crt-static",
    "-Clinker=ld",
    "-Clinker-flavor=ld",
    "-Clink-arg=-melf_i386",
    "-Clink-arg=-no-pie",
    "-Cstrip=symbols",
];

/// The suite and the package of the debugger: the one that needs no Python.
const DEBUGGER: (&str, &str) = ("bookworm", "gdb-minimal");

/// Where packages have libraries, and where they go.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// The dynamic loader: where it is, and where programs want it.
const LOADER: (&str, &str) = ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2");

/// The debugger's program.
const PROGRAM: &str = "usr/bin/gdb";

/// Builds the 64-bit program, `guest-work`.
///
/// # Errors
/// When it does not compile.
pub fn program(env: &Env) -> Result<PathBuf> {
    build::static_program(env, "covisor-guest-work", "covisor-guest-work")
}

/// Builds the 32-bit program.
///
/// # Errors
/// When it does not compile.
pub fn program_32(env: &Env) -> Result<PathBuf> {
    let step = env.progress.step("building the guests' 32-bit program");
    toolchain::bare_metal()?
        .cargo_for(TARGET_32, "build", RUSTFLAGS_32)
        .args(["--package", "covisor-guest-work-32", "--bin", "covisor-guest-work-32", "--release", "--locked"])
        .arg("--target-dir")
        .arg(env.bare_metal_target())
        .dir(&env.root)
        .run(&step)?;
    step.done();
    Ok(env.bare_metal_target().join(TARGET_32).join("release/covisor-guest-work-32"))
}

/// An archive to put after an initramfs, with Debian's debugger and the libraries that it needs; fetched once.
///
/// # Errors
/// When it cannot be fetched.
pub fn debugger(env: &Env) -> Result<PathBuf> {
    let dir = env.out.join("debugger");
    let archive = dir.join("debugger.cpio");
    let _lock = fs::Lock::take(dir.join("lock"))?;
    if archive.exists() {
        return Ok(archive);
    }
    let step = env.progress.step(format!("fetching the debugger of Debian {}", DEBUGGER.0));
    let apt = Apt::new(&dir.join("apt"), &apt::sources_of_any(DEBUGGER.0)?)?;
    apt.update(&step)?;
    let tree = dir.join("tree");
    fs::remove(&tree)?;
    fs::create_dir_all(&tree)?;
    for deb in apt.download_with_dependencies(&[DEBUGGER.1], &step)? {
        Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree).run(&step)?;
    }
    let mut files = vec![(tree.join(PROGRAM), PROGRAM.to_owned()), (tree.join(LOADER.0), LOADER.1.to_owned())];
    for folder in LIBRARIES {
        for file in fs::list(tree.join(folder))? {
            if let Some(name) = file.file_name().and_then(|name| name.to_str()).filter(|name| is_library(name)) {
                let name = format!("{folder}/{name}");
                files.push((file, name));
            }
        }
    }
    let new = archive.with_extension("new");
    fs::write(&new, overlay(&files)?)?;
    fs::rename(&new, &archive)?;
    fs::remove(&tree)?;
    fs::remove(dir.join("apt"))?;
    step.done();
    Ok(archive)
}

/// Whether a file's name is one by which programs ask for a library: it ends with one number.
fn is_library(name: &str) -> bool {
    name.rsplit_once(".so.").is_some_and(|(_, version)| version.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_by_the_names_that_programs_ask_for() {
        assert!(is_library("libc.so.6") && is_library("ld-linux-x86-64.so.2") && is_library("liblber-2.5.so.0"));
        assert!(!is_library("libgmp.so.10.4.1") && !is_library("libthread_db.so") && !is_library("gconv"));
    }
}
