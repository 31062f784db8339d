//! The command line.

mod completion;
mod doctor;
mod driver;
mod machines;
mod run;

use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;

use crate::sys::process;
use crate::sys::terminal;

/// Exit status of a wrong command line or configuration.
const EXIT_USAGE: u8 = 1;
/// Exit status when the driver or the engine is at fault.
const EXIT_DRIVER: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  covisor doctor                                   what this machine offers
  sudo covisor driver install                      load the driver
  sudo covisor run --disk debian.img               boot a disk with the host's own kernel
  sudo covisor run --kernel vmlinuz --initrd initrd.img --disk debian.img,ro --mem 1G
  sudo covisor run --kernel vmlinuz --initrd mini.cpio --exec 'uname -a'
  sudo covisor ps                                  what runs
  sudo covisor stop --all                          power everything off";

/// Runs an unmodified Linux beside the host.
#[derive(Debug, Parser)]
#[command(name = "covisor", version, about, max_term_width = 100, after_help = EXAMPLES, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest
    Run(run::Args),
    /// List the running guests
    Ps(machines::PsArgs),
    /// Power guests off
    Stop(machines::StopArgs),
    /// Tell what this machine offers, what is missing, and what to do about it
    Doctor,
    /// Install, remove or look at the driver
    #[command(subcommand)]
    Driver(driver::Command),
    /// Print a completion script for a shell
    Completion(completion::Args),
}

/// The program: reads the command line, does what it says, and gives the exit status.
#[must_use]
pub fn main() -> ExitCode {
    process::limit_heaps();
    let panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        panic(info);
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Ps(args) => machines::ps(&args),
        Command::Stop(args) => machines::stop(&args),
        Command::Doctor => doctor::doctor(),
        Command::Driver(command) => driver::driver(&command),
        Command::Completion(args) => completion::completion(&args),
    }
}

/// Help and versions as they are; an error as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let wanted = error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        // Nobody to read it is no reason to complain.
        let _ = error.print();
        return if wanted { ExitCode::SUCCESS } else { EXIT_USAGE.into() };
    }
    fail(one_line(&error.render().to_string()), EXIT_USAGE)
}

/// The substance of clap's message of several lines.
fn one_line(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        words.push(line.trim_start_matches("error: ").trim_start_matches("tip: "));
    }
    format!("{} (`covisor --help` tells more)", words.join("; "))
}

/// Says what went wrong, in one line.
fn fail(error: impl std::fmt::Display, status: u8) -> ExitCode {
    crate::run::notice(format_args!("error: {error}"));
    status.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refusal(args: &[&str]) -> String {
        let error = Cli::try_parse_from(std::iter::once(&"covisor").chain(args)).unwrap_err();
        one_line(&error.render().to_string())
    }

    #[test]
    fn test_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn test_wrong_usage_is_told_in_one_line() {
        for args in [
            &["run", "--nonsense"][..],
            &["run", "--mem", "lots"],
            &["run", "--mem", "0"],
            &["run", "--cpus", "0"],
            &["run", "--engine", "magic"],
            &["run", "--disk", "a.img,rw,ro"],
            &["run", "--timeout", "-1"],
            &["run", "--timeout", "0"],
            &["run", "--timeout", "1e300"],
            &["run", "--timeout", "NaN"],
            &["dance"],
            &["stop"],
            &["completion", "cmd.exe"],
        ] {
            let text = refusal(args);
            assert!(!text.contains('\n') && text.len() > 30, "{args:?}: {text}");
        }
    }

    #[test]
    fn test_the_line_names_the_wrong_word() {
        assert!(refusal(&["run", "--nonsense"]).contains("--nonsense"));
        assert!(refusal(&["run", "--engine", "magic"]).contains("magic"));
    }
}
