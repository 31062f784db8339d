//! `covisor disk`.

use std::io;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::EXIT_USAGE;
use super::fail;
use super::machines;
use super::machines::find;
use super::machines::unexpected;
use super::run::DiskArg;
use crate::control::AGAIN_INTERVAL;
use crate::control::DiskRequest;
use crate::control::DiskStatus;
use crate::control::Reply;
use crate::control::Request;
use crate::control::to_line;
use crate::run::notice;

/// How often to look whether a disk is gone.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a guest may take to let a disk go where nobody says, in seconds.
const DEFAULT_TIMEOUT: u64 = 30;

/// `covisor disk …`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Give a running guest one more disk, and tell its name
    #[command(after_help = "Examples:\n  covisor disk add web data.qcow2\n  covisor disk add web cd.iso,ro")]
    Add {
        /// Name of the guest, or number of the process that runs it
        #[arg(value_name = "NAME|PID")]
        machine: String,
        /// The image or block device, as for `covisor run --disk`
        #[arg(value_name = "FILE[,ro][,format=FORMAT]")]
        disk: DiskArg,
    },
    /// Have a running guest let a disk go, and wait until it has
    #[command(
        after_help = "Unmount in the guest what is on the disk first.\n\nExample:\n  covisor disk remove web disk1"
    )]
    Remove {
        /// Name of the guest, or number of the process that runs it
        #[arg(value_name = "NAME|PID")]
        machine: String,
        /// The disk's name, as `covisor disk list` tells it
        disk: String,
        /// How long the guest may take, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT)]
        timeout: u64,
    },
    /// List a running guest's disks
    #[command(after_help = "Examples:\n  covisor disk list web\n  covisor disk list web --json")]
    List {
        /// Name of the guest, or number of the process that runs it
        #[arg(value_name = "NAME|PID")]
        machine: String,
        /// Print an object of JSON for each disk, one a line
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn disk(command: &Command) -> ExitCode {
    let done = match command {
        Command::Add { machine, disk } => add(machine, disk),
        Command::Remove { machine, disk, timeout } => remove(machine, disk, Duration::from_secs(*timeout)),
        Command::List { machine, json } => list(machine, *json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

/// Asks a machine.
fn ask(path: &Path, request: DiskRequest) -> Result<Reply, String> {
    machines::ask(path, &Request::Disk(request)).map_err(|error| error.to_string())
}

fn print(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write the answer: {error}"))
}

fn add(machine: &str, disk: &DiskArg) -> Result<(), String> {
    let socket = find(machine)?;
    // The machine may have been started elsewhere.
    let path = std::path::absolute(&disk.path).map_err(|error| format!("disk {}: {error}", disk.path.display()))?;
    if path.to_str().is_none() {
        return Err(format!("disk {}: its name is no Unicode text", path.display()));
    }
    let format = disk.format.map(|format| format.to_string());
    let mut reply = ask(&socket, DiskRequest::Add { path, read_only: disk.read_only, format })?;
    if matches!(reply, Reply::Opening(_)) {
        notice(format_args!("opening {}, which takes a while", disk.path.display()));
    }
    while let Reply::Opening(number) = reply {
        thread::sleep(INTERVAL);
        reply = ask(&socket, DiskRequest::Opened { number })?;
    }
    match reply {
        Reply::Disk { disk, told } => {
            if !told {
                notice(format_args!(
                    "the guest cannot be told of it: in the guest, `echo 1 >/sys/bus/pci/rescan` finds it"
                ));
            }
            print(&format!("{}\n", disk.name))
        }
        reply => Err(unexpected(&reply)),
    }
}

fn remove(machine: &str, name: &str, timeout: Duration) -> Result<(), String> {
    let socket = find(machine)?;
    let deadline = Instant::now() + timeout;
    let request = || DiskRequest::Remove { name: name.to_owned() };
    let mut next = Instant::now() + AGAIN_INTERVAL;
    match ask(&socket, request())? {
        Reply::Disk { told: true, .. } => {}
        Reply::Disk { disk, told: false } => notice(format_args!(
            "the guest cannot be asked: in the guest, `echo 1 >/sys/bus/pci/devices/{}/remove` lets the disk go",
            disk.address
        )),
        reply => return Err(unexpected(&reply)),
    }
    loop {
        let disks = match ask(&socket, DiskRequest::List)? {
            Reply::Disks(disks) => disks,
            reply => return Err(unexpected(&reply)),
        };
        if disks.iter().all(|disk| disk.name != name) {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(format!(
                "the guest has not let {name} go within {} s, so it still has the disk: unmount in the guest what is on it, then try again",
                timeout.as_secs()
            ));
        }
        if now >= next {
            // It may have gone just now.
            let _ = ask(&socket, request());
            next = now + AGAIN_INTERVAL;
        }
        thread::sleep(INTERVAL);
    }
}

fn list(machine: &str, json: bool) -> Result<(), String> {
    match ask(&find(machine)?, DiskRequest::List)? {
        Reply::Disks(disks) if json => print(&disks.iter().map(|disk| to_line(disk) + "\n").collect::<String>()),
        Reply::Disks(disks) => print(&table(&disks)),
        reply => Err(unexpected(&reply)),
    }
}

/// The list for people.
fn table(disks: &[DiskStatus]) -> String {
    let mut text = format!("{:<10} {:<14} {:<7} {:<10} {}\n", "NAME", "ADDRESS", "FORMAT", "STATE", "FILE");
    for disk in disks {
        let state = match (disk.leaving, disk.read_only) {
            (true, _) => "leaving",
            (false, true) => "read-only",
            (false, false) => "writable",
        };
        text.push_str(&format!(
            "{:<10} {:<14} {:<7} {state:<10} {}\n",
            disk.name,
            disk.address,
            disk.format,
            disk.path.display()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_list_has_a_line_for_each_disk() {
        let disk = |name: &str, read_only, leaving| DiskStatus {
            name: name.to_owned(),
            path: "/a".into(),
            read_only,
            format: "raw".to_owned(),
            address: "0000:00:10.0".to_owned(),
            leaving,
        };
        let text = table(&[disk("disk0", false, false), disk("disk1", true, false), disk("disk2", false, true)]);
        let states: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3)).collect();
        assert_eq!(states, ["writable", "read-only", "leaving"]);
        assert_eq!(text.lines().nth(1).map(|line| line.split_whitespace().count()), Some(5));
    }
}
