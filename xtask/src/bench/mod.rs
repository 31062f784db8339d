//! `cargo xtask bench`: what things cost, in instructions on the deterministic rig.

use clap::{Args, Subcommand};

use crate::env::Env;
use crate::error::{Error, Result};

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
    Exits,
    /// Instructions from guest kernel entry to `Run /init`, next to the bare kernel's.
    Boot,
}

/// Runs a benchmark and prints its figures.
///
/// # Errors
/// When something cannot be built or the rig fails.
pub fn run(env: &Env, args: &BenchArgs) -> Result<()> {
    let _ = (env, args);
    Err(Error::NotBuilt("the benchmarks"))
}
