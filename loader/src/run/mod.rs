//! Running a machine, from its configuration to its end.

mod attachments;
mod clock;
mod commands;
mod config;
mod config_error;
mod console;
mod end;
mod exec;
mod notice;
mod openings;
mod programs;
mod question;
mod requests;
mod session;
mod stop;

pub use attachments::AttachedNetwork;
pub use attachments::Disk;
pub use attachments::NamedDisk;
pub use attachments::OpenShare;
pub use attachments::disk_name;
pub use config::Config;
pub use config::Console;
pub use config::Prepared;
pub use config::check_name;
pub use config_error::ConfigError;
pub(crate) use config_error::describe;
pub use console::Escape;
pub use console::Key;
pub use console::Tail;
pub(crate) use end::COLINUX_ERROR;
pub use end::End;
#[cfg(target_os = "linux")]
pub(crate) use end::INTERRUPTED;
pub use end::RunError;
#[cfg(target_os = "linux")]
pub(crate) use end::USAGE;
pub use notice::install_logger;
pub use notice::notice;
pub use programs::Program;
pub use session::run;
