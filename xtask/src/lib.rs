//! covisor's build, run and test commands as a library: the `cargo xtask` program is a thin shell
//! over it, and the end-to-end tests drive the same [`rig`].

pub mod bench;
pub mod build;
pub mod driver;
pub mod env;
pub mod error;
pub mod fuzz;
pub mod host;
pub mod host_shell;
pub mod images;
pub mod monitor;
pub mod probe;
pub mod rig;
pub mod run;
pub mod scenario;
pub mod setup;
pub mod test;
pub mod toolchain;
pub mod tools;
pub mod windows;
pub mod work;

pub use env::Env;
pub use error::{Error, Result};
