//! `cargo xtask run` as users type it: what it prints, and its exit status.

use std::process::Stdio;

use covisor_guest_images::command::Cmd;
use xtask::Env;
use xtask::rig::Outcome;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told, verdict};

/// The scenarios about the contract for runs.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("contract/run-debian", |env, _| verdict(run_debian(env))),
    Scenario::new("contract/run-mini", |env, _| verdict(run_mini(env, "svm", "AMD-V with nested paging"))),
    Scenario::new("contract/run-mini-with-vt-x", |env, _| {
        verdict(run_mini(env, "vmx", "Intel VT-x with EPT and unrestricted guest"))
    }),
    Scenario::new("contract/run-without-the-kernel-file", |env, _| verdict(run_without_the_kernel_file(env))),
];

/// Runs `cargo xtask run` with these arguments.
fn xtask_run(env: &Env, arguments: &[&str]) -> Checked<Outcome> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Cmd::new(cargo).args(["xtask", "run"]).args(arguments).dir(&env.root).into_inner();
    let start = |source| covisor_guest_images::Error::Start { program: "cargo xtask run".to_owned(), source };
    let output = command.stdin(Stdio::null()).output().map_err(start).map_err(xtask::Error::from)?;
    Ok(Outcome {
        status: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: output.stderr,
        host_log: String::new(),
    })
}

/// Without naming a guest it is Debian.
fn run_debian(env: &Env) -> Checked {
    let outcome =
        xtask_run(env, &["--exec", ". /etc/os-release; echo $ID $VERSION_CODENAME; ps -p 1 -o comm=; exit 9"])?;
    ensure!(outcome.status == 9 && outcome.stdout == b"debian bookworm\nsystemd\n", "{}", told(&outcome));
    Ok(())
}

/// Standard output is the command's alone; one line on standard error says which engine runs and why.
fn run_mini(env: &Env, engine: &str, words: &str) -> Checked {
    let command = "printf 'one\\n\\ttwo'; echo err >&2; exit 7";
    let outcome = xtask_run(env, &["--engine", engine, "--guest", "mini", "--mem", "256", "--exec", command])?;
    ensure!(outcome.status == 7 && outcome.stdout == b"one\n\ttwo", "{}", told(&outcome));
    let stderr = outcome.stderr_text();
    let told_of = format!("covisor: engine {engine}: {words} is available");
    ensure!(
        stderr.lines().filter(|line| *line == told_of).count() == 1 && stderr.lines().any(|line| line == "err"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// A file that is not there is told of before anything is built or started.
fn run_without_the_kernel_file(env: &Env) -> Checked {
    let outcome = xtask_run(env, &["--guest", "mini", "--kernel", "/no/such/kernel", "--exec", "true"])?;
    let stderr = outcome.stderr_text();
    ensure!(
        outcome.status != 0
            && outcome.stdout.is_empty()
            && stderr
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("error: ") && line.contains("/no/such/kernel")),
        "{}",
        told(&outcome)
    );
    Ok(())
}
