//! What can go wrong while building an image, in the words that the user reads.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while building an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried: "read", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// A program could not be started.
    #[error("cannot run {program}: {source} (`cargo xtask setup` installs what the build needs)")]
    Start {
        /// The program.
        program: String,
        /// Why it failed.
        source: io::Error,
    },

    /// A program failed.
    #[error("`{command}` failed ({status}){}", last_words(tail))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines of output.
        tail: String,
    },

    /// A file does not fit an initramfs.
    #[error(transparent)]
    TooLarge(#[from] crate::cpio::TooLarge),

    /// It is not known where packages come from.
    #[error(transparent)]
    Sources(#[from] covisor_debian::sources::SourcesError),

    /// Only root may do it.
    #[error(
        "building the Debian disk image needs root, for debootstrap's chroot: run the same command once as root, for example \
         `sudo env PATH=\"$PATH\" cargo xtask build`; afterwards everybody can use it"
    )]
    NotRoot,

    /// What a program or file says is not what it should say.
    #[error("{0}")]
    Unexpected(String),
}

/// The output's end, set off from the message.
fn last_words(tail: &str) -> String {
    if tail.trim().is_empty() { ", without a word".to_owned() } else { format!(":\n{}", tail.trim_end()) }
}

impl Error {
    /// Makes the error of a file operation; for `map_err`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
