//! `covisor doctor`: what this machine offers, what is missing, and what to do about it, on one page that can be put into a report
//! of an error as it is.

mod engines;
mod page;
mod private;

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use raw_cpuid::CpuId;

use self::page::Report;
use self::private::Private;
use super::EXIT_DRIVER;
use super::EXIT_USAGE;
use super::fail;
use super::guests;
use crate::driver::Driver;
use crate::driver::DriverError;
use crate::driver::ENGINES;
use crate::sys::Finding;
use crate::sys::host;
use crate::sys::module;

/// What a guest of ordinary size needs, in bytes.
const COMFORTABLE_MEMORY: u64 = 512 << 20;
/// What a guest's disk soon needs, in bytes.
const COMFORTABLE_DISK: u64 = 1 << 30;
/// Most of the last errors that are told.
const MOST_ERRORS: usize = 4;

const EXAMPLES: &str = "\
The exit status is 0 where guests can run, else 2. Nothing in the report says whose machine it is: names of hosts and users,
addresses of network adapters and homes are left out.

Examples:
  covisor doctor
  covisor doctor --json | jq .ready";

/// Arguments of `covisor doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Print one object of JSON
    #[arg(long)]
    json: bool,
}

/// Names of the engines that can run here.
pub(super) fn usable(driver: &Driver) -> String {
    let names: Vec<_> = ENGINES
        .into_iter()
        .filter(|&engine| matches!(driver.status(engine), Ok(EngineStatus::Usable)))
        .map(EngineKind::name)
        .collect();
    if names.is_empty() { "none can run here".to_owned() } else { names.join(", ") }
}

pub(super) fn doctor(args: &Args) -> ExitCode {
    let private = private();
    let report = examine(&private);
    let text = if args.json { report.json() } else { report.page() };
    if let Err(error) = io::stdout().write_all(text.as_bytes()) {
        return fail(format_args!("cannot write the report: {error}"), EXIT_USAGE);
    }
    if report.ready { ExitCode::SUCCESS } else { EXIT_DRIVER.into() }
}

/// What the report must not tell.
fn private() -> Private {
    Private::here(host::name().into_iter().chain(guests::names()))
}

fn examine(private: &Private) -> Report {
    let mut findings =
        vec![Finding::new(true, "host", host::system()), cpu(), Finding::new(true, "boot", host::security())];
    let driver = Driver::open();
    let ready = match &driver {
        Ok(driver) => {
            findings.extend(ENGINES.into_iter().map(|engine| engines::by_driver(driver, engine)));
            findings.push(loaded(driver));
            matches!(driver.status(EngineKind::Auto), Ok(EngineStatus::Usable))
        }
        Err(error) => {
            findings.extend(engines::by_cpuid());
            findings.push(Finding::new(false, "driver", error.to_string()));
            findings.extend(module::findings(matches!(error, DriverError::NotLoaded { .. })));
            false
        }
    };
    let folder = guests::folder();
    findings.extend([memory(), disk(&folder), kept_guests(), errors(private)]);
    Report::new(ready, findings, private)
}

fn cpu() -> Finding {
    let cpuid = CpuId::new();
    let vendor = cpuid.get_vendor_info().map_or_else(String::new, |vendor| vendor.as_str().to_owned());
    let brand = cpuid.get_processor_brand_string().map_or(vendor, |brand| brand.as_str().trim().to_owned());
    let inside = match cpuid.get_hypervisor_info() {
        Some(info) => format!(", itself a virtual one ({:?})", info.identify()),
        None => String::new(),
    };
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Finding::new(true, "cpu", format!("{brand}, {count} for programs{inside}"))
}

fn loaded(driver: &Driver) -> Finding {
    let handshake = driver.handshake();
    let mut text = format!("loaded, interface version {}", handshake.version);
    if let Some(source) = module::source_version() {
        text.push_str(&format!(", source {source}"));
    }
    if let Some(users) = module::users() {
        // Besides this program.
        text.push_str(&format!(", machines on it: {}", users.saturating_sub(1)));
    }
    Finding::new(true, "driver", text)
}

fn memory() -> Finding {
    match host::available_memory() {
        Some(bytes) if bytes < COMFORTABLE_MEMORY => Finding::new(
            false,
            "memory",
            format!("only {} MiB are available; end other programs, or give guests less by --mem", bytes >> 20),
        ),
        Some(bytes) => Finding::new(true, "memory", format!("{} MiB are available", bytes >> 20)),
        None => Finding::new(true, "memory", "the host does not tell how much is available"),
    }
}

/// The room where guests are kept.
fn disk(folder: &Path) -> Finding {
    // It is made with the first guest.
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(folder);
    match host::free_space(there) {
        Some(bytes) => {
            let little = if bytes < COMFORTABLE_DISK { "only " } else { "" };
            let text = format!("{little}{} MiB are free in {}, where guests are kept", bytes >> 20, folder.display());
            Finding::new(bytes >= COMFORTABLE_DISK, "disk", text)
        }
        None => Finding::new(true, "disk", format!("the host does not tell how much is free in {}", folder.display())),
    }
}

fn kept_guests() -> Finding {
    match guests::summary() {
        Ok(text) => Finding::new(true, "guests", text),
        Err(error) => Finding::new(false, "guests", error),
    }
}

/// What went wrong last.
fn errors(private: &Private) -> Finding {
    let mut errors = guests::last_errors();
    errors.extend(host::complaints());
    let from = errors.len().saturating_sub(MOST_ERRORS);
    let errors: Vec<_> = errors[from..].iter().map(|error| private.all(error)).collect();
    let text = if errors.is_empty() { "none are known".to_owned() } else { errors.join("; ") };
    Finding::new(true, "errors", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_this_machine_is_examined() {
        let report = examine(&private());
        let page = report.page();
        for about in ["host", "cpu", "boot", "svm", "vmx", "coop", "driver", "memory", "disk", "guests", "errors"] {
            let has = page.lines().any(|line| line.get(5..).is_some_and(|line| line.starts_with(about)));
            assert!(has, "{about}:\n{page}");
        }
        assert!(page.lines().count() < 60, "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    }

    #[test]
    fn test_room_is_told_of_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let told = disk(&folder.path().join("not/there"));
        assert!(told.text.contains("MiB are free in") && told.text.contains("not"), "{told:?}");
    }
}
