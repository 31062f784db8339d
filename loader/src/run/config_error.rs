//! What may be wrong with a configuration, in the words that the user reads.

use std::io;
use std::path::PathBuf;

use covisor_abi::paravirtual::RAM_LIMIT;
use covisor_exec_protocol::EncodeError;
use thiserror::Error;

use super::attachments::MOST_SHARES;
use super::config::MAX_NAME;
use crate::disk::DiskError;
use crate::kernel::KernelError;
use crate::net::Mac;
use crate::net::nat::NatError;
use crate::net::spec::MOST_ADAPTERS;
use crate::net::tap::TapError;
use crate::share::Tag;

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
