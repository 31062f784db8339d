//! A running emulated machine.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use covisor_exec_protocol::{Decoder, MAX_PAYLOAD, ToGuest, ToHost, VERSION};

use super::Rig;
use super::emulator::{Channel, Emulator};
use super::{qemu, terminal};
use crate::error::{Error, Result};

/// How long the host may take to write its disks back at the end.
const SYNC_TIMEOUT: Duration = Duration::from_secs(120);

/// What a script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status; 128 + signal when killed.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// The host's console, from power on.
    pub host_log: String,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A script's standard input.
#[derive(Debug)]
pub enum Input {
    /// Nothing: it ends at once.
    Empty,
    /// These bytes.
    Bytes(Vec<u8>),
    /// This process's standard input.
    Inherit,
}

impl Input {
    /// This process's standard input where something is fed into it; nothing where it is a
    /// terminal, which is not for a command without one.
    #[must_use]
    pub fn when_not_a_terminal() -> Self {
        if io::stdin().is_terminal() { Self::Empty } else { Self::Inherit }
    }
}

/// What the agent says, or that time is up.
enum Heard {
    Message(ToHost),
    Closed,
    Nonsense(String),
    Late,
}

/// A running emulated machine; it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    emulator: Emulator,
    decoder: Decoder<ToHost>,
    /// Bytes that were read but not yet decoded.
    unread: Vec<u8>,
    timeout: Duration,
    keeps_disks: bool,
}

impl Machine {
    /// Starts the emulator and waits for the agent.
    pub(super) fn start(rig: &Rig, boot_timeout: Duration) -> Result<Self> {
        let emulator = match &rig.bochs {
            None => qemu::start(rig)?,
            Some(bochs) => bochs.start(rig)?,
        };
        let mut machine = Self {
            emulator,
            decoder: Decoder::new(),
            unread: Vec::new(),
            timeout: rig.timeout,
            keeps_disks: rig.disks.iter().any(|disk| disk.keep),
        };
        let deadline = Instant::now() + boot_timeout;
        match machine.hear(deadline) {
            Heard::Message(ToHost::Hello(VERSION)) => Ok(machine),
            Heard::Late => Err(machine.late("boot", boot_timeout)),
            Heard::Closed => Err(machine.died()),
            Heard::Nonsense(error) => Err(Error::Agent(error)),
            Heard::Message(other) => Err(Error::Agent(format!("its first message is {other:?}"))),
        }
    }

    /// Runs a script with the host's `/bin/sh` and collects its output.
    ///
    /// # Errors
    /// When the machine dies or the script takes too long.
    pub fn run(&mut self, script: &str) -> Result<Outcome> {
        self.run_with(script, Input::Empty)
    }

    /// The same with standard input.
    ///
    /// # Errors
    /// When the machine dies or the script takes too long.
    pub fn run_with(&mut self, script: &str, input: Input) -> Result<Outcome> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let timeout = self.timeout;
        let status = self.stream(script, input, timeout, |bytes| stdout.extend(bytes), |bytes| stderr.extend(bytes))?;
        Ok(Outcome { status, stdout, stderr, host_log: self.log() })
    }

    /// Runs a script and passes its output on as it comes; returns its status.
    ///
    /// # Errors
    /// When the machine dies or the script takes longer than `timeout`.
    pub fn stream(
        &mut self,
        script: &str,
        input: Input,
        timeout: Duration,
        mut stdout: impl FnMut(&[u8]),
        mut stderr: impl FnMut(&[u8]),
    ) -> Result<i32> {
        let deadline = Instant::now().checked_add(timeout).unwrap_or_else(far_future);
        self.send(&ToGuest::Exec(script.to_owned()))?;
        let sender = InputSender::start(input, &self.emulator.exec)?;
        let result = loop {
            match self.hear(deadline) {
                Heard::Message(ToHost::Stdout(bytes)) => stdout(&bytes),
                Heard::Message(ToHost::Stderr(bytes)) => stderr(&bytes),
                Heard::Message(ToHost::Exit(status)) => break Ok(status),
                Heard::Message(ToHost::Hello(_)) => {
                    break Err(Error::Agent("it started anew in the middle of a script".to_owned()));
                }
                Heard::Nonsense(error) => break Err(Error::Agent(error)),
                Heard::Closed => break Err(self.died()),
                Heard::Late => break Err(self.late(script, timeout)),
            }
        };
        sender.stop();
        result
    }

    /// Runs a script with this process's standard output and error; returns its status.
    ///
    /// # Errors
    /// When the machine dies or the script takes longer than `timeout`.
    pub fn stream_to_us(&mut self, script: &str, input: Input, timeout: Duration) -> Result<i32> {
        let warn = |bytes: &[u8]| {
            // Nobody reads our errors: nobody to tell.
            let _ = io::stderr().write_all(bytes);
        };
        self.stream(script, input, timeout, terminal::show, warn)
    }

    /// Runs a script on the host's terminal, joined with this process's terminal in raw mode, and
    /// returns its status. Ctrl-] leaves.
    ///
    /// # Errors
    /// When the terminal cannot be used or the machine dies.
    pub fn attach(&mut self, script: &str) -> Result<i32> {
        let joined = terminal::Joined::start(&self.emulator.terminal)?;
        let script = terminal::on_terminal(script, self.emulator.terminal_device);
        self.send(&ToGuest::Exec(script))?;
        self.send(&ToGuest::StdinEnd)?;
        loop {
            match self.hear(Instant::now() + Duration::from_millis(200)) {
                Heard::Message(ToHost::Exit(status)) => return Ok(status),
                Heard::Message(ToHost::Stdout(bytes) | ToHost::Stderr(bytes)) => terminal::show(&bytes),
                Heard::Message(ToHost::Hello(_)) => {
                    return Err(Error::Agent("it started anew in the middle of a script".to_owned()));
                }
                Heard::Nonsense(error) => return Err(Error::Agent(error)),
                Heard::Closed => {
                    drop(joined);
                    return Err(self.died());
                }
                Heard::Late if joined.has_left() => return Ok(0),
                Heard::Late => {}
            }
        }
    }

    /// Stops the machine, its clock too, until [`Machine::go_on`]. A machine that counts instructions keeps a CPU busy even
    /// while its host sleeps: it skips the time by going from one timer to the next.
    pub fn pause(&self) {
        self.emulator.process().signal(libc::SIGSTOP);
    }

    /// Lets the machine run after [`Machine::pause`].
    pub fn go_on(&self) {
        self.emulator.process().signal(libc::SIGCONT);
    }

    /// The host's console so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.emulator.process().console.text()
    }

    /// Ends the machine, after writing back the disks whose changes are kept, and returns the
    /// host's whole console.
    ///
    /// # Errors
    /// When the disks cannot be written back.
    pub fn shut_down(mut self) -> Result<String> {
        if self.keeps_disks {
            let status = self.stream("sync", Input::Empty, SYNC_TIMEOUT, |_| {}, |_| {})?;
            if status != 0 {
                return Err(Error::Agent(format!("`sync` in the host failed with status {status}")));
            }
        }
        self.emulator.stop();
        Ok(self.log())
    }

    fn send(&mut self, message: &ToGuest) -> Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes)?;
        match self.emulator.exec.write_all(&bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died()),
        }
    }

    /// Waits for the agent's next message, until `deadline`.
    fn hear(&mut self, deadline: Instant) -> Heard {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut input = self.unread.as_slice();
            let decoded = self.decoder.next(&mut input);
            let used = self.unread.len() - input.len();
            self.unread.drain(..used);
            match decoded {
                Ok(Some(message)) => return Heard::Message(message),
                Ok(None) => {}
                Err(error) => return Heard::Nonsense(error.to_string()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would mean none at all.
            if left.is_zero() || self.emulator.exec.set_read_timeout(Some(left)).is_err() {
                return Heard::Late;
            }
            match self.emulator.exec.read(&mut buffer) {
                Ok(0) => return Heard::Closed,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(_) => return Heard::Closed,
            }
        }
    }

    fn late(&self, what: &str, limit: Duration) -> Error {
        self.emulator.late(&first_line(what), limit)
    }

    fn died(&mut self) -> Error {
        self.emulator.died()
    }
}

/// A deadline that never comes.
fn far_future() -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + YEAR
}

/// A script's first line, short enough for a message.
fn first_line(script: &str) -> String {
    let line = script.trim().lines().next().unwrap_or_default();
    line.chars().take(100).collect()
}

/// A thread that sends a script its standard input.
struct InputSender {
    stopped: Arc<AtomicBool>,
}

impl InputSender {
    fn start(input: Input, port: &Channel) -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let port = port.try_clone().map_err(|source| Error::Agent(format!("its port cannot be used: {source}")))?;
        let flag = stopped.clone();
        match input {
            Input::Empty => send_input(io::empty(), port, &flag),
            Input::Bytes(bytes) => drop(thread::spawn(move || send_input(bytes.as_slice(), port, &flag))),
            Input::Inherit => drop(thread::spawn(move || send_input(io::stdin().lock(), port, &flag))),
        }
        Ok(Self { stopped })
    }

    /// The script has ended: nothing more is sent, even if this process's input brings more.
    fn stop(self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Sends all of `source`; ends early when the machine is gone, which the reading side reports.
fn send_input(mut source: impl Read, mut port: Channel, stopped: &AtomicBool) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut frame = Vec::new();
    loop {
        let message = match source.read(&mut buffer) {
            Ok(0) => ToGuest::StdinEnd,
            Ok(count) => ToGuest::Stdin(buffer[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => ToGuest::StdinEnd,
        };
        frame.clear();
        let fits = message.encode(&mut frame).is_ok();
        if !fits || stopped.load(Ordering::Relaxed) || port.write_all(&frame).is_err() || message == ToGuest::StdinEnd {
            return;
        }
    }
}
