//! Programs of the host's that do a part of the work.

use std::collections::VecDeque;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::PipeReader;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use covisor_debian::programs::find_program;

use crate::rootfs::RootfsError;
use crate::rootfs::Watch;

/// How often to look whether somebody wants the end.
const LOOK: Duration = Duration::from_millis(100);
/// How many lines of a program are kept for the error.
const KEPT: usize = 40;
/// How much of a line is.
const LINE: usize = 400;
/// What begins a line that tells of a step.
const STEP: &str = "covisor-step: ";
/// How lines begin that tell why something failed.
const REASONS: [&str; 4] = ["E: ", "W: Failure", "error:", "mke2fs: "];

/// A program that has to be there, and the package that has it.
pub(super) fn needed(program: &'static str, package: &'static str) -> Result<PathBuf, RootfsError> {
    find_program(program).ok_or(RootfsError::Tool { program, package })
}

/// What a program said: its last lines.
#[derive(Debug, Default)]
pub(super) struct Said(VecDeque<String>);

impl Said {
    fn add(&mut self, line: &str) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The line that says why it failed: the first one that looks like a reason, otherwise the last.
    pub(super) fn reason(&self) -> String {
        let is_reason = |line: &&str| REASONS.iter().any(|reason| line.contains(reason));
        let reason = self.lines().find(is_reason).or_else(|| self.lines().filter(|line| !line.is_empty()).last());
        reason.unwrap_or("it did not say why").to_owned()
    }
}

/// Runs a program to its end; its lines are details, or steps.
pub(super) fn run(command: &Command, watch: &mut dyn Watch) -> Result<Said, RootfsError> {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit_once('/').map_or(program.as_ref(), |(_, name)| name).to_owned();
    let run = |error| RootfsError::Run { program: program.clone(), error };
    let (reader, writer) = io::pipe().map_err(run)?;
    let mut command = ending_with_us(command);
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(run)?).stderr(writer);
    let mut child = command.spawn().map_err(run)?;
    // The command has the pipe's other ends, without whose end the lines have none.
    drop(command);
    let (lines, said_lines) = mpsc::sync_channel(KEPT);
    thread::spawn(move || read_lines(reader, &lines));
    let mut said = Said::default();
    loop {
        if watch.is_cancelled() {
            // If it is gone already, it is well.
            let _ = child.kill();
            child.wait().map_err(run)?;
            return Err(RootfsError::Cancelled);
        }
        match said_lines.recv_timeout(LOOK) {
            Ok(line) => match line.strip_prefix(STEP) {
                Some(step) => watch.step(step),
                None => {
                    watch.detail(&line);
                    said.add(&line);
                }
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(run)?;
    match status.success() {
        true => Ok(said),
        false => Err(RootfsError::Failed { program, status, said: said.reason() }),
    }
}

fn read_lines(reader: PipeReader, lines: &mpsc::SyncSender<String>) {
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // Progress of some is one line that is written anew.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        let shown = line.chars().filter(|character| !character.is_control()).take(LINE).collect();
        if lines.send(shown).is_err() {
            return;
        }
    }
}

/// The same program, which ends with this process whatever ends that.
///
/// Another program sees to it: code of ours between fork and exec would make the fork a slow one, in which the child has all that this
/// process has open.
fn ending_with_us(command: &Command) -> Command {
    let Some(program) = find_program("setpriv") else {
        return with_rest_of(Command::new(command.get_program()), command);
    };
    let mut ending = Command::new(program);
    ending.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    with_rest_of(ending, command)
}

/// A command with the arguments and the environment of another.
fn with_rest_of(mut command: Command, of: &Command) -> Command {
    command.args(of.get_args());
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
