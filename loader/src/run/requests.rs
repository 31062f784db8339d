//! What others ask of a running machine over its control socket: `covisor ps`, `stop`, `disk`, `memory`, `console` and `exec`. A thread
//! of its own answers what it can by itself ([`register`]); the rest the main thread does, and [`Session`]'s methods here say how.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::control;
use crate::control::DiskRequest;
use crate::control::DiskStatus;
use crate::control::Reply;
use crate::control::Shared;
use crate::disk::BlockBackend;
use crate::disk::Format;
use crate::machine::Machine;
use crate::run::ConfigError;
use crate::run::Disk;
use crate::run::RunError;
use crate::run::commands::Commands;
use crate::run::console::Console;
use crate::run::disk_name;
use crate::run::notice;
use crate::run::openings::Openings;
use crate::run::openings::Progress;
use crate::run::question::Question;
use crate::run::question::question;
use crate::run::session::Event;
use crate::run::session::Session;
use crate::run::session::host;
use crate::run::session::spawn;
use crate::sys::control as socket;

/// How long the main thread may take to answer a request, which is less than who asks waits.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1500);
/// How long the answer to who gives a disk may wait for the disk to be open, which comes before that.
const OPENING_PATIENCE: Duration = Duration::from_millis(300);

impl Session {
    /// Has the guest use no more than so many MiB.
    pub(super) fn set_memory(&self, machine: &Machine, mib: u64) -> Reply {
        let all = self.prepared.config.memory;
        let Some(balloon) = machine.balloon() else {
            return Reply::Refused(format!(
                "guests on the engine {} keep the memory that they began with",
                self.shared.status().engine
            ));
        };
        match mib.checked_mul(1 << 20) {
            Some(bytes) if bytes > 0 && bytes <= all => {
                balloon.set_wanted(all - bytes);
                Reply::Done
            }
            _ => Reply::Refused(format!("the guest has {} MiB: it can be given 1 to as many", all >> 20)),
        }
    }

    /// Tells which disks there are.
    pub(super) fn list_disks(&mut self, machine: &mut Machine) -> Reply {
        self.settle_disks(machine);
        Reply::Disks(self.prepared.config.disks.iter().filter_map(|disk| of(machine, disk)).collect())
    }

    /// Gives the guest an open disk.
    pub(super) fn add_disk(&mut self, machine: &mut Machine, disk: Disk, backend: Box<dyn BlockBackend>) -> Reply {
        self.settle_disks(machine);
        let disk = Disk { name: disk_name(self.disks_named), ..disk };
        match machine.add_disk(&disk.name, backend) {
            Ok(told) => {
                self.disks_named += 1;
                let status = of(machine, &disk);
                self.prepared.config.disks.push(disk);
                status.map_or(Reply::Unknown, |disk| Reply::Disk { disk, told })
            }
            Err(error) => Reply::Refused(error.to_string()),
        }
    }

    /// Asks the guest to let a disk go.
    pub(super) fn remove_disk(&mut self, machine: &mut Machine, name: &str) -> Reply {
        self.settle_disks(machine);
        let told = machine.remove_disk(name);
        let disk = self.prepared.config.disks.iter().find(|disk| disk.name == name);
        told.and_then(|told| Some(Reply::Disk { disk: of(machine, disk?)?, told })).unwrap_or_else(|| {
            Reply::Refused(format!("the guest has no disk {name}: `covisor disk list` tells which it has"))
        })
    }

    /// Ends the disks that the guest has let go; after a reset they are not there, either.
    pub(super) fn settle_disks(&mut self, machine: &mut Machine) {
        for name in machine.settle_disks() {
            self.prepared.config.disks.retain(|disk| disk.name != name);
            notice(format_args!("the guest has let {name} go"));
        }
    }
}

/// Makes the machine known to `covisor ps` and `covisor stop`.
pub(super) fn register(
    name: &str,
    shared: &Arc<Shared>,
    (console, commands): (&Arc<Console>, &Arc<Commands>),
    events: &Sender<Event>,
) -> Result<Option<socket::Registration>, RunError> {
    let folder = socket::folder();
    let (registration, listener) = match socket::register(&folder, name) {
        Ok(Some(pair)) => pair,
        Ok(None) => return Err(ConfigError::NameTaken(name.to_owned()).into()),
        Err(error) => {
            log::warn!("`covisor ps` and `covisor stop` will not find this machine: {}: {error}", folder.display());
            return Ok(None);
        }
    };
    let (shared, console, events) = (Arc::clone(shared), Arc::clone(console), events.clone());
    let commands = Arc::clone(commands);
    let mut openings = Openings::new();
    spawn("control", move || {
        listener.serve(|line| {
            let reply = match control::from_line(line) {
                Some(control::Request::Status) => Reply::Status(shared.status()),
                Some(control::Request::Disk(request)) => disk_request(&events, &mut openings, request),
                Some(control::Request::Memory(mib)) => ask_main(&events, |question| Event::Memory(mib, question)),
                Some(control::Request::Exec(request)) => commands.answer(&request),
                Some(control::Request::Console(request)) => {
                    if let Some((columns, rows)) = request.size {
                        let _ = events.send(Event::Size(columns, rows));
                    }
                    Reply::Console(console.exchange(&request))
                }
                Some(request) => {
                    let _ = events.send(Event::Control(request));
                    Reply::Done
                }
                None => Reply::Unknown,
            };
            control::to_line(&reply)
        });
    })
    .map_err(host("start a thread"))?;
    Ok(Some(registration))
}

/// Answers a request about disks.
fn disk_request(events: &Sender<Event>, openings: &mut Openings, request: DiskRequest) -> Reply {
    let (number, patience) = match request {
        DiskRequest::List => return ask_main(events, Event::ListDisks),
        DiskRequest::Remove { name } => return ask_main(events, |question| Event::RemoveDisk(name, question)),
        DiskRequest::Add { path, read_only, format } => {
            let known = format.as_deref().map(Format::from_name);
            if known == Some(None) {
                return Reply::Refused(format!("this machine knows no format {}", format.unwrap_or_default()));
            }
            // Its name it gets when the guest gets it.
            let disk = Disk { name: String::new(), path, read_only, format: known.flatten() };
            let opened = disk.clone();
            match openings.start(disk, move || opened.open()) {
                Ok(number) => (number, OPENING_PATIENCE),
                Err(error) => return Reply::Refused(host("start a thread")(error).to_string()),
            }
        }
        DiskRequest::Opened { number } => (number, Duration::ZERO),
    };
    match openings.ask(number, patience) {
        Progress::Opening => Reply::Opening(number),
        Progress::Ended(disk, Ok(backend)) => ask_main(events, |question| Event::AddDisk(disk, backend, question)),
        Progress::Ended(_, Err(error)) => Reply::Refused(RunError::Config(error.into()).to_string()),
        Progress::Gone => {
            Reply::Refused("nobody asked for the disk for too long, so that it was closed again".to_owned())
        }
    }
}

/// Has the main thread answer.
fn ask_main(events: &Sender<Event>, event: impl FnOnce(Question) -> Event) -> Reply {
    let (question, asked) = question();
    let _ = events.send(event(question));
    let late = || Reply::Refused("the machine is busy starting or ending: try again".to_owned());
    asked.wait(ANSWER_PATIENCE).unwrap_or_else(late)
}

/// What is told of a disk.
fn of(machine: &Machine, disk: &Disk) -> Option<DiskStatus> {
    let (_, slot, leaving) = machine.disks().find(|(name, ..)| *name == disk.name)?;
    Some(DiskStatus {
        name: disk.name.clone(),
        path: disk.path.clone(),
        read_only: disk.read_only,
        format: disk.format().to_string(),
        address: format!("0000:00:{slot:02x}.0"),
        leaving,
    })
}
