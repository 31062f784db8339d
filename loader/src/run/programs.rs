//! Programs of the host's that run as long as a guest does, such as an X server.

use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use crate::run::ConfigError;
use crate::sys::process;

/// A program of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file, or its name.
    pub path: PathBuf,
    /// What it is given, as it is typed.
    pub arguments: String,
}

/// Those that run; they are ended with this.
#[derive(Debug)]
pub(super) struct Programs(Vec<Child>);

impl Programs {
    /// Starts them. Nothing of theirs comes to the console, which is the guest's.
    pub(super) fn start(programs: &[Program]) -> Result<Self, ConfigError> {
        // Those that are started already are ended if one cannot be.
        let mut running = Self(Vec::new());
        for program in programs {
            let refuse = |source| ConfigError::Program { path: program.path.clone(), source };
            running.0.push(start(program).map_err(refuse)?);
        }
        Ok(running)
    }
}

fn start(program: &Program) -> io::Result<Child> {
    let mut command = Command::new(&program.path);
    process::give_arguments(&mut command, &program.arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn test_programs_run_until_they_are_ended() {
        let sleep = Program { path: "sleep".into(), arguments: "600".to_owned() };
        let programs = Programs::start(&[sleep.clone(), sleep]).unwrap();
        let numbers: Vec<u32> = programs.0.iter().map(Child::id).collect();
        assert!(numbers.iter().all(|&number| process::is_alive(number)));
        drop(programs);
        assert!(numbers.iter().all(|&number| !process::is_alive(number)));
    }

    #[test]
    fn test_a_program_that_is_not_there_is_told() {
        let program = Program { path: "/nowhere/x".into(), arguments: String::new() };
        let error = Programs::start(&[program]).unwrap_err().to_string();
        assert_eq!(error, "program /nowhere/x: there is no such file");
    }
}
