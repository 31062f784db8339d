//! `cargo xtask bench`: what things cost, in instructions on the deterministic rig.
//!
//! QEMU runs with `-icount shift=0,sleep=off`: every instruction takes one nanosecond of the machine's time and its time
//! stamp counter counts nanoseconds, so that RDTSC counts instructions, the same number in every run. On Bochs it counts them
//! anyway.

mod boot;
mod coop;
mod exits;
mod figure;
mod io;
mod machine;
mod stub;

use clap::{Args, Subcommand};

use crate::env::Env;
use crate::error::Result;
use crate::rig::RigKind;
use crate::setup;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Print one JSON object a line on stdout instead of a table.
    #[arg(long, global = true)]
    pub json: bool,

    /// The machine's CPU, in the emulator's words, as EPYC or Skylake-Client.
    #[arg(long, global = true, value_name = "CPU")]
    pub cpu: Option<String>,

    /// What to measure.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Instructions for one round trip of each kind of exit, next to KVM's.
    Exits {
        /// Who emulates the machine: QEMU has AMD-V, Bochs VT-x.
        #[arg(long, value_enum, default_value_t = RigKind::Qemu)]
        rig: RigKind,
        /// Measure the driver for Windows as well, in a module that has for it what it takes of NT's kernel.
        #[arg(long)]
        nt: bool,
    },
    /// Instructions from guest kernel entry to the first program, next to the bare kernel's.
    Boot,
    /// Instructions for a MiB over the network and to and from disks, next to those of QEMU with KVM.
    Io {
        /// Measure this system only: covisor-svm or qemu-kvm.
        #[arg(long, value_name = "SYSTEM")]
        only: Option<String>,
        /// Measure only what has this in its name.
        filter: Option<String>,
    },
    /// Instructions for what a guest's kernel does, paravirtual and not, next to the bare kernel's and to Xen's.
    Coop {
        /// Measure this system only: covisor-coop, covisor-svm, bare or xen-pv.
        #[arg(long, value_name = "SYSTEM")]
        only: Option<String>,
    },
}

/// What a measurement can fail by.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A script in the host failed.
    #[error("{what} failed with status {status} in the emulated machine:\n{output}")]
    Script {
        /// What it was to do.
        what: &'static str,
        /// Its status.
        status: i32,
        /// What it said.
        output: String,
    },
    /// Something did not say its figure.
    #[error("{what} did not say its figure; it said:\n{output}")]
    NoFigure {
        /// What it was.
        what: String,
        /// What it said.
        output: String,
    },
    /// There is no KVM to compare with.
    #[error(
        "exits are measured next to KVM's, and KVM runs no guests on a CPU without AMD-V and VT-x: choose --rig qemu or bochs"
    )]
    NoKvm,
    /// Something took too long.
    #[error("{what} did not say its figure within {seconds} s; it said:\n{output}")]
    Late {
        /// What it was.
        what: String,
        /// The limit.
        seconds: u64,
        /// What it said.
        output: String,
    },
    /// The program in the guest could not measure.
    #[error("the guest on {system} could not measure: {reason}")]
    Guest {
        /// Where it ran.
        system: &'static str,
        /// What it said.
        reason: String,
    },
    /// The kernel cannot be made a stub of.
    #[error("the kernel {path} is no bzImage with a 64-bit entry: boots are measured with Debian's kernels")]
    NoBzImage {
        /// The file.
        path: String,
    },
}

/// Runs a benchmark and prints its figures.
///
/// # Errors
/// When something cannot be built or the rig fails.
pub fn run(env: &Env, args: &BenchArgs) -> Result<()> {
    setup::ensure(env)?;
    let cpu = |default| args.cpu.as_deref().unwrap_or(default);
    let figures = match &args.what {
        BenchCommand::Exits { rig, nt } => exits::run(env, *rig, cpu(rig.default_cpu()), *nt)?,
        BenchCommand::Boot => boot::run(env, cpu(RigKind::Qemu.default_cpu()))?,
        BenchCommand::Io { only, filter } => {
            io::run(env, cpu(RigKind::Qemu.default_cpu()), only.as_deref(), filter.as_deref())?
        }
        BenchCommand::Coop { only } => coop::run(env, cpu(coop::CPU), only.as_deref())?,
    };
    if args.json {
        for figure in &figures {
            println!("{}", figure.json());
        }
    } else {
        print!("{}", figure::table(&figures));
    }
    Ok(())
}
