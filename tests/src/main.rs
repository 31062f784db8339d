//! Runs the end-to-end tests: `covisor-tests [PART-OF-A-NAME]`. Without a name, all of them.

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
    let tally = run_all(&env, &covisor_tests::all(), &filter);
    println!("{tally}");
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
