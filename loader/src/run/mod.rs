//! Running a machine, from its configuration to its end.

mod config;
mod console;
mod end;
mod exec;
mod notice;
mod session;

pub use config::Config;
pub use config::ConfigError;
pub use config::Console;
pub use config::Disk;
pub use config::Prepared;
pub use console::Escape;
pub use console::Key;
pub use console::Tail;
pub use end::End;
pub use end::RunError;
pub use notice::install_logger;
pub use notice::notice;
pub use session::run;
