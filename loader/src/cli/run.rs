//! `covisor run`.

use std::ffi::OsString;
use std::num::ParseIntError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::CommandFactory;
use clap::Parser;
use clap::ValueEnum;
use covisor_abi::EngineKind;

use super::EXIT_USAGE;
use super::colinux::Words;
use super::fail;
use super::guest_file;
use super::one_line;
use crate::control::DEFAULT_TIMEOUT;
use crate::disk::Format;
use crate::net::spec::Adapter;
use crate::run::COLINUX_ERROR;
use crate::run::Config;
use crate::run::Console;
use crate::run::Disk;
use crate::run::RunError;
use crate::run::disk_name;
use crate::run::install_logger;
use crate::run::notice;
use crate::share::Share;
use crate::sys::host;
use crate::sys::terminal;

const AFTER_HELP: &str = "\
The console takes all keys. Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A to the guest, Ctrl-A h helps.

A signal (SIGINT, SIGTERM, SIGHUP) has the guest power off, and a second one ends it at once.

The kernel's command line is --append, after `root=/dev/vda rw` where there is a disk and --append names
no root, and after `console=tty0 console=hvc0` (or ttyS0) where it names no console.

@FILE stands for the words in that file: white space parts them, quotes hold them together, # begins a comment.
Its words are options as here, or coLinux's. Without `run`, `covisor @FILE` is as coLinux's command line was, with its
exit status: 0, 3 for a driver of another version, 14 for one that is not there, 255 for all else.

The engine auto is the best one that the machine has: svm or vmx, else coop. Engine coop runs kernels with
Xen PV support (CONFIG_XEN_PV), as Debian's are, and gives a guest up to 3 GiB of memory.

Exit status:
  0    the guest powered off        (with --exec: the status of the command)
  1    wrong usage or configuration
  2    the driver or the engine is missing or refuses
  3    the guest crashed, was ended, or left before its command did
  124  --timeout was over
  130  ended by a signal before it powered off, or by `covisor stop --force`

Examples:
  covisor run --disk debian.img
  covisor run --kernel vmlinuz --initrd initrd.img --disk debian.img,ro --append quiet --mem 1G
  covisor run --disk debian.img --net nat,forward=tcp:2222:22
  covisor run --disk debian.img --share /srv/files,tag=files,ro
  covisor run --kernel vmlinuz --initrd mini.cpio --exec 'cat /proc/cpuinfo' --timeout 60
  covisor run @debian.options --mem 1G
  covisor run --config web.toml
  covisor kernel=vmlinuz initrd=initrd.img cobd0=root.img root=/dev/cobd0 eth0=slirp mem=256";

/// Who gives a guest longer than a day does not want it stopped.
pub(super) const MAX_STOP_TIMEOUT: u64 = 24 * 60 * 60;

/// Arguments of `covisor run`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Take the guest's configuration from this file: TOML, whose keys are the long options' names, as in mem = "1G" or
    /// disk = ["a.img"]. Options beside it are over those of the file; disks and networks are added
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Kernel: a bzImage (vmlinuz) or an ELF file (vmlinux), also compressed [default: the host's own]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk [default: the one of the host's own kernel, if that is used]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Disk: an image or a block device; with `,ro` the guest cannot write it. The image is raw, or what its name ends in:
    /// `.qcow2`, or, to be read, `.vhdx` or `.vmdk`; `,format=FORMAT` says otherwise. May be given several times
    #[arg(long, value_name = "FILE[,ro][,format=FORMAT]")]
    disk: Vec<DiskArg>,
    /// Network adapter: `nat` is a network of its own behind the host's, with DHCP, DNS and IPv6; `tap` or `tap=NAME` is an
    /// interface of the host's. Options behind commas: mac=, mtu=, capture=FILE for Wireshark. For nat: forward=tcp:2222:22 or
    /// udp:5000-5010:6000 lets a port of the host, or a range, lead to the guest's (tcp:0.0.0.0:2222:22 for other machines as well);
    /// no-loopback keeps the guest from the host's loopback address, restrict from all but forwarded ports. For tap on Linux: bridge=NAME.
    /// May be given several times
    #[arg(long, value_name = "nat|tap[=NAME][,OPTION...]")]
    net: Vec<Adapter>,
    /// Folder of the host's that the guest mounts by `mount -t virtiofs TAG /mnt`; the tag is share0, share1 and so on, or what tag=
    /// says. With `ro` the guest cannot write it. With uid= and gid= all files are that user's and group's in the guest, else whose they
    /// are on the host (on Windows hosts: whose the guest made them); with `suid` the guest may set the bits that have a program run with
    /// its owner's rights. May be given several times
    #[arg(long, value_name = "FOLDER[,tag=NAME][,ro][,uid=N][,gid=N][,suid]")]
    share: Vec<Share>,
    /// The same in coLinux's words: kernel=FILE initrd=FILE mem=MIB cobdN=FILE hdaN=FILE ethN=slirp|tuntap execN=PROGRAM; beside
    /// these, words that covisor does not know go to the kernel, as root=/dev/cobd0 or single
    #[arg(value_name = "WORD=VALUE")]
    words: Vec<String>,
    /// Memory: MiB, or with a unit such as 2G [default: 512]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    mem: Option<u64>,
    /// Number of CPUs; this version runs one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Engine
    #[arg(long, default_value = "auto")]
    engine: EngineArg,
    /// Run this command in the guest instead of a console: its output comes out here, its status is the exit status
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    exec: Option<String>,
    /// The guest's console: hvc0, or the serial port (ttyS0), which shows the earliest messages; engine coop has hvc0 for
    /// both, and shows these as well
    #[arg(long, default_value = "hvc")]
    console: ConsoleArg,
    /// Name for `covisor ps` and `covisor stop` [default: vm- and the process's number]
    #[arg(long)]
    name: Option<String>,
    /// End when the guest resets, instead of starting it again
    #[arg(long)]
    no_reboot: bool,
    /// End the machine after this many seconds, as 60 or 0.5
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// How long the guest may take to power off, in seconds, when covisor is told to end: by a signal, the host's shutdown or the end of
    /// its terminal. Then it is ended, as is one whose kernel does not listen to the power button yet
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT, value_parser = clap::value_parser!(u64).range(..=MAX_STOP_TIMEOUT))]
    stop_timeout: u64,
    /// Hang a doorbell that nobody waits on at this port, to measure what ringing it costs
    #[arg(long, value_name = "PORT", hide = true, value_parser = parse_port)]
    test_doorbell: Option<u16>,
    /// Let the guest have its page tables checked by the driver (engine coop), for tests
    #[arg(long, hide = true)]
    test_page_tables: bool,
    /// Say more; with --exec also show the guest's console on standard error
    #[arg(long, short)]
    verbose: bool,
}

/// A time, in seconds with or without decimals.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| !time.is_zero()).ok_or_else(|| "not a number of seconds above 0".to_owned())
}

/// A port's number, decimal or hexadecimal.
fn parse_port(text: &str) -> Result<u16, ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineArg {
    /// The best one that this machine has
    Auto,
    /// AMD-V with nested paging
    Svm,
    /// Intel VT-x with EPT
    Vmx,
    /// The cooperative world switch, on any CPU, for kernels with Xen PV support
    Coop,
}

impl From<EngineArg> for EngineKind {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Auto => Self::Auto,
            EngineArg::Svm => Self::Svm,
            EngineArg::Vmx => Self::Vmx,
            EngineArg::Coop => Self::Coop,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ConsoleArg {
    /// The virtio console
    Hvc,
    /// The serial port
    Serial,
}

impl From<ConsoleArg> for Console {
    fn from(console: ConsoleArg) -> Self {
        match console {
            ConsoleArg::Hvc => Self::Hvc,
            ConsoleArg::Serial => Self::Serial,
        }
    }
}

/// A disk as the command line names it.
#[derive(Debug, Clone)]
pub(super) struct DiskArg {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    pub(super) format: Option<Format>,
}

impl DiskArg {
    fn named(self, name: String) -> Disk {
        Disk { name, path: self.path, read_only: self.read_only, format: self.format }
    }
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut path, mut read_only, mut format) = (text, false, None);
        // Files' names may have commas, so that options are taken from the end.
        while let Some((front, option)) = path.rsplit_once(',') {
            match option.split_once('=') {
                _ if option == "ro" && !read_only => read_only = true,
                Some(("format", name)) if format.is_none() => {
                    let known = Format::from_name(name);
                    format = Some(known.ok_or_else(|| {
                        format!("`{name}` is no format of disk images; those are raw, qcow2, vhdx and vmdk")
                    })?);
                }
                _ if option == "ro" || option.starts_with("format=") => {
                    return Err(format!("a disk has the option `{option}` once at most"));
                }
                _ if !option.contains(['/', '\\', '.']) => {
                    return Err(format!("`{option}` is no option of a disk; there are `ro` and `format=FORMAT`"));
                }
                _ => break,
            }
            path = front;
        }
        if path.is_empty() {
            return Err("a disk needs a file".to_owned());
        }
        Ok(Self { path: path.into(), read_only, format })
    }
}

/// A guest's memory where nobody says.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// A guest's memory.
pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a guest needs memory, such as --mem 512".to_owned()),
        Ok(size) => Ok(size),
        Err(SizeError::TooLarge) => Err("no machine has that much memory".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Why something is no size.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub(super) enum SizeError {
    /// It has another unit.
    #[error("the unit is none of K, M, G and T")]
    Unit,
    /// It begins with no number.
    #[error("it should be a number of MiB, such as 512, or a size such as 2G")]
    Number,
    /// No number has it.
    #[error("it is too large")]
    TooLarge,
}

/// A size: MiB, or a number with a unit.
pub(super) fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if digits.is_empty() {
        return Err(SizeError::Number);
    }
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" | "m" => 1 << 20,
        "k" => 1 << 10,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(SizeError::Unit),
    };
    let number: u64 = digits.parse().map_err(|_| SizeError::Number)?;
    number.checked_mul(unit).ok_or(SizeError::TooLarge)
}

/// The options of a guest by themselves.
#[derive(Debug, Parser)]
#[command(name = "covisor run")]
struct Guest {
    #[command(flatten)]
    run: Args,
}

impl Args {
    /// Their definition.
    pub(super) fn command() -> clap::Command {
        Guest::command()
    }

    /// Those that the words behind `covisor run` say.
    pub(super) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let words: Vec<OsString> = words.into_iter().collect();
        Self::of_words(&words)?.with_file(words)
    }

    fn of_words(words: &[OsString]) -> Result<Self, String> {
        let name = OsString::from("covisor");
        let guest = Guest::try_parse_from(std::iter::once(&name).chain(words));
        Ok(guest.map_err(|error| one_line(&error.render().to_string()))?.run)
    }

    /// With what the file of `--config` says, if there is one; `words` are those that these were made of.
    pub(super) fn with_file(self, words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let Some(path) = &self.config else { return Ok(self) };
        let command = Self::command();
        let words: Vec<OsString> = words.into_iter().collect();
        let name = OsString::from("covisor");
        let matches = command.clone().try_get_matches_from(std::iter::once(&name).chain(&words));
        let matches = matches.map_err(|error| one_line(&error.render().to_string()))?;
        let of_file = guest_file::words(path, &command, &matches).map_err(|error| error.to_string())?;
        Self::of_words(&[of_file, words].concat())
    }

    /// The same for a guest whose name is given elsewhere.
    pub(super) fn named(self, name: &str) -> Result<Self, String> {
        match self.name {
            Some(_) => Err(format!("the guest is called {name} already: leave --name away")),
            None => Ok(Self { name: Some(name.to_owned()), ..self }),
        }
    }

    /// The same where a time for the guest to power off is given elsewhere.
    pub(super) fn with_stop_timeout(self, seconds: Option<u64>) -> Self {
        Self { stop_timeout: seconds.unwrap_or(self.stop_timeout), ..self }
    }

    /// How long the guest may take to power off.
    pub(super) fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.stop_timeout)
    }

    /// Whether they name a kernel, and an initial RAM disk.
    pub(super) fn name_kernel_and_initrd(&self) -> Result<(bool, bool), String> {
        let words = Words::parse(&self.words).map_err(|error| error.to_string())?;
        Ok((self.kernel.is_some() || words.kernel.is_some(), self.initrd.is_some() || words.initrd.is_some()))
    }

    pub(super) fn into_config(self) -> Result<Config, String> {
        let words = Words::parse(&self.words).map_err(|error| error.to_string())?;
        words.notices.iter().for_each(notice);
        let initrd = self.initrd.or(words.initrd);
        let (kernel, initrd) = match self.kernel.or(words.kernel) {
            Some(kernel) => (kernel, initrd),
            None => {
                let (kernel, own) = host::own_kernel()
                    .map_err(|reason| format!("no kernel given, and {reason}: name one by --kernel FILE"))?;
                (kernel, initrd.or(own))
            }
        };
        let disks = (0..).map(disk_name).zip(self.disk).map(|(name, disk)| disk.named(name)).collect();
        let disks = one_of(disks, words.disks, "disks are given by --disk or by coLinux's words, not by both")?;
        let adapters =
            one_of(self.net, words.adapters, "network adapters are given by --net or by ethN=, not by both")?;
        let append: Vec<String> = words.append.into_iter().chain(self.append).collect();
        Ok(Config {
            adapters,
            shares: words.shares.into_iter().chain(self.share).collect(),
            name: self.name.unwrap_or_else(|| format!("vm-{}", std::process::id())),
            engine: self.engine.into(),
            kernel,
            initrd,
            append: (!append.is_empty()).then(|| append.join(" ")),
            disks,
            memory: self.mem.or(words.memory).unwrap_or(DEFAULT_MEMORY),
            cpus: self.cpus,
            console: self.console.into(),
            exec: self.exec,
            programs: words.programs,
            no_reboot: self.no_reboot,
            test_doorbell: self.test_doorbell,
            timeout: self.timeout,
            stop_timeout: Duration::from_secs(self.stop_timeout),
            test_page_tables: self.test_page_tables,
            verbose: self.verbose,
        })
    }
}

/// What was said in one way or the other.
fn one_of<T>(options: Vec<T>, words: Vec<T>, both: &str) -> Result<Vec<T>, String> {
    match (options.is_empty(), words.is_empty()) {
        (false, false) => Err(both.to_owned()),
        (false, true) => Ok(options),
        (true, _) => Ok(words),
    }
}

/// Whose exit statuses there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statuses {
    /// Ours.
    Covisor,
    /// coLinux's, for who calls covisor as coLinux was called.
    Colinux,
}

impl Statuses {
    /// That of a wrong command line or configuration.
    pub(super) const fn usage(self) -> u8 {
        match self {
            Self::Covisor => EXIT_USAGE,
            Self::Colinux => COLINUX_ERROR,
        }
    }

    fn of(self, failure: &Failure) -> u8 {
        match (failure, self) {
            (Failure::Usage(_), _) => self.usage(),
            (Failure::Run(error), Self::Covisor) => error.exit_code(),
            (Failure::Run(error), Self::Colinux) => error.colinux_exit_code(),
        }
    }
}

/// Why a guest did not run to its end.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Run(#[from] RunError),
}

pub(super) fn run(args: Args, statuses: Statuses) -> ExitCode {
    match start(args, || {}) {
        Ok(status) => status.into(),
        Err(failure) => fail(&failure, statuses.of(&failure)),
    }
}

/// Runs a guest; its exit status, or what went wrong and the status for that.
pub(super) fn attempt(args: Args, on_start: impl FnOnce()) -> Result<u8, (String, u8)> {
    start(args, on_start).map_err(|failure| (failure.to_string(), Statuses::Covisor.of(&failure)))
}

fn start(args: Args, on_start: impl FnOnce()) -> Result<u8, Failure> {
    install_logger(args.verbose);
    let config = args.into_config().map_err(Failure::Usage)?;
    let result = crate::run::run(config, on_start);
    terminal::restore();
    Ok(result?.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_memory_is_mib_or_has_a_unit() {
        assert_eq!(parse_memory("512"), Ok(512 << 20));
        assert_eq!(parse_memory("2G"), Ok(2 << 30));
        assert_eq!(parse_memory("64MiB"), Ok(64 << 20));
        assert_eq!(parse_memory("64mb"), Ok(64 << 20));
        assert_eq!(parse_memory("4096K"), Ok(4 << 20));
        for bad in ["", "0", "0G", "x", "-1", "1.5G", "3q", "99999999999999T"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn test_a_disk_may_be_read_only() {
        let disk = |text: &str| {
            let parsed = text.parse::<DiskArg>();
            parsed.map(|disk| (disk.path.display().to_string(), disk.read_only, disk.format))
        };
        assert_eq!(disk("a.img"), Ok(("a.img".to_owned(), false, None)));
        assert_eq!(disk("a.img,ro"), Ok(("a.img".to_owned(), true, None)));
        assert_eq!(disk("a,b.img"), Ok(("a,b.img".to_owned(), false, None)));
        let image = Ok(("a.img".to_owned(), true, Some(Format::Vhdx)));
        assert_eq!(disk("a.img,ro,format=vhdx"), image);
        assert_eq!(disk("a.img,format=vhdx,ro"), image);
        for bad in ["a.img,rw", ",ro", "", "a.img,ro,ro", "a.img,format=vdi", "a.img,format=raw,format=qcow2"] {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }
}
