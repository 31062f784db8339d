//! Runs the end-to-end tests: `covisor-tests [PART-OF-A-NAME]`. Without a name, those that are part of a whole run.

use std::process::ExitCode;

use xtask::Env;
use xtask::scenario::run_all;

fn main() -> ExitCode {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let env = match Env::new() {
        Ok(env) => env,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let scenarios = if filter.is_empty() { covisor_tests::proven() } else { covisor_tests::all() };
    let tally = run_all(&env, &scenarios, &filter);
    println!("{tally}");
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
