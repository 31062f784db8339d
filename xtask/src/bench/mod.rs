//! `cargo xtask bench`: what things cost, in instructions on the deterministic rig.
//!
//! QEMU runs with `-icount shift=0,sleep=off`: every instruction takes one nanosecond of the machine's time and its time
//! stamp counter counts nanoseconds, so that RDTSC counts instructions, the same number in every run. On Bochs it counts them
//! anyway.

mod boot;
mod exits;
mod figure;
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
    },
    /// Instructions from guest kernel entry to the first program, next to the bare kernel's.
    Boot,
}

/// What a measurement can fail by.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A script in the host failed.
    #[error("{what} failed with status {status} in the test machine:\n{output}")]
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
    let figures = match args.what {
        BenchCommand::Exits { rig } => exits::run(env, rig)?,
        BenchCommand::Boot => boot::run(env)?,
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
