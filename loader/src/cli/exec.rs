//! `covisor exec`.
//!
//! The machine keeps a command's output until it is asked for ([`ExecRequest`]), so this asks at once while something comes or goes, and
//! less and less often while nothing does.

use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::EXIT_USAGE;
use super::console::is_gone;
use super::fail;
use super::machines;
use super::machines::AskError;
use super::machines::find;
use super::machines::unexpected;
use crate::control::Bytes;
use crate::control::ExecRequest;
use crate::control::INPUT_PIECE;
use crate::control::Reply;
use crate::control::Request;
use crate::run::End;
use crate::sys;
use crate::sys::process::Requests;
use crate::sys::terminal;

/// How often to ask at first, while nothing comes.
const OFTEN: Duration = Duration::from_millis(5);
/// How often to ask later.
const SELDOM: Duration = Duration::from_millis(80);
/// How often to ask whether the agent is there.
const AGENT_INTERVAL: Duration = Duration::from_millis(200);
/// How long a guest may take until its agent is there, where nobody says, in seconds.
pub(super) const DEFAULT_WAIT: u64 = 60;
/// Exit status when the guest is at fault.
const EXIT_GUEST: u8 = 3;
/// Exit status when the user ended it.
pub(super) const EXIT_INTERRUPTED: u8 = 130;
/// Pieces of standard input that are read before the guest takes them.
pub(super) const READ_AHEAD: usize = 4;

/// Arguments of `covisor exec`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "One word is a line for the guest's shell, several are a command and its arguments. The command has this command's standard input, unless that is a terminal; its status is the exit status. Ctrl-C ends it.\n\nExamples:\n  covisor exec web 'uname -a; uptime'\n  covisor exec web -- apt-get install -y gcc\n  tar c folder | covisor exec web -- tar x -C /srv"
)]
pub(super) struct Args {
    /// Name of the guest, or number of the process that runs it
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// How long the guest may take until its agent is there, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT)]
    wait: u64,
    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why the command did not end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// What the user asked for, or the host.
    #[error("{0}")]
    Usage(String),
    /// The guest, or its machine.
    #[error("{0}")]
    Guest(String),
    /// The user did not want to wait for its end.
    #[error("it was interrupted, and the command may run on in the guest")]
    Interrupted,
}

impl ExecError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Guest(_) => EXIT_GUEST,
            Self::Interrupted => EXIT_INTERRUPTED,
        }
    }
}

impl From<AskError> for ExecError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Silent(error) if is_gone(&error) => {
                Self::Guest("the machine ended before the command did".to_owned())
            }
            error => Self::Guest(error.to_string()),
        }
    }
}

pub(super) fn exec(args: &Args) -> ExitCode {
    match run(args) {
        Ok(status) => End::Exec(status).exit_code().into(),
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// The line for the guest's shell.
fn line(words: &[String]) -> Result<String, ExecError> {
    match words {
        [line] => Ok(line.clone()),
        words => shlex::try_join(words.iter().map(String::as_str))
            .map_err(|error| ExecError::Usage(format!("the command cannot be given to the guest: {error}"))),
    }
}

fn run(args: &Args) -> Result<i32, ExecError> {
    let command = line(&args.command)?;
    let machine = find(&args.machine).map_err(ExecError::Usage)?;
    let signalled = signals()?;
    let number = start(&machine, &command, Duration::from_secs(args.wait), &signalled)?;
    let (sender, input) = mpsc::sync_channel(READ_AHEAD);
    if terminal::stdin_is_terminal() {
        // What is typed is not the command's: it runs without a terminal.
        drop(sender);
    } else {
        thread::spawn(move || read_input(&mut io::stdin(), &sender));
    }
    let output = &mut |bytes: &[u8]| put(&mut terminal::stdout(), bytes);
    attend(Running { machine: &machine, number, signalled: &signalled }, &input, output)
}

/// Tells of signals that would end this process. To be called first of all, so that no other thread takes them.
pub(super) fn signals() -> Result<Receiver<()>, ExecError> {
    let requests = Requests::block().map_err(|error| ExecError::Usage(format!("cannot wait for signals: {error}")))?;
    let (signals, signalled) = mpsc::sync_channel(1);
    thread::spawn(move || {
        while let Ok(request) = requests.wait() {
            if request != sys::Request::Resize && signals.send(()).is_err() {
                return;
            }
        }
    });
    Ok(signalled)
}

/// Gives the command, once the guest's agent is there.
pub(super) fn start(
    machine: &Path,
    command: &str,
    patience: Duration,
    signalled: &Receiver<()>,
) -> Result<u64, ExecError> {
    let deadline = Instant::now() + patience;
    loop {
        let request = ExecRequest::Start { command: command.to_owned() };
        match machines::ask(machine, &Request::Exec(request))? {
            Reply::ExecStarted(number) => return Ok(number),
            Reply::NotYet if Instant::now() >= deadline => {
                return Err(ExecError::Guest(format!(
                    "the guest's agent did not come within {} s: the guest needs covisor-agent, or more time (--wait)",
                    patience.as_secs()
                )));
            }
            Reply::NotYet => match signalled.recv_timeout(AGENT_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return Err(ExecError::Interrupted),
            },
            reply => return Err(ExecError::Guest(unexpected(&reply))),
        }
    }
}

/// Reads standard input in pieces, until its end.
pub(super) fn read_input(stdin: &mut dyn Read, pieces: &SyncSender<Vec<u8>>) {
    let mut buffer = vec![0; INPUT_PIECE];
    loop {
        match stdin.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(count) if pieces.send(buffer[..count].to_vec()).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// A command that was given.
#[derive(Clone, Copy)]
pub(super) struct Running<'a> {
    pub(super) machine: &'a Path,
    pub(super) number: u64,
    /// Tells when it is to be ended.
    pub(super) signalled: &'a Receiver<()>,
}

/// Moves bytes both ways until the command ends: its standard error to ours, its standard output to `output`, which is called also when
/// nothing came.
pub(super) fn attend(
    Running { machine, number, signalled }: Running<'_>,
    input: &Receiver<Vec<u8>>,
    output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<i32, ExecError> {
    let mut piece = Vec::new();
    let mut has_ended = false;
    let mut killed = false;
    let mut interval = OFTEN;
    loop {
        if piece.is_empty() && !has_ended {
            match input.try_recv() {
                Ok(more) => piece = more,
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => has_ended = true,
            }
        }
        let request = ExecRequest::Continue { number, input: Bytes(piece.clone()), ends: has_ended };
        let said = match machines::ask(machine, &Request::Exec(request))? {
            Reply::ExecOutput(said) => said,
            reply => return Err(ExecError::Guest(unexpected(&reply))),
        };
        let moved = !said.stdout.0.is_empty() || !said.stderr.0.is_empty() || said.taken > 0;
        piece.drain(..said.taken.min(piece.len()));
        // Nobody reading what goes wrong is no reason to end the command.
        let _ = put(&mut terminal::stderr(), &said.stderr.0);
        if let Err(error) = output(&said.stdout.0) {
            kill(machine, number)?;
            return Err(ExecError::Usage(format!("cannot write the command's output: {error}")));
        }
        if let Some(status) = said.status {
            return Ok(status);
        }
        interval = if moved { Duration::ZERO } else { (interval * 2).clamp(OFTEN, SELDOM) };
        if matches!(signalled.recv_timeout(interval), Ok(())) {
            if killed {
                return Err(ExecError::Interrupted);
            }
            kill(machine, number)?;
            killed = true;
        }
    }
}

fn kill(machine: &Path, number: u64) -> Result<(), ExecError> {
    machines::ask(machine, &Request::Exec(ExecRequest::Kill { number }))?;
    Ok(())
}

fn put(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream.write_all(bytes)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_one_word_is_a_line_and_several_are_quoted() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(line(&words(&["uname -a; id"])).unwrap(), "uname -a; id");
        assert_eq!(line(&words(&["echo", "a b", "$HOME"])).unwrap(), "echo 'a b' '$HOME'");
        assert!(line(&words(&["echo", "\0"])).is_err());
    }

    #[test]
    fn test_input_comes_in_pieces_until_its_end() {
        let (sender, pieces) = mpsc::sync_channel(READ_AHEAD);
        let input = vec![7; 3 * INPUT_PIECE + 1];
        thread::spawn(move || read_input(&mut input.as_slice(), &sender));
        let pieces: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
        assert_eq!(pieces, [INPUT_PIECE, INPUT_PIECE, INPUT_PIECE, 1]);
    }
}
