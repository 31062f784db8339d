//! Builds the Linux host driver, `covisor.ko`: Rust to a static library, that to one relocatable object, and Kbuild makes
//! a module of it and the C shim.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use covisor_guest_images::command::Cmd;
use covisor_guest_images::error::Error::Unexpected;
use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;

use crate::env::Env;
use crate::error::Result;
use crate::{monitor, toolchain};

/// How code is compiled that lives in a Linux kernel. The kernel patches thunk calls, returns and landing pads when it
/// loads the module, as this CPU needs them.
const RUSTFLAGS: &[&str] = &[
    // At a fixed place in the top 2 GiB. Calls go through PLT relocations, which the module loader takes for direct calls;
    // it knows no GOT.
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Zplt=yes",
    // Spectre v2, retbleed and their kin.
    "-Zretpoline-external-thunk=yes",
    "-Zindirect-branch-cs-prefix=yes",
    "-Zfunction-return=thunk-extern",
    // Indirect branch tracking.
    "-Zcf-protection=branch",
    // objtool makes the tables that the kernel unwinds by.
    "-Cforce-unwind-tables=no",
];

/// What the C shim calls; all else in the Rust object is its own affair.
const ENTRY_POINTS: [&str; 10] = [
    "covisor_module_init",
    "covisor_module_exit",
    "covisor_power_down",
    "covisor_power_down_here",
    "covisor_open",
    "covisor_release",
    "covisor_ioctl",
    "covisor_ram_page",
    "covisor_call_on_cpu",
    "covisor_timer_expired",
];

/// The shim's folder.
const SHIM: &str = "vmm-driver/linux/kmod";
/// The linker script in it.
const LINKER_SCRIPT: &str = "covisor_rust.lds";

/// What the user's own builds may have in the environment, and Kbuild must not see.
const NOT_FOR_KBUILD: [&str; 7] = ["ARCH", "CROSS_COMPILE", "LLVM", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "KCFLAGS"];

/// Builds the driver for the kernel whose headers are at `kernel_headers_dir` (a folder such as
/// `/usr/src/linux-headers-6.1.0-56-cloud-amd64`) and returns the path of the `covisor.ko`.
///
/// # Errors
/// When a build step fails.
pub fn build_linux_module(env: &Env, kernel_headers_dir: &Path) -> Result<PathBuf> {
    let release = kernel_release(kernel_headers_dir)?;
    let step = env.progress.step(format!("building the driver for Linux {release}"));
    let library = build_library(env, &step)?;

    let out = env.out.join("driver").join(&release);
    let _lock = fs::Lock::take(out.join("lock"))?;
    let module = out.join("covisor.ko");
    let shim = fs::list(env.root.join(SHIM))?;
    let symbols = kernel_headers_dir.join("Module.symvers");
    // This program is an input too: it holds the recipe.
    let recipe = std::env::current_exe().ok();
    let inputs = shim.iter().chain([&library, &symbols]).chain(&recipe);
    if !is_newer(&module, inputs) {
        let build = out.join("build");
        copy_sources(&shim, &build)?;
        link_library(&library, &build, &step)?;
        make_module(kernel_headers_dir, &build, &step)?;
        install(&build, &module, &step)?;
    }
    step.done();
    Ok(module)
}

/// Builds a module that is C alone, of the sources in `folder` of the checkout, and returns the path of its file.
///
/// # Errors
/// When a build step fails.
pub fn build_c_module(env: &Env, kernel_headers_dir: &Path, folder: &str, name: &str) -> Result<PathBuf> {
    let step = env.progress.step(format!("building the module {name}"));
    let out = env.out.join("modules").join(kernel_release(kernel_headers_dir)?).join(name);
    let _lock = fs::Lock::take(out.join("lock"))?;
    let module = out.join(name).with_extension("ko");
    let sources = fs::list(env.root.join(folder))?;
    if !is_newer(&module, sources.iter().chain([&kernel_headers_dir.join("Module.symvers")])) {
        let build = out.join("build");
        copy_sources(&sources, &build)?;
        make_module(kernel_headers_dir, &build, &step)?;
        install(&build, &module, &step)?;
    }
    step.done();
    Ok(module)
}

/// Puts copies of a module's sources into a folder that has nothing else: Kbuild writes beside its sources.
fn copy_sources(sources: &[PathBuf], build: &Path) -> Result<()> {
    fs::remove(build)?;
    for file in sources {
        if let Some(name) = file.file_name() {
            fs::copy(file, build.join(name))?;
        }
    }
    Ok(())
}

/// Puts the module that Kbuild has made where it is expected, without the kernel's debug information: that is in the headers'
/// compiler flags, and nobody needs it in every copy.
fn install(build: &Path, module: &Path, step: &Step) -> Result<()> {
    let made = build.join(module.file_name().unwrap_or_default());
    let stripped = made.with_extension("stripped");
    Cmd::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(made).run(step)?;
    fs::rename(&stripped, module)?;
    Ok(())
}

/// The release of the kernel that the headers are of, as `uname -r` says it.
fn kernel_release(headers: &Path) -> Result<String> {
    let path = headers.join("include/generated/utsrelease.h");
    let text = fs::read_to_string(&path)?;
    let release = quoted(&text).ok_or_else(|| Unexpected(format!("{} names no kernel release", path.display())))?;
    Ok(release.to_owned())
}

/// What the first pair of quotation marks encloses.
fn quoted(text: &str) -> Option<&str> {
    text.split('"').nth(1).filter(|word| !word.is_empty())
}

/// Compiles the Rust side and returns the static library.
fn build_library(env: &Env, step: &Step) -> Result<PathBuf> {
    let monitor = monitor::build_image(env, step)?;
    // Not `build`: the crate is a library like any other to the rest of the workspace.
    toolchain::bare_metal()?
        .cargo("rustc", RUSTFLAGS)
        .args(["--crate-type", "staticlib", "--package", "covisor-linux", "--profile", "kernel", "--locked"])
        .arg("--target-dir")
        .arg(env.bare_metal_target())
        .env("COVISOR_MONITOR_IMAGE", monitor)
        .dir(&env.root)
        .run(step)?;
    Ok(env.bare_metal_target().join("x86_64-unknown-none/kernel/libcovisor_linux.a"))
}

/// Links the library to one object in `build`, the way Kbuild takes objects that others made.
fn link_library(library: &Path, build: &Path, step: &Step) -> Result<()> {
    let linked = build.join("covisor_rust.linked");
    Cmd::new("ld")
        .args(["-r", "--gc-sections"])
        .args(ENTRY_POINTS.map(|name| format!("--undefined={name}")))
        .arg("--script")
        .arg(build.join(LINKER_SCRIPT))
        .arg("-o")
        .arg(&linked)
        .arg("--whole-archive")
        .arg(library)
        .run(step)?;
    // Rust has a memcpy of its own, with no tracing in it, for the time when the CPU holds the guest's state: nobody else
    // may link to it. Local names stay, for objtool and for readable backtraces.
    Cmd::new("objcopy")
        .args(ENTRY_POINTS.map(|name| format!("--keep-global-symbol={name}")))
        .arg("--strip-debug")
        .arg(&linked)
        .arg(build.join("covisor_rust.o_shipped"))
        .run(step)?;
    fs::remove(&linked)?;
    Ok(())
}

/// Runs Kbuild.
fn make_module(headers: &Path, build: &Path, step: &Step) -> Result<()> {
    let log = build.join("kbuild.log");
    let make = Cmd::new("sh")
        // For its messages: where objtool gives up it says so, and does not fail.
        .args(["-c", "\"$@\" >\"$0\" 2>&1 || { cat \"$0\"; exit 1; }"])
        .arg(&log)
        .args(["make", "-C"])
        .arg(headers)
        .arg(format!("M={}", build.display()))
        // Type information for BPF programs takes another program to make, and nobody traces this module.
        .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
        .arg("modules");
    NOT_FOR_KBUILD.into_iter().fold(make, Cmd::env_remove).run(step)?;
    let messages = fs::read_to_string(&log)?;
    let complaints: Vec<&str> = messages.lines().filter(|line| line.contains("objtool:")).collect();
    if !complaints.is_empty() {
        return Err(Unexpected(format!(
            "objtool does not understand the module's code, so Linux could not protect it against speculation:\n{}",
            complaints.join("\n")
        ))
        .into());
    }
    Ok(())
}

/// Whether `file` is there and newer than all inputs.
pub(crate) fn is_newer<'a>(file: &Path, inputs: impl Iterator<Item = &'a PathBuf>) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { path.metadata().ok()?.modified().ok() };
    let Some(made) = changed(file) else { return false };
    inputs.into_iter().all(|input| changed(input).is_some_and(|input| input < made))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, write};
    use std::time::Duration;

    use super::*;

    #[test]
    fn test_the_release_is_what_the_header_quotes() {
        assert_eq!(quoted("#define UTS_RELEASE \"6.1.0-56-cloud-amd64\"\n"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(quoted("#define UTS_RELEASE \"\"\n"), None);
        assert_eq!(quoted(""), None);
    }

    #[test]
    fn test_a_module_is_current_only_if_newer_than_every_input() {
        let dir = std::env::temp_dir().join(format!("covisor-driver-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (old, module, missing) = (dir.join("old"), dir.join("module"), dir.join("missing"));
        write(&old, "").unwrap();
        write(&module, "").unwrap();
        let past = SystemTime::now() - Duration::from_secs(60);
        File::open(&old).unwrap().set_modified(past).unwrap();
        assert!(is_newer(&module, [&old].into_iter()));
        assert!(!is_newer(&old, [&module].into_iter()));
        assert!(!is_newer(&module, [&old, &missing].into_iter()));
        assert!(!is_newer(&missing, [&old].into_iter()));
        fs::remove(&dir).unwrap();
    }
}
