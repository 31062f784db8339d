//! `covisor create`.

use std::cell::Cell;
use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;

use clap::ValueEnum;

use super::super::EXIT_USAGE;
use super::super::exec::EXIT_INTERRUPTED;
use super::super::exec::signals;
use super::super::fail;
use super::super::progress::Progress;
use super::super::run::parse_size;
use super::guest;
use super::store;
use super::store::Definition;
use super::store::Own;
use super::store::OwnDisk;
use super::store::Store;
use crate::disk::Format;
use crate::disk::image;
use crate::disk::image::Copy;
use crate::rootfs::Content;
use crate::rootfs::Debian;
use crate::rootfs::Source;
use crate::rootfs::Wanted;
use crate::rootfs::Watch;
use crate::run::install_logger;
use crate::run::notice;
use crate::sys::rootfs;

/// How large a disk is that is made, where nobody says.
const DEFAULT_SIZE: &str = "8G";
/// The agent's file, beside covisor's own or where packages have it.
const AGENT: &str = "covisor-agent";

const HELP: &str = "\
What --from can name, and what the guest gets of it:
  debian, debian:SUITE    a small Debian of packages, with systemd, a network by DHCP, apt, covisor's agent, and root
                          without a password on the console; by mmdebstrap or debootstrap, from the mirrors of this
                          machine's apt
  FILE.tar[.gz|.xz|.zst]  a root file system, as `docker export` and WSL have it; its newest kernel is started, unless
                          the options name one
  IMAGE                   a copy of a disk: raw, qcow2, vhdx or vmdk, by what the name ends in

The options are those of `covisor run`; where they have relative paths, those begin at the folder of now. Files that they
name, as in --config FILE and @FILE, are read anew at each start.

Examples:
  covisor create web --from debian --net nat,forward=tcp:2222:22 --mem 1G
  covisor create build --from debian:trixie --size 20G --include gcc,make --net nat
  covisor create old --from rootfs.tar.xz --kernel vmlinuz --initrd initrd.img
  covisor create copy --from debian.qcow2 --net nat
  covisor create db --config db.toml
  covisor start web
  covisor console web";

/// Arguments of `covisor create`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(in super::super) struct CreateArgs {
    /// Give it a disk of its own, as its first: made of Debian's packages, of an archive, or a copy of an image
    #[arg(long, value_name = "debian[:SUITE]|FILE.tar|IMAGE")]
    from: Option<Source>,
    /// Size of a disk that is made of packages or an archive; it takes only what is used of it [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Format of its disk [default: qcow2 for a copy, raw otherwise]
    #[arg(long)]
    format: Option<FormatArg>,
    /// Packages that a Debian gets beside those of all, with commas
    #[arg(long, value_name = "PACKAGE,...", value_delimiter = ',', value_parser = parse_package)]
    include: Vec<String>,
    /// Where a Debian's packages come from [default: from where this machine's do]
    #[arg(long, value_name = "URL", value_parser = parse_mirror)]
    mirror: Option<String>,
    /// Give a Debian the kernel for all machines, which has more drivers, instead of that for virtual ones
    #[arg(long)]
    generic_kernel: bool,
    /// The agent for `covisor exec` and `covisor cp`, which is put into what is made [default: covisor-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The guest's name
    pub(super) name: String,
    /// What `covisor run` would be given
    #[arg(value_name = "RUN OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// The disk's sectors as they are
    Raw,
    /// QEMU's
    Qcow2,
}

impl From<FormatArg> for OwnDisk {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<OwnDisk> for Format {
    fn from(disk: OwnDisk) -> Self {
        match disk {
            OwnDisk::Raw => Self::Raw,
            OwnDisk::Qcow2 => Self::Qcow2,
        }
    }
}

/// A package's name, as Debian's policy has them, and nothing that a program could take for something else.
fn parse_package(text: &str) -> Result<String, String> {
    let begins = text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    let is_name = begins && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '+' | '-' | '.'));
    is_name.then(|| text.to_owned()).ok_or_else(|| "this is no name of a package".to_owned())
}

/// A mirror's address.
fn parse_mirror(text: &str) -> Result<String, String> {
    let begins = ["http://", "https://", "file:///"].iter().any(|scheme| text.starts_with(scheme));
    let is_address = begins && text.chars().all(|c| c.is_ascii_graphic());
    is_address
        .then(|| text.to_owned())
        .ok_or_else(|| "a mirror is an address as http://HOST/debian, or file:///FOLDER".to_owned())
}

pub(in super::super) fn create(args: &CreateArgs) -> ExitCode {
    install_logger(false);
    // First of all, so that no other thread takes them.
    let signalled = match signals() {
        Ok(signalled) => signalled,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let watcher = Watcher::new(&signalled);
    let made = make(&super::store(), args, &watcher);
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if watcher.is_cancelled() => fail(error, EXIT_INTERRUPTED),
        Err(error) => fail(error, EXIT_USAGE),
    }
}

/// Who sits before the terminal: sees how far it is, and may press Ctrl-C.
struct Watcher<'a> {
    signalled: &'a Receiver<()>,
    is_cancelled: Cell<bool>,
    progress: RefCell<Progress>,
}

impl<'a> Watcher<'a> {
    fn new(signalled: &'a Receiver<()>) -> Self {
        Self { signalled, is_cancelled: Cell::new(false), progress: RefCell::new(Progress::new()) }
    }

    fn is_cancelled(&self) -> bool {
        if self.signalled.try_recv().is_ok() {
            self.is_cancelled.set(true);
        }
        self.is_cancelled.get()
    }

    fn done(&self, done: u64, all: u64) -> ControlFlow<()> {
        self.progress.borrow_mut().show(done, all);
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn end(&self) {
        self.progress.borrow_mut().end();
    }
}

impl Watch for &Watcher<'_> {
    fn step(&mut self, what: &str) {
        self.end();
        notice(what);
    }

    fn detail(&mut self, what: &str) {
        self.progress.borrow_mut().say(what);
    }

    fn is_cancelled(&self) -> bool {
        Watcher::is_cancelled(self)
    }
}

/// Makes a guest.
fn make(store: &Store, args: &CreateArgs, watcher: &Watcher<'_>) -> Result<(), String> {
    args.check()?;
    let folder = std::env::current_dir().map_err(|error| format!("cannot tell the folder of now: {error}"))?;
    let disk = args.from.as_ref().map(|from| args.disk(from));
    let is_made = matches!(args.from, Some(Source::Debian(_) | Source::Archive(_)));
    let options = || args.options.clone();
    // What is wrong shows now, not at its first start or when much has been done.
    let alone = guest(store, &args.name, &Definition::new(folder.clone(), Own::default(), options()))?;
    let (names_kernel, names_initrd) = alone.name_kernel_and_initrd()?;
    let own = Own { disk, kernel: is_made && !names_kernel, initrd: false };
    guest(store, &args.name, &Definition::new(folder.clone(), own, options()))?.into_config()?;
    store
        .create(&args.name, |place| {
            let Some(source) = &args.from else { return Ok(Definition::new(folder, own, options())) };
            let disk = args.disk(source);
            let filled = match source {
                Source::Image(image) => copy((image, None), &place.join(disk.file()), disk, watcher).map(|()| own),
                Source::Debian(suite) => {
                    let debian = args.debian(suite.as_deref());
                    args.fill(Content::Debian(&debian), place, own, watcher)
                }
                Source::Archive(archive) => args.fill(Content::Archive(archive), place, own, watcher),
            };
            watcher.end();
            let filled = filled?;
            let own = Own { initrd: filled.initrd && !names_initrd, ..filled };
            Ok(Definition::new(folder, own, options()))
        })
        .map_err(|error| error.to_string())
}

impl CreateArgs {
    /// Whether all options are for what it is made of.
    fn check(&self) -> Result<(), String> {
        let is_debian = matches!(self.from, Some(Source::Debian(_)));
        let is_made = is_debian || matches!(self.from, Some(Source::Archive(_)));
        let for_debian = [
            ("--include", !self.include.is_empty()),
            ("--mirror", self.mirror.is_some()),
            ("--generic-kernel", self.generic_kernel),
        ];
        let for_made = [("--size", self.size.is_some()), ("--agent", self.agent.is_some())];
        if let Some((option, _)) = for_debian.iter().find(|(_, given)| *given && !is_debian) {
            return Err(format!("{option} is for guests that are made by --from debian"));
        }
        if let Some((option, _)) = for_made.iter().find(|(_, given)| *given && !is_made) {
            return Err(format!("{option} is for guests that are made of packages or an archive, by --from"));
        }
        match self.format {
            Some(_) if self.from.is_none() => {
                Err("--format is that of the disk that --from gives the guest".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The disk that the guest gets.
    fn disk(&self, from: &Source) -> OwnDisk {
        let default = if matches!(from, Source::Image(_)) { OwnDisk::Qcow2 } else { OwnDisk::Raw };
        self.format.map_or(default, OwnDisk::from)
    }

    fn debian(&self, suite: Option<&str>) -> Debian {
        Debian {
            suite: suite.map(str::to_owned),
            mirror: self.mirror.clone(),
            generic: self.generic_kernel,
            include: self.include.clone(),
            host_name: host_name(&self.name),
        }
    }

    /// Puts a disk that is made into the guest's folder, and says what is there then.
    fn fill(&self, content: Content<'_>, place: &Path, own: Own, watcher: &Watcher<'_>) -> Result<Own, String> {
        let size = self.size.map_or_else(|| parse_size(DEFAULT_SIZE).map_err(|error| error.to_string()), Ok)?;
        let agent = match &self.agent {
            Some(agent) => Some(agent.clone()),
            None => find_agent(),
        };
        if agent.is_none() {
            notice(format_args!(
                "there is no {AGENT} beside this program, so that `covisor exec` and `covisor cp` will not work with this guest"
            ));
        }
        let wanted = Wanted { content, folder: place, size, agent: agent.as_deref(), with_kernel: own.kernel };
        let mut watch = watcher;
        let made = rootfs::make(&wanted, &mut watch).map_err(|error| error.to_string())?;
        let disk = own.disk.unwrap_or(OwnDisk::Raw);
        let target = place.join(disk.file());
        if made.disk != target {
            notice("storing the disk");
            copy((&made.disk, Some(Format::Raw)), &target, disk, watcher)?;
            fs::remove_file(&made.disk).map_err(|error| format!("{}: {error}", made.disk.display()))?;
        }
        for (path, file) in [(&made.kernel, store::KERNEL), (&made.initrd, store::INITRD)] {
            if let Some(path) = path {
                let target = place.join(file);
                fs::rename(path, &target).map_err(|error| format!("{}: {error}", target.display()))?;
            }
        }
        Ok(Own { kernel: made.kernel.is_some(), initrd: made.initrd.is_some(), ..own })
    }
}

/// Copies a disk.
fn copy(
    (source, from): (&Path, Option<Format>),
    target: &Path,
    disk: OwnDisk,
    watcher: &Watcher<'_>,
) -> Result<(), String> {
    let copy = Copy { source, from, target, to: Some(disk.into()) };
    image::convert(&copy, &mut |done, all| watcher.done(done, all)).map(drop).map_err(|error| error.to_string())
}

/// A host name of a guest's name: letters, digits and hyphens.
fn host_name(name: &str) -> String {
    /// Most letters of a part of a host's name.
    const MOST: usize = 63;
    let part = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let host: String = name.chars().map(part).take(MOST).collect();
    match host.trim_matches('-') {
        "" => "covisor".to_owned(),
        host => host.to_owned(),
    }
}

/// The agent beside this program, or where packages have it.
fn find_agent() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    [folder.join(AGENT), folder.join("../lib/covisor").join(AGENT)].into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
