//! What depends on the host operating system, behind the same names on each.

mod disk_error;
mod finding;
mod folder;
mod ready;
mod refusal;
mod request;
mod service_error;
mod service_status;
pub mod transfer;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(windows, test))]
mod nt;
#[cfg(windows)]
mod windows;

pub use finding::Finding;
#[cfg(target_os = "linux")]
pub use linux::*;
pub use ready::Ready;
pub use refusal::CallRefusal;
pub use refusal::OpenRefusal;
pub use request::Request;
#[cfg(windows)]
pub use windows::*;
