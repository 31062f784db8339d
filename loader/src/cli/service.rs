//! `covisor service`: guests that the host's service manager starts and stops.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use clap::ValueEnum;

use super::EXIT_USAGE;
use super::fail;
use super::guests;
use super::options_file;
use super::run;
use super::run::MAX_STOP_TIMEOUT;
use crate::control::DEFAULT_TIMEOUT;
use crate::run::check_name;
use crate::run::notice;
use crate::sys::guest_service;
use crate::sys::guest_service::ServiceError;
use crate::sys::guest_service::Start;
use crate::sys::words;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a service that runs a guest
    Install(InstallArgs),
    /// Stop a guest's service, and remove it
    #[command(after_help = "The guest stays. Example:\n  covisor service remove web")]
    Remove {
        /// The guest's name
        name: String,
    },
    /// Tell how a guest's service is
    #[command(after_help = "Example:\n  covisor service status web")]
    Status {
        /// The guest's name
        name: String,
    },
    /// Be a service
    #[command(hide = true)]
    Run(RunArgs),
}

/// Arguments of `covisor service install`.
#[derive(Debug, clap::Args)]
#[command(after_help = words::SERVICE_HELP)]
pub(super) struct InstallArgs {
    /// When it starts
    #[arg(long, default_value = "auto")]
    start: StartArg,
    #[command(flatten)]
    how: How,
}

/// What the service itself must know, too.
#[derive(Debug, Clone, clap::Args)]
struct How {
    #[arg(long, value_name = "FILE", help = words::SERVICE_LOG_HELP)]
    log: Option<PathBuf>,
    /// How long the guest may take to power off, in seconds, until it is ended [default: what its options say, or 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MAX_STOP_TIMEOUT))]
    stop_timeout: Option<u64>,
    /// The guest's name
    name: String,
    /// The options of `covisor run`; where they have relative paths, those begin at the folder of now. Without any it is the guest
    /// that `covisor create` made under this name
    #[arg(value_name = "RUN OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Arguments of `covisor service run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Where relative paths begin
    #[arg(long)]
    folder: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StartArg {
    /// With the host
    Auto,
    /// A while after the host
    #[cfg(windows)]
    Delayed,
    /// When somebody starts it
    Demand,
    /// Not at all
    #[cfg(windows)]
    Disabled,
}

impl From<StartArg> for Start {
    fn from(start: StartArg) -> Self {
        match start {
            StartArg::Auto => Self::Auto,
            #[cfg(windows)]
            StartArg::Delayed => Self::Delayed,
            StartArg::Demand => Self::Demand,
            #[cfg(windows)]
            StartArg::Disabled => Self::Disabled,
        }
    }
}

impl How {
    /// Whether it is a guest whose options are kept.
    fn is_kept(&self) -> bool {
        self.options.is_empty() && guests::is_kept(&self.name)
    }

    /// The guest's options, with its name.
    fn guest(&self) -> Result<run::Args, String> {
        check_name(&self.name).map_err(|error| error.to_string())?;
        let guest = if self.is_kept() {
            guests::options(&self.name)?
        } else {
            let options = self.options.iter().map(OsString::from);
            run::Args::parse(options_file::expand(options).map_err(|error| error.to_string())?)?.named(&self.name)?
        };
        Ok(guest.with_stop_timeout(self.stop_timeout))
    }

    /// The words that say the same after `covisor service run`, of a guest that may take so long to power off. Relative paths begin at
    /// `folder`.
    fn words(&self, folder: PathBuf, patience: Duration) -> Result<Vec<String>, ServiceError> {
        let text =
            |path: PathBuf| path.into_os_string().into_string().map_err(|path| ServiceError::NoText(path.into()));
        let mut words = vec!["--folder".to_owned(), text(folder)?];
        if let Some(log) = &self.log {
            words.extend(["--log".to_owned(), text(log.clone())?]);
        }
        words.extend(["--stop-timeout".to_owned(), patience.as_secs().to_string(), self.name.clone()]);
        words.extend(self.options.iter().cloned());
        Ok(words)
    }
}

pub(super) fn service(command: &Command) -> ExitCode {
    let done = match command {
        Command::Install(args) => install(args),
        Command::Remove { name } => guest_service::remove(name)
            .map(|()| notice(format_args!("the service of {name} is removed")))
            .map_err(|error| error.to_string()),
        Command::Status { name } => status(name),
        Command::Run(args) => return run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

fn install(args: &InstallArgs) -> Result<(), String> {
    let how = &args.how;
    let told = |error: ServiceError| error.to_string();
    let folder = std::env::current_dir().map_err(|error| told(ServiceError::Host(error)))?;
    // What is wrong shows now, not when the service starts.
    let patience = how.guest()?.stop_timeout();
    let words = how.words(folder, patience).map_err(told)?;
    guest_service::install(&how.name, args.start.into(), patience, &words).map_err(told)?;
    notice(format_args!(
        "the service covisor-{0} is made: `{1} covisor-{0}` starts it now",
        how.name,
        words::START_SERVICE
    ));
    Ok(())
}

fn status(name: &str) -> Result<(), String> {
    let status = guest_service::status(name).map_err(|error| error.to_string())?;
    println!("service     {}", status.service);
    println!("state       {}", status.state);
    if let Some(end) = &status.end {
        println!("ended       {end}");
    }
    println!("starts      {}", status.start);
    println!("runs        {}", status.line);
    Ok(())
}

fn run(args: &RunArgs) -> ExitCode {
    let how = args.how.clone();
    let (name, log) = (how.name.clone(), how.log.clone());
    let patience = Duration::from_secs(how.stop_timeout.unwrap_or(DEFAULT_TIMEOUT));
    let done = guest_service::be(&name, args.folder.as_deref(), log.as_deref(), patience, move |on_start| {
        if how.is_kept() {
            return guests::run_kept(&how.name, how.stop_timeout, on_start);
        }
        run::attempt(how.guest().map_err(|error| (error, EXIT_USAGE))?, on_start)
    });
    match done {
        Ok(status) => status.into(),
        Err(error) => fail(error, EXIT_USAGE),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::*;

    fn how(words: &[&str]) -> How {
        match Cli::try_parse_from(["covisor", "service"].iter().chain(words)).unwrap().command {
            super::super::Command::Service(Command::Install(args)) => args.how,
            super::super::Command::Service(Command::Run(args)) => args.how,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn test_a_service_gets_what_was_given_to_install() {
        let options = ["--kernel", r"C:\größer\vm linuz", "--append", "a=\"b c\" quiet", "--disk", "d.img,ro"];
        let mut words = vec!["install", "web", "--log", "l.txt", "--start", "demand", "--stop-timeout", "7"];
        words.extend(options);
        let installed = how(&words);
        let patience = installed.guest().unwrap().stop_timeout();
        let words = installed.words("/vm".into(), patience).unwrap();
        let run: Vec<&str> = std::iter::once("run").chain(words.iter().map(String::as_str)).collect();
        let running = how(&run);
        assert_eq!(running.name, "web");
        assert_eq!(running.log, Some("l.txt".into()));
        assert_eq!(running.stop_timeout, Some(7));
        assert_eq!(running.options, options);
        assert_eq!(running.guest().unwrap().stop_timeout(), Duration::from_secs(7));
    }

    #[test]
    fn test_wrong_options_are_refused_when_it_is_installed() {
        assert!(how(&["install", "web", "--nonsense"]).guest().unwrap_err().contains("--nonsense"));
        assert!(how(&["install", "1"]).guest().unwrap_err().contains("name"));
        assert!(how(&["install", "web", "--name", "db"]).guest().unwrap_err().contains("--name"));
    }
}
