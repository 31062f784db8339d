//! `covisor driver`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use clap::Subcommand;

use super::EXIT_DRIVER;
use super::fail;
use crate::driver::Driver;
use crate::driver::DriverError;
use crate::run::notice;
use crate::sys::host;
use crate::sys::module;
use crate::sys::words;

/// How long the device may take to appear after the module is there.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Load the driver
    #[command(after_help = words::INSTALL_HELP)]
    Install {
        #[arg(long, value_name = "FILE", help = words::MODULE_HELP)]
        module: Option<PathBuf>,
        /// Do nothing where a driver is loaded already
        #[arg(long)]
        unless_loaded: bool,
    },
    /// Unload the driver
    #[command(after_help = "It stays where a guest runs. Example:\n  covisor driver remove")]
    Remove,
    /// Tell whether the driver is loaded, and which
    #[command(after_help = "The exit status is 2 where it is not loaded. Example:\n  covisor driver status")]
    Status,
}

pub(super) fn driver(command: &Command) -> ExitCode {
    match command {
        Command::Install { unless_loaded: true, .. } if host::has_device() => ExitCode::SUCCESS,
        Command::Install { module, .. } => {
            let loaded = module::find(module.as_deref()).and_then(|path| module::load(&path).map(|()| path));
            match loaded {
                Ok(path) => {
                    notice(format_args!("driver {} is loaded", path.display()));
                    wait_for_device();
                    status()
                }
                Err(error) => fail(error, EXIT_DRIVER),
            }
        }
        Command::Remove => match module::unload() {
            Ok(()) => {
                notice("the driver is removed");
                ExitCode::SUCCESS
            }
            Err(error) => fail(error, EXIT_DRIVER),
        },
        Command::Status => status(),
    }
}

/// The host makes the device's node a moment after the module is there.
fn wait_for_device() {
    let deadline = Instant::now() + PATIENCE;
    while !host::has_device() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

fn status() -> ExitCode {
    match Driver::open() {
        Ok(driver) => {
            let handshake = driver.handshake();
            println!("driver      loaded, interface version {}", handshake.version);
            if let Some(users) = module::users() {
                // Besides this program.
                println!("users       {}", users.saturating_sub(1));
            }
            println!("engines     {}", super::doctor::usable(&driver));
            println!("memory      {} MiB can be given to guests", handshake.memory_available >> 20);
            println!("clock       {} kHz", handshake.tsc_khz);
            ExitCode::SUCCESS
        }
        Err(error @ DriverError::NotLoaded { .. }) if module::is_loaded() => {
            fail(format_args!("the module is loaded, but {error}: {}", words::DEVICE_MISSING), EXIT_DRIVER)
        }
        Err(error) => fail(error, EXIT_DRIVER),
    }
}
