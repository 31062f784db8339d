//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

/// Bytes, as people read them.
struct MiB(u64);

impl std::fmt::Display for MiB {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

/// Why no root file system was made.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// The host has not what it takes.
    #[error(
        "on this host guests are made of disk images only: make a disk image elsewhere, and name it by --from; \
         `covisor create` on Linux makes them of packages and archives"
    )]
    NotHere,
    /// A program is not there.
    #[error("there is no program {program} here: `apt install {package}` installs it")]
    Tool {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// Only one of the programs is there, and it takes root's rights.
    #[error("debootstrap makes a Debian for root only: use sudo, or `apt install mmdebstrap`, which does it for all")]
    NeedsRoot,
    /// Packages could not be checked.
    #[error(
        "the keys that packages are checked by are not in {0}: `apt install debian-archive-keyring` puts them there"
    )]
    NoKeys(&'static str),
    /// It is not known where packages come from.
    #[error("{0}, or name a mirror by --mirror URL")]
    Sources(String),
    /// The tools do not know the suite.
    #[error("there is no Debian suite {0} that debootstrap knows; bookworm and trixie are two")]
    Suite(String),
    /// A program failed.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said of that.
        said: String,
    },
    /// A program could not be run.
    #[error("cannot run {program}: {error}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// The host says no.
    #[error("{}: {}", path.display(), crate::run::describe(error))]
    Host {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The disk that it is made on is full.
    #[error("there is not enough room in {}: {} more or less are needed, beside those of the guest's own files", path.display(), MiB(*needed))]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// Bytes.
        needed: u64,
    },
    /// The archive is not as it should be.
    #[error("{}: {error}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        error: ArchiveError,
    },
    /// The guest's disk is too small.
    #[error("a disk of {} is too small: its files need about {}; say --size", MiB(*size), MiB(*needed))]
    TooSmall {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of the least that would do, as far as is known.
        needed: u64,
    },
    /// There is nothing to start.
    #[error("there is no kernel in its /boot: name one by --kernel FILE, and --initrd FILE, behind the guest's name")]
    NoKernel,
    /// The user put an end to it.
    #[error("it was interrupted, and nothing of the guest is left")]
    Cancelled,
}

/// What is wrong with an archive.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// It cannot be read, or not be understood.
    #[error("the archive is damaged, or none: {0}")]
    Damaged(String),
    /// It is compressed in a way that is not known.
    #[error("it is compressed by {0}; uncompressed archives and those by gzip, xz and zstd can be read")]
    Compression(&'static str),
    /// Nothing is in it.
    #[error("there is nothing in the archive")]
    Empty,
    /// A name leads out of the root file system.
    #[error("`{0}` would be outside of the guest's root file system")]
    Outside(String),
    /// A name leads through what is no folder.
    #[error("`{0}` is in what the archive has as a link or file, not as a folder")]
    NoFolder(String),
    /// A name that cannot be written down for the tools.
    #[error("the name `{0}` has control characters or is no UTF-8, which cannot be put on the guest's disk here")]
    Name(String),
    /// A folder is there as something else, too.
    #[error("`{0}` is in the archive twice, once as a folder")]
    Twice(String),
    /// A hard link to nothing.
    #[error("`{0}` is a second name of a file that does not come before it")]
    Link(String),
    /// Something that no file system has.
    #[error("`{0}` is of a kind that is not known")]
    Kind(String),
}
