//! An emulated machine without a host: a kernel that QEMU loads, on the deterministic clock, and what comes from its serial port.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use covisor_guest_images::command::die_with_parent;

use super::BenchError;
use crate::error::{Error, Result};

/// How long a machine may take to say what is waited for, by the wall clock.
const PATIENCE: Duration = Duration::from_secs(600);

/// A machine to be started.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// What it is called in errors.
    pub(super) what: &'a str,
    /// Its kind, as QEMU calls it.
    pub(super) board: &'a str,
    /// Its CPU, as QEMU calls it.
    pub(super) cpu: &'a str,
    /// Its memory.
    pub(super) memory_mib: u32,
    /// The folder that the next two names count from.
    pub(super) dir: &'a Path,
    /// The kernel's file.
    pub(super) kernel: &'a str,
    /// The initrd's file, or a list of modules for a kernel that is started by the multiboot protocol.
    pub(super) initrd: &'a str,
    /// The kernel's command line.
    pub(super) cmdline: &'a str,
}

impl Machine<'_> {
    /// Starts it, gives each line of its serial port to `find` until that has found something, and ends it.
    ///
    /// # Errors
    /// When QEMU cannot be started, or nothing is found until it ends or patience does.
    pub(super) fn find<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let start = |source| Error::StartQemu { source };
        let mut child = self.command().spawn().map_err(start)?;
        let lines = child.stdout.take().map(lines_of);
        let deadline = Instant::now() + PATIENCE;
        let mut output = String::new();
        let mut found = None;
        let mut late = false;
        while let Some(lines) = &lines
            && found.is_none()
        {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    found = find(&line);
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(error) => {
                    late = error == mpsc::RecvTimeoutError::Timeout;
                    break;
                }
            }
        }
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        let what = self.what.to_owned();
        found.ok_or_else(|| match late {
            true => BenchError::Late { what, seconds: PATIENCE.as_secs(), output }.into(),
            false => BenchError::NoFigure { what, output }.into(),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", &format!("{},accel=tcg", self.board), "-cpu", self.cpu])
            .args(["-m", &self.memory_mib.to_string(), "-smp", "1", "-icount", "shift=0,sleep=off"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-kernel", self.kernel, "-initrd", self.initrd, "-append", self.cmdline])
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        die_with_parent(&mut command);
        command
    }
}

/// The lines that come from a pipe, until it ends or nobody takes them.
fn lines_of(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::result::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
