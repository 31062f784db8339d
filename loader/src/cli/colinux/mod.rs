//! coLinux's words: `kernel=vmlinux cobd0=root.img root=/dev/cobd0 mem=256 eth0=slirp`.
//!
//! They are positional arguments of `covisor run`, and mean what its options mean ([`Words`]); `docs/colinux.md` has the table. What
//! coLinux did not know it handed to the kernel, and so it is here. A word of a thing that is no more says what to use in its place.

mod daemon;
mod disks;
mod network;
mod value;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use thiserror::Error;

pub(super) use daemon::as_run;

use super::run::parse_memory;
use crate::net::spec::Adapter;
use crate::net::spec::MOST_ADAPTERS;
use crate::net::spec::SpecError;
use crate::run::Disk;
use crate::run::Program;
use crate::share::Share;
use crate::share::Tag;
use disks::Disks;
use network::Adapters;

/// coLinux's number of block devices, of SCSI devices, of shared folders and of serial ports.
const MANY: usize = 32;
/// coLinux's number of programs that are started with the guest.
const MOST_PROGRAMS: usize = 8;
/// Smallest console of coLinux's.
const LEAST_COLUMNS: u32 = 16;
/// The same of lines.
const LEAST_ROWS: u32 = 2;

/// What coLinux's words say, in the terms of `covisor run`'s options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// `--kernel`.
    pub(super) kernel: Option<PathBuf>,
    /// `--initrd`.
    pub(super) initrd: Option<PathBuf>,
    /// `--mem`, in bytes.
    pub(super) memory: Option<u64>,
    /// `--disk`, with coLinux's names.
    pub(super) disks: Vec<Disk>,
    /// `--net`.
    pub(super) adapters: Vec<Adapter>,
    /// Folders to be shared.
    pub(super) shares: Vec<Share>,
    /// Programs of the host's to be started.
    pub(super) programs: Vec<Program>,
    /// `--append`.
    pub(super) append: Option<String>,
    /// What is to be said of words that are left out.
    pub(super) notices: Vec<String>,
}

/// A word that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{word}: {flaw}")]
pub(super) struct ColinuxError {
    word: String,
    flaw: Flaw,
}

/// What is wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
enum Flaw {
    #[error("it needs a value behind `=`")]
    NoValue,
    #[error("the name needs a number, 0 to {last}")]
    Number { last: usize },
    #[error("this name is there twice")]
    Twice,
    #[error("{0}")]
    Memory(String),
    #[error("a console's size is as in 80x25, {LEAST_COLUMNS}x{LEAST_ROWS} at least")]
    Console,
    #[error("behind `:` is the name of a disk, as in hda1=:cobd0")]
    Alias,
    #[error("there is no {0}=")]
    NoDisk(String),
    #[error("that disk is called {0} already")]
    AliasTaken(String),
    #[error("all {MANY} disks are taken")]
    ManyDisks,
    #[error("it needs a file, as in scsi0=disk,root.img")]
    NoFile,
    #[error("`{0}` is no kind of SCSI device; there are disk and cdrom")]
    ScsiKind(String),
    #[error("`{0}` cannot be passed on to a guest; disks, partitions and CD-ROMs can, as in scsi0=cdrom,FILE")]
    PassThrough(String),
    #[error("{} has not that size: make it by `covisor image create` or change it by the host's means, and leave the size away", .0.display())]
    ScsiSize(PathBuf),
    #[error("what a guest writes is for it alone: leave `shared` away, or give the image to each by --disk FILE,ro")]
    SharedDisk,
    #[error("there is more in it than it can have")]
    TooMuch,
    #[error("the networks are `slirp` and `tuntap`")]
    Network,
    #[error(
        "`{0}` is no more: use tuntap, and bridge the TAP interface with the network card (Windows: Network Connections; Linux: --net tap,bridge=NAME)"
    )]
    Bridge(String),
    #[error(transparent)]
    Adapter(#[from] SpecError),
    #[error(
        "a guest gets no serial port of the host's: reach it over the network (ser2net, hub4com), and leave this word away"
    )]
    Serial,
    #[error("it needs a program, as in exec0=PROGRAM,\"ARGUMENTS\"")]
    NoProgram,
    #[error(
        "it is no option: words for the kernel go behind --append, or beside kernel= or a disk in coLinux's words; an image goes behind --disk"
    )]
    NoOption,
}

impl Flaw {
    fn of(self, word: &str) -> ColinuxError {
        ColinuxError { word: word.to_owned(), flaw: self }
    }
}

/// What a word is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key<'a> {
    Kernel,
    Initrd,
    Memory,
    Console,
    /// What is no more, and what is so instead.
    Gone(&'static str),
    Disk(usize),
    Scsi(usize),
    /// A name that the guest has for a disk.
    Alias(&'a str),
    Folder(usize),
    Adapter(usize),
    Serial,
    Program(usize),
}

/// What a number behind a name says.
type OfNumber = fn(usize) -> Key<'static>;

/// The kinds that have a number behind their name, and how many of them there were.
const NUMBERED: [(&str, usize, OfNumber); 8] = [
    ("cobd", MANY, Key::Disk),
    ("scsi", MANY, Key::Scsi),
    ("cofs", MANY, Key::Folder),
    ("eth", MOST_ADAPTERS, Key::Adapter),
    ("ttys", MANY, |_| Key::Serial),
    ("exec", MOST_PROGRAMS, Key::Program),
    ("pci", MANY, |_| Key::Gone("covisor puts each device into a slot by itself")),
    ("video", 2, |_| Key::Gone("guests have no screen: use ssh, VNC or RDP over the network")),
];
/// Those whose bare names are for the kernel.
const KERNELS_OWN: [&str; 2] = ["pci", "video"];

impl<'a> Key<'a> {
    /// What a word's name says; `None` for the kernel's words.
    fn of(name: &'a str) -> Result<Option<Self>, Flaw> {
        let key = match name {
            "kernel" => Self::Kernel,
            "initrd" => Self::Initrd,
            "mem" => Self::Memory,
            "cocon" => Self::Console,
            "cursor" | "color" => Self::Gone("the console looks as the terminal does"),
            "setcobd" => Self::Gone("disks are always asynchronous"),
            _ if is_alias(name) => Self::Alias(name),
            _ => return Self::numbered(name),
        };
        Ok(Some(key))
    }

    fn numbered(name: &str) -> Result<Option<Self>, Flaw> {
        for (kind, count, key) in NUMBERED {
            let Some(digits) = name.strip_prefix(kind) else { continue };
            if !digits.bytes().all(|digit| digit.is_ascii_digit()) || digits.is_empty() && KERNELS_OWN.contains(&kind) {
                continue;
            }
            let number = digits.parse().ok().filter(|&number| number < count);
            return number.map(|number| Some(key(number))).ok_or(Flaw::Number { last: count - 1 });
        }
        Ok(None)
    }
}

/// Whether it is a disk's name as in Linux, such as `hda1`.
fn is_alias(name: &str) -> bool {
    let rest = name.strip_prefix("hd").or_else(|| name.strip_prefix("sd"));
    rest.is_some_and(|rest| match rest.as_bytes() {
        [b'a'..=b'z', digits @ ..] => digits.len() <= 2 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    })
}

impl Words {
    /// Follows the words, whose order does not matter: of names without a number, the last one counts.
    pub(super) fn parse(words: &[String]) -> Result<Self, ColinuxError> {
        let mut all = Self::default();
        let (mut disks, mut adapters) = (Disks::default(), Adapters::default());
        let mut shares: [Option<PathBuf>; MANY] = Default::default();
        let mut programs: [Option<Program>; MOST_PROGRAMS] = Default::default();
        let mut kernels: Vec<&str> = Vec::new();
        let mut is_machine = false;
        for word in words {
            let refuse = |flaw: Flaw| flaw.of(word);
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let key = if word.contains('=') { Key::of(name).map_err(refuse)? } else { None };
            let Some(key) = key else {
                kernels.push(word);
                continue;
            };
            if value.is_empty() {
                return Err(refuse(Flaw::NoValue));
            }
            is_machine |= matches!(key, Key::Kernel | Key::Initrd | Key::Disk(_) | Key::Scsi(_) | Key::Alias(_));
            match key {
                Key::Kernel => all.kernel = Some(value::path(value)),
                Key::Initrd => all.initrd = Some(value::path(value)),
                Key::Memory => {
                    all.memory = Some(parse_memory(value).map_err(|why| refuse(Flaw::Memory(why)))?);
                }
                Key::Console => {
                    check_console(value).map_err(refuse)?;
                    all.leave_out(word, "the guest's console has the size of the terminal");
                }
                Key::Gone(instead) => all.leave_out(word, instead),
                Key::Disk(number) => disks.add(number, value).map_err(refuse)?,
                Key::Scsi(number) => disks.add_scsi(number, value).map_err(refuse)?,
                Key::Alias(name) => disks.add_alias(word, name, value),
                Key::Folder(number) => once(&mut shares[number], value::path(value)).map_err(refuse)?,
                Key::Adapter(number) => adapters.add(number, value).map_err(refuse)?,
                Key::Serial => return Err(refuse(Flaw::Serial)),
                Key::Program(number) => once(&mut programs[number], program(value).map_err(refuse)?).map_err(refuse)?,
            }
        }
        if let Some(word) = kernels.first().filter(|_| !is_machine) {
            return Err(Flaw::NoOption.of(word));
        }
        let disks = disks.in_order()?;
        let append = kernels.iter().map(|word| disks.for_the_kernel(word)).collect::<Result<Vec<_>, _>>()?;
        all.append = Some(append.join(" ")).filter(|append| !append.is_empty());
        all.disks = disks.into_disks();
        all.adapters = adapters.in_order();
        let share = |(number, folder): (usize, Option<PathBuf>)| Some(Share::tagged(Tag::colinux(number), folder?));
        all.shares = shares.into_iter().enumerate().filter_map(share).collect();
        all.programs = programs.into_iter().flatten().collect();
        Ok(all)
    }

    fn leave_out(&mut self, word: &str, instead: &str) {
        self.notices.push(format!("{word} has no meaning any more: {instead}"));
    }
}

/// Puts a thing where none may be yet.
fn once<T>(place: &mut Option<T>, thing: T) -> Result<(), Flaw> {
    match place.replace(thing) {
        Some(_) => Err(Flaw::Twice),
        None => Ok(()),
    }
}

/// `COLUMNSxROWS`, in whose place coLinux's manual also has a comma, and perhaps `xLINES` to be scrolled back.
fn check_console(value: &str) -> Result<(), Flaw> {
    let numbers: Vec<u32> =
        value.split(['x', ',']).map(str::parse).collect::<Result<_, _>>().map_err(|_| Flaw::Console)?;
    match numbers[..] {
        [columns, rows] | [columns, rows, _] if columns >= LEAST_COLUMNS && rows >= LEAST_ROWS => Ok(()),
        _ => Err(Flaw::Console),
    }
}

/// `PROGRAM,"ARGUMENTS"`.
fn program(value: &str) -> Result<Program, Flaw> {
    let mut parts = value::list(value).into_iter();
    let path = parts.next().filter(|path| !path.is_empty()).ok_or(Flaw::NoProgram)?;
    let arguments = parts.next().unwrap_or_default();
    if parts.next().is_some() {
        return Err(Flaw::TooMuch);
    }
    Ok(Program { path: path.into(), arguments })
}
