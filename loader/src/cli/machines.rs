//! `covisor ps` and `covisor stop`.

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
use crate::control::Reply;
use crate::control::Request;
use crate::control::Status;
use crate::control::from_line;
use crate::control::to_line;
use crate::run::notice;
use crate::sys::control as socket;
use crate::sys::process;

/// How long a machine that was ended may take to go.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether a machine is gone.
const INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `covisor ps`.
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// Print an object of JSON for each guest, one a line
    #[arg(long)]
    json: bool,
}

/// Arguments of `covisor stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  covisor stop vm-1234\n  covisor stop --all --timeout 30 --force")]
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

/// How often the power button is pressed again: a guest that is still starting does not listen to it yet.
const AGAIN_INTERVAL: Duration = Duration::from_secs(5);

/// How long a guest may take where --timeout does not say.
const DEFAULT_TIMEOUT: u64 = 60;

/// The running machines, each with its socket.
fn machines(folder: &Path) -> Vec<(PathBuf, Status)> {
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
        "{:<20} {:>8} {:<9} {:<6} {:>8} {:>10} {:>14}\n",
        "NAME", "PID", "STATE", "ENGINE", "MEM MiB", "UPTIME", "EXITS"
    );
    for status in machines {
        let (minutes, seconds) = (status.uptime / 60, status.uptime % 60);
        text.push_str(&format!(
            "{:<20} {:>8} {:<9} {:<6} {:>8} {:>10} {:>14}\n",
            status.name,
            status.pid,
            status.state.name(),
            status.engine,
            status.memory_mib,
            format!("{}:{:02}:{seconds:02}", minutes / 60, minutes % 60),
            status.exits.total,
        ));
    }
    text
}

pub(super) fn stop(args: &StopArgs) -> ExitCode {
    let mut chosen = machines(&socket::folder());
    if let Some(machine) = &args.machine {
        chosen.retain(|(_, status)| status.name == *machine || status.pid.to_string() == *machine);
        if chosen.is_empty() {
            return fail(format_args!("no machine {machine} runs: `covisor ps` lists those that do"), EXIT_USAGE);
        }
    }
    // Ask all, then wait for all.
    let ask_first = !args.force || args.timeout.is_some();
    let request = if ask_first { Request::PowerButton } else { Request::End };
    for (path, _) in &chosen {
        send(path, request);
    }
    let again = ask_first.then_some(request);
    let patience = if ask_first { Duration::from_secs(args.timeout.unwrap_or(DEFAULT_TIMEOUT)) } else { END_PATIENCE };
    let mut left = wait(&chosen, patience, again);
    if args.force && !left.is_empty() {
        for (path, _) in &left {
            send(path, Request::End);
        }
        left = wait(&left, END_PATIENCE, None);
        for (path, status) in &left {
            notice(format_args!("{} does not answer: its process is killed", status.name));
            if let Err(error) = process::end(status.pid) {
                return fail(format_args!("cannot kill process {}: {error}", status.pid), EXIT_USAGE);
            }
            socket::forget(path);
        }
        left = wait(&left, END_PATIENCE, None);
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

fn send(path: &Path, request: Request) {
    if let Err(error) = socket::ask(path, &to_line(&request)) {
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
        if let Some(request) = again.filter(|_| now >= next) {
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

    #[test]
    fn test_machines_that_are_gone_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = socket::socket(folder.path(), "gone");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(machines(folder.path()).is_empty());
        assert!(!path.exists());
    }
}
