//! What can go wrong, in the words that the user reads.

use std::io;
use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The image cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is no ELF file that can be loaded.
    #[error("the probe's image is broken: {0}")]
    Image(&'static str),
    /// RAM for the guest.
    #[error("no memory for the guest: {0}")]
    Memory(io::Error),
    /// KVM refused.
    #[error("KVM cannot {what}: {source} (is kvm_amd or kvm_intel loaded, and may you open /dev/kvm?)")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// The doorbell's event.
    #[error("cannot make an event: {0}")]
    Event(io::Error),
    /// Output.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    /// The guest died.
    #[error("the guest ended by {0}")]
    Guest(String),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}
