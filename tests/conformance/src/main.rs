//! What every driver of covisor has to do with the device's calls (`docs/abi.md`): one list of cases for all hosts.
//!
//! The program is for both sides: it speaks to the driver by the loader's own transport, and what that does not offer is in `host`.
//! Guests are a few bytes of real mode (`code`).

mod arguments;
mod case;
mod cases;
mod code;
mod host;
mod machine;
mod random;
mod refusal;

use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use clap::Parser;

use arguments::Arguments;
use arguments::Command;
use case::Case;

/// How long a case may take. What comes to no end has a thread in the driver that nobody can end, so the program does.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many cases ended in which way.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn tell(&self) {
        println!("{} passed, {} failed", self.passed, self.failed);
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::List { long } => {
            for case in cases::all() {
                if long { println!("{}: {}", case.name, case.shows) } else { println!("{}", case.name) }
            }
            ExitCode::SUCCESS
        }
        Command::Run { filter, attack } => {
            arguments::set_attack_time(attack);
            run(&filter)
        }
        Command::Spin => {
            if let Err(seen) = cases::spin() {
                eprintln!("{seen}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Tries the cases whose names have this part.
fn run(filter: &str) -> ExitCode {
    let mut tally = Tally::default();
    for case in cases::all().filter(|case| case.name.contains(filter)) {
        match verdict(case) {
            Ok(()) => {
                println!("pass {}", case.name);
                tally.passed += 1;
            }
            Err(End { seen, stuck }) => {
                println!("fail {}: {seen}", case.name);
                tally.failed += 1;
                if stuck {
                    tally.tell();
                    return ExitCode::FAILURE;
                }
            }
        }
        // Who does not read still gets the exit status.
        _ = std::io::stdout().flush();
    }
    tally.tell();
    if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How a case failed.
struct End {
    seen: String,
    /// It has not ended.
    stuck: bool,
}

/// Tries a case in a thread of its own.
fn verdict(case: &'static Case) -> Result<(), End> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let result = catch_unwind(case.run).unwrap_or_else(|_| Err("it panicked".to_owned()));
        // Nobody may wait for it any more.
        _ = sender.send(result);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result.map_err(|seen| End { seen, stuck: false }),
        Err(RecvTimeoutError::Timeout) => Err(End { seen: format!("it did not end within {PATIENCE:?}"), stuck: true }),
        Err(RecvTimeoutError::Disconnected) => Err(End { seen: "its thread is gone".to_owned(), stuck: true }),
    }
}
