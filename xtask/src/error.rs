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

    /// A part of the project is not there yet.
    #[error("{0} cannot be built yet: its recipe is not written")]
    NotBuilt(&'static str),

    /// No compiler can build for bare metal.
    #[error(
        "no Rust toolchain here can build ring-0 code: it takes either rustup's `rust-src` component for the active toolchain \
         (`rustup component add rust-src`) or Debian's packages rustc-web, cargo-web and rust-web-src (`cargo xtask setup`)"
    )]
    NoBareMetalToolchain,
}
