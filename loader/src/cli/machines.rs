//! `covisor ps` and `covisor stop`, and how other commands find and ask a machine.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::EXIT_USAGE;
use super::fail;
use crate::control::AGAIN_INTERVAL;
use crate::control::DEFAULT_TIMEOUT;
use crate::control::END_PATIENCE;
use crate::control::Reply;
use crate::control::Request;
use crate::control::Status;
use crate::control::from_line;
use crate::control::to_line;
use crate::run::notice;
use crate::sys::control as socket;
use crate::sys::process;

/// How often to look whether a machine is gone.
const INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `covisor ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  covisor ps\n  covisor ps --json")]
pub(super) struct PsArgs {
    /// Print an object of JSON for each guest, one a line
    #[arg(long)]
    json: bool,
}

/// Arguments of `covisor stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  covisor stop web\n  covisor stop --all --timeout 30 --force")]
pub(super) struct StopArgs {
    /// Name of the guest, or number of the process that runs it
    #[arg(value_name = "NAME|PID", required_unless_present = "all", conflicts_with = "all")]
    machine: Option<String>,
    /// All guests
    #[arg(long)]
    all: bool,
    /// How long the guest may take to power off, in seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Do not ask: end it at once, or when the time of --timeout is over
    #[arg(long)]
    force: bool,
}

/// The running machines, each with its socket.
pub(super) fn machines(folder: &Path) -> Vec<(PathBuf, Status)> {
    let mut machines = Vec::new();
    for path in socket::sockets(folder) {
        match socket::ask(&path, &to_line(&Request::Status)) {
            Ok(line) => {
                if let Some(Reply::Status(status)) = from_line(&line) {
                    machines.push((path, status));
                }
            }
            // Its process is gone without having taken the socket away.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => socket::forget(&path),
            Err(_) => {}
        }
    }
    machines
}

/// The machine of this name, or with this process.
pub(super) fn named(mut machines: Vec<(PathBuf, Status)>, name: &str) -> Result<Vec<(PathBuf, Status)>, String> {
    machines.retain(|(_, status)| status.name == name || status.pid.to_string() == name);
    if machines.is_empty() {
        return Err(format!("no machine {name} runs: `covisor ps` lists those that do"));
    }
    Ok(machines)
}

/// The socket of the machine of this name, or with this process.
pub(super) fn find(machine: &str) -> Result<PathBuf, String> {
    let found = named(machines(&socket::folder()), machine)?;
    found.into_iter().next().map(|(path, _)| path).ok_or_else(|| format!("no machine {machine} runs"))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It may be gone.
    #[error("the machine does not answer: {0}")]
    Silent(#[source] io::Error),
    /// Another protocol.
    #[error("the machine runs on another version of covisor, which cannot do that")]
    OtherVersion,
    /// What it says why not.
    #[error("{0}")]
    Refused(String),
}

/// Asks a machine.
pub(super) fn ask(path: &Path, request: &Request) -> Result<Reply, AskError> {
    let line = socket::ask(path, &to_line(request)).map_err(AskError::Silent)?;
    match from_line(&line) {
        Some(Reply::Refused(why)) => Err(AskError::Refused(why)),
        Some(Reply::Unknown) | None => Err(AskError::OtherVersion),
        Some(reply) => Ok(reply),
    }
}

/// What is said of an answer that does not belong to its question.
pub(super) fn unexpected(reply: &Reply) -> String {
    format!("the machine gave an answer to another question: {reply:?}")
}

pub(super) fn ps(args: &PsArgs) -> ExitCode {
    let machines = machines(&socket::folder());
    let mut text = String::new();
    if args.json {
        for (_, status) in &machines {
            text.push_str(&to_line(status));
            text.push('\n');
        }
    } else {
        text = table(machines.iter().map(|(_, status)| status));
    }
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(format_args!("cannot write the list: {error}"), EXIT_USAGE),
    }
}

/// The list for people.
fn table<'a>(machines: impl Iterator<Item = &'a Status>) -> String {
    let mut text = format!(
        "{:<20} {:>8} {:<9} {:<6} {:>8} {:>8} {:>10} {:>14}\n",
        "NAME", "PID", "STATE", "ENGINE", "MEM MiB", "USED MiB", "UPTIME", "EXITS"
    );
    for status in machines {
        let (minutes, seconds) = (status.uptime / 60, status.uptime % 60);
        text.push_str(&format!(
            "{:<20} {:>8} {:<9} {:<6} {:>8} {:>8} {:>10} {:>14}\n",
            status.name,
            status.pid,
            status.state.name(),
            status.engine,
            status.memory_mib,
            status.host_memory_mib,
            format!("{}:{:02}:{seconds:02}", minutes / 60, minutes % 60),
            status.exits.total,
        ));
    }
    text
}

pub(super) fn stop(args: &StopArgs) -> ExitCode {
    let mut chosen = machines(&socket::folder());
    if let Some(machine) = &args.machine {
        match named(chosen, machine) {
            Ok(machines) => chosen = machines,
            Err(error) => return fail(error, EXIT_USAGE),
        }
    }
    // Ask all, then wait for all.
    let ask_first = !args.force || args.timeout.is_some();
    let request = if ask_first { Request::PowerButton } else { Request::End };
    for (path, _) in &chosen {
        send(path, &request);
    }
    let again = ask_first.then_some(request);
    let patience = if ask_first { Duration::from_secs(args.timeout.unwrap_or(DEFAULT_TIMEOUT)) } else { END_PATIENCE };
    let mut left = wait(&chosen, patience, again);
    if args.force && !left.is_empty() {
        for (path, _) in &left {
            send(path, &Request::End);
        }
        let killed = wait(&left, END_PATIENCE, None);
        for (_, status) in &killed {
            notice(format_args!("{} does not answer: its process is killed", status.name));
            if let Err(error) = process::end(status.pid) {
                return fail(format_args!("cannot kill process {}: {error}", status.pid), EXIT_USAGE);
            }
        }
        left = wait(&killed, END_PATIENCE, None);
        killed.iter().for_each(|(path, _)| socket::forget(path));
    }
    if left.is_empty() {
        return ExitCode::SUCCESS;
    }
    let names: Vec<_> = left.iter().map(|(_, status)| status.name.as_str()).collect();
    fail(
        format_args!(
            "{} did not power off within {} s: give more time by --timeout, or end it by --force",
            names.join(", "),
            patience.as_secs()
        ),
        EXIT_USAGE,
    )
}

fn send(path: &Path, request: &Request) {
    if let Err(error) = socket::ask(path, &to_line(request)) {
        log::debug!("{}: {error}", path.display());
    }
}

/// Waits for machines to go, sending `again` to them from time to time, and gives those that stay.
fn wait(machines: &[(PathBuf, Status)], patience: Duration, again: Option<Request>) -> Vec<(PathBuf, Status)> {
    let deadline = Instant::now() + patience;
    let mut next = Instant::now() + AGAIN_INTERVAL;
    loop {
        let left: Vec<_> = machines.iter().filter(|(_, status)| process::is_alive(status.pid)).cloned().collect();
        let now = Instant::now();
        if left.is_empty() || now >= deadline {
            return left;
        }
        if let Some(request) = again.as_ref().filter(|_| now >= next) {
            left.iter().for_each(|(path, _)| send(path, request));
            next = now + AGAIN_INTERVAL;
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Shared;

    #[test]
    fn test_the_list_has_a_line_for_each_machine() {
        let status = Shared::new("one", 512 << 20, 1).status();
        let text = table([Status { uptime: 3661, ..status }].iter());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with("one "), "{text}");
        assert!(lines[1].contains("1:01:01") && lines[1].contains("512"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn test_machines_that_are_gone_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = socket::socket(folder.path(), "gone");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(machines(folder.path()).is_empty());
        assert!(!path.exists());
    }
}
