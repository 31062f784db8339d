//! Running the programs that do the work.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

pub use covisor_debian::programs::find_program;

use crate::error::{Error, Result};
use crate::progress::Step;

/// How many of a failed program's last lines the error shows.
const TAIL_LINES: usize = 40;

/// A program to run: its output is shown as progress and kept for the error.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
}

impl Cmd {
    /// A command that runs `program`, with no standard input, and dies with this process.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        die_with_parent(&mut command);
        Self { command }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Runs it in this folder.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end, showing its lines as the step's detail.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error has its last lines.
    pub fn run(mut self, step: &Step) -> Result<()> {
        let name = self.program();
        let start = |source| Error::Start { program: name.clone(), source };
        let (reader, writer) = std::io::pipe().map_err(start)?;
        self.command.stdout(writer.try_clone().map_err(start)?).stderr(writer);
        let mut child = self.command.spawn().map_err(start)?;
        let command = self.line();
        // The command holds the pipe's write ends: without this the reader below never ends.
        drop(self.command);
        let mut tail = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            step.detail(&line);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        let status = child.wait().map_err(start)?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { command, status, tail: tail.make_contiguous().join("\n") })
    }

    /// Runs it to its end and returns what it wrote to standard output.
    ///
    /// # Errors
    /// When it cannot be started, fails, or writes no text.
    pub fn output(mut self) -> Result<String> {
        let program = self.program();
        let output = self.command.output().map_err(|source| Error::Start { program, source })?;
        if !output.status.success() {
            return Err(Error::Failed {
                command: self.line(),
                status: output.status,
                tail: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        String::from_utf8(output.stdout)
            .map_err(|_| Error::Unexpected(format!("`{}` wrote something that is not text", self.line())))
    }

    /// Runs it to its end with this process's standard output and error.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run_attached(mut self) -> Result<()> {
        let program = self.program();
        let status = self.command.status().map_err(|source| Error::Start { program, source })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { command: self.line(), status, tail: "see its messages above".to_owned() })
    }

    /// The command line, for messages.
    #[must_use]
    pub fn line(&self) -> String {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(quoted)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The plain command, for callers with a use of their own.
    #[must_use]
    pub fn into_inner(self) -> Command {
        self.command
    }

    fn program(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }
}

/// One word of a command line, with quotes where a shell needs them.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+/.,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Makes the child be killed when this process dies, whatever kills it.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and calls nothing but prctl(2), getppid(2) and
    // _exit(2), which are async-signal-safe.
    unsafe {
        let parent = libc::getpid();
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

/// Whether a program is installed.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    find_program(program).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn a_failure_shows_the_command_and_its_last_lines() {
        let step = Progress::default().step("test");
        let error = Cmd::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]).run(&step).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c 'echo one; echo two >&2; exit 3'"), "{text}");
        assert!(text.contains("one\ntwo"), "{text}");
        assert!(text.contains('3'), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Cmd::new("no-such-program-here").output().unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"));
    }
}
