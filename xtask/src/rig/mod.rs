//! The emulated machine: an emulated PC on which Debian's kernel runs as the host operating system. QEMU emulates one with AMD-V
//! and one without virtualization, Bochs one with VT-x.
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

mod bochs;
mod emulator;
mod inspect;
mod machine;
mod qemu;
mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
pub use machine::{Input, Machine, Outcome};

use self::bochs::Bochs;
use crate::env::Env;
use crate::error::Result;
use crate::host::HostKernel;

/// An emulated CPU with AMD-V and nested paging.
///
/// Without CMPXCHG16B, after which QEMU 7.2 has rubbish in RFLAGS: Linux 6.12 uses it in its memory allocator and, bare or as
/// a guest, crashes at the next IRET.
pub const CPU_SVM: &str = "EPYC,+svm,+npt,-cx16";

/// The same CPU without AMD-V.
pub const CPU_PLAIN: &str = "EPYC,-svm,-cx16";

/// One on which no engine can run guests, for it has no no-execute pages, either.
pub const CPU_FOR_NO_ENGINE: &str = "EPYC,-svm,-nx,-cx16";

/// The CPU with AMD-V as its makers made it, with CMPXCHG16B.
pub const CPU_EPYC: &str = "EPYC,+svm,+npt";

/// Intel's, on which Linux has page tables of their own for programs.
pub const CPU_INTEL: &str = "Skylake-Client-v1";

/// Another one of Intel's, with page tables of five levels.
pub const CPU_FIVE_LEVELS: &str = "Skylake-Server-v1,+la57";

/// Bochs' emulation of a CPU with VT-x, EPT, unrestricted guest, VPID and a preemption timer.
pub const CPU_VMX: &str = "corei7_haswell_4770";

/// The same with VT-x as its first CPUs had it, without EPT.
pub const CPU_VMX_WITHOUT_EPT: &str = "core2_penryn_t9600";

/// The same with EPT, but without unrestricted guest.
pub const CPU_VMX_WITHOUT_UNRESTRICTED_GUEST: &str = "corei5_lynnfield_750";

/// How long the host may take to boot, with a busy machine in mind.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A kind of emulated machine: who emulates it, and what its CPU has for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RigKind {
    /// QEMU: a CPU with AMD-V.
    Qemu,
    /// Bochs: a CPU with VT-x.
    Bochs,
    /// QEMU: a CPU without virtualization.
    Plain,
}

impl RigKind {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
            Self::Plain => "plain",
        }
    }

    /// The CPU that its machines have when none is named.
    #[must_use]
    pub fn default_cpu(self) -> &'static str {
        match self {
            Self::Qemu => CPU_SVM,
            Self::Bochs => CPU_VMX,
            Self::Plain => CPU_PLAIN,
        }
    }

    /// covisor's engine for the CPU that it gives.
    #[must_use]
    pub fn engine(self) -> &'static str {
        match self {
            Self::Qemu => "svm",
            Self::Bochs => "vmx",
            Self::Plain => "coop",
        }
    }

    /// The device of the first disk that is added, in the host; further ones follow by the alphabet.
    #[must_use]
    pub fn first_disk(self) -> &'static str {
        match self {
            Self::Qemu | Self::Plain => "/dev/vda",
            // It boots from the one before.
            Self::Bochs => "/dev/sdb",
        }
    }
}

/// A disk for the host: see [`RigKind::first_disk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Whether what is written stays in the file; otherwise it is gone with the machine.
    pub keep: bool,
}

/// An emulated machine to be started.
#[derive(Debug, Clone)]
pub struct Rig {
    /// Where Bochs is, if that emulates the machine; QEMU otherwise.
    bochs: Option<Bochs>,
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
    /// A machine of QEMU's with one CPU that has AMD-V, 1 GiB of memory and no disk.
    ///
    /// # Errors
    /// When the host's kernel cannot be fetched or the agent cannot be built.
    pub fn new(env: &Env) -> Result<Self> {
        Self::of_kind(env, RigKind::Qemu)
    }

    /// A machine of this kind with one CPU that has what the kind gives, 1 GiB of memory and no disk.
    ///
    /// # Errors
    /// When Bochs or the host's kernel cannot be fetched or the agent cannot be built.
    pub fn of_kind(env: &Env, kind: RigKind) -> Result<Self> {
        let bochs = match kind {
            RigKind::Qemu | RigKind::Plain => None,
            RigKind::Bochs => Some(Bochs::find(env)?),
        };
        let host = HostKernel::find(env)?;
        let agent = crate::build::agent(env)?;
        Ok(Self {
            bochs,
            cpu: kind.default_cpu().to_owned(),
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

    /// The CPU, in the emulator's words: [`CPU_SVM`], [`CPU_PLAIN`], [`CPU_VMX`] or another.
    #[must_use]
    pub fn cpu(mut self, cpu: impl Into<String>) -> Self {
        self.cpu = cpu.into();
        self
    }

    /// Makes the machine deterministic: each instruction takes the same time, so that `rdtsc` counts instructions (on QEMU
    /// it is one nanosecond). Bochs with one CPU always does that.
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

    /// The number of CPUs for programs: those from [`Rig::first_cpu`] on.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The first CPU that programs run on: of several that QEMU emulates the second, for the first is kept free of them.
    ///
    /// QEMU 7.2 lets each CPU change the first one's flags while that changes them itself: `cpu_clear_ignne` in
    /// `target/i386/tcg/sysemu/fpu_helper.c`, with every load of an FPU state. So a change of the first CPU's own can be undone,
    /// that it has left the guest's nested page tables, or has taken an NMI. The host then runs in the guest's memory.
    #[must_use]
    pub const fn first_cpu(&self) -> u32 {
        if self.bochs.is_none() && self.cpus > 1 { 1 } else { 0 }
    }

    /// The last CPU.
    #[must_use]
    pub const fn last_cpu(&self) -> u32 {
        self.first_cpu() + self.cpus - 1
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

    /// How often a second the time stamp counter goes on by one, in thousands, where instructions are counted: see
    /// [`Rig::count_instructions`].
    #[must_use]
    pub fn counter_khz(&self) -> u32 {
        match self.bochs {
            None => 1_000_000,
            Some(_) => bochs::INSTRUCTIONS_PER_SECOND / 1000,
        }
    }

    /// The host's kernel.
    #[must_use]
    pub fn host(&self) -> &HostKernel {
        &self.host
    }

    /// Starts the machine and waits until the host can run scripts.
    ///
    /// # Errors
    /// When the emulator cannot be started or the host does not boot.
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
