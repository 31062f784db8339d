//! `vm-memory` 0.17 by `vm-memory` 0.18, without the feature `rawfd`.
//!
//! `virtio-queue` and `linux-loader` depend on `vm-memory` with its default feature `rawfd`, which neither uses, and with which
//! it does not compile for Windows. A dependency cannot take away another's features. So the workspace's `[patch.crates-io]`
//! gives them this crate, which passes on the next version's items by the names that they know.

pub use published::GuestMemoryBackend as GuestMemory;
pub use published::*;
