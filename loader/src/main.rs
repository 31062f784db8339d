//! The `covisor` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    covisor::cli::main()
}
