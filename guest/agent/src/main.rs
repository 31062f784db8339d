//! The agent in a guest: runs the commands that `covisor run --exec` and `covisor exec` send, and sets the clock when the host's was set.
//!
//! It speaks covisor's exec protocol over the virtio-console port `org.covisor.exec`, or a serial port that the
//! environment names, and serves one command after another until the machine goes down. Everything happens in one thread around
//! `poll(2)`; when there is nothing to do, it sleeps in the kernel.

mod clock;
mod job;
mod port;
mod serve;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use covisor_exec_protocol::PORT_NAME;

/// How long to wait for the port to appear: its driver may still be loading. The steps double.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => {}
        (Some("--wait-for-port"), None) => {
            wait_for_port();
            return ExitCode::SUCCESS;
        }
        _ => {
            say("usage: covisor-agent [--wait-for-port]");
            return ExitCode::from(2);
        }
    }
    loop {
        let path = wait_for_port();
        match serve::serve(&path) {
            Ok(()) => {}
            Err(error) => {
                say(&format!("{}: {error}", path.display()));
                std::thread::sleep(LONGEST_WAIT);
            }
        }
    }
}

/// Sleeps until the port's device is there.
fn wait_for_port() -> std::path::PathBuf {
    let mut wait = FIRST_WAIT;
    loop {
        if let Some(path) = port::find(PORT_NAME) {
            return path;
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Writes a line for the log, if there is one.
fn say(line: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "covisor-agent: {line}");
}
