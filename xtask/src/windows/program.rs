//! Builds programs for Windows.

use std::path::PathBuf;

use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;
use serde_json::Value;

use super::WindowsError;
use super::out;
use crate::env::Env;
use crate::error::Result;
use crate::toolchain;

/// The target whose library calls nothing that Windows 7 lacks.
const TARGET: &str = "x86_64-win7-windows-gnu";

const RUSTFLAGS: &[&str] = &[
    "-Cstrip=symbols",
    "-Clink-arg=-Wl,--dynamicbase,--nxcompat,--high-entropy-va",
    // The same file from the same sources.
    "-Clink-arg=-Wl,--no-insert-timestamp",
];

/// Has clippy look at the programs' code for Windows, which the lints of the workspace on Linux do not see.
pub(super) fn lint(env: &Env, step: &Step) -> Result<()> {
    toolchain::bare_metal()?
        // The library as tests need it, which unwind.
        .cargo_with("std", TARGET, "clippy", &[])
        .args(["--package", "covisor", "--package", "covisor-conformance", "--all-targets", "--locked", "--quiet"])
        .arg("--target-dir")
        .arg(env.cargo_target.join("windows"))
        .args(["--", "-D", "warnings"])
        .env("TERM", "dumb")
        .env("CARGO_TERM_COLOR", "never")
        .dir(&env.root)
        .run(step)?;
    Ok(())
}

/// Builds the unit tests of a package's library, and returns the path of the program that runs them. It has no flags of its own,
/// for nobody gets it; and it unwinds, for tests that fail.
pub(super) fn build_tests(env: &Env, package: &str) -> Result<PathBuf> {
    let step = env.progress.step(format!("building {package}'s unit tests for Windows"));
    let messages = toolchain::bare_metal()?
        .cargo_with("std", TARGET, "test", &[])
        .args([
            "--package",
            package,
            "--lib",
            "--no-run",
            "--locked",
            "--quiet",
            "--message-format=json-render-diagnostics",
        ])
        .arg("--target-dir")
        .arg(env.cargo_target.join("windows"))
        .dir(&env.root)
        .output()?;
    step.done();
    test_program(&messages).ok_or_else(|| WindowsError::NoTests { package: package.to_owned() }.into())
}

/// The program that cargo tells of: the last thing that it has made.
fn test_program(messages: &str) -> Option<PathBuf> {
    let of = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().filter(|_| message["profile"]["test"] == true).map(PathBuf::from)
    };
    messages.lines().rev().find_map(of)
}

/// Builds the programs of these packages, whose names are theirs, and returns the paths of the files. All at once, for the library
/// is built from source, too.
pub(super) fn build<const N: usize>(env: &Env, packages: [&str; N]) -> Result<[PathBuf; N]> {
    let step = env.progress.step(format!("building {} for Windows", packages.join(", ")));
    let target = env.cargo_target.join("windows");
    let selected = packages.iter().flat_map(|package| ["--package", package, "--bin", package]);
    toolchain::bare_metal()?
        .cargo_with("std,panic_abort", TARGET, "build", RUSTFLAGS)
        .args(selected)
        .args(["--release", "--locked"])
        .arg("--target-dir")
        .arg(&target)
        .dir(&env.root)
        .run(&step)?;
    let programs = packages.map(|package| out(env).join(package).with_extension("exe"));
    for (package, program) in packages.iter().zip(&programs) {
        let built = target.join(TARGET).join("release").join(package).with_extension("exe");
        fs::copy(built, program)?;
    }
    step.done();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_program_with_the_tests_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","executable":"/t/build-script","profile":{"test":false}}
{"reason":"compiler-artifact","executable":null,"profile":{"test":true}}
{"reason":"compiler-artifact","executable":"/t/covisor-1.exe","profile":{"test":true}}
{"reason":"build-finished","success":true}"#;
        assert_eq!(test_program(messages), Some(PathBuf::from("/t/covisor-1.exe")));
        assert_eq!(test_program("no JSON"), None);
    }
}
