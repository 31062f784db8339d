//! What `covisor ps` and `covisor stop` say to a running machine, and what it answers: one line of JSON each.

use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;

use covisor_abi::StatsKind;
use serde::Deserialize;
use serde::Serialize;

use crate::driver::Vm;
use crate::platform::lock;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How are you?
    Status,
    /// Press the power button.
    PowerButton,
    /// End now.
    End,
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
}

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
    /// vCPUs.
    pub cpus: u32,
    /// Seconds since it was started.
    pub uptime: u64,
    /// What its vCPUs did.
    pub exits: Exits,
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
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            state: if self.stopping.load(Ordering::Relaxed) { State::Stopping } else { State::Running },
            engine: vm.map_or("none", |vm| vm.engine().name()).to_owned(),
            memory_mib: self.memory >> 20,
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
        for request in [Request::Status, Request::PowerButton, Request::End] {
            assert_eq!(from_line(&to_line(&request)), Some(request));
        }
        let reply = Reply::Status(Shared::new("one", 512 << 20, 1).status());
        assert_eq!(from_line(&to_line(&reply)), Some(reply));
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
