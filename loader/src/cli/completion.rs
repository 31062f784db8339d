//! `covisor completion`.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::EXIT_USAGE;
use super::fail;

/// Arguments of `covisor completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  covisor completion bash > /etc/bash_completion.d/covisor")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn completion(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "covisor", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(format_args!("cannot write the script: {error}"), EXIT_USAGE),
    }
}
