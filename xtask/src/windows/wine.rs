//! Wine: programs and drivers for Windows on this machine. It has no CPU for guests, and of NT's kernel what drivers of devices
//! need; that is enough for a driver's way from its start to its end, and for the program's.
//!
//! A [`Wine`] is a session, as from a Windows' start to its end: what a session leaves in its files the next one finds. There is one
//! at a time, so that drivers of the same name do not meet.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use covisor_guest_images::command::die_with_parent;
use covisor_guest_images::fs;

use super::{WindowsError, out};
use crate::env::Env;
use crate::error::Result;
use crate::rig::Outcome;
use crate::setup;

/// Debian's package has no links to these in the usual places.
const WINE: &str = "/usr/lib/wine/wine64";
const SERVER: &str = "/usr/lib/wine/wineserver64";

/// How long Wine may take to make its files, and to begin a session, with a busy machine in mind.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long it may take to end one, before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether a process has ended.
const PERIOD: Duration = Duration::from_millis(10);

/// What is switched off: the offers to fetch .NET and a browser, and entries in the desktop's menus.
const OVERRIDES: &str = "mscoree,mshtml=;winemenubuilder.exe=d";
/// What drivers print, and nothing else.
const MESSAGES: &str = "-all,+debugstr";
/// The file that says which Wine has made the others.
const STAMP: &str = "covisor-made-by";
/// The name of the first program's output.
const FIRST: &str = "first";
/// Where it is set how long a service may take to start: 10 s are not enough on a busy machine.
const CONTROL: &str = r"HKLM\System\CurrentControlSet\Control";
/// How long that is to be, in milliseconds.
const PATIENCE_MS: &str = "120000";

/// A session, and the right to have one.
#[derive(Debug)]
pub struct Wine {
    // First, for fields are dropped in their order.
    session: Session,
    _lock: fs::Lock,
}

/// A session.
#[derive(Debug)]
struct Session {
    /// Wine's files: its registry and its drive C.
    prefix: PathBuf,
    /// Where output goes. No pipes, for what a program starts may keep them.
    output: PathBuf,
    _server: Server,
}

/// The process that all others of a session belong to: they end with it.
#[derive(Debug)]
struct Server {
    process: Child,
    prefix: PathBuf,
}

/// The path of a file of this machine, as programs under Wine know it.
#[must_use]
pub fn windows_path(path: &Path) -> String {
    format!("Z:{}", path.to_string_lossy().replace('/', "\\"))
}

impl Wine {
    /// Begins a session, and before the first one ever makes Wine's files.
    ///
    /// # Errors
    /// When Wine cannot be installed, or does not start.
    pub fn start(env: &Env) -> Result<Self> {
        let folder = out(env).join("wine");
        let lock = fs::Lock::take(folder.join("lock"))?;
        setup::ensure_for_wine(env)?;
        let (prefix, output) = (folder.join("prefix"), folder.join("output"));
        let version = Command::new(WINE).arg("--version").output().map_err(start_error(WINE))?.stdout;
        if !std::fs::read(prefix.join(STAMP)).is_ok_and(|made_by| made_by == version) {
            let step = env.progress.step("making Wine's files");
            fs::remove(&prefix)?;
            let session = Session::begin(&prefix, &output)?;
            session.run_well(
                "reg",
                &["add", CONTROL, "/v", "ServicesPipeTimeout", "/t", "REG_DWORD", "/d", PATIENCE_MS],
            )?;
            // It has written its files when it is over.
            drop(session);
            fs::write(prefix.join(STAMP), version)?;
            step.done();
        }
        Ok(Self { session: Session::begin(&prefix, &output)?, _lock: lock })
    }

    /// Runs a program to its end. The outcome's log is what drivers have printed in this session.
    ///
    /// # Errors
    /// When it cannot be started, or takes too long; it is killed then.
    pub fn run(&self, program: &Path, arguments: &[&str], timeout: Duration) -> Result<Outcome> {
        self.session.run(program, arguments, timeout, "-all", "program")
    }
}

impl Session {
    fn begin(prefix: &Path, output: &Path) -> Result<Self> {
        fs::remove(output)?;
        fs::create_dir_all(output)?;
        fs::create_dir_all(prefix)?;
        let session = Self { prefix: prefix.to_owned(), output: output.to_owned(), _server: Server::start(prefix)? };
        // The first program has what belongs to a session started, the services' manager too. That has its environment and
        // standard error from it, and drivers have theirs from that.
        let first = session.run(Path::new("cmd"), &["/c", "exit"], START_TIMEOUT, MESSAGES, FIRST)?;
        well(&first)?;
        Ok(session)
    }

    /// Runs a program of Wine's own that has to succeed.
    fn run_well(&self, program: &str, arguments: &[&str]) -> Result<()> {
        well(&self.run(Path::new(program), arguments, START_TIMEOUT, "-all", "program")?)
    }

    /// Runs a program whose messages and output go into files of this name.
    fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        timeout: Duration,
        messages: &str,
        name: &str,
    ) -> Result<Outcome> {
        let file = |kind: &str| self.output.join(format!("{name}.{kind}"));
        let create = |path: PathBuf| File::create(&path).map_err(covisor_guest_images::Error::file("create", path));
        let mut command = Command::new(WINE);
        environment(&mut command, &self.prefix)
            .arg(program)
            .args(arguments)
            .env("WINEDEBUG", messages)
            .stdout(create(file("out"))?)
            .stderr(create(file("err"))?);
        let mut child = command.spawn().map_err(start_error(WINE))?;
        let Some(status) = wait(&mut child, timeout).map_err(start_error(WINE))? else {
            // What is left of it ends with the session.
            let _ = child.kill();
            let _ = child.wait();
            let program = program.display().to_string();
            let seconds = timeout.as_secs();
            let told = format!("{}{}", text(&file("out")), text(&file("err")));
            return Err(WindowsError::WineLate { program, seconds, told, log: self.log() }.into());
        };
        Ok(Outcome {
            status: exit_status(status),
            stdout: fs::read(file("out"))?,
            stderr: fs::read(file("err"))?,
            host_log: self.log(),
        })
    }

    /// What drivers have printed in this session.
    fn log(&self) -> String {
        text(&self.output.join(format!("{FIRST}.err")))
    }
}

/// Wine's own programs succeed.
fn well(outcome: &Outcome) -> Result<()> {
    if outcome.status == 0 { Ok(()) } else { Err(WindowsError::NoSession { told: outcome.stderr_text() }.into()) }
}

impl Server {
    fn start(prefix: &Path) -> Result<Self> {
        let mut command = Command::new(SERVER);
        // In the foreground, so that it is a child of this process; and there when no program is.
        let process = environment(&mut command, prefix)
            .args(["--foreground", "--persistent"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(start_error(SERVER))?;
        Ok(Self { process, prefix: prefix.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It kills all of the session, and ends. Who it does not obey is killed.
        let _ = environment(&mut Command::new(SERVER), &self.prefix).arg("--kill").status();
        if !matches!(wait(&mut self.process, END_TIMEOUT), Ok(Some(_))) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// What every process of Wine's has in common: its files, and that it neither asks nor shows anything, and dies with this process.
fn environment<'a>(command: &'a mut Command, prefix: &Path) -> &'a mut Command {
    die_with_parent(command);
    command
        .env("WINEPREFIX", prefix)
        .env("WINEARCH", "win64")
        .env("WINESERVER", SERVER)
        .env("WINEDLLOVERRIDES", OVERRIDES)
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .stdin(Stdio::null())
}

/// Waits for a process's end; `None` when the time is over.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait()? {
            None if Instant::now() < deadline => thread::sleep(PERIOD),
            ended => return Ok(ended),
        }
    }
}

/// The status as a shell says it.
fn exit_status(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn text(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).unwrap_or_default()
}

fn start_error(program: &'static str) -> impl Fn(std::io::Error) -> crate::Error {
    move |source| covisor_guest_images::Error::Start { program: program.to_owned(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_file_is_on_wines_drive_of_this_machine() {
        assert_eq!(windows_path(Path::new("/a/b c/d.sys")), r"Z:\a\b c\d.sys");
    }

    #[test]
    fn test_a_process_that_takes_too_long_is_told_from_one_that_ends() {
        let start = |seconds: &str| Command::new("sleep").arg(seconds).spawn().unwrap();
        assert!(wait(&mut start("0"), Duration::from_secs(60)).unwrap().is_some());
        let mut long = start("60");
        assert!(wait(&mut long, Duration::from_millis(20)).unwrap().is_none());
        long.kill().unwrap();
        assert_eq!(exit_status(long.wait().unwrap()), 128 + 9);
    }
}
