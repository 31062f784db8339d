//! Joining this process's terminal with the host's.

use std::io::{self, IsTerminal, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::emulator::Channel;
use crate::error::{Error, Result};

/// Ctrl-] ends the emulated machine; all other keys are the host's.
const LEAVE: u8 = 0x1d;

/// Turns a script into one that runs it on `device`, the host's terminal, as a session of its own.
pub(super) fn on_terminal(script: &str, device: &str) -> String {
    let quoted = format!("'{}'", script.replace('\'', r"'\''"));
    let size = match size() {
        // The driver sets the size once more, to nothing, a moment after the terminal is opened.
        Some((rows, columns)) => format!("usleep 100000; stty rows {rows} cols {columns}; "),
        None => String::new(),
    };
    // The script is not the shell's last command, which a shell may run in its own place: as leader of a process group
    // setsid would fork and the status be lost.
    format!("exec <{device} >{device} 2>&1; stty 115200; {size}setsid -c sh -c {quoted}; exit $?")
}

/// Shows bytes on standard output at once.
pub(super) fn show(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    // A terminal that is gone cannot be told.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// The two terminals, joined until dropped; this one in raw mode as long.
#[derive(Debug)]
pub(super) struct Joined {
    left: Arc<AtomicBool>,
    far: Channel,
    output: Option<thread::JoinHandle<()>>,
    /// Restores the terminal when dropped, after the output is through.
    _raw: Option<RawMode>,
}

impl Joined {
    /// Joins this process's standard input and output with `far`.
    pub(super) fn start(far: &Channel) -> Result<Self> {
        let clone = || far.try_clone().map_err(|source| Error::Terminal { source });
        let raw = RawMode::enter().map_err(|source| Error::Terminal { source })?;
        let left = Arc::new(AtomicBool::new(false));
        let (mut input_far, mut output_far) = (clone()?, clone()?);
        let flag = left.clone();
        // It ends with the process, or when the user leaves: a read of the terminal cannot be
        // called off.
        thread::spawn(move || {
            let mut byte = [0];
            while let Ok(1) = io::stdin().lock().read(&mut byte) {
                if byte[0] == LEAVE {
                    flag.store(true, Ordering::Relaxed);
                    return;
                }
                if input_far.write_all(&byte).is_err() {
                    return;
                }
            }
        });
        let output = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output_far.read(&mut buffer) {
                show(&buffer[..count]);
            }
        });
        Ok(Self { left, far: clone()?, output: Some(output), _raw: raw })
    }

    /// Whether the user asked to leave.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // What the host wrote last is on its way through the emulator.
        thread::sleep(Duration::from_millis(200));
        let _ = self.far.shut_down();
        if let Some(output) = self.output.take() {
            // A panic there has nothing to say about the terminal.
            let _ = output.join();
        }
    }
}

/// This process's terminal in raw mode until dropped.
#[derive(Debug)]
struct RawMode {
    before: libc::termios,
}

impl RawMode {
    /// Enters raw mode, where standard input is a terminal.
    fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mut before = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is to memory for one termios, which the call fills.
        if unsafe { libc::tcgetattr(stdin.as_raw_fd(), before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above succeeded and so has filled it.
        let before = unsafe { before.assume_init() };
        let mut raw = before;
        // SAFETY: the pointer is to a valid termios.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        set(&raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // If the terminal is gone, so is its mode.
        let _ = set(&self.before);
    }
}

fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a valid termios.
    match unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The terminal's rows and columns, where there is one.
fn size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: the pointer is to memory for one winsize, which the call fills.
    let result = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded and so has filled it.
    let size = unsafe { size.assume_init() };
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_with_quotes_stays_one_word() {
        assert!(on_terminal("echo 'a b'", "/dev/hvc0").contains(r"sh -c 'echo '\''a b'\'''; exit $?"));
    }
}
