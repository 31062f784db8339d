//! What `covisor ps`, `stop`, `memory`, `disk`, `console`, `logs`, `exec` and `cp` say to a running machine, and what it answers: one
//! line of JSON each.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use covisor_abi::StatsKind;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error;

use crate::driver::Vm;
use crate::platform::lock;

/// How often the power button is pressed again: a guest that is still starting does not listen to it yet.
pub const AGAIN_INTERVAL: Duration = Duration::from_secs(5);
/// How long a machine that was ended may take to go.
pub const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long a guest may take to power off where nobody says, in seconds.
pub const DEFAULT_TIMEOUT: u64 = 60;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How are you?
    Status,
    /// Press the power button.
    PowerButton,
    /// End now.
    End,
    /// About disks.
    Disk(DiskRequest),
    /// Something for the console, and what came from it.
    Console(ConsoleRequest),
    /// About a command in the guest.
    Exec(ExecRequest),
    /// Have the guest use no more than so many MiB of its memory; an answer says what it has.
    Memory(u64),
}

/// Bytes as they are; in the line as text in base 64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// A request about the console. Whoever looks at it asks again and again, so that the machine waits for nobody and keeps nothing for
/// anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRequest {
    /// Give what came from this byte on, as far as it is kept, counted from the machine's start.
    pub from: u64,
    /// What was typed.
    pub typed: Bytes,
    /// The columns and rows that the console has now.
    pub size: Option<(u16, u16)>,
}

/// What came from the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleOutput {
    /// The number of the first of these bytes.
    pub from: u64,
    /// The bytes, at most [`CONSOLE_PIECE`].
    pub bytes: Bytes,
    /// How many of the typed bytes the guest's console took.
    pub taken: usize,
}

/// A request about a command in the guest. Who gave it asks again and again until it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecRequest {
    /// Run one.
    Start {
        /// For `/bin/sh -c`.
        command: String,
    },
    /// Give what it said since.
    Continue {
        /// The command's number.
        number: u64,
        /// More of its standard input.
        input: Bytes,
        /// The input ends with that.
        ends: bool,
    },
    /// End it.
    Kill {
        /// The command's number.
        number: u64,
    },
}

/// What came from a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// Of its standard output, at most [`OUTPUT_PIECE`] bytes.
    pub stdout: Bytes,
    /// The same of its standard error.
    pub stderr: Bytes,
    /// How many bytes of input were taken.
    pub taken: usize,
    /// How it ended, once all that it said was given.
    pub status: Option<i32>,
}

/// Most bytes of each of a command's streams in one answer.
pub const OUTPUT_PIECE: usize = 20 << 10;
/// Most bytes of a command's input in one request.
pub const INPUT_PIECE: usize = 32 << 10;
/// Most bytes of the console's in one answer.
pub const CONSOLE_PIECE: usize = 32 << 10;
/// Most bytes typed in one request.
pub const TYPED_PIECE: usize = 4 << 10;

/// A request about disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskRequest {
    /// Which are there?
    List,
    /// Give the guest one more.
    Add {
        /// Its file, from the root.
        path: PathBuf,
        /// The guest may not write it.
        read_only: bool,
        /// Its format's name, where the file's does not say it.
        format: Option<String>,
    },
    /// What has become of one that is being opened? Who gave it asks again and again.
    Opened {
        /// Its number, of [`Reply::Opening`].
        number: u64,
    },
    /// Ask the guest to let one go.
    Remove {
        /// Its name.
        name: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// The request is being done.
    Done,
    /// The request makes no sense.
    Unknown,
    /// The request is not done, and why.
    Refused(String),
    /// To [`DiskRequest::List`].
    Disks(Vec<DiskStatus>),
    /// To [`DiskRequest::Add`] and [`DiskRequest::Opened`]: the disk of this number is being opened.
    Opening(u64),
    /// To [`DiskRequest::Add`], [`DiskRequest::Opened`] and [`DiskRequest::Remove`].
    Disk {
        /// The disk.
        disk: DiskStatus,
        /// The guest was told; otherwise it has to find out.
        told: bool,
    },
    /// To [`Request::Console`].
    Console(ConsoleOutput),
    /// To [`ExecRequest::Start`]: the command's number.
    ExecStarted(u64),
    /// To [`ExecRequest::Start`]: the guest's agent did not say yet that it is there.
    NotYet,
    /// To [`ExecRequest::Continue`].
    ExecOutput(ExecOutput),
}

/// A disk of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The guest may not write it.
    pub read_only: bool,
    /// Its format's name.
    pub format: String,
    /// Its address on the guest's PCI bus, as Linux writes it.
    pub address: String,
    /// The guest is to let it go.
    pub leaving: bool,
}

/// What [`Status::engine`] is until there is one.
const NO_ENGINE: &str = "none";

/// A machine's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// What it does.
    pub state: State,
    /// The engine that runs it.
    pub engine: String,
    /// RAM, in MiB.
    pub memory_mib: u64,
    /// Memory of the host that it has now, in MiB.
    #[serde(default)]
    pub host_memory_mib: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Seconds since it was started.
    pub uptime: u64,
    /// What its vCPUs did.
    pub exits: Exits,
}

impl Status {
    /// Whether an engine runs it already.
    #[must_use]
    pub fn has_engine(&self) -> bool {
        self.engine != NO_ENGINE
    }
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs.
    Running,
    /// It was asked to power off.
    Stopping,
}

impl State {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// Exit counts of all vCPUs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// All exits to the driver.
    pub total: u64,
    /// Exits for interrupts of the host.
    pub host_interrupts: u64,
    /// Exits that the driver answered at once.
    pub fast: u64,
    /// Exits to the loader.
    pub to_loader: u64,
    /// Times that a vCPU waited.
    pub halts: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Interrupts given to the guest.
    pub injections: u64,
    /// Instructions emulated.
    pub emulated: u64,
}

impl Exits {
    fn add(&mut self, counts: &[u64; 8]) {
        let count = |kind: StatsKind| counts[kind as usize];
        self.total += count(StatsKind::Exits);
        self.host_interrupts += count(StatsKind::HostInterrupts);
        self.fast += count(StatsKind::Fast);
        self.to_loader += count(StatsKind::ToLoader);
        self.halts += count(StatsKind::Halts);
        self.doorbells += count(StatsKind::Doorbells);
        self.injections += count(StatsKind::Injections);
        self.emulated += count(StatsKind::Emulated);
    }
}

/// What a running machine knows of itself, for any thread.
#[derive(Debug)]
pub struct Shared {
    name: String,
    memory: u64,
    cpus: u32,
    started: Instant,
    stopping: AtomicBool,
    vm: Mutex<Weak<Vm>>,
}

impl Shared {
    /// A machine that starts now.
    #[must_use]
    pub fn new(name: &str, memory: u64, cpus: u32) -> Self {
        Self {
            name: name.to_owned(),
            memory,
            cpus,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            vm: Mutex::new(Weak::new()),
        }
    }

    /// The machine was made, or made anew.
    pub fn set_vm(&self, vm: Weak<Vm>) {
        *lock(&self.vm) = vm;
    }

    /// The guest was asked to power off, or no longer.
    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::Relaxed);
    }

    /// Its state now.
    #[must_use]
    pub fn status(&self) -> Status {
        let vm = lock(&self.vm).upgrade();
        let mut exits = Exits::default();
        if let Some(vm) = &vm {
            for counts in (0..self.cpus).filter_map(|vcpu| vm.stats(vcpu).ok()) {
                exits.add(&counts);
            }
        }
        let host_memory_mib = vm.as_ref().and_then(|vm| vm.memory_allocated().ok()).unwrap_or(0).div_ceil(1 << 20);
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            state: if self.stopping.load(Ordering::Relaxed) { State::Stopping } else { State::Running },
            engine: vm.map_or(NO_ENGINE, |vm| vm.engine().name()).to_owned(),
            memory_mib: self.memory >> 20,
            host_memory_mib,
            cpus: self.cpus,
            uptime: self.started.elapsed().as_secs(),
            exits,
        }
    }
}

/// A line of the protocol.
pub fn to_line<T: Serialize>(message: &T) -> String {
    // None of the types above has anything that JSON cannot say.
    serde_json::to_string(message).unwrap_or_default()
}

/// A message from a line of the protocol.
#[must_use]
pub fn from_line<T: for<'a> Deserialize<'a>>(line: &str) -> Option<T> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_messages_survive_the_line() {
        let add = DiskRequest::Add { path: "/a b".into(), read_only: true, format: Some("raw".to_owned()) };
        let requests = [
            Request::Status,
            Request::PowerButton,
            Request::End,
            Request::Disk(DiskRequest::List),
            Request::Disk(add),
            Request::Disk(DiskRequest::Opened { number: 7 }),
            Request::Disk(DiskRequest::Remove { name: "disk1".to_owned() }),
            Request::Console(ConsoleRequest {
                from: u64::MAX,
                typed: Bytes((0..=255).collect()),
                size: Some((80, 25)),
            }),
            Request::Exec(ExecRequest::Start { command: "true".to_owned() }),
            Request::Exec(ExecRequest::Continue { number: 1, input: Bytes(vec![0; 100]), ends: true }),
            Request::Exec(ExecRequest::Kill { number: 1 }),
            Request::Memory(96),
        ];
        for request in requests {
            assert_eq!(from_line(&to_line(&request)).as_ref(), Some(&request));
        }
        let reply = Reply::Status(Shared::new("one", 512 << 20, 1).status());
        assert_eq!(from_line(&to_line(&reply)), Some(reply));
        assert_eq!(from_line::<Request>(r#"{"console":{"from":0,"typed":"no base 64","size":null}}"#), None);
        assert_eq!(from_line::<Request>("\"dance\""), None);
        assert_eq!(from_line::<Request>("{"), None);
    }

    #[test]
    fn test_counts_go_to_their_names() {
        let mut exits = Exits::default();
        exits.add(&[1, 2, 3, 4, 5, 6, 7, 8]);
        exits.add(&[10, 0, 0, 0, 0, 0, 0, 80]);
        assert_eq!((exits.total, exits.to_loader, exits.emulated), (11, 4, 88));
    }
}
