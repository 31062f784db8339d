//! `cargo xtask host`: the rig's host by itself.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::env::Env;
use crate::error::Result;
use crate::rig::{Input, Rig, RigKind};

/// Arguments of `cargo xtask host`.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Run this script instead of a shell on the terminal; its output and status are passed on.
    #[arg(short = 'c', value_name = "SCRIPT")]
    script: Option<String>,

    /// The machine: QEMU's has AMD-V, Bochs' VT-x, and the plain one neither.
    #[arg(long, value_enum, default_value_t = RigKind::Qemu)]
    rig: RigKind,

    /// The CPU, in the emulator's words; the machine's own when not given.
    #[arg(long)]
    cpu: Option<String>,

    /// Count instructions on QEMU: the machine's time is one nanosecond for each. Bochs always counts.
    #[arg(long)]
    icount: bool,

    /// The host's memory in MiB.
    #[arg(long, default_value_t = 1024, value_name = "MB")]
    mem: u32,

    /// The number of CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,

    /// A raw disk image for the host, unchanged afterwards; may be given several times.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,

    /// A file for the host, as FILE or FILE=NAME inside; may be given several times.
    #[arg(long, value_name = "FILE[=NAME]")]
    file: Vec<String>,

    /// Show the host's console on standard error.
    #[arg(long)]
    log: bool,

    /// Give up on a script after so many seconds.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

/// Starts the host and runs the script or a shell in it.
///
/// # Errors
/// When the machine cannot be started or dies.
pub fn run(env: &Env, args: &HostArgs) -> Result<ExitCode> {
    let mut rig = Rig::of_kind(env, args.rig)?
        .cpu(args.cpu.as_deref().unwrap_or(args.rig.default_cpu()))
        .count_instructions(args.icount)
        .memory_mib(args.mem)
        .cpus(args.cpus)
        .show_log(args.log);
    for disk in &args.disk {
        rig = rig.disk(disk);
    }
    for file in &args.file {
        let (from, name) = file.split_once('=').map_or((file.as_str(), None), |(from, name)| (from, Some(name)));
        let from = PathBuf::from(from);
        let name =
            name.map_or_else(|| from.file_name().unwrap_or_default().to_string_lossy().into_owned(), str::to_owned);
        rig = rig.file(from, name);
    }
    let mut machine = rig.start()?;
    let status = match &args.script {
        Some(script) => {
            machine.stream_to_us(script, Input::when_not_a_terminal(), Duration::from_secs(args.timeout))?
        }
        None => {
            env.progress.say("a shell in the emulated machine's host; `exit` or Ctrl-] ends it");
            machine.attach("exec sh -l")?
        }
    };
    machine.shut_down()?;
    Ok(exit_code(status))
}

/// A script's status as this process's.
#[must_use]
pub fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
}
