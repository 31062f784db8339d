//! Running a machine, from its configuration to its end.

mod clock;
mod commands;
mod config;
mod console;
mod end;
mod exec;
mod notice;
mod openings;
mod programs;
mod question;
mod session;
mod stop;

pub use config::AttachedNetwork;
pub use config::Config;
pub use config::ConfigError;
pub use config::Console;
pub use config::Disk;
pub use config::NamedDisk;
pub use config::Prepared;
pub use config::check_name;
pub(crate) use config::describe;
pub use config::disk_name;
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
