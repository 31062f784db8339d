//! `cargo xtask test`: everything that can be tested without the hardware.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use covisor_guest_images::command::{Cmd, die_with_parent};
use covisor_guest_images::progress::Step;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::fuzz;
use crate::scenario::{Tally, Verdict};
use crate::setup;
use crate::windows;

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, Args)]
pub struct TestArgs {
    /// Run only the end-to-end scenarios, and of them those whose names contain this.
    #[arg(value_name = "SCENARIO")]
    filter: Option<String>,

    /// Leave out the end-to-end scenarios.
    #[arg(long, conflicts_with = "filter")]
    unit: bool,

    /// Also runs each fuzz target for so long.
    #[arg(skip)]
    fuzz_seconds: Option<u32>,
}

impl TestArgs {
    /// What continuous integration runs.
    #[must_use]
    pub fn ci() -> Self {
        Self { fuzz_seconds: Some(fuzz::CI_SECONDS), ..Self::default() }
    }
}

/// Runs the tests and prints the tally as the last line.
///
/// # Errors
/// When a test program cannot even be started.
pub fn run(env: &Env, args: &TestArgs) -> Result<ExitCode> {
    setup::ensure(env)?;
    let mut tally = Tally::default();
    if args.filter.is_none() {
        tally.add(single(env, "formatting", "rustfmt", &["fmt", "--all", "--check"]));
        tally.add(single(
            env,
            "lints",
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        ));
        tally.add(check(env, "lints for Windows", windows::cannot_lint(), |step| windows::lint(env, step)));
        tally.add(unit_tests(env)?);
    }
    if !args.unit {
        tally.add(scenarios(env, args.filter.as_deref().unwrap_or_default())?);
    }
    if let Some(seconds) = args.fuzz_seconds {
        tally.add(fuzz::run_all(env, seconds)?);
    }
    println!("{tally}");
    Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo() -> Cmd {
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// One check that holds or does not, by a part of the toolchain that may not be installed.
fn single(env: &Env, name: &str, component: &str, args: &[&str]) -> Tally {
    let is_missing = cargo().args([args[0], "--version"]).dir(&env.root).output().is_err();
    let missing = is_missing.then(|| format!("{component} is not installed (`rustup component add {component}`)"));
    check(env, name, missing, |step| {
        Ok(cargo().args(args).env("TERM", "dumb").env("CARGO_TERM_COLOR", "never").dir(&env.root).run(step)?)
    })
}

/// One check that holds or does not, unless what it needs is missing.
fn check(env: &Env, name: &str, missing: Option<String>, holds: impl FnOnce(&Step) -> Result<()>) -> Tally {
    let mut tally = Tally::default();
    let verdict = match missing {
        Some(missing) => Verdict::Skip(missing),
        None => {
            let step = env.progress.step(format!("checking {name}"));
            let verdict = match holds(&step) {
                Ok(()) => Verdict::Pass,
                Err(error) => Verdict::Fail(error.to_string()),
            };
            step.done();
            verdict
        }
    };
    tally.count(&verdict);
    match verdict {
        Verdict::Pass => println!("pass  {name}"),
        Verdict::Fail(why) => println!("FAIL  {name}\n{why}"),
        Verdict::Skip(why) => println!("skip  {name}: {why}"),
    }
    tally
}

/// The unit tests of all crates, counted from what the test programs say.
fn unit_tests(env: &Env) -> Result<Tally> {
    let command = cargo().args(["test", "--workspace", "--no-fail-fast"]).dir(&env.root).into_inner();
    let mut tally = Tally::default();
    let success = passing_lines(command, |line| {
        if let Some(of_one) = parse_test_result(line) {
            tally.add(of_one);
        }
    })?;
    // A crate that does not compile has no result line.
    if !success && tally.failed == 0 {
        println!("FAIL  unit tests: cargo test failed; its messages are above");
        tally.failed += 1;
    }
    Ok(tally)
}

/// The end-to-end scenarios, which are a program of their own.
fn scenarios(env: &Env, filter: &str) -> Result<Tally> {
    let command = cargo()
        .args(["run", "--quiet", "--package", "covisor-tests", "--bin", "covisor-tests", "--", filter])
        .dir(&env.root)
        .into_inner();
    let mut tally = None;
    let success = passing_lines(command, |line| tally = Tally::parse(line).or(tally))?;
    let mut tally = tally.unwrap_or_default();
    if !success && tally.failed == 0 {
        println!("FAIL  end-to-end scenarios: their program failed; its messages are above");
        tally.failed += 1;
    }
    Ok(tally)
}

/// Runs a command, passing its standard output on line by line except the tally itself; whether it
/// succeeded.
fn passing_lines(mut command: Command, mut line_seen: impl FnMut(&str)) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| Error::Build(covisor_guest_images::Error::Start { program: program.clone(), source });
    die_with_parent(&mut command);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(start)?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            line_seen(&line);
            // Only the whole run's tally is to stand alone on a line.
            if Tally::parse(&line).is_none() {
                // Who does not read still gets the exit status.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        }
    }
    Ok(child.wait().map_err(start)?.success())
}

/// Reads libtest's closing line: `test result: ok. 7 passed; 0 failed; 2 ignored; …`.
fn parse_test_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| -> Option<u64> {
        counts.split("; ").find_map(|part| part.strip_suffix(word))?.trim().parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_test_program_is_read() {
        let line = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 1.85s";
        assert_eq!(parse_test_result(line), Some(Tally { passed: 7, failed: 1, skipped: 2 }));
        assert_eq!(parse_test_result("test decoder ... ok"), None);
    }
}
