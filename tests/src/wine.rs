//! What is built for a Windows host, under Wine, on the machine that builds. There are no guests but those of an engine that
//! interprets, which a variant of the driver has for that.

use std::path::Path;
use std::time::Duration;

use covisor_guest_images::command::Cmd;
use xtask::rig::Outcome;
use xtask::scenario::Scenario;
use xtask::windows::wine::{Wine, windows_path};
use xtask::{Env, Error, build, images, windows};

use crate::checked::{Checked, ensure, told, verdict};
use crate::conformance;

/// The scenarios under Wine.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("wine/conformance", |env, _| verdict(conformance_suite(env))),
    Scenario::new("wine/driver-comes-and-goes", |env, _| verdict(driver_comes_and_goes(env))),
    Scenario::new("wine/shared-folders", |env, _| verdict(shared_folders(env))),
];

/// How long a command may take by this machine's clock, with a busy machine in mind.
const COMMAND: Duration = Duration::from_secs(300);
/// How long all cases may take.
const SUITE: Duration = Duration::from_secs(600);
/// Seconds that each attack by random numbers goes on.
const ATTACK_SECONDS: &str = "1";

/// The exit status when driver or engine are missing or refuse.
const DRIVER: i32 = 2;

/// The loader's unit tests that are run: those of shared folders, of guests that are kept in files, and of what is Windows' own.
const UNIT_TESTS: &[&str] = &["share::", "devices::virtio::fs::", "cli::guests::", "sys::nt::", "sys::windows::"];
/// Those that Wine 8 cannot do, and why.
const NOT_UNDER_WINE: &[(&str, &str)] = &[
    ("sys::windows::share::tests::test_attack_junctions_are_never_followed", "there are no reparse points"),
    ("sys::windows::share::tests::test_a_file_changes_letters_of_its_name", "that is taken for the same name"),
    ("share::tests::test_an_open_file_outlives_its_name", "a file that is taken away is said to have a link"),
];
/// Those that must be among them.
const SHARED_FOLDERS: &[&str] = &["share::tests::", "sys::windows::share::tests::", "sys::nt::files::"];

/// What a program said and what the driver printed.
fn told_all(outcome: &Outcome) -> String {
    format!("{}\nthe driver:\n{}", told(outcome), outcome.host_log)
}

/// Runs covisor, which must end so and say this.
fn covisor(wine: &Wine, program: &Path, arguments: &[&str], status: i32, words: &[&str]) -> Checked<Outcome> {
    let outcome = wine.run(program, arguments, COMMAND)?;
    let said = format!("{}{}", outcome.stdout_text(), outcome.stderr_text());
    let missing: Vec<&&str> = words.iter().filter(|words| !said.contains(**words)).collect();
    ensure!(
        outcome.status == status && missing.is_empty(),
        "`covisor {}` should have ended with status {status}, and said {missing:?}: {}",
        arguments.join(" "),
        told_all(&outcome)
    );
    Ok(outcome)
}

/// The cases pass that pass on Linux.
fn conformance_suite(env: &Env) -> Checked {
    let linux = build::static_program(env, "covisor-conformance", "covisor-conformance")?;
    let all = Cmd::new(linux).arg("list").output().map_err(Error::from)?;
    let programs = windows::programs_for_wine(env)?;
    let driver = windows_path(&windows::driver_for_wine(env)?);
    let wine = Wine::start(env)?;
    let listed = wine.run(&programs.conformance, &["list"], COMMAND)?;
    ensure!(listed.stdout_text().lines().eq(all.lines()), "the lists are not the same: {}", told(&listed));
    let loaded = ["engines     svm"];
    covisor(&wine, &programs.covisor, &["driver", "install", "--module", &driver], 0, &loaded)?;
    let outcome = wine.run(&programs.conformance, &["run", "--attack", ATTACK_SECONDS], SUITE)?;
    let result = conformance::check(&all, &outcome.stdout_text().replace('\r', ""));
    ensure!(outcome.status == 0 && result.is_ok(), "{}\n{}", result.err().unwrap_or_default(), told_all(&outcome));
    // It would not go while a handle is open.
    covisor(&wine, &programs.covisor, &["driver", "remove"], 0, &["the driver is removed"])?;
    Ok(())
}

/// The driver that users get: it finds no CPU for guests here, says so, and goes.
fn driver_comes_and_goes(env: &Env) -> Checked {
    let programs = windows::programs_for_wine(env)?;
    let driver = windows_path(&windows::driver(env)?);
    let kernel = windows_path(&images::default_kernel(env)?.vmlinuz);
    let wine = Wine::start(env)?;
    let run = |arguments: &[&str], status, words: &[&str]| covisor(&wine, &programs.covisor, arguments, status, words);
    for _ in 0..2 {
        run(&["driver", "status"], DRIVER, &["the driver is not loaded"])?;
        run(&["doctor"], DRIVER, &["the driver is not loaded", "This machine cannot run guests yet"])?;
        run(&["driver", "install", "--module", &driver], 0, &["is loaded", "none can run here"])?;
        run(&["driver", "install", "--module", &driver], DRIVER, &["the driver is loaded already"])?;
        let status = run(&["driver", "status"], 0, &["driver      loaded, interface version"])?;
        ensure!(status.host_log.contains("covisor"), "the driver prints nothing: {}", told_all(&status));
        run(&["doctor"], DRIVER, &["driver   loaded, interface version", "This machine cannot run guests yet"])?;
        run(&["ps"], 0, &[])?;
        run(&["run", "--kernel", &kernel], DRIVER, &["no engine can run a guest on this machine"])?;
        run(&["driver", "remove"], 0, &["the driver is removed"])?;
        run(&["driver", "remove"], DRIVER, &["the driver is not installed"])?;
    }
    Ok(())
}

/// The loader's unit tests hold for Windows that are about shared folders, kept guests and Windows' own ways.
fn shared_folders(env: &Env) -> Checked {
    let program = windows::loader_tests(env)?;
    let wine = Wine::start(env)?;
    let skipped = NOT_UNDER_WINE.iter().flat_map(|(test, _)| ["--skip", test]);
    let arguments: Vec<&str> = UNIT_TESTS.iter().copied().chain(skipped).collect();
    let outcome = wine.run(&program, &arguments, SUITE)?;
    let said = outcome.stdout_text();
    let passed = |part: &str| {
        let line = |line: &str| {
            line.strip_prefix("test ").is_some_and(|test| test.starts_with(part) && test.ends_with(" ... ok"))
        };
        said.lines().map(str::trim_end).any(line)
    };
    let missing: Vec<_> = SHARED_FOLDERS.iter().filter(|part| !passed(part)).collect();
    ensure!(outcome.status == 0 && missing.is_empty(), "nothing passed of {missing:?}: {}", told(&outcome));
    Ok(())
}
