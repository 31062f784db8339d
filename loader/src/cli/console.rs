//! `covisor console` and `covisor logs`.
//!
//! Both ask the machine again and again for what came since ([`ConsoleRequest`]), often while something comes or is typed, and less
//! often while nothing does. So any number of them can look at one console, and none can hold it up.

use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::EXIT_USAGE;
use super::fail;
use super::machines;
use super::machines::AskError;
use super::machines::find;
use super::machines::unexpected;
use crate::control::Bytes;
use crate::control::CONSOLE_PIECE;
use crate::control::ConsoleRequest;
use crate::control::Reply;
use crate::control::Request;
use crate::control::TYPED_PIECE;
use crate::run::Escape;
use crate::run::Key;
use crate::run::notice;
use crate::sys;
use crate::sys::process::Requests;
use crate::sys::terminal;

/// How often to ask while something comes or is typed.
const OFTEN: Duration = Duration::from_millis(10);
/// How often to ask while nothing does.
const SELDOM: Duration = Duration::from_millis(160);
/// How many lines `covisor console` begins with.
const SCREEN: usize = 24;
/// How long to look on when nothing more can be typed: for the answer to what was.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// What the keys do.
const HELP: &str = "keys: Ctrl-A d leaves the console and the machine running, Ctrl-A Ctrl-A sends Ctrl-A to the guest, \
                    Ctrl-A h shows this; `covisor stop` ends the machine";

/// Arguments of `covisor console`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ctrl-A d leaves the console, Ctrl-A h tells of more keys. Several may look at one console, and type there.\n\nExamples:\n  covisor console web\n  echo uptime | covisor console web --lines 0"
)]
pub(super) struct ConsoleArgs {
    /// Name of the guest, or number of the process that runs it
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// Begin with so many of the lines that are there already
    #[arg(long, value_name = "COUNT", default_value_t = SCREEN)]
    lines: usize,
}

/// Arguments of `covisor logs`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A machine keeps the last 256 KiB.\n\nExamples:\n  covisor logs web\n  covisor logs web --lines 20 --follow"
)]
pub(super) struct LogsArgs {
    /// Name of the guest, or number of the process that runs it
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// The last lines only, so many
    #[arg(long, value_name = "COUNT")]
    lines: Option<usize>,
    /// Go on with what comes, until the machine ends
    #[arg(long, short)]
    follow: bool,
}

pub(super) fn console(args: &ConsoleArgs) -> ExitCode {
    exit(look_and_type(args))
}

pub(super) fn logs(args: &LogsArgs) -> ExitCode {
    exit(look(args))
}

fn exit(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

fn look(args: &LogsArgs) -> Result<(), String> {
    let mut viewer = Viewer::new(find(&args.machine)?);
    viewer.begin(args.lines.unwrap_or(usize::MAX))?;
    if !args.follow {
        return Ok(());
    }
    let mut interval = OFTEN;
    loop {
        thread::sleep(interval);
        match viewer.exchange(&[], None)? {
            Some(exchange) => interval = next(interval, exchange.came),
            None => return Ok(()),
        }
    }
}

/// What happens at this end.
enum Event {
    Typed(Vec<u8>),
    Detach,
    Help,
    /// Nothing more can be typed.
    EndOfInput,
    Host(sys::Request),
}

fn look_and_type(args: &ConsoleArgs) -> Result<(), String> {
    let mut viewer = Viewer::new(find(&args.machine)?);
    // First of all, so that no thread takes the signals.
    let requests = Requests::block().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let (sender, events) = mpsc::channel();
    let by_hand = terminal::stdin_is_terminal();
    let _raw = if by_hand {
        Some(terminal::RawMode::enter().map_err(|error| format!("cannot set the terminal: {error}"))?)
    } else {
        None
    };
    viewer.begin(args.lines)?;
    let signals = sender.clone();
    thread::spawn(move || {
        while let Ok(request) = requests.wait() {
            if signals.send(Event::Host(request)).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || read_keys(&mut terminal::input(), by_hand, &sender));
    if by_hand {
        notice(format_args!(
            "this is the console of {}: Ctrl-A d leaves it, Ctrl-A h tells of more keys",
            args.machine
        ));
    }
    if attend(&mut viewer, &events, by_hand)? == Left::Ended {
        notice("the machine has ended");
    }
    Ok(())
}

/// How looking at a console ended.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// By the user's wish.
    Detached,
    /// The machine is gone.
    Ended,
}

fn attend(viewer: &mut Viewer, events: &Receiver<Event>, by_hand: bool) -> Result<Left, String> {
    let own_size = || terminal::size().filter(|_| by_hand);
    let mut size = own_size();
    let mut typed: Vec<u8> = Vec::new();
    let mut interval = OFTEN;
    let mut last_look = None;
    loop {
        let piece = &typed[..typed.len().min(TYPED_PIECE)];
        let Some(exchange) = viewer.exchange(piece, size.take())? else { return Ok(Left::Ended) };
        let busy = exchange.came || exchange.taken > 0;
        typed.drain(..exchange.taken);
        interval = next(interval, busy);
        if let Some(left) = last_look.as_mut().filter(|_| typed.is_empty()) {
            if exchange.came {
                *left = LAST_LOOK;
            }
            match Duration::checked_sub(*left, interval) {
                Some(less) => *left = less,
                None => return Ok(Left::Detached),
            }
        }
        match events.recv_timeout(interval) {
            Ok(Event::Typed(bytes)) => {
                typed.extend(bytes);
                interval = OFTEN;
            }
            Ok(Event::Detach | Event::Host(sys::Request::End | sys::Request::HangUp)) => {
                return Ok(Left::Detached);
            }
            Ok(Event::Help) => notice(HELP),
            Ok(Event::EndOfInput) => last_look = Some(LAST_LOOK),
            Ok(Event::Host(sys::Request::Resize)) => size = own_size(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(interval),
        }
    }
}

/// How long to wait before the machine is asked again.
fn next(interval: Duration, busy: bool) -> Duration {
    if busy { OFTEN } else { (interval * 2).min(SELDOM) }
}

/// Tells what comes on standard input, until its end. Keys of ours are told apart where somebody types.
fn read_keys(stdin: &mut dyn Read, with_escape: bool, events: &Sender<Event>) {
    let mut escape = Escape::default();
    let mut buffer = [0; 1024];
    loop {
        let count = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                let _ = events.send(Event::EndOfInput);
                return;
            }
            Ok(count) => count,
        };
        let typed = &buffer[..count];
        let (bytes, keys) = if with_escape { escape.sort(typed) } else { (typed.to_vec(), Vec::new()) };
        let told = keys.into_iter().map(|key| if key == Key::Detach { Event::Detach } else { Event::Help });
        for event in std::iter::once(Event::Typed(bytes)).chain(told) {
            if events.send(event).is_err() {
                return;
            }
        }
    }
}

/// What one question to the machine brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exchange {
    /// The console said something.
    came: bool,
    /// How many typed bytes it took.
    taken: usize,
}

/// Somebody who looks at a machine's console.
struct Viewer {
    machine: PathBuf,
    /// The number of the next byte to come.
    next: u64,
}

impl Viewer {
    fn new(machine: PathBuf) -> Self {
        Self { machine, next: 0 }
    }

    /// Shows the last of the lines that are there already.
    fn begin(&mut self, lines: usize) -> Result<(), String> {
        let mut kept = Vec::new();
        while let Some(answer) = ask(&self.machine, self.next, &[], None)? {
            self.next = answer.from.saturating_add(answer.bytes.0.len() as u64);
            kept.extend_from_slice(&answer.bytes.0);
            if answer.bytes.0.len() < CONSOLE_PIECE {
                break;
            }
        }
        show(last_lines(&kept, lines))
    }

    /// Types, and shows what came; `None` once the machine is gone.
    fn exchange(&mut self, typed: &[u8], size: Option<(u16, u16)>) -> Result<Option<Exchange>, String> {
        let Some(answer) = ask(&self.machine, self.next, typed, size)? else { return Ok(None) };
        if answer.from > self.next {
            notice(format_args!("{} bytes came too fast to be shown", answer.from - self.next));
        }
        self.next = answer.from.saturating_add(answer.bytes.0.len() as u64);
        show(&answer.bytes.0)?;
        Ok(Some(Exchange { came: !answer.bytes.0.is_empty(), taken: answer.taken.min(typed.len()) }))
    }
}

/// Asks once; `None` when the machine is gone.
fn ask(
    machine: &Path,
    from: u64,
    typed: &[u8],
    size: Option<(u16, u16)>,
) -> Result<Option<crate::control::ConsoleOutput>, String> {
    let request = ConsoleRequest { from, typed: Bytes(typed.to_vec()), size };
    match machines::ask(machine, &Request::Console(request)) {
        Ok(Reply::Console(output)) => Ok(Some(output)),
        Ok(reply) => Err(unexpected(&reply)),
        Err(AskError::Silent(error)) if is_gone(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether this is what a machine's end looks like.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

fn show(bytes: &[u8]) -> Result<(), String> {
    let mut stdout = terminal::stdout();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot write what the console says: {error}"))
}

/// The last lines of `bytes`, and what is behind them.
fn last_lines(bytes: &[u8], lines: usize) -> &[u8] {
    let mut ends = bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    // Each line ends with such a byte, and what is behind the last one is no line yet.
    match ends.nth(lines) {
        Some(start) => &bytes[start..],
        None => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_last_lines_are_the_last() {
        let text = b"one\ntwo\nthree\nlogin: ";
        assert_eq!(last_lines(text, 0), b"login: ");
        assert_eq!(last_lines(text, 2), b"two\nthree\nlogin: ");
        assert_eq!(last_lines(text, 3), text);
        assert_eq!(last_lines(text, usize::MAX), text);
        assert_eq!(last_lines(b"", 5), b"");
    }

    #[test]
    fn test_asking_becomes_seldom_when_nothing_comes() {
        let mut interval = OFTEN;
        for _ in 0..10 {
            interval = next(interval, false);
        }
        assert_eq!((interval, next(interval, true)), (SELDOM, OFTEN));
    }

    #[test]
    fn test_keys_of_ours_are_told_apart_where_somebody_types() {
        let told = |bytes: &[u8], by_hand| {
            let (sender, events) = mpsc::channel();
            read_keys(&mut &bytes[..], by_hand, &sender);
            let told: Vec<_> = events
                .try_iter()
                .map(|event| match event {
                    Event::Typed(bytes) => String::from_utf8(bytes).unwrap(),
                    Event::Detach => "<detach>".to_owned(),
                    Event::Help => "<help>".to_owned(),
                    Event::EndOfInput => "<end>".to_owned(),
                    Event::Host(_) => "<host>".to_owned(),
                })
                .collect();
            told.concat()
        };
        assert_eq!(told(b"ls\n\x01\x01\x01h\x01d", true), "ls\n\x01<help><detach><end>");
        assert_eq!(told(b"ls\n\x01d", false), "ls\n\x01d<end>");
    }
}
