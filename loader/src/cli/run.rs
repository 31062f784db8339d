//! `covisor run`.

use std::num::ParseIntError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use covisor_abi::EngineKind;

use super::EXIT_USAGE;
use super::fail;
use crate::run::Config;
use crate::run::Console;
use crate::run::Disk;
use crate::run::install_logger;
use crate::sys::host;
use crate::sys::terminal;

const AFTER_HELP: &str = "\
The console takes all keys. Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A to the guest, Ctrl-A h helps.

The kernel's command line is --append, after `root=/dev/vda rw` where there is a disk and --append names
no root, and after `console=tty0 console=hvc0` (or ttyS0) where it names no console.

Exit status:
  0    the guest powered off        (with --exec: the status of the command)
  1    wrong usage or configuration
  2    the driver or the engine is missing or refuses
  3    the guest crashed, was ended, or left before its command did
  124  --timeout was over
  130  ended by a signal or by `covisor stop --force`

Examples:
  covisor run --disk debian.img
  covisor run --kernel vmlinuz --initrd initrd.img --disk debian.img,ro --append quiet --mem 1G
  covisor run --kernel vmlinuz --initrd mini.cpio --exec 'cat /proc/cpuinfo' --timeout 60";

/// Arguments of `covisor run`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Kernel: a bzImage (vmlinuz) or an ELF file (vmlinux), also compressed [default: the host's own]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk [default: the one of the host's own kernel, if that is used]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Disk: a raw image or a block device; with `,ro` the guest cannot write it. May be given several times
    #[arg(long, value_name = "FILE[,ro]")]
    disk: Vec<DiskArg>,
    /// Memory: MiB, or with a unit such as 2G
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_memory)]
    mem: u64,
    /// Number of CPUs; this version runs one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Engine
    #[arg(long, default_value = "auto")]
    engine: EngineArg,
    /// Run this command in the guest instead of a console: its output comes out here, its status is the exit status
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    exec: Option<String>,
    /// The guest's console: the virtio console (hvc0) or the serial port (ttyS0), which shows the earliest messages
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
    /// Hang a doorbell that nobody waits on at this port, to measure what ringing it costs
    #[arg(long, value_name = "PORT", hide = true, value_parser = parse_port)]
    test_doorbell: Option<u16>,
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
    /// The cooperative world switch
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

#[derive(Debug, Clone)]
struct DiskArg(Disk);

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.rsplit_once(',') {
            Some((path, "ro")) => (path, true),
            Some((_, option)) if !option.contains(['/', '.']) => {
                return Err(format!("`{option}` is no option of a disk; the only one is `ro`"));
            }
            _ => (text, false),
        };
        if path.is_empty() {
            return Err("a disk needs a file".to_owned());
        }
        if path.ends_with(",ro") || path.ends_with(",rw") {
            return Err("a disk has at most one option, `ro`".to_owned());
        }
        Ok(Self(Disk { path: path.into(), read_only }))
    }
}

/// A size: MiB, or a number with a unit.
fn parse_memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" | "m" => 1 << 20,
        "k" => 1 << 10,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err("the unit is none of K, M, G and T".to_owned()),
    };
    let number: u64 =
        digits.parse().map_err(|_| "it should be a number of MiB, such as 512, or a size such as 2G".to_owned())?;
    match number.checked_mul(unit) {
        Some(0) => Err("a guest needs memory, such as --mem 512".to_owned()),
        Some(size) => Ok(size),
        None => Err("no machine has that much memory".to_owned()),
    }
}

impl Args {
    fn into_config(self) -> Result<Config, String> {
        let (kernel, initrd) = match self.kernel {
            Some(kernel) => (kernel, self.initrd),
            None => {
                let (kernel, initrd) = host::own_kernel().ok_or_else(|| {
                    format!(
                        "no kernel given, and the host's own is not at /boot/vmlinuz-{}: name one by --kernel FILE",
                        host::kernel_release()
                    )
                })?;
                (kernel, self.initrd.or(initrd))
            }
        };
        Ok(Config {
            name: self.name.unwrap_or_else(|| format!("vm-{}", std::process::id())),
            engine: self.engine.into(),
            kernel,
            initrd,
            append: self.append,
            disks: self.disk.into_iter().map(|DiskArg(disk)| disk).collect(),
            memory: self.mem,
            cpus: self.cpus,
            console: self.console.into(),
            exec: self.exec,
            no_reboot: self.no_reboot,
            test_doorbell: self.test_doorbell,
            timeout: self.timeout,
            verbose: self.verbose,
        })
    }
}

pub(super) fn run(args: Args) -> ExitCode {
    install_logger(args.verbose);
    let config = match args.into_config() {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_USAGE),
    };
    let result = crate::run::run(config);
    terminal::restore();
    match result {
        Ok(end) => end.exit_code().into(),
        Err(error) => fail(&error, error.exit_code()),
    }
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
        let disk =
            |text: &str| text.parse::<DiskArg>().map(|DiskArg(disk)| (disk.path.display().to_string(), disk.read_only));
        assert_eq!(disk("a.img"), Ok(("a.img".to_owned(), false)));
        assert_eq!(disk("a.img,ro"), Ok(("a.img".to_owned(), true)));
        assert_eq!(disk("a,b.img"), Ok(("a,b.img".to_owned(), false)));
        assert!(disk("a.img,rw").is_err());
        assert!(disk(",ro").is_err());
        assert!(disk("").is_err());
    }
}
