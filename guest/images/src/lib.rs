//! Builds what runs in a guest: the `mini` initramfs and the `debian` disk image.
//!
//! Both come from Debian's packages as they are, fetched from the mirror that this machine's own
//! apt uses. The building blocks (initramfs archives, kernel packages, module trees, progress,
//! running programs) are public: the test rig builds its own host initramfs from them.

pub mod apt;
pub mod command;
pub mod cpio;
pub mod debian;
pub mod error;
pub mod fs;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod progress;

pub use error::{Error, Result};
