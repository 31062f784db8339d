//! `cargo xtask`: set-up, build, run, test, bench.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{Env, Error};

/// Builds, runs, tests and measures covisor.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the test machine's host by itself: a shell in it, or one script.
    #[command(
        after_help = "Examples:\n  cargo xtask host\n  cargo xtask host -c 'modprobe kvm_amd && dmesg | tail'"
    )]
    Host(xtask::host_shell::HostArgs),
    /// Measure, in instructions on the deterministic test machine.
    #[command(after_help = "Examples:\n  cargo xtask bench exits\n  cargo xtask bench boot --json")]
    Bench(xtask::bench::BenchArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Carries the command out; what it ran in a machine gives the status.
fn run(command: &Command) -> Result<ExitCode, Error> {
    let env = Env::new()?;
    match command {
        Command::Host(args) => xtask::host_shell::run(&env, args),
        Command::Bench(args) => xtask::bench::run(&env, args).map(|()| ExitCode::SUCCESS),
    }
}
