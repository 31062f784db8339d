//! Root file systems for guests, made of Debian's packages or of an archive.
//!
//! Here is what is wanted and what can go wrong; `sys` makes it, where the host has the tools.

mod error;
mod source;

use std::path::Path;
use std::path::PathBuf;

pub use error::ArchiveError;
pub use error::RootfsError;
pub use source::Source;

/// What a guest's disk is made of.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Debian's packages.
    Debian(&'a Debian),
    /// An archive of a root file system: tar, also compressed by gzip, xz or zstd.
    Archive(&'a Path),
}

/// A Debian to be.
#[derive(Debug, Clone)]
pub struct Debian {
    /// Its suite; if it is not said, that of this machine.
    pub suite: Option<String>,
    /// Where its packages come from; if it is not said, from where this machine's do.
    pub mirror: Option<String>,
    /// Whether it gets the kernel with all drivers, instead of that for virtual machines.
    pub generic: bool,
    /// Packages beside those that every guest has.
    pub include: Vec<String>,
    /// Its host name.
    pub host_name: String,
}

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What of.
    pub content: Content<'a>,
    /// Where: a folder of the caller's own, in which other files come and go meanwhile.
    pub folder: &'a Path,
    /// Bytes of the disk.
    pub size: u64,
    /// The agent that it gets.
    pub agent: Option<&'a Path>,
    /// Whether its kernel is to come from what is installed in it.
    pub with_kernel: bool,
}

/// What was made, in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The disk: a raw image, which as a whole is one ext4 file system.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk, if it has one.
    pub initrd: Option<PathBuf>,
}

/// Who looks on, and may put an end to it.
pub trait Watch {
    /// This begins.
    fn step(&mut self, what: &str);
    /// This happens within.
    fn detail(&mut self, what: &str);
    /// Whether nobody wants it any more.
    fn is_cancelled(&self) -> bool;
}
