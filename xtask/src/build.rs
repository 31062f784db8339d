//! Building the programs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;

use crate::env::Env;
use crate::error::Result;
use crate::host::HostKernel;
use crate::{driver, images, probe, setup, windows};

/// The user-space target; named, so that flags for it do not reach build scripts.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds something once in the life of this process: its source does not change under a run of tests.
fn once(built: &OnceLock<PathBuf>, build: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = built.get() {
        return Ok(path.clone());
    }
    let path = build()?;
    Ok(built.get_or_init(|| path).clone())
}

/// Builds a program of the workspace as one static file, which runs in any initramfs.
///
/// # Errors
/// When it does not compile.
pub fn static_program(env: &Env, package: &str, binary: &str) -> Result<PathBuf> {
    let step = env.progress.step(format!("building {binary}"));
    // A folder of its own: other flags than cargo's default would throw out the default's results.
    let target = env.cargo_target.join("static");
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--package", package, "--bin", binary, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
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
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    once(&BUILT, || static_program(env, "covisor-agent", "covisor-agent"))
}

/// Builds covisor itself.
///
/// # Errors
/// When it does not compile.
pub fn loader(env: &Env) -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    once(&BUILT, || static_program(env, "covisor", "covisor"))
}

/// A part of what is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The program `covisor`.
    Loader,
    /// The Linux driver.
    Driver,
    /// The agent that runs commands in guests.
    Agent,
    /// The probe guest.
    Probe,
    /// The `mini` guest's initramfs.
    Mini,
    /// The `debian` guest's disk image, kernels and initrds.
    Debian,
}

/// What operating system a part is built for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum HostSystem {
    /// Linux.
    #[default]
    Linux,
    /// Windows, by Debian's cross compiler.
    Windows,
}

/// Arguments of `cargo xtask build`.
#[derive(Debug, Default, Args)]
pub struct BuildArgs {
    /// The host's operating system, for loader and driver.
    #[arg(long, value_enum, default_value_t)]
    host: HostSystem,
    /// Folder with the headers of the kernel that the driver is for, such as /usr/src/linux-headers-6.1.0-56-amd64
    /// [default: those of Debian's newest cloud kernel here].
    #[arg(long, value_name = "FOLDER", conflicts_with = "host")]
    headers: Option<PathBuf>,
    /// Also put loader, driver and agent into this folder, where they find each other.
    #[arg(long, value_name = "FOLDER", conflicts_with = "host")]
    into: Option<PathBuf>,
    /// What to build; everything when not given.
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// Builds what is asked for and says where it is: `cargo xtask build`.
///
/// # Errors
/// When something does not build.
pub fn run(env: &Env, args: &BuildArgs) -> Result<()> {
    if args.host == HostSystem::Windows {
        return windows::run(env, &args.parts);
    }
    setup::ensure(env)?;
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    let say = |what: &str, path: &Path| env.progress.say(&format!("{what}: {}", path.display()));
    let say_or_put = |what: &str, path: PathBuf| -> Result<()> {
        let Some((folder, name)) = args.into.as_deref().zip(path.file_name()) else {
            say(what, &path);
            return Ok(());
        };
        let there = folder.join(name);
        fs::copy(&path, &there)?;
        say(what, &there);
        Ok(())
    };
    let headers = || match &args.headers {
        Some(headers) => Ok(headers.clone()),
        None => HostKernel::find(env).map(|host| host.headers),
    };
    for part in parts {
        match part {
            Part::Loader => say_or_put("covisor", loader(env)?)?,
            Part::Driver => say_or_put("driver", driver::build_linux_module(env, &headers()?)?)?,
            Part::Agent => say_or_put("agent", agent(env)?)?,
            Part::Probe => say("probe guest", &probe::build_probe(env)?),
            Part::Mini => say("mini guest's initramfs", &images::mini(env, &images::default_kernel(env)?)?),
            Part::Debian => {
                let debian = images::debian(env)?;
                say("debian guest's disk", &debian.image);
                for kernel in &debian.kernels {
                    say("debian guest's kernel", &kernel.vmlinuz);
                }
            }
        }
    }
    Ok(())
}
