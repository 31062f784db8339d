//! `covisor memory`.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use super::EXIT_USAGE;
use super::fail;
use super::machines;
use super::machines::find;
use super::machines::unexpected;
use crate::control::Reply;
use crate::control::Request;

/// Arguments of `covisor memory`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The host's memory goes to a guest where the guest first touches its own, and comes back when the guest frees it.\n\
                  With MIB the guest gives memory back until it uses no more than that, as far as it has some free;\n\
                  a larger MIB lets it use more again.\n\n\
                  Examples:\n  covisor memory web\n  covisor memory web 256"
)]
pub(super) struct Args {
    /// Name of the guest, or number of the process that runs it
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// Have the guest use no more than so many MiB of its memory
    mib: Option<u64>,
}

pub(super) fn memory(args: &Args) -> ExitCode {
    match change_or_tell(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

fn change_or_tell(args: &Args) -> Result<(), String> {
    let socket = find(&args.machine)?;
    let request = args.mib.map_or(Request::Status, Request::Memory);
    match machines::ask(&socket, &request).map_err(|error| error.to_string())? {
        Reply::Done => Ok(()),
        Reply::Status(status) => {
            let text = format!(
                "{} MiB, of which {} MiB of the host's memory are in use now\n",
                status.memory_mib, status.host_memory_mib
            );
            io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write the answer: {error}"))
        }
        reply => Err(unexpected(&reply)),
    }
}
