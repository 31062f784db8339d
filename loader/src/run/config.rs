//! What to run, checked as far as it can be before anything is made.

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use covisor_abi::EngineKind;
use covisor_abi::PAGE_SIZE;
use covisor_abi::VcpuState;
use covisor_abi::paravirtual::RAM_LIMIT;
use covisor_exec_protocol::ToGuest;

use crate::kernel::Image;
use crate::kernel::KernelFile;
use crate::kernel::Plan;
use crate::kernel::Request;
use crate::layout::Model;
use crate::layout::Ram;
use crate::net::spec::Adapter;
use crate::platform::GuestRam;
use crate::run::AttachedNetwork;
use crate::run::ConfigError;
use crate::run::Disk;
use crate::run::NamedDisk;
use crate::run::OpenShare;
use crate::run::Program;
use crate::share::Share;
use crate::sys::host;

/// Longest name of a machine: a socket's path is short.
pub(super) const MAX_NAME: usize = 48;

/// Which device is the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The virtio console, on a paravirtual machine Xen's: `hvc0`.
    Hvc,
    /// The serial port, `ttyS0`. A paravirtual machine has none: there it is `hvc0` after the kernel's earliest messages.
    Serial,
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
