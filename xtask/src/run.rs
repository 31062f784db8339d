//! `cargo xtask run`: a guest on covisor on the rig.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::env::Env;
use crate::error::{Error, Result};
use crate::host_shell::exit_code;
use crate::rig::{Disk, Input, Rig, RigKind};
use crate::{build, driver, images, setup};

/// Where things are in the host.
const PROGRAM: &str = "/covisor/covisor";
const MODULE: &str = "/covisor/covisor.ko";
const KERNEL: &str = "/covisor/vmlinuz";
const INITRD: &str = "/covisor/initrd";

/// What the host itself needs beside the guest's memory and the files that it carries.
const HOST_MEMORY_MIB: u32 = 384;

/// How long a command in the guest may take, by the wall clock.
const EXEC_TIMEOUT_SECONDS: u64 = 3600;

/// The switch engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The best that the CPU offers.
    Auto,
    /// AMD-V with nested paging.
    Svm,
    /// VT-x with EPT and unrestricted guest.
    Vmx,
    /// The cooperative world switch, which needs neither.
    Coop,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Svm => "svm",
            Self::Vmx => "vmx",
            Self::Coop => "coop",
        }
    }

    /// The machine that has what it takes: for `coop`, one that has nothing else.
    fn rig(self) -> RigKind {
        match self {
            Self::Auto | Self::Svm => RigKind::Qemu,
            Self::Vmx => RigKind::Bochs,
            Self::Coop => RigKind::Plain,
        }
    }
}

/// The guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// An initramfs with busybox: boots in a moment, has no disk.
    Mini,
    /// Debian with systemd on a disk image.
    Debian,
}

/// The guest's console device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Console {
    /// The paravirtual console, hvc0.
    Hvc,
    /// The serial port, ttyS0: slower, but shows the kernel's first words.
    Serial,
}

/// Arguments of `cargo xtask run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The switch engine.
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// The guest.
    #[arg(long, value_enum, default_value_t = Guest::Debian)]
    pub guest: Guest,

    /// The guest's kernel; Debian 12's cloud kernel when not given.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// The guest's initrd; the one that belongs to guest and kernel when not given.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// A raw disk image that keeps what the guest writes. When not given, `debian` has its own
    /// image, unchanged afterwards, and `mini` has none.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,

    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 512, value_name = "MB")]
    pub mem: u32,

    /// Further words for the guest kernel's command line.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// The guest's console.
    #[arg(long, value_enum, default_value_t = Console::Hvc)]
    pub console: Console,

    /// Run this command in the guest, without a terminal, and exit with its status; its output is
    /// all that standard output gets.
    #[arg(long, value_name = "COMMAND")]
    pub exec: Option<String>,

    /// The emulated machine; the one for the engine when not given.
    #[arg(long, value_enum)]
    pub rig: Option<RigKind>,

    /// The emulated machine's CPU, in the emulator's words; one that has what the engine needs when not given.
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<String>,

    /// Give up on --exec after so many seconds.
    #[arg(long, default_value_t = EXEC_TIMEOUT_SECONDS, value_name = "SECONDS")]
    pub timeout: u64,

    /// Show the host's console on standard error.
    #[arg(long)]
    pub host_log: bool,
}

impl RunArgs {
    /// The emulated machine.
    fn rig(&self) -> RigKind {
        self.rig.unwrap_or(self.engine.rig())
    }
}

/// A guest's files on this machine.
#[derive(Debug)]
struct GuestFiles {
    kernel: PathBuf,
    initrd: PathBuf,
    disk: Option<Disk>,
    cmdline: String,
}

/// Builds everything, starts the rig, and runs the guest in it.
///
/// # Errors
/// When something cannot be built or the rig fails; what the guest does is its status.
pub fn run(env: &Env, args: &RunArgs) -> Result<ExitCode> {
    setup::ensure(env)?;
    let guest = GuestFiles::find(env, args)?;
    let kind = args.rig();
    let rig = covisor_rig(env, kind)?
        .cpu(args.cpu.as_deref().unwrap_or(kind.default_cpu()))
        .memory_mib(host_memory(args.mem, &[&guest.kernel, &guest.initrd]))
        .file(&guest.kernel, KERNEL)
        .file(&guest.initrd, INITRD)
        .show_log(args.host_log);
    let rig = match &guest.disk {
        Some(disk) => rig.add_disk(disk.clone()),
        None => rig,
    };
    let script = host_script(args, &guest);
    let step = env.progress.step("starting the emulated machine");
    let mut machine = rig.start()?;
    step.done();
    let status = if args.exec.is_some() {
        machine.stream_to_us(&script, Input::when_not_a_terminal(), Duration::from_secs(args.timeout))?
    } else {
        env.progress.say("the terminal is the guest's: its poweroff ends it, and so does Ctrl-A x; Ctrl-] ends the whole emulated machine");
        machine.attach(&script)?
    };
    machine.shut_down()?;
    Ok(exit_code(status))
}

/// A rig that has covisor and its driver, at `/covisor` in the host.
///
/// # Errors
/// When one of them cannot be built.
pub fn covisor_rig(env: &Env, kind: RigKind) -> Result<Rig> {
    let loader = build::loader(env)?;
    let rig = Rig::of_kind(env, kind)?;
    let module = driver::build_linux_module(env, &rig.host().headers)?;
    Ok(rig.file(loader, PROGRAM).file(module, MODULE))
}

impl GuestFiles {
    fn find(env: &Env, args: &RunArgs) -> Result<Self> {
        for file in [&args.kernel, &args.initrd, &args.disk].into_iter().flatten() {
            if !file.is_file() {
                return Err(Error::NoSuchFile(file.clone()));
            }
        }
        match args.guest {
            Guest::Mini => Self::mini(env, args),
            Guest::Debian => Self::debian(env, args),
        }
    }

    fn mini(env: &Env, args: &RunArgs) -> Result<Self> {
        let kernel = match &args.kernel {
            Some(file) => images::kernel_of_file(env, file)?,
            None => images::default_kernel(env)?,
        };
        let initrd = match &args.initrd {
            Some(file) => file.clone(),
            None => images::mini(env, &kernel)?,
        };
        let disk = args.disk.as_ref().map(|path| Disk { path: path.clone(), keep: true });
        Ok(Self { kernel: kernel.vmlinuz, initrd, disk, cmdline: cmdline(args, "") })
    }

    fn debian(env: &Env, args: &RunArgs) -> Result<Self> {
        let image = images::debian(env)?;
        let (version, kernel) = match (&args.kernel, image.kernels.first()) {
            (Some(file), _) => (images::kernel_of_file(env, file)?.version, file.clone()),
            (None, Some(default)) => (default.version.clone(), default.vmlinuz.clone()),
            (None, None) => return Err(Error::NotBuilt("the Debian image's kernel")),
        };
        let initrd = match &args.initrd {
            Some(file) => file.clone(),
            None => images::debian_initrd(&image, &version)?,
        };
        let disk = match &args.disk {
            Some(path) => Disk { path: path.clone(), keep: true },
            None => Disk { path: image.image, keep: false },
        };
        Ok(Self { kernel, initrd, disk: Some(disk), cmdline: cmdline(args, "root=/dev/vda ro") })
    }
}

/// The guest kernel's command line.
fn cmdline(args: &RunArgs, root: &str) -> String {
    let console = match args.console {
        // tty0 is there from the start: without any console the first program has no standard
        // files, which Debian's initrd does not stand. The last one named is /dev/console.
        Console::Hvc => "console=tty0 console=hvc0",
        Console::Serial => "console=ttyS0",
    };
    // Without a terminal nobody wants to see it boot.
    let quiet = if args.exec.is_some() { "quiet" } else { "" };
    let words = [console, root, quiet, args.append.as_deref().unwrap_or_default()];
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// The memory of a host for a guest with `guest_mib` and these files in the initramfs, which are
/// there twice while it is unpacked.
fn host_memory(guest_mib: u32, files: &[&PathBuf]) -> u32 {
    let bytes: u64 = files.iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
    let files_mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
    guest_mib.saturating_add(HOST_MEMORY_MIB).saturating_add(files_mib.saturating_mul(3))
}

/// What the host does: load the driver and become covisor.
fn host_script(args: &RunArgs, guest: &GuestFiles) -> String {
    let mut words = vec![
        PROGRAM.to_owned(),
        "run".to_owned(),
        "--engine".to_owned(),
        args.engine.name().to_owned(),
        "--kernel".to_owned(),
        KERNEL.to_owned(),
        "--initrd".to_owned(),
        INITRD.to_owned(),
        "--append".to_owned(),
        guest.cmdline.clone(),
        "--mem".to_owned(),
        args.mem.to_string(),
        "--console".to_owned(),
        match args.console {
            Console::Hvc => "hvc".to_owned(),
            Console::Serial => "serial".to_owned(),
        },
    ];
    if guest.disk.is_some() {
        words.extend(["--disk".to_owned(), args.rig().first_disk().to_owned()]);
    }
    if let Some(command) = &args.exec {
        words.extend(["--exec".to_owned(), command.clone()]);
    }
    let run = words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
    format!("{PROGRAM} driver install --module {MODULE} </dev/null >/dev/null || exit; exec {run}")
}

/// A word as a shell reads it back.
#[must_use]
pub fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn script(words: &[&str]) -> String {
        let args = Cli::parse_from(std::iter::once(&"run").chain(words)).run;
        let guest = GuestFiles {
            kernel: "vmlinuz".into(),
            initrd: "initrd".into(),
            disk: Some(Disk { path: "disk".into(), keep: true }),
            cmdline: cmdline(&args, "root=/dev/vda ro"),
        };
        host_script(&args, &guest)
    }

    #[test]
    fn a_command_with_quotes_reaches_covisor_as_one_word() {
        let script = script(&["--exec", "echo 'it is'"]);
        assert!(script.ends_with(r"'--exec' 'echo '\''it is'\'''"), "{script}");
        assert!(script.contains("'--append' 'console=tty0 console=hvc0 root=/dev/vda ro quiet'"), "{script}");
    }

    #[test]
    fn the_engine_chooses_the_machine_unless_it_is_named() {
        assert!(script(&["--engine", "vmx"]).contains("'--disk' '/dev/sdb'"));
        assert!(script(&["--engine", "svm"]).contains("'--disk' '/dev/vda'"));
        assert!(script(&["--rig", "bochs"]).contains("'--disk' '/dev/sdb'"));
        assert!(script(&["--rig", "qemu", "--engine", "vmx"]).contains("'--disk' '/dev/vda'"));
    }

    #[test]
    fn without_a_command_the_guest_has_the_terminal() {
        let script = script(&["--engine", "svm", "--console", "serial"]);
        assert!(script.contains("'--engine' 'svm'") && !script.contains("--exec"), "{script}");
        assert!(script.contains("'console=ttyS0 root=/dev/vda ro'"), "{script}");
    }
}
