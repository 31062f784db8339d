//! What can go wrong, in the words that the user reads.

use covisor_guest_images::error::Error as BuildError;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used, a program failed, an image could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),

    /// A measurement failed.
    #[error(transparent)]
    Bench(#[from] crate::bench::BenchError),

    /// What is built for a Windows host.
    #[error(transparent)]
    Windows(#[from] crate::windows::WindowsError),

    /// A part of the project is not there yet.
    #[error("{0} cannot be built yet: its recipe is not written")]
    NotBuilt(&'static str),

    /// No compiler can build for bare metal.
    #[error(
        "no Rust toolchain here can build ring-0 code: it takes either rustup's `rust-src` component for the active toolchain \
         (`rustup component add rust-src`) or Debian's packages rustc-web, cargo-web and rust-web-src (`cargo xtask setup`)"
    )]
    NoBareMetalToolchain,

    /// No kernel headers are installed.
    #[error(
        "no kernel headers to build the driver with in /usr/src/linux-headers-*-cloud-amd64: `cargo xtask setup` installs linux-headers-cloud-amd64"
    )]
    NoHeaders,

    /// QEMU cannot be started.
    #[error("cannot start qemu-system-x86_64: {source} (`cargo xtask setup` installs it)")]
    StartQemu {
        /// Why.
        source: std::io::Error,
    },

    /// Bochs cannot be started.
    #[error("cannot start Bochs: {source}")]
    StartBochs {
        /// Why.
        source: std::io::Error,
    },

    /// Bochs' source is not what it was.
    #[error("{} of Bochs' source has not the place that is mended: see whether it still must be", .0.display())]
    OtherBochs(std::path::PathBuf),

    /// The disk for Bochs cannot be made.
    #[error("cannot make the disk that Bochs boots from: {0}")]
    BootDisk(&'static str),

    /// Bochs has limits.
    #[error("the emulated machine of Bochs' can have no more than {limit} {what}, not {wanted}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The most.
        limit: u64,
        /// What was asked for.
        wanted: u64,
    },

    /// A script for the host is too long.
    #[error(transparent)]
    TooLong(#[from] covisor_exec_protocol::EncodeError),

    /// The agent in the rig's host misbehaves.
    #[error("the agent in the emulated machine's host went wrong: {0}")]
    Agent(String),

    /// The emulated machine took too long.
    #[error("the emulated machine did not finish `{what}` within {seconds} s; its console's last lines:\n{log}")]
    RigLate {
        /// What it was doing.
        what: String,
        /// The limit.
        seconds: u64,
        /// The console's end.
        log: String,
    },

    /// The emulated machine ended in the middle.
    #[error(
        "the emulated machine ended by itself; the emulator's messages:\n{messages}\nits console's last lines:\n{log}"
    )]
    RigDied {
        /// What the emulator said.
        messages: String,
        /// The console's end.
        log: String,
    },

    /// The terminal cannot be used.
    #[error("cannot use this terminal: {source}")]
    Terminal {
        /// Why.
        source: std::io::Error,
    },

    /// This machine is no Debian.
    #[error(
        "this machine has no dpkg and apt-get: the build and the emulated machine are made from Debian 12's packages, so run this on Debian 12 or in a container of it"
    )]
    NotDebian,

    /// Packages are missing and this is not root.
    #[error("these packages are missing, and only root can install them; type:\n  {command}")]
    NeedsPackages {
        /// What installs them.
        command: String,
    },

    /// A file that the user named is not there.
    #[error("there is no file {}", .0.display())]
    NoSuchFile(std::path::PathBuf),

    /// The Debian image has no initrd for the user's kernel.
    #[error(
        "the Debian image has no initrd for the kernel {version}, only for {known}: name the kernel's own with --initrd FILE"
    )]
    NoInitrd {
        /// The kernel's version.
        version: String,
        /// The versions that it has.
        known: String,
    },
}

impl From<covisor_guest_images::apt::SourcesError> for Error {
    fn from(error: covisor_guest_images::apt::SourcesError) -> Self {
        Self::Build(error.into())
    }
}
