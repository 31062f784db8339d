//! What to run, checked as far as it can be before anything is made.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use covisor_abi::EngineKind;
use covisor_abi::PAGE_SIZE;
use covisor_abi::VcpuState;
use covisor_abi::paravirtual::RAM_LIMIT;
use covisor_exec_protocol::EncodeError;
use covisor_exec_protocol::ToGuest;
use thiserror::Error;

use crate::disk;
use crate::disk::BlockBackend;
use crate::disk::DiskError;
use crate::disk::Format;
use crate::kernel::Image;
use crate::kernel::KernelError;
use crate::kernel::KernelFile;
use crate::kernel::Plan;
use crate::kernel::Request;
use crate::layout::Model;
use crate::layout::Ram;
use crate::net::Backend;
use crate::net::Captured;
use crate::net::Mac;
use crate::net::nat::Nat;
use crate::net::nat::NatError;
use crate::net::spec::Adapter;
use crate::net::spec::MOST_ADAPTERS;
use crate::net::spec::Network;
use crate::net::tap::TapError;
use crate::net::tap::TapLink;
use crate::platform::GuestRam;
use crate::run::Program;
use crate::run::notice;
use crate::share::FileSystem;
use crate::share::Share;
use crate::share::Tag;
use crate::sys::host;
use crate::sys::share;

/// Most shared folders of a guest.
const MOST_SHARES: usize = 8;
/// Longest name of a machine: a socket's path is short.
const MAX_NAME: usize = 48;

/// Which device is the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The virtio console, on a paravirtual machine Xen's: `hvc0`.
    Hvc,
    /// The serial port, `ttyS0`. A paravirtual machine has none: there it is `hvc0` after the kernel's earliest messages.
    Serial,
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it is called by commands and messages.
    pub name: String,
    /// The image or the host's block device.
    pub path: PathBuf,
    /// The guest may not write it.
    pub read_only: bool,
    /// The image's format; without one, the file's name says it.
    pub format: Option<Format>,
}

/// What the disk of this number is called: the first is 0.
#[must_use]
pub fn disk_name(number: u32) -> String {
    format!("disk{number}")
}

impl Disk {
    /// Opens and locks it.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(&self) -> Result<Box<dyn BlockBackend>, DiskError> {
        disk::open(&self.path, self.format, self.read_only)
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of_name(&self.path))
    }
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
    /// Network adapters.
    pub adapters: Vec<Adapter>,
    /// Folders of the host's.
    pub shares: Vec<Share>,
    /// Bytes of RAM.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// The console.
    pub console: Console,
    /// A command to run in the guest, instead of the console.
    pub exec: Option<String>,
    /// Programs of the host's that run as long as the guest.
    pub programs: Vec<Program>,
    /// End when the guest resets.
    pub no_reboot: bool,
    /// A port with a doorbell that nobody waits on.
    pub test_doorbell: Option<u16>,
    /// End after this time.
    pub timeout: Option<Duration>,
    /// How long the guest may take to power off when this process is told to end.
    pub stop_timeout: Duration,
    /// The guest can have its page tables checked.
    pub test_page_tables: bool,
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
    /// More RAM than a paravirtual guest can have.
    #[error("engine coop gives a guest at most {} MiB of memory, not {}: lower --mem", RAM_LIMIT >> 20, .0 >> 20)]
    TooMuchForCoop(u64),
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
    /// Too many network adapters.
    #[error("a guest has at most {MOST_ADAPTERS} network adapters")]
    ManyAdapters,
    /// Two adapters with one address.
    #[error("two network adapters have the MAC address {0}")]
    SameMac(Mac),
    /// A network cannot be had.
    #[error(transparent)]
    Network(#[from] NatError),
    /// An interface of the host's cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The file for an adapter's frames cannot be written.
    #[error("capture {path}: {reason}", path = .path.display(), reason = describe(.source))]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// A program of the host's cannot be started.
    #[error("program {path}: {reason}", path = .path.display(), reason = describe(.source))]
    Program {
        /// Its file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Too many shared folders.
    #[error("a guest has at most {MOST_SHARES} shared folders")]
    ManyShares,
    /// Two shared folders with one tag.
    #[error("two shared folders have the tag {0}: give one another, as in --share FOLDER,tag=NAME")]
    SameTag(Tag),
    /// A folder cannot be shared.
    #[error("share {path}: {reason}", path = .path.display(), reason = describe_folder(.source))]
    Share {
        /// The folder.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The command is too long.
    #[error("--exec: {0}")]
    Exec(#[from] EncodeError),
}

/// The host's error about a folder.
fn describe_folder(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        io::ErrorKind::NotADirectory => "it is no folder".to_owned(),
        _ => describe(error),
    }
}

/// The host's error about a file, without its number.
pub(crate) fn describe(error: &io::Error) -> String {
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
    /// The kind of machine that it is prepared for.
    model: Model,
    /// The kernel, until it is in the guest's memory.
    kernel: Option<KernelFile>,
    initrd: Option<File>,
    initrd_size: Option<u64>,
    plan: Plan,
    /// The disks with their names, until a machine takes them.
    disks: Option<Vec<NamedDisk>>,
    /// The networks, likewise.
    networks: Option<Vec<AttachedNetwork>>,
    /// The shared folders, likewise.
    shares: Option<Vec<OpenShare>>,
}

/// An open disk, with its name.
pub type NamedDisk = (String, Box<dyn BlockBackend>);

/// What an adapter is connected to, with its address.
pub struct AttachedNetwork {
    /// The adapter's address.
    pub mac: Mac,
    /// The network.
    pub backend: Box<dyn Backend>,
}

impl fmt::Debug for AttachedNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AttachedNetwork").field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// A folder that is open to be shared.
pub struct OpenShare {
    /// What the guest calls it.
    pub tag: Tag,
    /// What is in it.
    pub files: Box<dyn FileSystem>,
    /// The guest cannot write it.
    pub read_only: bool,
}

impl fmt::Debug for OpenShare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpenShare").field("tag", &self.tag).finish_non_exhaustive()
    }
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
        let initrd = self.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let initrd_size = initrd.as_ref().map(|file| file.metadata().map_or(0, |metadata| metadata.len()));
        if let (Some(0), Some(path)) = (initrd_size, &self.initrd) {
            return Err(ConfigError::EmptyInitrd(path.clone()));
        }
        let model = Model::of(self.engine);
        let (kernel, plan) = self.plan(model, ram, initrd_size)?;
        let (kernel, disks, networks) = (Some(kernel), Some(self.open_disks()?), Some(self.open_networks()?));
        let shares = Some(self.open_shares()?);
        Ok(Prepared { ram, model, kernel, initrd, initrd_size, plan, disks, networks, shares, config: self })
    }

    /// Opens the kernel, and plans how it starts on a machine of this kind.
    fn plan(&self, model: Model, ram: Ram, initrd_size: Option<u64>) -> Result<(KernelFile, Plan), ConfigError> {
        if model == Model::Paravirtual && ram.size() > RAM_LIMIT {
            return Err(ConfigError::TooMuchForCoop(ram.size()));
        }
        let file = open("kernel", &self.kernel)?;
        let request = Request { ram, command_line: &self.command_line(model), initrd_size };
        let plan = || {
            let mut kernel = KernelFile::new(file, ram)?;
            match model {
                Model::Pc => {
                    let plan = Plan::new(&Image::parse(&mut kernel)?, &request)?;
                    Ok((kernel, plan))
                }
                Model::Paravirtual => {
                    let (kernel, image) = kernel.into_elf(ram)?;
                    Ok((kernel, Plan::paravirtual(&image, &request)?))
                }
            }
        };
        plan().map_err(|source| ConfigError::Kernel { path: self.kernel.clone(), source })
    }

    fn open_disks(&self) -> Result<Vec<NamedDisk>, ConfigError> {
        self.disks.iter().map(|disk| Ok((disk.name.clone(), disk.open()?))).collect()
    }

    fn open_networks(&self) -> Result<Vec<AttachedNetwork>, ConfigError> {
        if self.adapters.len() > MOST_ADAPTERS {
            return Err(ConfigError::ManyAdapters);
        }
        let mut networks: Vec<AttachedNetwork> = Vec::new();
        for (number, adapter) in (0..).zip(&self.adapters) {
            let mac = adapter.mac.unwrap_or_else(|| Mac::of_machine(&self.name, number.into()));
            if networks.iter().any(|other| other.mac == mac) {
                return Err(ConfigError::SameMac(mac));
            }
            let backend: Box<dyn Backend> = match &adapter.network {
                Network::Nat { forwards, reach } => Box::new(Nat::new(number, mac, adapter.mtu, forwards, *reach)?),
                Network::Tap { name, bridge } => {
                    let link = TapLink::new(name.as_deref(), adapter.mtu, bridge.as_deref())?;
                    if name.is_none() {
                        notice(format_args!("network adapter {number} is the host's interface {}", link.name()));
                    }
                    Box::new(link)
                }
            };
            let backend: Box<dyn Backend> = match &adapter.capture {
                None => backend,
                Some(path) => {
                    let refuse = |source| ConfigError::Capture { path: path.clone(), source };
                    Box::new(Captured::new(backend, path).map_err(refuse)?)
                }
            };
            networks.push(AttachedNetwork { mac, backend });
        }
        Ok(networks)
    }

    fn open_shares(&self) -> Result<Vec<OpenShare>, ConfigError> {
        if self.shares.len() > MOST_SHARES {
            return Err(ConfigError::ManyShares);
        }
        let mut shares: Vec<OpenShare> = Vec::new();
        for (number, share) in self.shares.iter().enumerate() {
            let tag = share.tag.clone().unwrap_or_else(|| Tag::numbered(number));
            if shares.iter().any(|other| other.tag == tag) {
                return Err(ConfigError::SameTag(tag));
            }
            let refuse = |source| ConfigError::Share { path: share.folder.clone(), source };
            let files = share::open(&share.folder, share.read_only, share.mapping).map_err(refuse)?;
            shares.push(OpenShare { tag, files, read_only: share.read_only });
        }
        Ok(shares)
    }

    /// The kernel's command line: what the user says, and what they would have to say each time.
    #[must_use]
    pub fn command_line(&self, model: Model) -> String {
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
            words.push(match (self.console, model) {
                // Until a kernel has loaded the module for hvc0, its first programs need another console, or Debian's
                // initramfs ends. A virtual terminal that nobody sees costs nothing.
                (Console::Hvc, _) => "console=tty0 console=hvc0",
                (Console::Serial, Model::Pc) => "console=ttyS0",
                (Console::Serial, Model::Paravirtual) => "console=hvc0",
            });
        }
        if self.console == Console::Serial && model == Model::Paravirtual && !has("earlyprintk") {
            words.push("earlyprintk=xen");
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
    /// Prepares it for the engine that the driver has chosen, if it is not yet.
    ///
    /// # Errors
    /// When the kernel cannot be started on it.
    pub fn fit(&mut self, engine: EngineKind) -> Result<(), ConfigError> {
        let model = Model::of(engine);
        if model != self.model || self.kernel.is_none() {
            self.kernel = Some(self.plan(model)?);
        }
        Ok(())
    }

    /// Opens the kernel, and plans its start on a machine of this kind.
    fn plan(&mut self, model: Model) -> Result<KernelFile, ConfigError> {
        let (kernel, plan) = self.config.plan(model, self.ram, self.initrd_size)?;
        (self.model, self.plan) = (model, plan);
        Ok(kernel)
    }

    /// The kind of machine that it is prepared for.
    #[must_use]
    pub fn model(&self) -> Model {
        self.model
    }

    /// Guest-physical address of the page of Xen's console, on a paravirtual machine.
    #[must_use]
    pub fn console_ring(&self) -> Option<u64> {
        self.plan.console_ring()
    }

    /// Fills the guest's memory, and gives the first vCPU's registers.
    ///
    /// # Errors
    /// When the files changed since they were checked.
    pub fn load(&mut self, memory: &GuestRam) -> Result<VcpuState, ConfigError> {
        let mut kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => self.plan(self.model)?,
        };
        let state = self
            .plan
            .execute(memory, &mut kernel, self.initrd.as_mut())
            .map_err(|source| ConfigError::Kernel { path: self.config.kernel.clone(), source })?;
        // What is unpacked is large, and in the guest's memory now. A guest that resets has it unpacked again.
        self.kernel = (!kernel.is_in_memory()).then_some(kernel);
        Ok(state)
    }

    /// The open disks, for a machine. A later machine opens them again, when the one before has let them go.
    ///
    /// # Errors
    /// When a disk changed meanwhile.
    pub fn take_disks(&mut self) -> Result<Vec<NamedDisk>, ConfigError> {
        self.disks.take().map_or_else(|| self.config.open_disks(), Ok)
    }

    /// The networks, likewise.
    ///
    /// # Errors
    /// When the host does not give them again.
    pub fn take_networks(&mut self) -> Result<Vec<AttachedNetwork>, ConfigError> {
        self.networks.take().map_or_else(|| self.config.open_networks(), Ok)
    }

    /// The shared folders, likewise.
    ///
    /// # Errors
    /// When they cannot be opened again.
    pub fn take_shares(&mut self) -> Result<Vec<OpenShare>, ConfigError> {
        self.shares.take().map_or_else(|| self.config.open_shares(), Ok)
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, ConfigError> {
    let refuse = |source| ConfigError::Open { what, path: path.to_owned(), source };
    // Some hosts say of a folder that it may not be opened.
    let of_open = |source| if path.is_dir() { io::ErrorKind::IsADirectory.into() } else { source };
    let file = File::open(path).map_err(|source| refuse(of_open(source)))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(refuse(io::ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(file),
        Err(error) => Err(refuse(error)),
    }
}

/// A name must be fit for a file's, and not be a process's number.
///
/// # Errors
/// [`ConfigError::BadName`].
pub fn check_name(name: &str) -> Result<(), ConfigError> {
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
            adapters: Vec::new(),
            shares: Vec::new(),
            memory: 64 << 20,
            cpus: 1,
            console: Console::Hvc,
            exec: None,
            programs: Vec::new(),
            no_reboot: false,
            test_doorbell: None,
            timeout: None,
            stop_timeout: Duration::ZERO,
            test_page_tables: false,
            verbose: false,
        }
    }

    fn disk(read_only: bool) -> Disk {
        Disk { name: "disk0".to_owned(), path: "disk.img".into(), read_only, format: None }
    }

    #[test]
    fn test_the_command_line_has_what_nobody_wants_to_type() {
        assert_eq!(config().command_line(Model::Pc), "console=tty0 console=hvc0");
        let with_disk = Config { disks: vec![disk(false)], ..config() };
        assert_eq!(with_disk.command_line(Model::Pc), "root=/dev/vda rw console=tty0 console=hvc0");
        let read_only = Config { disks: vec![disk(true), disk(false)], console: Console::Serial, ..config() };
        assert_eq!(read_only.command_line(Model::Pc), "root=/dev/vda ro console=ttyS0");
        let exec = Config { exec: Some("true".to_owned()), append: Some("quiet".to_owned()), ..config() };
        assert_eq!(exec.command_line(Model::Pc), "console=tty0 console=hvc0 panic=-1 quiet");
    }

    #[test]
    fn test_a_paravirtual_guest_has_hvc0_for_every_console() {
        assert_eq!(config().command_line(Model::Paravirtual), config().command_line(Model::Pc));
        let serial = Config { console: Console::Serial, ..config() };
        assert_eq!(serial.command_line(Model::Paravirtual), "console=hvc0 earlyprintk=xen");
        let own = Config { append: Some("console=hvc0 earlyprintk=xen,keep".to_owned()), ..serial };
        assert_eq!(own.command_line(Model::Paravirtual), "console=hvc0 earlyprintk=xen,keep");
    }

    #[test]
    fn test_the_kernel_is_looked_at_for_the_engine_that_is_to_run_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &crate::kernel::testing::bzimage()).unwrap();
        let config = Config { kernel: file.path().to_owned(), ..config() };
        let mut prepared = config.clone().prepare().unwrap();
        assert_eq!((prepared.model(), prepared.console_ring()), (Model::Pc, None));
        assert!(prepared.fit(EngineKind::Svm).is_ok());
        let error = prepared.fit(EngineKind::Coop).unwrap_err().to_string();
        assert!(error.contains("its payload"), "{error}");
        assert_eq!(prepared.model(), Model::Pc);
        let error = Config { engine: EngineKind::Coop, ..config }.prepare().unwrap_err().to_string();
        assert!(error.contains("its payload"), "{error}");
    }

    #[test]
    fn test_what_the_user_says_comes_first() {
        let append = Some(" root=LABEL=x ro console=ttyS1 ".to_owned());
        let own = Config { disks: vec![disk(false)], append, ..config() };
        assert_eq!(own.command_line(Model::Pc), "root=LABEL=x ro console=ttyS1");
    }

    #[test]
    fn test_bad_configurations_are_refused_in_words() {
        let refusal = |config: Config| config.prepare().unwrap_err().to_string();
        assert!(refusal(Config { memory: 0, ..config() }).contains("--mem"));
        assert!(refusal(Config { memory: 4097, ..config() }).contains("--mem"));
        assert!(refusal(Config { memory: 1 << 60, ..config() }).contains("lower --mem"));
        let error = config().plan(Model::Paravirtual, Ram::new(4 << 30), None).unwrap_err().to_string();
        assert_eq!(error, "engine coop gives a guest at most 3072 MiB of memory, not 4096: lower --mem");
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
