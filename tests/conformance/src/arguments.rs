//! The command line.

use std::sync::OnceLock;
use std::time::Duration;

use clap::Parser;
use clap::Subcommand;

/// Tries whether the driver of this machine does with the device's calls what it has to.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the names of all cases
    List {
        /// What each shows, too.
        #[arg(long)]
        long: bool,
    },
    /// Try cases, and print a line for each
    Run {
        /// A part of the names of those that are tried; all without.
        #[arg(default_value = "")]
        filter: String,
        /// How long attacks by random numbers go on, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
        attack: f32,
    },
    /// Run a vCPU until this program is killed
    #[command(hide = true)]
    Spin,
}

static ATTACK_TIME: OnceLock<Duration> = OnceLock::new();

/// Sets how long attacks by random numbers go on.
pub(crate) fn set_attack_time(seconds: f32) {
    // It is set once, before the first case.
    _ = ATTACK_TIME.set(Duration::try_from_secs_f32(seconds).unwrap_or_default());
}

/// How long attacks by random numbers go on.
pub(crate) fn attack_time() -> Duration {
    ATTACK_TIME.get().copied().unwrap_or_default()
}
