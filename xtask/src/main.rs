//! `cargo xtask`: set-up, build, run, test, bench.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{Env, Error};

/// Builds, runs, tests and measures covisor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the rest needs, by apt. The other commands do it when they miss something.
    Setup,
    /// Build covisor, its driver, the probe guest and the guests' images.
    #[command(
        after_help = "Examples:\n  cargo xtask build\n  cargo xtask build loader driver\n  cargo xtask build --host windows"
    )]
    Build(xtask::build::BuildArgs),
    /// Run a guest on covisor, in an emulated machine: with AMD-V, with VT-x, or with neither (--engine, --rig).
    #[command(after_help = "Examples:
  cargo xtask run                                     Debian on the terminal
  cargo xtask run --guest mini                        the small guest on the terminal
  cargo xtask run --guest mini --exec 'uname -a'      one command, its output and its status")]
    Run(xtask::run::RunArgs),
    /// Test: formatting, lints, unit tests, end-to-end scenarios.
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --unit\n  cargo xtask test rig/")]
    Test(xtask::test::TestArgs),
    /// What continuous integration runs: everything that `test` has, and the fuzz targets for a short time.
    Ci,
    /// Fuzz the parsers and the emulator.
    #[command(after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz emulator --seconds 600 --keep")]
    Fuzz(xtask::fuzz::FuzzArgs),
    /// Start the emulated machine's host by itself: a shell in it, or one script.
    #[command(after_help = "Examples:\n  cargo xtask host\n  cargo xtask host -c 'modprobe kvm_amd && dmesg | tail'")]
    Host(xtask::host_shell::HostArgs),
    /// Measure, in instructions on the deterministic emulated machine.
    #[command(
        after_help = "Examples:\n  cargo xtask bench exits\n  cargo xtask bench boot --json\n  cargo xtask bench coop\n  cargo xtask bench io tcp"
    )]
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
        Command::Setup => xtask::setup::run(&env).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => xtask::build::run(&env, args).map(|()| ExitCode::SUCCESS),
        Command::Run(args) => xtask::run::run(&env, args),
        Command::Test(args) => xtask::test::run(&env, args),
        Command::Ci => xtask::test::run(&env, &xtask::test::TestArgs::ci()),
        Command::Fuzz(args) => xtask::fuzz::run(&env, args),
        Command::Host(args) => xtask::host_shell::run(&env, args),
        Command::Bench(args) => xtask::bench::run(&env, args).map(|()| ExitCode::SUCCESS),
    }
}
