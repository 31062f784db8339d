//! What to run, checked as far as it can be before anything is made.

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use covisor_abi::EngineKind;
use covisor_abi::PAGE_SIZE;
use covisor_abi::VcpuState;
use covisor_exec_protocol::EncodeError;
use covisor_exec_protocol::ToGuest;
use thiserror::Error;

use crate::devices::virtio::block::DiskError;
use crate::devices::virtio::block::FileBackend;
use crate::kernel::Image;
use crate::kernel::KernelError;
use crate::kernel::KernelFile;
use crate::kernel::Plan;
use crate::kernel::Request;
use crate::layout::Ram;
use crate::platform::GuestRam;
use crate::sys::host;

/// Longest name of a machine: a socket's path is short.
const MAX_NAME: usize = 48;

/// Which device is the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The virtio console, `hvc0`.
    Hvc,
    /// The serial port, `ttyS0`.
    Serial,
}

impl Console {
    /// The device's name in Linux.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Hvc => "hvc0",
            Self::Serial => "ttyS0",
        }
    }
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image or the host's block device.
    pub path: PathBuf,
    /// The guest may not write it.
    pub read_only: bool,
}

/// What the user wants to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The machine's name.
    pub name: String,
    /// The engine.
    pub engine: EngineKind,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// What the user adds to the command line.
    pub append: Option<String>,
    /// Disks, the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// Bytes of RAM.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// The console.
    pub console: Console,
    /// A command to run in the guest, instead of the console.
    pub exec: Option<String>,
    /// End when the guest resets.
    pub no_reboot: bool,
    /// A port with a doorbell that nobody waits on.
    pub test_doorbell: Option<u16>,
    /// End after this time.
    pub timeout: Option<Duration>,
    /// Show more.
    pub verbose: bool,
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The name cannot be a file's.
    #[error(
        "{0:?} cannot be a machine's name: use up to {MAX_NAME} letters, digits, `.`, `_` and `-`, with a letter first"
    )]
    BadName(String),
    /// Another machine has the name.
    #[error("a machine named {0} runs already: choose another --name, or end it by `covisor stop {0}`")]
    NameTaken(String),
    /// No RAM.
    #[error("a guest needs memory: give it some by --mem, such as --mem 512")]
    NoMemory,
    /// RAM that is no whole number of pages.
    #[error("--mem must be a whole number of KiB that 4 divides")]
    UnevenMemory,
    /// More RAM than the host has.
    #[error("the guest wants {} MiB of memory, the host has {} MiB available: lower --mem", .wanted >> 20, .available >> 20)]
    TooMuchMemory {
        /// What was asked for.
        wanted: u64,
        /// What there is.
        available: u64,
    },
    /// No vCPU.
    #[error("a guest needs a CPU: --cpus must be 1 or more")]
    NoCpus,
    /// More vCPUs than this version can run.
    #[error("this version of covisor runs guests with one CPU only: leave --cpus at 1")]
    ManyCpus,
    /// A file cannot be opened.
    #[error("{what} {path}: {reason}", path = .path.display(), reason = describe(.source))]
    Open {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The kernel is bad, or does not fit.
    #[error("kernel {path}: {source}", path = .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KernelError,
    },
    /// The initial RAM disk is empty.
    #[error("initrd {}: it is empty", .0.display())]
    EmptyInitrd(PathBuf),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The command is too long.
    #[error("--exec: {0}")]
    Exec(#[from] EncodeError),
}

/// The host's error without its number.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => {
            let text = error.to_string();
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}

/// A configuration that was found good: its files are open, its kernel fits.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration.
    pub config: Config,
    /// The guest's RAM.
    pub ram: Ram,
    kernel: KernelFile,
    initrd: Option<File>,
    plan: Plan,
    /// The disks, until a machine takes them.
    disks: Option<Vec<FileBackend>>,
}

impl Config {
    /// Checks everything that can be checked without the driver.
    ///
    /// # Errors
    /// What is wrong.
    pub fn prepare(self) -> Result<Prepared, ConfigError> {
        check_name(&self.name)?;
        if self.memory == 0 {
            return Err(ConfigError::NoMemory);
        }
        if !self.memory.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::UnevenMemory);
        }
        if self.cpus == 0 {
            return Err(ConfigError::NoCpus);
        }
        if self.cpus > 1 {
            return Err(ConfigError::ManyCpus);
        }
        if let Some(available) = host::available_memory().filter(|&available| self.memory > available) {
            return Err(ConfigError::TooMuchMemory { wanted: self.memory, available });
        }
        if let Some(command) = &self.exec {
            ToGuest::Exec(command.clone()).encode(&mut Vec::new())?;
        }
        let ram = Ram::new(self.memory);
        let bad_kernel = |source| ConfigError::Kernel { path: self.kernel.clone(), source };
        let mut kernel = KernelFile::new(open("kernel", &self.kernel)?, ram).map_err(bad_kernel)?;
        let image = Image::parse(&mut kernel).map_err(bad_kernel)?;
        let initrd = self.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let initrd_size = initrd.as_ref().map(|file| file.metadata().map_or(0, |metadata| metadata.len()));
        if let (Some(0), Some(path)) = (initrd_size, &self.initrd) {
            return Err(ConfigError::EmptyInitrd(path.clone()));
        }
        let request = Request { ram, command_line: &self.command_line(), initrd_size };
        let plan = Plan::new(&image, &request).map_err(bad_kernel)?;
        let disks = Some(self.open_disks()?);
        Ok(Prepared { ram, kernel, initrd, plan, disks, config: self })
    }

    fn open_disks(&self) -> Result<Vec<FileBackend>, ConfigError> {
        let open = |disk: &Disk| FileBackend::open(&disk.path, disk.read_only).map_err(ConfigError::from);
        self.disks.iter().map(open).collect()
    }

    /// The kernel's command line: what the user says, and what they would have to say each time.
    #[must_use]
    pub fn command_line(&self) -> String {
        let append = self.append.as_deref().unwrap_or("").trim();
        let has = |key: &str| append.split_whitespace().any(|word| word.starts_with(key));
        let mut words = Vec::new();
        if let Some(disk) = self.disks.first().filter(|_| !has("root=")) {
            words.push("root=/dev/vda");
            if !has("ro") && !has("rw") {
                words.push(if disk.read_only { "ro" } else { "rw" });
            }
        }
        if !has("console=") {
            words.push(match self.console {
                // Until a kernel has loaded the module for hvc0, its first programs need another console, or Debian's
                // initramfs ends. A virtual terminal that nobody sees costs nothing.
                Console::Hvc => "console=tty0 console=hvc0",
                Console::Serial => "console=ttyS0",
            });
        }
        // A guest that panics tells the caller so by a reset, where nobody sits before it.
        if (self.exec.is_some() || self.no_reboot) && !has("panic=") {
            words.push("panic=-1");
        }
        if !append.is_empty() {
            words.push(append);
        }
        words.join(" ")
    }
}

impl Prepared {
    /// Fills the guest's memory, and gives the first vCPU's registers.
    ///
    /// # Errors
    /// When the files changed since they were checked.
    pub fn load(&mut self, memory: &GuestRam) -> Result<VcpuState, ConfigError> {
        self.plan
            .execute(memory, &mut self.kernel, self.initrd.as_mut())
            .map_err(|source| ConfigError::Kernel { path: self.config.kernel.clone(), source })
    }

    /// The open disks, for a machine. A later machine opens them again, when the one before has let them go.
    ///
    /// # Errors
    /// When a disk changed meanwhile.
    pub fn take_disks(&mut self) -> Result<Vec<FileBackend>, ConfigError> {
        self.disks.take().map_or_else(|| self.config.open_disks(), Ok)
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, ConfigError> {
    let refuse = |source| ConfigError::Open { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(refuse)?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(refuse(io::ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(file),
        Err(error) => Err(refuse(error)),
    }
}

/// A name must be fit for a file's, and not be a process's number.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.len() <= MAX_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits { Ok(()) } else { Err(ConfigError::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            name: "test".to_owned(),
            engine: EngineKind::Auto,
            kernel: "/nowhere/vmlinuz".into(),
            initrd: None,
            append: None,
            disks: Vec::new(),
            memory: 64 << 20,
            cpus: 1,
            console: Console::Hvc,
            exec: None,
            no_reboot: false,
            test_doorbell: None,
            timeout: None,
            verbose: false,
        }
    }

    fn disk(read_only: bool) -> Disk {
        Disk { path: "disk.img".into(), read_only }
    }

    #[test]
    fn test_the_command_line_has_what_nobody_wants_to_type() {
        assert_eq!(config().command_line(), "console=tty0 console=hvc0");
        let with_disk = Config { disks: vec![disk(false)], ..config() };
        assert_eq!(with_disk.command_line(), "root=/dev/vda rw console=tty0 console=hvc0");
        let read_only = Config { disks: vec![disk(true), disk(false)], console: Console::Serial, ..config() };
        assert_eq!(read_only.command_line(), "root=/dev/vda ro console=ttyS0");
        let exec = Config { exec: Some("true".to_owned()), append: Some("quiet".to_owned()), ..config() };
        assert_eq!(exec.command_line(), "console=tty0 console=hvc0 panic=-1 quiet");
    }

    #[test]
    fn test_what_the_user_says_comes_first() {
        let append = Some(" root=LABEL=x ro console=ttyS1 ".to_owned());
        let own = Config { disks: vec![disk(false)], append, ..config() };
        assert_eq!(own.command_line(), "root=LABEL=x ro console=ttyS1");
    }

    #[test]
    fn test_bad_configurations_are_refused_in_words() {
        let refusal = |config: Config| config.prepare().unwrap_err().to_string();
        assert!(refusal(Config { memory: 0, ..config() }).contains("--mem"));
        assert!(refusal(Config { memory: 4097, ..config() }).contains("--mem"));
        assert!(refusal(Config { memory: 1 << 60, ..config() }).contains("lower --mem"));
        assert!(refusal(Config { cpus: 0, ..config() }).contains("--cpus"));
        assert!(refusal(Config { cpus: 2, ..config() }).contains("--cpus"));
        assert!(refusal(Config { name: "a/b".to_owned(), ..config() }).contains("name"));
        assert!(refusal(Config { name: "17".to_owned(), ..config() }).contains("name"));
        assert!(refusal(Config { exec: Some("x".repeat(1 << 17)), ..config() }).contains("--exec"));
        assert_eq!(refusal(config()), "kernel /nowhere/vmlinuz: there is no such file");
        assert_eq!(refusal(Config { kernel: "/".into(), ..config() }), "kernel /: it is a folder");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = refusal(Config { kernel: empty.path().to_owned(), ..config() });
        assert!(
            error.ends_with("it is neither a Linux bzImage (vmlinuz) nor an x86-64 ELF kernel (vmlinux)"),
            "{error}"
        );
    }
}
