//! The driver for Wine, to test all of its control path on a machine without Windows. Wine loads a driver into a process of its
//! own, `winedevice.exe`, of which the program that makes a call is just another one, and has for drivers what most of them need.
//! Here is, on what Wine does have, what it lacks (looked at in Wine 8.0); everything else is the driver that Windows loads.
//!
//! | Wine lacks | here | module |
//! |---|---|---|
//! | privileged instructions, CR8 and CPU numbers | a machine with one CPU, which is a lock; guests are interpreted | `cpu` |
//! | deferred calls that are queued | none: they only interrupt CPUs, and the interpreter comes to an end by itself | `kernel` |
//! | physical pages in MDLs, and mapping them | one section, of which a page's number is its address, mapped into programs in parts | `memory` |
//! | `KeStackAttachProcess`; the caller in threads of the driver's own | whose behalf a thread is on, kept by the thread | `client` |
//! | handles of the caller | they are duplicated into Wine's process | `client` |
//! | a second thread for requests: while one is carried out, Wine hands out no other, not even a cancel | `RUN` is pending, and threads of the driver's own carry it out | `runs` |
//! | IRP_MJ_CLEANUP; waiting with IRP_MJ_CLOSE for pending requests, and with the unload for open handles | all of it done here | `requests` |
//!
//! Regions of guest RAM have to be multiples of 64 KiB, for that is what Wine maps; and all of them together have to fit into the
//! section.

mod client;
mod cpu;
mod kernel;
mod memory;
mod requests;
mod runs;

use alloc::vec::Vec;

use covisor_core::device::entry;
use covisor_core::host::OutOfMemory;
use covisor_interpreter::Interpreter;
use covisor_nt::Engines;
use covisor_nt::Kapi;
use covisor_nt::Nt;
use covisor_nt::StartError;

pub(crate) use kernel::Kernel;
pub(crate) use requests::dispatch;
pub(crate) use requests::unload;

/// The one engine.
fn engines() -> Result<Engines<Kernel>, OutOfMemory> {
    let mut engines = Vec::new();
    engines.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
    engines.push(entry::<Nt<Kernel>, Interpreter>()?);
    Ok(engines)
}

/// Starts the port.
///
/// # Safety
/// As [`covisor_nt::Port::start`].
pub(crate) unsafe fn start() -> Result<(), StartError> {
    memory::start()?;
    // SAFETY: by the caller.
    let result = unsafe { Kernel::port().start_with(engines) };
    if result.is_err() {
        memory::stop();
    }
    result
}
