//! The test machine: QEMU emulates a PC with AMD-V (or without), on which Debian's kernel runs as
//! the host operating system.
//!
//! The host boots from an initramfs with busybox. Scripts run in it through the same agent and
//! protocol that covisor uses for its guests, so standard input, output and error and the exit
//! status pass unchanged; the host's console is the log.
//!
//! ```no_run
//! # use xtask::{Env, rig::Rig};
//! let env = Env::new()?;
//! let outcome = Rig::new(&env)?.memory_mib(512).run("uname -a")?;
//! assert_eq!(outcome.status, 0);
//! # Ok::<(), xtask::Error>(())
//! ```

mod machine;
mod qemu;
mod terminal;

use std::path::PathBuf;
use std::time::Duration;

pub use machine::{Input, Machine, Outcome};

use crate::env::Env;
use crate::error::Result;
use crate::host::HostKernel;

/// An emulated CPU with AMD-V and nested paging.
///
/// Without CMPXCHG16B, after which QEMU 7.2 has rubbish in RFLAGS: Linux 6.12 uses it in its memory allocator and, bare or as
/// a guest, crashes at the next IRET.
pub const CPU_SVM: &str = "EPYC,+svm,+npt,-cx16";

/// The same CPU without.
pub const CPU_PLAIN: &str = "EPYC,-svm";

/// How long the host may take to boot, with a busy machine in mind.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A disk for the host: it appears as `/dev/vda`, `/dev/vdb` and so on, in the order of adding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Whether what is written stays in the file; otherwise it is gone with the machine.
    pub keep: bool,
}

/// A test machine to be started.
#[derive(Debug, Clone)]
pub struct Rig {
    cpu: String,
    icount: bool,
    memory_mib: u32,
    cpus: u32,
    disks: Vec<Disk>,
    files: Vec<(PathBuf, String)>,
    cmdline: String,
    timeout: Duration,
    host: HostKernel,
    agent: PathBuf,
    show_log: bool,
}

impl Rig {
    /// A machine with one CPU that has AMD-V, 1 GiB of memory and no disk.
    ///
    /// # Errors
    /// When the host's kernel cannot be fetched or the agent cannot be built.
    pub fn new(env: &Env) -> Result<Self> {
        let host = HostKernel::find(env)?;
        let agent = crate::build::agent(env)?;
        Ok(Self {
            cpu: CPU_SVM.to_owned(),
            icount: false,
            memory_mib: 1024,
            cpus: 1,
            disks: Vec::new(),
            files: Vec::new(),
            cmdline: String::new(),
            timeout: Duration::from_secs(600),
            host,
            agent,
            show_log: false,
        })
    }

    /// The CPU, in QEMU's words: [`CPU_SVM`], [`CPU_PLAIN`] or another.
    #[must_use]
    pub fn cpu(mut self, cpu: impl Into<String>) -> Self {
        self.cpu = cpu.into();
        self
    }

    /// Makes the machine deterministic: one instruction is one nanosecond of its time, so that
    /// `rdtsc` counts instructions.
    #[must_use]
    pub fn count_instructions(mut self, on: bool) -> Self {
        self.icount = on;
        self
    }

    /// The host's memory.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The number of CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a disk whose changes are thrown away.
    #[must_use]
    pub fn disk(self, path: impl Into<PathBuf>) -> Self {
        self.add_disk(Disk { path: path.into(), keep: false })
    }

    /// Adds a disk.
    #[must_use]
    pub fn add_disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Puts a file of this machine into the host, with its mode, as `name`.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.files.push((path.into(), name.into()));
        self
    }

    /// Adds words to the host kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
        self
    }

    /// How long one script may take, by the wall clock.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Shows the host's console on standard error as it comes.
    #[must_use]
    pub fn show_log(mut self, show: bool) -> Self {
        self.show_log = show;
        self
    }

    /// The host's kernel.
    #[must_use]
    pub fn host(&self) -> &HostKernel {
        &self.host
    }

    /// Starts the machine and waits until the host can run scripts.
    ///
    /// # Errors
    /// When QEMU cannot be started or the host does not boot.
    pub fn start(self) -> Result<Machine> {
        Machine::start(&self, BOOT_TIMEOUT)
    }

    /// Runs one script with the host's `/bin/sh` on a machine of its own.
    ///
    /// # Errors
    /// When the machine cannot be started, dies or takes too long. A script that fails is no error
    /// but a status.
    pub fn run(self, script: &str) -> Result<Outcome> {
        let mut machine = self.start()?;
        let mut outcome = machine.run(script)?;
        outcome.host_log = machine.shut_down()?;
        Ok(outcome)
    }
}
