//! The command line.

mod colinux;
mod completion;
mod console;
mod copy;
mod disk;
mod doctor;
mod driver;
mod exec;
mod guest_file;
mod guests;
mod image;
mod machines;
mod manual;
mod memory;
mod options_file;
mod progress;
mod run;
mod service;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;

use self::run::Statuses;
use crate::sys::process;
use crate::sys::terminal;
use crate::sys::words;

/// Exit status of a wrong command line or configuration.
const EXIT_USAGE: u8 = 1;
/// Exit status when the driver or the engine is at fault.
const EXIT_DRIVER: u8 = 2;

/// How many words come before those of `covisor run`.
const RUN_WORDS: usize = 2;

/// Runs an unmodified Linux beside the host.
#[derive(Debug, Parser)]
#[command(name = "covisor", version, max_term_width = 100, after_help = words::EXAMPLES, subcommand_required = true)]
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
    /// Make a guest that is kept under its name
    Create(guests::CreateArgs),
    /// Start a guest that was made
    Start(guests::StartArgs),
    /// List the guests that were made
    List(guests::ListArgs),
    /// Remove a guest that was made, with its own disk
    Remove(guests::RemoveArgs),
    /// Power guests off
    Stop(machines::StopArgs),
    /// Run a command in a running guest
    Exec(exec::Args),
    /// Copy a file into a running guest, or out of it
    Cp(copy::Args),
    /// Look at a running guest's console, and type there
    Console(console::ConsoleArgs),
    /// Print what a running guest's console said
    Logs(console::LogsArgs),
    /// Give a running guest disks, take them from it, list them
    #[command(subcommand)]
    Disk(disk::Command),
    /// Tell how much memory a running guest has, or have it make do with less
    Memory(memory::Args),
    /// Tell what this machine offers, what is missing, and what to do about it
    Doctor(doctor::Args),
    /// Make, convert and check disk images
    #[command(subcommand)]
    Image(image::Command),
    /// Install, remove or look at the driver
    #[command(subcommand)]
    Driver(driver::Command),
    /// Let the host start and stop guests, as services
    #[command(subcommand)]
    Service(service::Command),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Print the manual page, or store those of all commands
    Man(manual::Args),
}

/// The program: reads the command line, does what it says, and gives the exit status.
#[must_use]
pub fn main() -> ExitCode {
    process::prepare();
    let panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        panic(info);
    }));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (arguments, statuses) = match colinux::as_run(&arguments) {
        Ok(None) => (arguments, Statuses::Covisor),
        Ok(Some(arguments)) => (arguments, Statuses::Colinux),
        Err(error) => return fail(error, Statuses::Colinux.usage()),
    };
    // A service's options stay as they are until it runs.
    let expanded = if arguments.get(1).is_some_and(|command| command == "run") {
        options_file::expand(arguments)
    } else {
        Ok(arguments)
    };
    let arguments = match expanded {
        Ok(arguments) => arguments,
        Err(error) => return fail(error, statuses.usage()),
    };
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, statuses.usage()),
    };
    match cli.command {
        Command::Run(args) => match args.with_file(arguments.into_iter().skip(RUN_WORDS)) {
            Ok(args) => run::run(args, statuses),
            Err(error) => fail(error, statuses.usage()),
        },
        Command::Ps(args) => machines::ps(&args),
        Command::Create(args) => guests::create(&args),
        Command::Start(args) => guests::start(&args),
        Command::List(args) => guests::list(&args),
        Command::Remove(args) => guests::remove(&args),
        Command::Stop(args) => machines::stop(&args),
        Command::Exec(args) => exec::exec(&args),
        Command::Cp(args) => copy::copy(&args),
        Command::Console(args) => console::console(&args),
        Command::Logs(args) => console::logs(&args),
        Command::Disk(command) => disk::disk(&command),
        Command::Memory(args) => memory::memory(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Image(command) => image::image(command),
        Command::Driver(command) => driver::driver(&command),
        Command::Service(command) => service::service(&command),
        Command::Completion(args) => completion::completion(&args),
        Command::Man(args) => manual::manual(&args),
    }
}

/// Help and versions as they are; an error as one line.
fn usage(error: &clap::Error, wrong: u8) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let wanted = error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        // Nobody to read it is no reason to complain.
        let _ = error.print();
        return if wanted { ExitCode::SUCCESS } else { wrong.into() };
    }
    fail(one_line(&error.render().to_string()), wrong)
}

/// clap's message of several lines in one.
fn one_line(text: &str) -> String {
    format!("{} (`covisor --help` tells more)", substance(text))
}

/// The substance of clap's message.
fn substance(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        words.push(line.trim_start_matches("error: ").trim_start_matches("tip: "));
    }
    words.join("; ")
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
            &["run", "--net", "bridge"],
            &["run", "--net", "nat,forward=tcp:22"],
            &["run", "--timeout", "-1"],
            &["run", "--timeout", "0"],
            &["run", "--timeout", "1e300"],
            &["run", "--timeout", "NaN"],
            &["dance"],
            &["stop"],
            &["completion", "cmd.exe"],
            &["exec", "vm"],
            &["cp", "vm:", "x"],
            &["console"],
            &["logs", "vm", "--lines", "few"],
            &["disk", "add", "vm", "x,rw"],
            &["disk", "add", "vm"],
            &["disk", "remove", "vm"],
            &["image", "create", "--format", "vdi", "x", "1G"],
            &["image", "create", "x", "lots"],
            &["image", "convert", "x"],
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
