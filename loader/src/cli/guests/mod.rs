//! `covisor create`, `start`, `list` and `remove`: guests with names, that are kept.

mod crash;
mod create;
mod store;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::EXIT_USAGE;
use super::fail;
use super::machines::machines;
use super::options_file;
use super::run;
use crate::control::Status;
use crate::control::to_line;
use crate::run::notice;
use crate::sys::control as socket;
use crate::sys::host;
use crate::sys::process;
use crash::Crash;
pub(super) use create::CreateArgs;
pub(super) use create::create;
use store::Definition;
use store::State;
use store::Store;
use store::StoreError;

/// How often to look whether a guest that is started runs.
const INTERVAL: Duration = Duration::from_millis(50);
/// What comes before covisor's errors.
const ERROR: &str = "covisor: error: ";

const START_HELP: &str = "\
The guest runs in the background until it powers off, or `covisor stop` has it do so. `covisor console` is its console.

Examples:
  covisor start web
  covisor start web --foreground";

/// Arguments of `covisor start`.
#[derive(Debug, clap::Args)]
#[command(after_help = START_HELP)]
pub(super) struct StartArgs {
    /// The guest's name
    name: String,
    /// Stay here, with the guest's console, as `covisor run` does
    #[arg(long, short)]
    foreground: bool,
}

/// Arguments of `covisor list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  covisor list\n  covisor list --json")]
pub(super) struct ListArgs {
    /// Print an object of JSON for each guest, one a line
    #[arg(long)]
    json: bool,
}

/// Arguments of `covisor remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  covisor remove web")]
pub(super) struct RemoveArgs {
    /// The guest's name
    name: String,
}

/// Where guests are kept.
pub(super) fn folder() -> PathBuf {
    host::data_folder().join("guests")
}

fn store() -> Store {
    Store::new(folder())
}

fn exit(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

/// The options of a guest, with its name and what it has of its own.
fn guest(store: &Store, name: &str, definition: &Definition) -> Result<run::Args, String> {
    let options = definition.options.iter().map(OsString::from);
    let mut words = options_file::expand(options).map_err(|error| error.to_string())?;
    for (place, (option, file)) in definition.own().files().enumerate() {
        let mut word = OsString::from(format!("{option}="));
        word.push(store.file(name, file));
        words.insert(place, word);
    }
    run::Args::parse(words)?.named(name)
}

pub(super) fn start(args: &StartArgs) -> ExitCode {
    let store = store();
    let done = if args.foreground { run_here(&store, &args.name, None, || {}) } else { run_behind(&store, &args.name) };
    match done {
        Ok(status) => status.into(),
        Err((error, status)) => fail(error, status),
    }
}

fn wrong(error: impl ToString) -> (String, u8) {
    (error.to_string(), EXIT_USAGE)
}

/// Whether there is a guest of this name.
pub(super) fn is_kept(name: &str) -> bool {
    store().read(name).is_ok()
}

/// The options of a guest, with its name. From now on this process is in the folder where relative paths begin.
pub(super) fn options(name: &str) -> Result<run::Args, String> {
    enter(&store(), name)
}

fn enter(store: &Store, name: &str) -> Result<run::Args, String> {
    let definition = store.read(name).map_err(|error| error.to_string())?;
    std::env::set_current_dir(&definition.folder)
        .map_err(|error| format!("folder {}: {error}", definition.folder.display()))?;
    guest(store, name, &definition)
}

/// Runs a guest in this process, to its end, which may take so many seconds to power off, or as long as its options say.
pub(super) fn run_kept(name: &str, stop_timeout: Option<u64>, on_start: impl FnOnce()) -> Result<u8, (String, u8)> {
    run_here(&store(), name, stop_timeout, on_start)
}

fn run_here(store: &Store, name: &str, stop_timeout: Option<u64>, on_start: impl FnOnce()) -> Result<u8, (String, u8)> {
    store.read(name).map_err(wrong)?;
    let _lock = store.lock(name).map_err(wrong)?;
    let guest = enter(store, name).map_err(wrong)?.with_stop_timeout(stop_timeout);
    tell_of_crash(store, name).map_err(wrong)?;
    store.begin(name).map_err(wrong)?;
    let end = run::attempt(guest, on_start);
    store.end(name).map_err(wrong)?;
    end
}

/// Says how the last run of a guest ended that nobody runs, if that did not come to its end.
fn tell_of_crash(store: &Store, name: &str) -> Result<(), StoreError> {
    if let Some(crash) = store.crash(name)? {
        notice(format_args!("{name} {crash}; it may have to check its file systems"));
    }
    Ok(())
}

/// Starts a process that runs a guest, and waits until it does.
fn run_behind(store: &Store, name: &str) -> Result<u8, (String, u8)> {
    store.read(name).map_err(wrong)?;
    // Who runs it already is told here; who comes between, by the process.
    let lock = store.lock(name).map_err(wrong)?;
    tell_of_crash(store, name).map_err(wrong)?;
    let messages = store.begin_messages(name).map_err(wrong)?;
    drop(lock);
    let path = store.messages(name);
    let mut child = spawn(name, messages).map_err(|error| wrong(format!("cannot start covisor: {error}")))?;
    loop {
        if let Some(status) = child.try_wait().map_err(|error| wrong(format!("cannot wait for covisor: {error}")))? {
            return ended_early(name, status, &fs::read_to_string(&path).unwrap_or_default());
        }
        if status_of(name, child.id()).is_some_and(|status| status.has_engine()) {
            return Ok(0);
        }
        thread::sleep(INTERVAL);
    }
}

fn spawn(name: &str, messages: File) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["start", "--foreground", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages);
    process::leave_alone(&mut command);
    command.spawn()
}

/// The state of the guest that this process runs, if its machine is there.
fn status_of(name: &str, pid: u32) -> Option<Status> {
    let running = machines(&socket::folder());
    running.into_iter().map(|(_, status)| status).find(|status| status.name == name && status.pid == pid)
}

/// What became of a guest whose process is gone before its machine was seen.
fn ended_early(name: &str, status: ExitStatus, messages: &str) -> Result<u8, (String, u8)> {
    match (status.code().map(u8::try_from), last_error(messages)) {
        (Some(Ok(0)), _) => {
            notice(format_args!("{name} has run, and is off"));
            Ok(0)
        }
        (Some(Ok(code)), Some(error)) => Err((error.to_owned(), code)),
        (code, error) => {
            let code = code.and_then(Result::ok).unwrap_or(EXIT_USAGE);
            let error = error.map_or_else(|| status.to_string(), str::to_owned);
            Err((format!("{name} did not start: {error}"), code))
        }
    }
}

/// A guest as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    state: State,
    /// Of its machine, if it runs.
    machine: Option<Status>,
    /// How it ended, if it crashed.
    crash: Option<Crash>,
}

pub(super) fn list(args: &ListArgs) -> ExitCode {
    exit(listed(&store()).and_then(|guests| {
        let text = if args.json { guests.iter().map(|guest| to_line(guest) + "\n").collect() } else { table(&guests) };
        io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write the list: {error}"))?;
        for Listed { name, crash, .. } in guests.iter().filter(|_| !args.json) {
            crash.iter().for_each(|crash| notice(format_args!("{name} {crash}")));
        }
        Ok(())
    }))
}

fn listed(store: &Store) -> Result<Vec<Listed>, String> {
    let guests = store.list().map_err(|error| error.to_string())?;
    let mut running: Vec<Status> = machines(&socket::folder()).into_iter().map(|(_, status)| status).collect();
    let listed = guests.into_iter().map(|(name, state)| {
        let is_its = |status: &Status| state == State::Running && status.name == name;
        let machine = running.iter().position(is_its).map(|index| running.swap_remove(index));
        let crash = if state == State::Crashed { store.crash(&name)? } else { None };
        Ok(Listed { name, state, machine, crash })
    });
    listed.collect::<Result<_, StoreError>>().map_err(|error| error.to_string())
}

fn state_name(state: State, machine: Option<&Status>) -> &'static str {
    match (state, machine) {
        (State::Running, Some(machine)) => machine.state.name(),
        (State::Running, None) => "busy",
        (State::Stopped, _) => "stopped",
        (State::Crashed, _) => "crashed",
    }
}

/// How many guests are in which state, without their names.
pub(super) fn summary() -> Result<String, String> {
    listed(&store()).map(|guests| count(&guests))
}

fn count(guests: &[Listed]) -> String {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for Listed { state, machine, .. } in guests {
        let by = machine.as_ref().map_or_else(String::new, |machine| format!(" by {}", machine.engine));
        *states.entry(state_name(*state, machine.as_ref()).to_owned() + &by).or_default() += 1;
    }
    match guests.len() {
        0 => "none are kept".to_owned(),
        all => {
            let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
            format!("{all}: {}", states.join(", "))
        }
    }
}

/// The guests' names.
pub(super) fn names() -> Vec<String> {
    store().list().unwrap_or_default().into_iter().map(|(name, _)| name).collect()
}

/// Of each guest whose last run in the background went wrong, the last that was said of it.
pub(super) fn last_errors() -> Vec<String> {
    let store = store();
    let messages = names().into_iter().filter_map(|name| fs::read_to_string(store.messages(&name)).ok());
    messages.filter_map(|messages| last_error(&messages).map(|error| format!("a guest: {error}"))).collect()
}

fn last_error(messages: &str) -> Option<&str> {
    messages.lines().rev().find_map(|line| line.strip_prefix(ERROR))
}

/// The list for people.
fn table(guests: &[Listed]) -> String {
    let mut text =
        format!("{:<20} {:<9} {:>8} {:<6} {:>8} {:>8}\n", "NAME", "STATE", "PID", "ENGINE", "MEM MiB", "USED MiB");
    for Listed { name, state, machine, .. } in guests {
        let state = state_name(*state, machine.as_ref());
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let of = |value: fn(&Status) -> String| or_none(machine.as_ref().map(value));
        text.push_str(&format!(
            "{name:<20} {state:<9} {:>8} {:<6} {:>8} {:>8}\n",
            of(|machine| machine.pid.to_string()),
            of(|machine| machine.engine.clone()),
            of(|machine| machine.memory_mib.to_string()),
            of(|machine| machine.host_memory_mib.to_string()),
        ));
    }
    text
}

pub(super) fn remove(args: &RemoveArgs) -> ExitCode {
    exit(store().remove(&args.name).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_an_early_end_is_told_as_it_was() {
        #[cfg(unix)]
        let status = |code: i32| std::os::unix::process::ExitStatusExt::from_raw(code << 8);
        #[cfg(windows)]
        let status = |code: u32| std::os::windows::process::ExitStatusExt::from_raw(code);
        assert_eq!(ended_early("web", status(0), ""), Ok(0));
        let messages = "covisor: engine svm: usable\ncovisor: error: the driver is not loaded\n";
        assert_eq!(ended_early("web", status(2), messages), Err(("the driver is not loaded".to_owned(), 2)));
        let (error, code) = ended_early("web", status(3), "").unwrap_err();
        assert!(error.starts_with("web did not start: ") && code == 3, "{error}");
    }

    #[test]
    fn test_the_list_has_a_line_for_each_guest() {
        let machine = crate::control::Shared::new("web", 512 << 20, 1).status();
        let listed = |name: &str, state, machine| Listed { name: name.to_owned(), state, machine, crash: None };
        let guests = [
            listed("web", State::Running, Some(machine)),
            listed("db", State::Stopped, None),
            listed("old", State::Crashed, None),
            listed("new", State::Running, None),
        ];
        let text = table(&guests);
        let states: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(states, ["running", "stopped", "crashed", "busy"]);
        assert_eq!(count(&guests), "4: 1 busy, 1 crashed, 1 running by none, 1 stopped");
        assert_eq!(count(&[]), "none are kept");
    }
}
