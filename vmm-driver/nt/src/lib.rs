//! covisor's driver on Windows, as far as it is logic: core's [`Host`](covisor_core::host::Host) and the device over the small
//! trait [`Kapi`], which has one function for each that is taken of the NT kernel. What implements it, and turns requests into
//! calls of [`Port`], is the driver file's crate (`sys`). This one builds everywhere, and its tests run on a kernel that is a
//! fake.
//!
//! | module | concept |
//! |---|---|
//! | `kapi` | what is taken of the kernel |
//! | `routines` | newer functions of the kernel, and how to do without |
//! | `status` | status numbers |
//! | `port` | the driver: start, stop, sleep |
//! | `file` | an open handle, and its calls |
//! | `host` | core's host |
//! | `cpus` | CPUs, preemption, interrupts from one to the other |
//! | `pages`, `maps` | memory, and the loader's view of it |
//! | `sync`, `lock`, `gate` | what threads wait for |
//! | `clock` | time |
//! | `watch` | what NT watches |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod clock;
mod cpus;
mod file;
mod gate;
mod host;
pub mod kapi;
mod lock;
mod maps;
mod pages;
mod port;
mod routines;
mod status;
mod sync;
#[cfg(test)]
mod tests;
mod watch;

pub use file::Answer;
pub use file::Control;
pub use host::Nt;
pub use kapi::Kapi;
pub use maps::Mapping;
pub use port::Engines;
pub use port::Port;
pub use port::StartError;
pub use status::NtStatus;
pub use sync::Event;
pub use sync::Timer;
pub use sync::Waker;
pub use watch::Watched;
